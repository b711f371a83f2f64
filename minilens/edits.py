"""Builders of edits: values to be replaced while a model runs, as an argument of that one call."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .trace import SITES, Edit, Site


@dataclass(frozen=True)
class _At:
    site: Site
    fn: Callable[[Tensor], Tensor]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The places this edit is for; `run` refuses it where one of them does not come up."""
        return (self.site,)

    def __call__(self, site: Site, value: Tensor) -> Tensor:
        return self.fn(value) if site == self.site else value


@dataclass(frozen=True)
class _Then:
    edits: tuple[Edit, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(site for edit in self.edits for site in getattr(edit, "sites", ()))

    def __call__(self, site: Site, value: Tensor) -> Tensor:
        for edit in self.edits:
            value = edit(site, value)
        return value


def at(layer: int, site: str, fn: Callable[[Tensor], Tensor]) -> Edit:
    """The edit that replaces the value at one site of one layer by fn(value), a new tensor of the same shape.

    Raises ValueError for a site that cannot be edited, or a negative layer; a layer that the model does not have is
    refused when it runs.
    """
    if site not in SITES:
        raise ValueError(f'"{site}" is not a site that can be edited; those are {", ".join(SITES)}')
    if layer < 0:
        raise ValueError(f"layer {layer} does not exist: layers count from 0")
    return _At(Site(layer, site), fn)


def then(*edits: Edit) -> Edit:
    """Several edits as one, each given what the one before it returned."""
    return _Then(edits)
