"""Attribution in several texts: the same parts of a logit in each, their mean and its standard error."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..arguments import check_numbers, quoted
from ..checkpoint.tokenizer import Tokenizer
from ..edits import Lengths
from ..model import Model, side_by_side
from ..shapes import Tokens
from ..traces import Edit, untouched
from .attribution import Attribution, Layers, attributed
from .texts import Mean, one_each, over_texts, texts_of

OF = ("contributions", "by_layer", "attention", "mlp", "by_head", "by_neuron", "by_position")


@dataclass(frozen=True, eq=False)
class Attributions:
    """The attributions of several texts, in order. Each has its own logit, of its own token."""

    texts: tuple[Attribution, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The parts, which are the same in all texts."""
        return self.texts[0].labels

    def of(self, what: str) -> Mean:
        """The mean over texts and its standard error of what Attribution has under this name, such as "by_head".

        Raises ValueError for another name, and for "by_position" of texts that are not of one length.
        """
        if what not in OF:
            raise ValueError(f"there is no {quoted(what)} of several texts; there are {', '.join(OF)}")
        found = [getattr(text, what) for text in self.texts]
        if len({each.shape for each in found}) > 1:
            raise ValueError("texts of several lengths have no positions in common: by_position takes texts of one")
        return over_texts(torch.stack(found))

    def largest(self, k: int = 10) -> list[tuple[str, float, float]]:
        """The k parts that add or subtract the most on average: label, mean, standard error."""
        mean, error = self.of("contributions")
        order = mean.abs().argsort(descending=True, stable=True)[:k].tolist()
        return [(self.labels[part], float(mean[part]), float(error[part])) for part in order]

    def __repr__(self) -> str:
        logits = over_texts(torch.tensor([text.logit for text in self.texts], dtype=torch.float64, device="cpu"))
        worst = max((text.error for text in self.texts), key=abs)
        return (
            f"Attributions of {len(self.texts)} texts to {len(self.labels)} parts: logit {logits.mean:.4f} on average "
            f"(standard error {logits.standard_error:.2g}), which the sums miss by {worst:+.1e} at most"
        )


def attributions(
    model: Model,
    tokens: Tokens,
    *,
    lengths: Lengths = None,
    position: int = -1,
    token: int | Sequence[int] | None = None,
    against: int | Sequence[int] | None = None,
    neurons: Layers = None,
    edit: Edit = untouched,
    tokenizer: Tokenizer | None = None,
) -> Attributions:
    """`attribute` of each text of a batch, [batch, pos].

    lengths: the tokens of each text where they are padded, as `tokenizer.encode` gives them for a list of texts.
    token, against: one for all texts, or a list of them, one for each.
    edit: of each text, which is then read by itself; without one, short texts are read side by side, and agree with
    `attribute` within rounding. position and all else are as in `attribute`, as is what raises ValueError.

    >>> model, tokenizer = minilens.load("tales-gpt2")
    >>> texts, lengths = tokenizer.encode(["Tom and Sue", "Once upon a time there"])
    >>> found = minilens.attributions(model, texts, lengths=lengths)
    >>> found.of("by_head").mean.shape
    torch.Size([8, 8])
    """
    check_numbers(model)
    model.embed(tokens)  # refuses what is no text
    texts = texts_of(tokens, lengths)
    ends, n = [text.shape[1] for text in texts], len(texts)
    its, other = one_each("token", token, n), one_each("against", against, n)
    found: dict[int, Attribution] = {}
    for some, together, its_ends in side_by_side(tokens, ends, alone=edit is not untouched):
        right, wrong = ([each[text] for text in some] for each in (its, other))
        each = attributed(model, together, its_ends, position, right, wrong, neurons, edit, tokenizer)
        found |= dict(zip(some, each, strict=True))
    return Attributions(tuple(found[text] for text in range(n)))
