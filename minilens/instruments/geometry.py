"""How the embeddings of a vocabulary lie in space, from the weights alone.

Where they share a large mean, as GPT-Neo's do, every residual points its way and the logit lens shows the tokens of
largest norm: see `centre` in lens.py, and "Mech Interp Puzzle 1" (Nanda 2023).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import check_numbers
from ..model import Model

TILE = 2**13  # embeddings at a time


class Geometry(NamedTuple):
    """The geometry of all columns of the unembedding; in a tied model they are the embeddings."""

    mean_norm: float
    norm_of_mean: float
    mean_cosine: float  # over all pairs of different tokens
    mean_cosine_centred: float  # the same, after the mean is subtracted
    largest: int  # the token of largest norm
    largest_norm: float
    smallest: int
    smallest_norm: float


def geometry(model: Model) -> Geometry:
    """The geometry of a model's embeddings, in float64 on the CPU, since not every device has it.

    Raises ValueError for a model on the device "meta".
    """
    check_numbers(model)
    W_E = model.W_U.mT
    n = len(W_E)

    def tiles() -> Iterator[Float[Tensor, "tile d_model"]]:
        return (W_E[start : start + TILE].cpu().double() for start in range(0, n, TILE))

    mean = torch.stack([tile.sum(0) for tile in tiles()]).sum(0) / n
    norms = torch.cat([tile.norm(dim=-1) for tile in tiles()])

    def mean_cosine(origin: Tensor) -> float:
        """The sum over all pairs is the square of the summed directions, less each token with itself."""
        directions = (torch.nn.functional.normalize(tile - origin, dim=-1) for tile in tiles())
        total = torch.zeros_like(mean)
        itself = 0.0
        for direction in directions:
            total += direction.sum(0)
            itself += float(direction.square().sum())  # 1 each, or 0 for a vector of zeros
        return (float(total.square().sum()) - itself) / (n * (n - 1)) if n > 1 else float("nan")

    return Geometry(
        mean_norm=float(norms.mean()),
        norm_of_mean=float(mean.norm()),
        mean_cosine=mean_cosine(torch.zeros_like(mean)),
        mean_cosine_centred=mean_cosine(mean),
        largest=int(norms.argmax()),
        largest_norm=float(norms.max()),
        smallest=int(norms.argmin()),
        smallest_norm=float(norms.min()),
    )
