"""`minilens attribute`: what each part of a model adds to a logit, in one text or in several."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoint.tokenizer import Tokenizer
from ..instruments.attributions import attributions
from ..shapes import Tokens
from ..views.tokens import text_label
from .edits import Edits
from .inputs import ModelChoice, Opening, named_token, read_text
from .options import Command, argument, option
from .outputs import Files, chosen, print_json, say, terminal


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The texts. Of several, means are shown, with their standard errors."""

    prompts: list[str] = argument(
        nargs="*", metavar="TEXT", help="the texts to read; without any they come from --file or from stdin, one a line"
    )
    file: Path | None = option(help="read the texts from a file, one a line")
    opening: Opening

    def read(self, tokenizer: Tokenizer) -> tuple[Tokens, torch.Tensor]:
        """The tokens of all texts, padded, and how many each has."""
        texts = self._texts()
        for hint in dict.fromkeys(tokenizer.hint(text) for text in texts):
            if hint:
                say(f"note: {hint}")
        return tokenizer.encode([self.opening.of(text, tokenizer) for text in texts])

    def _texts(self) -> list[str]:
        if self.prompts and self.file is not None:
            raise ValueError("a text and --file are both given: choose one")
        if self.prompts:
            return self.prompts
        if self.file is None and (sys.stdin is None or sys.stdin.isatty()):
            raise ValueError("there is nothing to read: give a text, --file, or texts on stdin")
        return read_text(self.file).split("\n")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens attribute` is asked for. Raises ValueError for two kinds of output."""

    texts: Prompts
    token: list[str] = option(
        action="append",
        default=[],
        metavar="TOKEN",
        help='the token of the logit, such as " girl" or #464 (default: the best of each text); once for all texts, or '
        "once for each",
    )
    against: list[str] = option(
        action="append", default=[], metavar="TOKEN", help="a token whose logit is subtracted; as often as --token"
    )
    by: str = option(default="layer", help='"layer", "head", "position" or "neuron" (default: %(default)s)')
    position: int = option(default=-1, help="whose next token it is; -1 is the last (default: %(default)s)")
    edits: Edits
    model: ModelChoice
    json: bool = option(help="print all numbers as JSON")
    files: Files

    def __post_init__(self) -> None:
        chosen(json=self.json, files=self.files)


def attribute(request: Request) -> None:
    """Show what each part adds to a logit."""
    from ..views.attribution import asked, attribution_page, attribution_record, attribution_view

    model, tokenizer = request.model.loading.load_reader(request.model.name, "a text")
    tokens, lengths = request.texts.read(tokenizer)
    given = {"token": request.token, "against": request.against}
    named = {name: [named_token(f"--{name}", text, tokenizer) for text in texts] for name, texts in given.items()}
    found = attributions(
        model,
        tokens,
        lengths=lengths,
        position=request.position,
        token=one_or_each(named["token"]),
        against=one_or_each(named["against"]),
        neurons=range(model.n_layers) if request.by == "neuron" else None,
        edit=request.edits.edit(model, tokenizer, request.texts.opening),
        tokenizer=tokenizer,
    )
    name, edits = request.model.name, request.edits.names
    title = f"{text_label(name)}: {asked(found)}" + (f"; edited: {text_label(', '.join(edits))}" if edits else "")
    if request.json:
        print_json({"model": name, "family": model.family, "edits": edits, **attribution_record(found, by=request.by)})
    elif request.files.given:
        figure = None
        if request.files.figures:
            from ..views.attribution_figure import attribution_figure

            figure = attribution_figure(found, by=request.by, title=title)
        request.files.write(attribution_page(found, by=request.by, title=title), figure)
    else:
        console = terminal()
        console.print(attribution_view(found, by=request.by, title=title, width=console.width))


def one_or_each(tokens: list[int]) -> list[int] | int | None:
    """As `attributions` takes them: none, one for all texts, or one for each."""
    return (tokens[0] if len(tokens) == 1 else tokens) if tokens else None


COMMAND = Command("attribute", "what each part of a model adds to a logit, in one text or several", Request, attribute)
