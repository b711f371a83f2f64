"""The Jacobian lens: what a small change of a residual does to the last one, in the mean over texts.

Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in Language Models". Of each row's residual h,
with y the stream that the decoder reads, and V the positions of a text but the first 16 and the last,

    J = mean over texts of  1/|V| * sum over t in V, and t' in V from t on, of  dy[t'] / dh[t]      [d_out, d_in]

y is linear in h to first order, y ~ J h, so a row's map is A = transpose of J, and b = 0. J is not fitted to the
output: a row of this lens says what the residual is disposed to do, which need not be the best guess of the output.

A backward pass gives z J for one cotangent z, of all rows at once. z stands at every position of V together, so the
gradient at t is a sum over t', and attention is in it; a causal model has none from before t. With d_model cotangents,
each unit vector, J is exact. Fewer are k random orthogonal vectors, the rows of Z, as long as sqrt(d_model / k). Then
Z^T Z is I in the mean, and so is

    I + Z^T (Z J - Z)      the same as J:

what the residual connection carries, I, is not drawn. The model runs forward once for each text.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..arguments import check_numbers, quoted, whole_number
from ..lens import Lens, label, residuals
from ..model import Model
from ..shapes import Tokens, shapes_of
from ..traces import Site
from .affine import LearnedLens, RowMap, Subject

SKIP = 16  # first positions that are left out of V; the reference's (anthropics/jacobian-lens, fitting.py)
NUMBERS = {"cpu": 2**18}  # of the gradients of a row that are taken together: 1 MiB in float32, which the caches hold
NUMBERS_ELSEWHERE = 2**24


@dataclass(frozen=True, eq=False)
class JacobianSums:
    """Sums over texts, in float64, of J - I of each row. Those of a corpus's parts add up to those of the whole."""

    tokens: Int[Tensor, ""]  # that were read
    texts: Int[Tensor, ""]  # of which a Jacobian was taken
    sums: Float[Tensor, "row d_out d_in"]  # of J - I
    squares: Float[Tensor, "row"]  # of its Frobenius norm

    def __add__(self, other: "JacobianSums") -> "JacobianSums":
        return JacobianSums(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    @property
    def weight(self) -> Float[Tensor, "row d_out d_in"]:
        """The mean of J - I, which is a row's weight in a LearnedLens."""
        return self.sums / self.texts

    @property
    def standard_error(self) -> Float[Tensor, "row"]:
        """Of the mean over texts: the root of the expected squared distance, in Frobenius norm; needs two texts."""
        n, spread = self.texts, self.squares - self.sums.square().sum((-2, -1)) / self.texts
        return (spread.clamp(min=0) / (n * (n - 1))).sqrt()

    __repr__ = shapes_of


def no_jacobians(n_rows: int, d_model: int) -> JacobianSums:
    """The sums over no texts."""
    zeros = torch.zeros(n_rows, d_model, d_model, dtype=torch.float64)
    return JacobianSums(torch.tensor(0), torch.tensor(0), zeros, torch.zeros(n_rows, dtype=torch.float64))


def jacobian_sums(
    model: Model,
    texts: Iterable[Int[Tensor, "_ _"]],
    *,
    skip: int = SKIP,
    cotangents: int | None = None,
    seed: int = 0,
    **options: Any,
) -> JacobianSums:
    """The sums for the rows of a lens over some texts, each of shape [1, pos].

    skip: positions at the start of each text that are left out; so is its last. A text without others is passed over.
    cotangents: backward passes for each text. By default, d_model, they give the exact Jacobian. Fewer give random
    ones, whose mean is the same.
    seed: of the random cotangents, which follow from it and from the text's tokens.
    options: decoder, sites and layers, as in `Lens`.

    Raises ValueError as `Lens` does, for a model in half precision, for a text that is not one alone, and for a
    Jacobian that is not finite.
    """
    check_numbers(model)
    lens, d_model = Lens(**options), len(model.W_U)
    if model.W_U.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"a Jacobian needs weights in float32 or float64; these are {model.W_U.dtype}: load it so")
    if (skip := whole_number("skip", skip)) < 0:
        raise ValueError(f"skip must be 0 or more positions; got {skip}")
    if not 1 <= (k := whole_number("cotangents", d_model if cotangents is None else cotangents)) <= d_model:
        raise ValueError(f"cotangents must be between 1 and the width of the model, {d_model}; got {k}")
    seed = whole_number("seed", seed)
    found = no_jacobians(len(_rows(model, lens)), d_model)
    for tokens in texts:
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or len(tokens) != 1:
            what = list(tokens.shape) if isinstance(tokens, Tensor) else quoted(tokens)
            raise ValueError(f"each text must be tokens of shape [1, pos]; got {what}")
        if tokens.shape[1] > skip + 1:
            found = found + _of_text(model, tokens, lens, skip, _cotangents(k, d_model, seed, tokens))
        else:
            found = replace(found, tokens=found.tokens + tokens.numel())
    return found


def jacobian_lens(sums: JacobianSums, model: Model, made: dict[str, Any] | None = None, **options: Any) -> LearnedLens:
    """The lens of these sums, for the model and with the options that they were taken with.

    made: what lens.json says of it, besides the number of texts and the standard errors. Raises ValueError for sums
    over no texts, or of another lens.
    """
    lens, n = Lens(**options), int(sums.texts)
    sites = _rows(model, lens)
    if n == 0:
        raise ValueError("there is no text to take a Jacobian of: each needs two tokens more than skip")
    if len(sites) != len(sums.sums):
        raise ValueError(f"the sums are of {len(sums.sums)} rows, and the lens has {len(sites)}: give the same options")
    weights = sums.weight.float()
    errors = dict(zip(map(label, sites), sums.standard_error.tolist(), strict=True)) if n > 1 else {}
    return LearnedLens(
        kind="jacobian",
        maps={site: RowMap(weight, torch.zeros(len(weight))) for site, weight in zip(sites, weights, strict=True)},
        model=Subject.of(model),
        decoder=lens.decoder,
        made={"texts": n, "standard_errors": errors, **(made or {})},
    )


def alignment(one: JacobianSums, other: JacobianSums) -> Float[Tensor, "row"]:
    """The cosine of the two means of J - I, row by row: of twins, sums over two halves of a corpus, the noise floor."""
    return torch.nn.functional.cosine_similarity(one.sums.flatten(1), other.sums.flatten(1), dim=1)


def _rows(model: Model, lens: Lens) -> tuple[Site, ...]:
    """The rows that the lens maps: all but the last."""
    return lens.of(model, torch.zeros(1, 1, dtype=torch.long, device=model.W_U.device)).sites[:-1]


def _cotangents(k: int, d_model: int, seed: int, tokens: Tokens) -> Float[Tensor, "cotangent d_model"]:
    """Z: unit vectors where there are d_model, and otherwise random orthogonal ones, with Z^T Z = I in the mean."""
    if k == d_model:
        return torch.eye(d_model)
    number = sha256(f"{seed} {tokens.tolist()}".encode()).digest()[:7]
    generator = torch.Generator().manual_seed(int.from_bytes(number, "big"))
    Q, R = torch.linalg.qr(torch.randn(d_model, k, generator=generator))
    Q = Q * R.diagonal().sign()  # which makes it uniform (Mezzadri 2007, arXiv math-ph/0609050)
    Z: Tensor = Q.mT * math.sqrt(d_model / k)
    return Z


@torch.inference_mode(False)
@torch.enable_grad()
def _of_text(
    model: Model, tokens: Tokens, lens: Lens, skip: int, Z: Float[Tensor, "cotangent d_model"]
) -> JacobianSums:
    readout = lens.of(model, tokens)
    embed = readout.embed.detach().requires_grad_()
    *rows, y = (resid for _, resid in residuals(model, embed, readout.sites))
    Z = Z.to(y)
    cotangent = y.new_zeros(tokens.shape[1], 1)  # 1 in V, and else 0
    cotangent[skip:-1] = 1
    corrections = []
    for some in torch.split(Z, max(1, NUMBERS.get(y.device.type, NUMBERS_ELSEWHERE) // y.numel())):
        given = some[:, None, None] * cotangent  # cotangent batch pos d_model
        gradients = torch.autograd.grad(y, rows, given, retain_graph=True, is_grads_batched=True)
        corrections.append(torch.stack([g[:, 0, skip:-1].mean(1) for g in gradients]) - some)  # row cotangent d_in
    correction = torch.cat(corrections, 1).double().cpu()  # Z J - Z
    if not correction.isfinite().all():
        raise ValueError("a Jacobian is not finite: there is a NaN or an infinity in the weights, or near one")
    Z = Z.double().cpu()
    scale = Z.shape[1] / Z.shape[0]  # Z Z^T = scale * I
    return JacobianSums(
        torch.tensor(tokens.numel()), torch.tensor(1), Z.mT @ correction, scale * correction.square().sum((-2, -1))
    )
