"""The commitment strip: a line for each token that is written, and in it a mark for each row of the lens."""

from collections.abc import Iterable, Iterator
from typing import Any

from rich.style import Style
from rich.text import Text

from ..checkpoint.tokenizer import Tokenizer
from ..instruments.generation import GenerationStep
from ..shapes import Tokens
from .colours import TOWARDS
from .grid import BOLD, DIM, fit
from .records import token_record
from .tokens import text_label, token_label

OTHER, SAME, SETTLED = ".", "o", "#"
MARKED = Style(color="black", bgcolor=f"rgb({','.join(map(str, TOWARDS))})")
WIDEST = 12  # terminal cells of a token
LEGEND = (
    f"a mark for each row, from the embedding to the output; {SETTLED} the row's best token is the one written, and "
    f"so it stays; {SAME} it is, but a later row's is not; {OTHER} it is not"
)


def generation_view(
    tokens: Tokens, steps: Iterable[GenerationStep], *, tokenizer: Tokenizer | None = None
) -> Iterator[Text]:
    """A line for each token as it is written, of the first text of a batch; then a legend, and the whole text.

    tokens: the prompt. steps: as `generate_steps` gives them.

    Each line has the token, the model's own probability of it, a mark for each row of the lens, and the row from which
    on it is settled: "never" where it was drawn although the output's best token is another.
    """
    written = tokens[0].tolist()
    for number, step in enumerate(steps):
        written.append(int(step.tokens[0]))
        width = len(step.labels)
        if number == 0:
            yield Text(
                f"{'token':{WIDEST}}  prob  {'rows':{width}}  settled at", DIM, no_wrap=True, overflow="ellipsis"
            )
        at = int(step.settled[0])
        line = Text(fit(token_label(tokenizer, written[-1]), WIDEST), BOLD, no_wrap=True, overflow="ellipsis")
        line.append(f"  {step.prob[0]:.2f}  ", Style(bold=False))
        line.append("".join(SAME if same else OTHER for same in (step.best[:at, 0] == step.tokens[0]).tolist()), DIM)
        line.append(SETTLED * (width - at), MARKED)
        yield line.append(f"  {_label(step) or 'never'}", Style(bold=False))
    yield Text(LEGEND, DIM)
    text = _text(tokenizer, written)
    yield Text("\n" + (" ".join(f"#{token}" for token in written) if text is None else text_label(text)))


def generation_record(
    tokens: Tokens, steps: Iterable[GenerationStep], *, tokenizer: Tokenizer | None = None
) -> dict[str, Any]:
    """The same for JSON: a dictionary of lists, numbers and text; docs/formats.md tells what is in it."""
    found = list(steps)
    prompt, written = tokens[0].tolist(), [int(step.tokens[0]) for step in found]
    return {
        "schema": 1,
        "tokens": [token_record(tokenizer, token) for token in prompt],
        "full_text": _text(tokenizer, prompt + written),
        "labels": list(found[0].labels),
        "written": [
            {
                **token_record(tokenizer, token),
                "prob": float(step.prob[0]),
                "settled": _label(step),
                "best": [token_record(tokenizer, best) for best in step.best[:, 0].tolist()],
            }
            for token, step in zip(written, found, strict=True)
        ],
    }


def _text(tokenizer: Tokenizer | None, tokens: list[int]) -> str | None:
    """The whole text; None where the tokenizer lacks one of its tokens."""
    try:
        return tokenizer.decode(tokens) if tokenizer else None
    except ValueError:  # as in token_label
        return None


def _label(step: GenerationStep) -> str | None:
    """The row at which the token is settled."""
    at = int(step.settled[0])
    return step.labels[at] if at < len(step.labels) else None
