"""The page that computes, as one HTML file: it holds a model, and opens from disk or from any web server."""

import inspect
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.tokenizer import Tokenizer
from ..learned.affine import LearnedLens
from ..model import Model
from ..views.colours import CIVIDIS
from ..views.lens_page import LARGE
from ..views.lens_panels import ENDS
from ..views.one_file import as_json, one_file
from ..views.tokens import printable, token_label
from ..views.walk import source_lines
from .packed import packed

HERE = Path(__file__).parent
ENGINE = (
    "matrix", "ops", "traces", "gpt2", "gpt_neo", "ctrl", "stream", "vocab", "lens", "tokenizer", "engine", "worker"
)  # fmt: skip
OPENING = "Once upon a time there was a little girl"


def live_page(
    model: Model,
    tokenizer: Tokenizer,
    *,
    lenses: Sequence[LearnedLens] = (),
    title: str = "",
    text: str | None = None,
    large: bool = False,
) -> str:
    """The text of one HTML file that holds the model: type into it, and the grid of the lens follows.

    Weights are kept in float16, as base64: a page takes 4/3 of their bytes, and computes in float32. lenses: learned
    ones, to choose beside the logit lens. text: what it opens with. large: it opens with text for a projector.

    The browser sends nothing from the page and loads nothing for it. Write the text as UTF-8. Raises ValueError for a
    model above 60 MB, for weights that float16 cannot hold, for a tokenizer that the page does not run, for a lens of
    another model, and for text that is not valid Unicode.
    """
    about, numbers = packed(model, tokenizer, lenses)
    engine = "\n".join(['"use strict";', *((HERE / f"{name}.js").read_text(encoding="utf-8") for name in ENGINE)])
    holds = [
        f'<script type="application/json" id="model">{as_json(about)}</script>',
        f'<script type="text/plain" id="engine">{engine}</script>',
        f'<script type="text/plain" id="weights">{b64encode(numbers).decode()}</script>',
    ]
    parts = {"holds": "\n".join(holds), "runs": "'wasm-unsafe-eval'"}  # which matrix.js needs
    return asking_page("ask_worker", model, tokenizer, lenses, title, text, {"large": large}, **parts)


def asking_page(
    source: str,
    model: Model,
    tokenizer: Tokenizer,
    lenses: Sequence[LearnedLens],
    title: str,
    text: str | None,
    more: Mapping[str, Any],
    **parts: str,
) -> str:
    """The page that asks a source, the script of that name, for what it draws.

    more: whether it opens `large`; the `models` that its server has, and the name of this `model` among them. parts: of
    the page, as for `one_file`.

    Raises ValueError for text that is not valid Unicode.
    """
    if text is None:
        text = " ".join([*tokenizer.codes[:1], OPENING])
    tokenizer.encode(text)  # which says whether it can be read
    method: Any = type(model).block
    record = {
        "title": printable(title),
        "scale": CIVIDIS,
        "ends": ENDS,
        "size": LARGE if more.get("large") else None,
        "tokens": [token_label(tokenizer, token) for token in range(model.W_U.shape[1])],
        "tables": [],
        "attention": None,
        "live": {
            "text": text,
            "model": more.get("model"),
            "models": more.get("models", []),
            "n_ctx": model.config.n_ctx,
            "n_layers": model.n_layers,
            "n_heads": model.config.n_heads,
            "lenses": [{"name": lens.name, "decoder": lens.decoder, "norm": lens.norm} for lens in lenses],
            "file": f"minilens/{Path(inspect.getfile(method)).name}",
            "source": [line._asdict() for line in source_lines(method)],
        },
    }
    return one_file(
        record,
        style=(HERE / "live.css").read_text(encoding="utf-8"),
        script="\n".join((HERE / f"{name}.js").read_text(encoding="utf-8") for name in (source, "writing", "live")),
        asks=(HERE / "live.html").read_text(encoding="utf-8"),
        **parts,
    )
