"""`minilens patching`: what the values of one run bring back in another."""

from dataclasses import dataclass
from functools import partial

from ..checkpoint.tokenizer import Tokenizer
from ..instruments.metrics import log_probability, logit_difference
from ..instruments.patching import patching as patching_of
from ..model import Model
from ..traces import HEAD_SITES, SITES
from ..views.tokens import text_label, token_label
from .inputs import ModelChoice, Pair, named_token, words
from .options import Command, option
from .outputs import Files, chosen, print_json, progress, terminal


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `minilens patching` is asked for. Raises ValueError for two kinds of output."""

    texts: Pair
    right: str = option(required=True, metavar="TOKEN", help='the token that the clean text calls for, such as " Sue"')
    wrong: str | None = option(
        metavar="TOKEN",
        help="the one that the corrupt text calls for; the metric is the difference of their logits, and without "
        "--wrong the log-probability of --right",
    )
    sites: str | None = option(
        help=f"values to put in, with commas, of {', '.join(SITES)} (default: resid_pre,attn_out,mlp_out; by head z); "
        f"by head {', '.join(HEAD_SITES)}",
    )
    by: str = option(default="position", help='"position" or "head" (default: %(default)s)')
    position: int = option(default=-1, help="where the metric is taken; -1 is the last (default: %(default)s)")
    model: ModelChoice
    json: bool = option(help="print all numbers as JSON")
    files: Files

    def __post_init__(self) -> None:
        chosen(json=self.json, files=self.files)

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
    labels = [token_label(tokenizer, token) for token in named.values()]
    if "wrong" in named:
        metric, asked = logit_difference(*named.values()), "logit of {} less that of {}".format(*labels)
    else:
        metric, asked = log_probability(*named.values()), "log-probability of {}".format(*labels)
    default = "z" if request.by == "head" else "resid_pre,attn_out,mlp_out"
    with progress() as bar:
        found = patching_of(
            model,
            clean,
            corrupt,
            metric,
            sites=words(default if request.sites is None else request.sites),
            by=request.by,
            position=request.position,
            tokenizer=tokenizer,
            each=partial(bar.track, description="patching"),
        )
    name, position = request.model.name, request.position % clean.shape[1]
    title = f"{text_label(name)}: {asked}, at position {position}"
    if request.json:
        from ..views.records import patching_record, token_record

        tokens = {which: token_record(tokenizer, token) for which, token in named.items()}
        about = {"model": name, "family": model.family, "position": position}
        print_json({**about, **tokens, **patching_record(found)})
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
