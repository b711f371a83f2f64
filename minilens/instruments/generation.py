"""Text that the model writes, a token at a time, and how early in the model each token was settled.

A causal model never changes its mind about an earlier position: its keys and values stay as they are. So each step runs
the family's own `block` on the last position alone, and `Earlier` puts the keys and values of the positions before it
in front of its own. The one query stands at the end, and nothing is hidden from it but what lies beyond the window of
GPT-Neo's local layers: of those no more keys are kept than the window holds. A step is equal to a run of the whole
text within rounding, since its products of matrices have another shape.

An edit may reach for any position, and what it makes of one may change as the text grows. So with an edit nothing is
kept: each step is a `run` of the whole text, in which -1 is the last position so far.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import gpt_neo
from ..arguments import check_numbers, quoted, whole_number
from ..lens import EMBED, Lens, Readout, label
from ..model import Model
from ..ops import linear, upcast
from ..shapes import Tokens, shapes_of
from ..traces import ROW_SITES, BlockTrace, Earlier, Edit, Site, untouched
from ..vocab import not_finite

NextLogits = Float[Tensor, "batch d_vocab"]
Chosen = Int[Tensor, "batch"]


class GenerationStep(NamedTuple):
    """One token of each text, as it is written."""

    tokens: Int[Tensor, "batch"]  # those that are written
    logits: Float[Tensor, "batch d_vocab"]  # the model's own, before temperature, top_k and top_p
    labels: tuple[str, ...]  # the rows of the lens; without a lens the output alone
    best: Int[Tensor, "row batch"]  # the best token of each row

    def __repr__(self) -> str:
        return shapes_of(self)

    @property
    def prob(self) -> Float[Tensor, "batch"]:
        """The model's own probability of the tokens that are written."""
        probs = upcast(self.logits).softmax(-1)
        return probs.gather(-1, self.tokens[:, None].to(probs.device))[:, 0]

    @property
    def settled(self) -> Int[Tensor, "batch"]:
        """The first row from which on, to the output, the best token is the one that is written.

        The number of rows where a token was drawn that is not the output's best.
        """
        return len(self.labels) - (self.best == self.tokens).flip(0).int().cumprod(0).sum(0)


@dataclass(frozen=True)
class _Choice:
    """How a token is taken from logits."""

    temperature: float
    top_k: int | None
    top_p: float | None
    generator: torch.Generator | None

    def check(self, d_vocab: int) -> None:
        _check_number("temperature", self.temperature, inf, "0 for the best token each time, or more")
        if self.top_k is not None and not 1 <= whole_number("top_k", self.top_k) <= d_vocab:
            raise ValueError(f"top_k must be between 1 and the size of the vocabulary, {d_vocab}; it is {self.top_k}")
        if self.top_p is not None:
            _check_number("top_p", self.top_p, 1.0, "a probability, above 0 and up to 1")
            if self.top_p == 0:
                raise ValueError("top_p is 0, and no token would be left: it must be above 0")
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise ValueError(f"generator must be a torch.Generator; got {quoted(self.generator)}")
        if self.temperature == 0 and (self.top_k, self.top_p) != (None, None):
            given = "top_p" if self.top_k is None else "top_k"
            raise ValueError(
                f"{given} limits what is drawn, and at temperature 0 nothing is drawn: give a temperature, such as 1"
            )

    def of(self, logits: NextLogits) -> Chosen:
        """The best token, or one drawn from exp(logit / temperature) of those that top_k and top_p leave."""
        if self.temperature == 0:
            return logits.argmax(-1)
        scaled = logits.cpu().double()  # so that no device draws others, and no small temperature ends in 0 / 0
        scaled = (scaled - scaled.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None:
            scaled = scaled.masked_fill(scaled < scaled.topk(self.top_k).values[:, -1:], -inf)
        probs = scaled.softmax(-1)
        if self.top_p is not None:
            falling, order = probs.sort(descending=True, stable=True)
            enough = falling.cumsum(-1) - falling >= self.top_p  # before this token there is top_p already
            probs = probs.masked_fill(enough.scatter(-1, order, enough), 0)
        if self.generator is not None:
            probs = probs.to(self.generator.device)
        return torch.multinomial(probs, 1, generator=self.generator)[:, 0]


def generate(
    model: Model,
    tokens: Tokens,
    n: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    edit: Edit = untouched,
) -> Int[Tensor, "batch pos_and_n"]:
    """The tokens, and n more that the model writes after them.

    n: how many. Nothing ends a text sooner, an end-of-text token included.
    temperature: logits are divided by it; at 0, the default, the best token is taken each time.
    top_k: draw from the k best tokens only, and from those that tie with the last of them.
    top_p: draw from the best tokens only, as few as have this probability together (Holtzman et al. 2020, arXiv
    1904.09751); after top_k.
    generator: of the random numbers, by default torch's own.
    edit: as for `run`. Each step then runs the whole text.

    All texts of a batch have as many tokens: with padding on the right, the model would go on after the padding. Raises
    ValueError as the model does for tokens, for a text that would outgrow the context, for a number out of its range,
    and for logits that are not finite.

    >>> model, tokenizer = minilens.load("tales-gpt2")
    >>> minilens.generate(model, tokenizer.encode("Once upon a time"), 7).shape
    torch.Size([1, 11])
    """
    choice: dict[str, Any] = dict(temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
    written = [step.tokens for step in generate_steps(model, tokens, n, edit=edit, lens=None, **choice)]
    return torch.cat([tokens, torch.stack(written, 1)], 1)


def generate_steps(
    model: Model,
    tokens: Tokens,
    n: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    edit: Edit = untouched,
    lens: Lens | None = Lens(),  # noqa: B008  (it is frozen)
) -> Iterator[GenerationStep]:
    """Write as `generate` does, a token of each text at a time: each is computed when it is asked for.

    lens: what reads the stream that each token is written from; None for speed. Its decoder is "final" and it does not
    centre, since both would need the positions before. Other arguments are as in `generate`.

    Raises ValueError as `generate` and `Lens` do.
    """
    check_numbers(model)
    model.embed(tokens)  # which says whether it can be read
    choice = _Choice(temperature, top_k, top_p, generator)
    choice.check(model.W_U.shape[1])
    n_prompt, n_ctx = tokens.shape[1], model.config.n_ctx
    if whole_number("n", n) < 1:
        raise ValueError(f"n must be at least 1; it is {n}")
    if (room := n_ctx - n_prompt) < n:
        shorter = f"write at most {room}, or shorten the prompt" if room else "shorten the prompt"
        raise ValueError(
            f"the prompt has {n_prompt} tokens and {n} are to be written, but the model's context holds {n_ctx}: "
            f"{shorter}"
        )
    if lens is not None and (lens.decoder != "final" or lens.centre):
        what = "centre" if lens.centre else f'the decoder "{lens.decoder}"'
        raise ValueError(f'{what} needs all positions, and a step has one: take the decoder "final", without centre')
    readout = (lens or Lens(layers=())).of(model, tokens, edit)
    return _steps(readout, tokens, n, choice, edit, has_lens=lens is not None)


def _steps(
    readout: Readout, tokens: Tokens, n: int, choice: _Choice, edit: Edit, *, has_lens: bool
) -> Iterator[GenerationStep]:
    sites = readout.sites if has_lens else readout.sites[-1:]
    past: dict[int, Earlier] = {}
    for _ in range(n):
        step = _step(readout, sites, tokens, past, choice, edit)
        tokens = torch.cat([tokens, step.tokens[:, None]], 1)
        yield step


@torch.no_grad()
def _step(
    readout: Readout, sites: tuple[Site, ...], tokens: Tokens, past: dict[int, Earlier], choice: _Choice, edit: Edit
) -> GenerationStep:
    """The next token, and the best one of each row."""
    model = readout.model
    resids = _last_position(model, tokens, past, edit)
    logits = model.unembed(resids[sites[-1]])[:, 0]
    if not logits.isfinite().all():
        raise not_finite("the logits of the next token", model.W_E.dtype)
    best = [logits.argmax(-1)[None]]
    if others := sites[:-1]:
        read = (readout.read(site, resids[site]) for site in others)
        x = torch.stack([reader.final_norm(resid)[:, 0] for reader, resid in read])
        best.insert(0, linear(x, model.W_U, model.b_U).argmax(-1))
    return GenerationStep(choice.of(logits).to(tokens), logits, tuple(map(label, sites)), torch.cat(best).to(tokens))


def _last_position(
    model: Model, tokens: Tokens, past: dict[int, Earlier], edit: Edit
) -> dict[Site, Float[Tensor, "batch 1 d_model"]]:
    """The stream at the last position, everywhere; `past` gets what the next step needs of each layer.

    Without a past, as at the first step and under an edit, the blocks run on the whole text.
    """
    embed = model.embed(tokens)
    resid = embed[:, -1:] if past else embed
    found = {EMBED: resid[:, -1:]}
    for layer in range(model.n_layers):
        block = model.block(layer, resid, past.get(layer, edit))
        if edit is untouched:
            past[layer] = _kept(model, block)
        resid = block.resid_post
        found |= {Site(layer, name): getattr(block, name)[:, -1:] for name in ROW_SITES}
        del block  # with its patterns, before the next one is computed
    return found


def _kept(model: Model, block: BlockTrace) -> Earlier:
    """A block's keys and values, as many as the next position will see before its own."""
    config, most = model.config, model.config.n_ctx
    if isinstance(config, gpt_neo.Config) and config.is_local[block.layer]:
        most = config.window - 1
    first = max(0, block.k.shape[-2] - most)
    return Earlier(block.k[:, :, first:], block.v[:, :, first:])


def _check_number(name: str, value: Any, most: float, what: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= most or value == inf:
        raise ValueError(f"{name} must be a number, {what}; got {quoted(value)}")
