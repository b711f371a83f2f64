"""What a lens would look like if nothing were there: a model that knows nothing, and maps at rows not their own."""

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..lens import label
from ..model import Model
from .affine import LearnedLens

M = TypeVar("M", bound=Model)


def shuffled(model: M, seed: int) -> M:
    """The same model with the numbers of each weight in random order.

    Each weight keeps its mean and its spread; what training put into it is gone. A tied unembedding stays tied.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[int, Tensor] = {}

    def of(part: Any) -> Any:
        if isinstance(part, Tensor):
            if not part.is_contiguous() and part.mT.is_contiguous():
                return of(part.mT).mT
            if part.data_ptr() not in drawn:
                order = torch.randperm(part.numel(), generator=generator).to(part.device)
                drawn[part.data_ptr()] = part.flatten()[order].view(part.shape)
            return drawn[part.data_ptr()]
        if isinstance(part, tuple):
            found = map(of, part)
            return type(part)(*found) if hasattr(part, "_fields") else tuple(found)
        if is_dataclass(part) and not isinstance(part, type):
            return replace(part, **{field.name: of(getattr(part, field.name)) for field in fields(part)})
        return part

    return of(model)  # type: ignore[no-any-return]


def transfers(lens: LearnedLens) -> dict[str, LearnedLens]:
    """For each row the lens with this row's map at all rows: does a map read rows that are not its own?"""

    def everywhere(name: str, row: Any) -> LearnedLens:
        return LearnedLens(lens.kind, dict.fromkeys(lens.maps, row), lens.model, lens.decoder, lens.norm, name=name)

    names = {site: f"map of {label(site)}" for site in lens.maps}
    return {names[site]: everywhere(names[site], row) for site, row in lens.maps.items()}
