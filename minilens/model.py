"""The model that run, lens, edits and instruments know; and running it: block by block, all at once, or to the end."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .arguments import EDIT, check_function, check_model, whole_number
from .ops import LayerNorm
from .shapes import Logits, Resid, Tokens
from .traces import BlockTrace, Edit, Trace, untouched

TOGETHER = 1024  # positions of short texts that are run side by side: enough to keep a matrix product busy


@runtime_checkable
class Writes(Protocol):
    """The weights with which a block writes to the stream: merge_heads(z) @ W_O + b_O and mlp_post @ W_out + b_out."""

    @property
    def W_O(self) -> Float[Tensor, "d_model d_model"]: ...

    @property
    def b_O(self) -> Float[Tensor, "d_model"]: ...

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]: ...

    @property
    def b_out(self) -> Float[Tensor, "d_model"]: ...


@runtime_checkable
class Sizes(Protocol):
    """What a model's config says whatever its family."""

    @property
    def n_ctx(self) -> int: ...  # tokens that the model can read together

    @property
    def n_heads(self) -> int: ...  # of each layer

    @property
    def ln_eps(self) -> float: ...  # of the norms inside the blocks


@runtime_checkable
class Model(Protocol):
    """What run, lens, edits and attribution know of a model; gpt2.py, gpt_neo.py and ctrl.py each provide it."""

    @property
    def family(self) -> str: ...  # "gpt2", "gpt_neo" or "ctrl"

    @property
    def config(self) -> Sizes: ...

    @property
    def n_layers(self) -> int: ...

    @property
    def blocks(self) -> Sequence[Writes]: ...

    @property
    def ln_final(self) -> LayerNorm: ...

    @property
    def ln_final_eps(self) -> float: ...

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]: ...

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]: ...

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"] | None: ...

    def __call__(self, tokens: Tokens) -> Logits:
        """The whole forward pass: logits of the next token. Raises ValueError for tokens that it cannot read."""
        ...

    def embed(self, tokens: Tokens) -> Resid:
        """The stream entering block 0. Raises ValueError for tokens that the model cannot read."""
        ...

    def positions(self, n: int) -> Float[Tensor, "pos d_model"]:
        """What `embed` adds to the first n tokens' embeddings."""
        ...

    def block(self, layer: int, resid: Resid, edit: Edit = untouched) -> BlockTrace:
        """Everything that block `layer` computes from the stream entering it."""
        ...

    def final_norm(self, resid: Resid) -> Resid:
        """What the unembedding reads."""
        ...

    def unembed(self, resid: Resid) -> Logits:
        """The final norm and the unembedding: final_norm(resid) @ W_U + b_U, logits of the next token."""
        ...


def run(
    model: Model, resid: Resid, *, start: int = 0, stop: int | None = None, edit: Edit = untouched
) -> Iterator[BlockTrace]:
    """Run blocks start to stop - 1 (by default to the last) on the stream entering block `start`, one at a time.

    A block is computed when it is asked for, and none is kept here: keep less by keeping less of what is yielded. A
    loop's own variable keeps a block while the next one is computed, unless the loop ends with `del block`.
    Raises ValueError for blocks that the model does not have, and for an edit built by `at` for a block that is not
    run.
    """
    check_model(model)
    start, stop = whole_number("start", start), model.n_layers if stop is None else whole_number("stop", stop)
    if not 0 <= start <= stop <= model.n_layers:
        raise ValueError(
            f"cannot run blocks {start} up to {stop}: start and stop must be in order, between 0 and {model.n_layers}"
        )
    like = model.W_E
    if not isinstance(resid, Tensor) or resid.is_nested or resid.ndim != 3:
        kind = "nested tensor" if isinstance(resid, Tensor) and resid.is_nested else type(resid).__name__
        found = list(resid.shape) if kind == "Tensor" else f"a {kind}"
        raise ValueError(f"the stream must have the shape [batch, pos, d_model]; got {found}")
    if (resid.shape[-1], resid.dtype, resid.device) != (like.shape[-1], like.dtype, like.device):
        raise ValueError(
            f"the stream must be of width {like.shape[-1]}, {like.dtype} on {like.device}, as the model is; got "
            f"{list(resid.shape)} {resid.dtype} on {resid.device}"
        )
    check_edit(edit, start, stop)
    return _blocks(model, resid, start, stop, edit)


def check_edit(edit: Edit, start: int, stop: int) -> None:
    """Raise ValueError for no edit, and for one that `at` built for a block outside start to stop - 1."""
    check_function("edit", edit, EDIT)
    for site in getattr(edit, "sites", ()):
        if site.layer not in range(start, stop):
            raise ValueError(
                f"the edit at {site.layer}.{site.name} matches nothing: the blocks run are "
                + (f"{start} to {stop - 1}" if start < stop else "none")
            )


def _blocks(model: Model, resid: Resid, start: int, stop: int, edit: Edit) -> Iterator[BlockTrace]:
    for layer in range(start, stop):
        block = model.block(layer, resid, edit)
        resid = block.resid_post
        yield block
        del block


def trace(model: Model, tokens: Tokens, *, edit: Edit = untouched) -> Trace:
    """A whole forward pass with every intermediate value kept.

    For each of batch * pos places it keeps n_layers * (10 d_model + 2 d_mlp + 2 n_heads * pos) + d_model + d_vocab
    numbers: the stream leaving one block and entering the next is one tensor. Use `run` to keep less.
    """
    check_model(model)
    embed = model.embed(tokens)
    blocks = tuple(run(model, embed, edit=edit))
    return Trace(embed=embed, blocks=blocks, logits=model.unembed(blocks[-1].resid_post))


def decode(model: Model, resid: Resid, *, start: int, edit: Edit = untouched) -> Logits:
    """Finish a forward pass: run the blocks from `start` on this stream, then unembed.

    start = n_layers unembeds only. Raises ValueError as `run` does.
    """
    for block in run(model, resid, start=start, edit=edit):
        resid = block.resid_post
    return model.unembed(resid)


def side_by_side(
    tokens: Tokens, lengths: Sequence[int], *, padded: bool = True, alone: bool = False
) -> Iterator[tuple[list[int], Int[Tensor, "some longest"], list[int]]]:
    """Texts of a batch to run together: their numbers, their tokens with 0 after each one's own, and their lengths.

    Those of like lengths are together, TOGETHER positions at most; without padding those of one; or each is alone.
    """
    some: list[int] = []
    order = sorted(range(len(lengths)), key=lambda text: lengths[text])
    for text, after in zip(order, [*order[1:], None], strict=True):
        some.append(text)
        n = 0 if after is None else lengths[after]
        if alone or (len(some) + 1) * n > TOGETHER or not n or not (padded or lengths[text] == n):
            ends = [lengths[each] for each in some]
            there = torch.arange(max(ends), device=tokens.device) < torch.tensor(ends, device=tokens.device)[:, None]
            yield some, tokens[some, : max(ends)].where(there, 0), ends
            some = []
