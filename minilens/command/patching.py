"""`minilens patching`: what the values of one run bring back in another."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from ..checkpoint.tokenizer import Tokenizer
from ..instruments.metrics import METRICS, named_metric
from ..instruments.patching import patching as patching_of
from ..instruments.paths import path_patching
from ..model import Model
from ..traces import HEAD_SITES, SITES
from ..views.tokens import text_label, token_label
from .edits import named_place
from .inputs import ModelChoice, Pair, named_token, words
from .options import Command, option
from .outputs import Files, chosen, print_json, progress, terminal


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens patching` is asked for. Raises ValueError for two kinds of output, and for no receiver."""

    texts: Pair
    right: str = option(required=True, metavar="TOKEN", help='the token that the clean text calls for, such as " Sue"')
    wrong: str | None = option(metavar="TOKEN", help="the one that the corrupt text calls for")
    metric: str | None = option(
        help=f"of {', '.join(METRICS)} (default: the first of them with --wrong, the second without)"
    )
    sites: str | None = option(
        help=f"values to put in, with commas, of {', '.join(SITES)} (default: resid_pre,attn_out,mlp_out; of heads z); "
        f"of heads {', '.join(HEAD_SITES)}",
    )
    by: str | None = option(
        help='"position", "head", or "head_position" for a head at each position (default: position; with --to head)'
    )
    to: list[str] = option(
        action="append",
        default=[],
        metavar="PLACE",
        help="path patching: only this place hears of the change directly, such as 6.q:1 (a head's queries), "
        "5.mlp_post, or logits; may be repeated",
    )
    frozen: str = option(
        default="attn_out,mlp_out",
        help="with --to: what writes as in the corrupt run between the two; attn_out lets MLPs pass a change on "
        "(default: %(default)s)",
    )
    position: int = option(default=-1, help="where the metric is taken; -1 is the last (default: %(default)s)")
    model: ModelChoice
    json: bool = option(help="print all numbers as JSON")
    files: Files

    def __post_init__(self) -> None:
        chosen(json=self.json, files=self.files)
        self.receivers()

    def receivers(self) -> list[tuple[int, str, list[int] | None]] | None:
        """The places of --to; None for the logits."""
        if self.to == ["logits"]:
            return None
        places = [named_place(place) for place in self.to]
        if any(place.positions for place in places):
            raise ValueError("--to takes no positions: a receiver is a value at all of them, such as 6.q:1")
        return [(place.layer, place.site, place.heads) for place in places]

    def tokens(self, model: Model, tokenizer: Tokenizer) -> dict[str, int]:
        """The token of --right, and of --wrong if there is one."""
        given = {"right": self.right} | ({} if self.wrong is None else {"wrong": self.wrong})
        named = {name: named_token(f"--{name}", text, tokenizer) for name, text in given.items()}
        d_vocab = model.W_U.shape[1]
        for name, token in named.items():
            if token >= d_vocab:
                raise ValueError(f"--{name}: token id {token} does not exist: they go from 0 to {d_vocab - 1}")
        return named


def patching(request: Request) -> None:
    """Put the values of one run into another, one at a time, and show how much of the metric each brings back."""
    model, tokenizer = request.model.loading.load_reader(request.model.name, "the two texts")
    clean, corrupt = request.texts.tokens(tokenizer)
    named = request.tokens(model, tokenizer)
    measured = request.metric or ("logit_difference" if "wrong" in named else "log_probability")
    by = request.by or ("head" if request.to else "position")
    default = "z" if "head" in by else "resid_pre,attn_out,mlp_out"
    path: dict[str, Any] = {"to": request.receivers(), "frozen": words(request.frozen)} if request.to else {}
    with progress() as bar:
        found = (path_patching if request.to else patching_of)(
            model,
            clean,
            corrupt,
            named_metric(measured, *named.values()),
            sites=words(default if request.sites is None else request.sites),
            by=by,
            position=request.position,
            tokenizer=tokenizer,
            each=partial(bar.track, description="patching"),
            **path,
        )
    labels = " less that of ".join(token_label(tokenizer, token) for token in named.values())
    name, position = request.model.name, request.position % clean.shape[1]
    title = f"{text_label(name)}: {measured.split('_diff')[0].replace('_', '-')} of {labels}, at position {position}"
    title += f", straight to {text_label(', '.join(request.to))}" if request.to else ""
    if request.json:
        from ..views.records import patching_record, token_record

        tokens = {which: token_record(tokenizer, token) for which, token in named.items()}
        path |= {"to": request.to} if request.to else {}
        about = {"model": name, "family": model.family, "position": position, "measured": measured}
        print_json({**about, **path, **tokens, **patching_record(found)})
    elif request.files.given:
        from ..views.patching import patching_page

        figure = None
        if request.files.figures:
            from ..views.patching_figure import patching_figure

            figure = patching_figure(found, title=title)
        request.files.write(patching_page(found, title=title), figure)
    else:
        from ..views.patching import patching_view

        console = terminal()
        console.print(patching_view(found, title=title, width=console.width))


COMMAND = Command("patching", "what the values of one run bring back in another", Request, patching)
