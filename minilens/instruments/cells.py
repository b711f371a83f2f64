"""One value at a time in the place of a run's own, and what a metric then is: what patching and ablation share.

A cell is a layer, a site, and a place in the value there: a position, a head at all positions, or a head at a position.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..arguments import check_function, names, position_in, quoted
from ..model import TOGETHER, Model, run
from ..shapes import Resid, Tokens
from ..traces import HEAD_SITES, SITES, Edit, Site
from .metrics import Metric, measure
from .texts import one_each

BY = {"position": ("pos",), "head": ("head",), "head_position": ("head", "pos")}  # what a place is

Jobs = Sequence[tuple[int, str]]
Each = Callable[[Jobs], Iterable[tuple[int, str]]]
Values = Mapping[str, Tensor]  # of one layer, by site


class Grid(NamedTuple):
    """The metric with each cell's value in place, and where that can change it: by site, on the CPU."""

    metric: dict[str, Float[Tensor, "layer *place"]]
    can_change: dict[str, Bool[Tensor, "layer *place"]]


class Subject:
    """One text that is run again and again, and a metric at one of its positions.

    Raises ValueError for a position that does not exist.
    """

    def __init__(self, model: Model, tokens: Tokens, metric: Metric, position: int) -> None:
        self.model, self.tokens, self.metric = model, tokens, metric
        self.embed = model.embed(tokens)
        self.position = position_in("the texts have", position, tokens.shape[1])
        self.reach, resid = _reach(model, self.embed, self.position)
        self.value = float(self.measured(resid))

    def measured(self, resid: Resid) -> Float[Tensor, "batch"]:
        """The metric of streams that leave the last block."""
        return measure(self.metric, self.model.unembed(resid[:, [self.position]])[:, 0])

    def blank(self, sites: Sequence[str], by: str) -> Grid:
        """The grid in which no cell has been tried."""
        sizes = {"pos": self.tokens.shape[1], "head": self.model.config.n_heads}
        shape = self.model.n_layers, *(sizes[axis] for axis in BY[by])
        metric = torch.full(shape, self.value, dtype=torch.float64, device="cpu")
        return Grid(
            {site: metric.clone() for site in sites},
            {site: torch.zeros(shape, dtype=torch.bool, device="cpu") for site in sites},
        )

    def differs(
        self, ours: Tensor, theirs: Tensor, at: Site, by: str, reach: Bool[Tensor, "pos"] | None = None
    ) -> Bool[Tensor, "*place"]:
        """Which places of a value differ, and have a path to the metric. reach: the positions that have one."""
        has_path = self.reach[at.name][at.layer] if reach is None else reach
        return fold((ours != theirs).any(-1)[0] & has_path, by, torch.any)

    def swept(self, sources: Iterable[Values], sites: Sequence[str], by: str, each: Each = iter) -> Grid:
        """The metric with the source's value in each cell. sources: for each layer, by site, as [1 (head) pos ...].

        Only the blocks from the cell's own on are run, several cells at a time.
        """
        grid = self.blank(sites, by)
        pairs = zip(sources, run(self.model, self.embed), strict=True)
        for layer, site in each([(layer, site) for layer in range(self.model.n_layers) for site in sites]):
            if site == sites[0]:
                ours, theirs = next(pairs)
            here = Site(layer, site)
            differs = self.differs(ours[site], getattr(theirs, site), here, by)
            grid.can_change[site][layer] = differs.cpu()
            for places in self.batches(differs):
                resid = theirs.resid_pre.expand(len(places), -1, -1)
                swap = swapped(here, ours[site], by, places)
                for block in run(self.model, resid, start=layer, edit=swap):
                    resid = block.resid_post
                grid.metric[site][layer][tuple(places.mT.cpu())] = self.measured(resid).cpu().double()
        return grid

    def batches(self, differs: Bool[Tensor, "*place"]) -> tuple[Tensor, ...]:
        """The places where something differs, each [n axes], so many at a time as are run side by side."""
        return self.several(differs.nonzero())

    def several(self, runs: Tensor) -> tuple[Tensor, ...]:
        """What differs from run to run, [n ...], cut into as many as are run side by side."""
        return torch.split(runs, max(1, TOGETHER // self.tokens.shape[1]))


def fold(x: Tensor, by: str, how: Callable[[Tensor, int], Tensor]) -> Tensor:
    """A value's numbers, [(head) pos], by place: how, such as torch.sum, does away with the axes that no place has."""
    x = how(x, -1) if "pos" not in BY[by] else x
    return how(x, 0) if x.ndim > len(BY[by]) else x


def swapped(site: Site, source: Tensor, by: str, places: Tensor) -> Edit:
    """The edit that puts the source's value at the first place into the first text, and so on."""
    has_heads = site.name in HEAD_SITES

    def edit(here: Site, value: Tensor) -> Tensor:
        if here != site:
            return value
        new = value.clone()
        for text, place in enumerate(places.tolist()):
            at = dict(zip(BY[by], place, strict=True))
            part = *((at.get("head", slice(None)),) if has_heads else ()), at.get("pos", slice(None))
            new[text][part] = source[0][part]
        return new

    return edit


def chosen(sites: str | Iterable[str], by: str) -> list[str]:
    """The sites, each once. Raises ValueError for one that has no such places."""
    if by not in [*BY]:
        *some, last = (f'"{name}"' for name in BY)
        raise ValueError(f"by must be {', '.join(some)} or {last}; got {quoted(by)}")
    allowed = HEAD_SITES if "head" in BY[by] else SITES
    found = list(dict.fromkeys(names("sites", sites)))
    for site in found:
        if site not in allowed:
            raise ValueError(f"{quoted(site)} cannot be patched by {by}; {', '.join(allowed)} can")
    if not found:
        raise ValueError("sites is empty: name at least one")
    return found


def metrics_of(metric: Metric | Sequence[Metric], n: int) -> list[Metric]:
    found: list[Metric] = one_each("metric", metric, n)
    for each in found:
        check_function("metric", each, "a function of logits, such as logit_difference makes")
    return found


def _reach(model: Model, embed: Resid, position: int) -> tuple[dict[str, list[Tensor]], Resid]:
    """From which positions, [pos] by site and layer, a path leads to the output at one; and the last residual."""
    visible = []
    for block in run(model, embed):
        visible.append((block.scores[0] > -torch.inf).any(0))
    resid = block.resid_post
    after = torch.arange(resid.shape[1], device=resid.device) == position
    reach: dict[str, list[Tensor]] = {site: [] for site in SITES}
    for seen in reversed(visible):
        keys = seen[after].any(0)
        before = keys | after
        for site, places in reach.items():
            places.insert(0, before if site == "resid_pre" else keys if site in ("k", "v") else after)
        after = before
    return reach, resid
