"""Activation patching: which values of one run, put into another, bring back what the first one did.

Vig et al. 2020 and Meng et al. 2022 (causal tracing); "clean" and "corrupt" are TransformerLens's words.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..arguments import check_function, check_numbers, names, position_in, quoted, whole_number
from ..checkpoint.tokenizer import Tokenizer
from ..model import Model, run
from ..ops import upcast
from ..shapes import Resid, Tokens
from ..traces import HEAD_SITES, SITES, BlockTrace, Edit, Site

Metric = Callable[[Tensor], Tensor]
"""[batch d_vocab] logits at one position -> [batch] numbers."""
Jobs = Sequence[tuple[int, str]]

TOGETHER = 1024  # places of the texts that are run side by side: enough to keep a matrix product busy


@dataclass(frozen=True, eq=False)
class Patching:
    """A metric of the corrupt run, with one value at a time from the clean run in its place.

    A cell is a layer and a position, or a layer and a head at all positions. Numbers are on the CPU.
    """

    by: str  # "position" or "head"
    metric: dict[str, Float[Tensor, "layer place"]]  # by site
    can_change: dict[str, Bool[Tensor, "layer place"]]  # where not, no path leads from the cell to the metric, or both
    # runs have the same value there; the metric is the corrupt run's, and nothing was run
    clean: float  # the metric of either run as it is
    corrupt: float
    clean_tokens: Int[Tensor, "pos"]
    corrupt_tokens: Int[Tensor, "pos"]
    tokenizer: Tokenizer | None = None  # how the views show tokens; without one, by their ids

    def recovered(self, site: str) -> Float[Tensor, "layer place"]:
        """How far each cell takes the metric from the corrupt run's, 0, to the clean one's, 1.

        Raises ValueError for a site that was not patched.
        """
        if site not in [*self.metric]:
            raise ValueError(f"{quoted(site)} was not patched; those that were are {', '.join(self.metric)}")
        return (self.metric[site] - self.corrupt) / (self.clean - self.corrupt)

    def __repr__(self) -> str:
        n_layers, n_places = next(iter(self.metric.values())).shape
        return (
            f"Patching of {', '.join(self.metric)} in {n_layers} layers by {n_places} {self.by}s: "
            f"metric {self.clean:.4g} clean, {self.corrupt:.4g} corrupt"
        )


def logit_difference(right: int, wrong: int) -> Metric:
    """The metric of Wang et al. 2022: the logit of one token less that of another."""
    ids = _ids(right, wrong)
    return lambda logits: upcast(_known(logits, ids)[:, ids[0]]) - upcast(logits[:, ids[1]])


def log_probability(token: int) -> Metric:
    """The metric that is one token's log-probability, in nats."""
    ids = _ids(token)
    return lambda logits: upcast(_known(logits, ids)).log_softmax(-1)[:, ids[0]]


def _ids(*tokens: int) -> list[int]:
    found = [whole_number("token", token) for token in tokens]
    if min(found) < 0:
        raise ValueError(f"token id {min(found)} does not exist: ids count from 0")
    return found


def _known(logits: Tensor, ids: list[int]) -> Tensor:
    if (n := logits.shape[-1]) <= max(ids):
        raise ValueError(f"token id {max(ids)} does not exist: the model's ids go from 0 to {n - 1}")
    return logits


def patching(
    model: Model,
    clean: Tokens,
    corrupt: Int[Tensor, "batch corrupt_pos"],  # of the same length, which is checked here
    metric: Metric,
    *,
    sites: str | Iterable[str] = ("resid_pre", "attn_out", "mlp_out"),
    by: str = "position",
    position: int = -1,
    tokenizer: Tokenizer | None = None,
    each: Callable[[Jobs], Iterable[tuple[int, str]]] = iter,
) -> Patching:
    """Run the corrupt text once for each cell, with that cell's value from the clean text, and take the metric.

    clean, corrupt: two texts of the same length, [1, pos]. They match position by position.
    metric: a function of the logits at one position.
    sites: any of SITES; by="head" takes q, k, v, pattern and z.
    by: "position", or "head" for a head at all positions.
    position: of the metric, by default the last.
    each: goes through the jobs in order, and may show how far it is.

    Only the blocks from the patched one on are run, several cells at a time. Raises ValueError for texts that do not
    match, for sites and positions that do not exist, and where the metric is the same for both texts: nothing could be
    recovered.
    """
    check_numbers(model)
    check_function("metric", metric, "a function of logits, such as logit_difference makes")
    check_function("each", each, "a function that gives what it goes through")
    embeds = model.embed(clean), model.embed(corrupt)
    if clean.shape != corrupt.shape or len(corrupt) != 1:
        raise ValueError(
            f"patching needs two texts of the same length, [1, pos]; got {list(clean.shape)} and {list(corrupt.shape)}"
        )
    position = position_in("the texts have", position, corrupt.shape[1])
    chosen = _chosen(sites, by)

    def measured(resid: Resid) -> list[float]:
        """Each text's number. A metric that mixes the texts of a batch would go unseen with one text: so never one."""
        batch = resid if len(resid) > 1 else resid.expand(2, -1, -1)
        value = metric(model.unembed(batch[:, [position]])[:, 0])
        if not isinstance(value, Tensor) or value.shape != (len(batch),):
            found = list(value.shape) if isinstance(value, Tensor) else repr(value)
            raise ValueError(
                f"the metric must give a tensor of one number for each text, [{len(batch)}]; it gave {found}"
            )
        numbers: list[float] = value.tolist()
        return numbers[: len(resid)]

    *_, last = run(model, embeds[0])
    reach, corrupt_resid = _reach(model, embeds[1], position)
    (clean_metric,), (corrupt_metric,) = measured(last.resid_post), measured(corrupt_resid)
    if not (isfinite(clean_metric) and isfinite(corrupt_metric)):
        raise ValueError(f"the metric is {clean_metric:g} and {corrupt_metric:g} for the two texts; it must be finite")
    if clean_metric == corrupt_metric:
        raise ValueError(f"the metric is {clean_metric:g} for both texts, so that there is nothing to recover")

    n_places = last.pattern.shape[1] if by == "head" else corrupt.shape[1]
    cells = torch.zeros(model.n_layers, n_places, dtype=torch.float64, device="cpu")
    result = {site: torch.full_like(cells, corrupt_metric) for site in chosen}
    can_change = {site: torch.zeros_like(cells, dtype=torch.bool) for site in chosen}
    pairs = zip(run(model, embeds[0]), run(model, embeds[1]), strict=True)
    for layer, site in each([(layer, site) for layer in range(model.n_layers) for site in chosen]):
        if site == chosen[0]:
            ours, theirs = next(pairs)
        differs = (getattr(ours, site)[0] != getattr(theirs, site)[0]).any(-1) & reach[site][layer]  # [(head) pos]
        if by == "head":
            differs = differs.any(-1)
        elif site in HEAD_SITES:
            differs = differs.any(0)
        can_change[site][layer] = differs.cpu()
        for places in differs.nonzero()[:, 0].split(max(1, TOGETHER // corrupt.shape[1])):
            resid = theirs.resid_pre.expand(len(places), -1, -1)
            for block in run(model, resid, start=layer, edit=_swap(ours, site, by, places.tolist())):
                resid = block.resid_post
            result[site][layer, places.cpu()] = torch.tensor(measured(resid), dtype=torch.float64, device="cpu")
    return Patching(by, result, can_change, clean_metric, corrupt_metric, clean[0].cpu(), corrupt[0].cpu(), tokenizer)


def _swap(source: BlockTrace, site: str, by: str, places: list[int]) -> Edit:
    """The edit that puts the source's value at the first place into the first text, and so on."""

    def edit(here: Site, value: Tensor) -> Tensor:
        if here != (source.layer, site):
            return value
        swapped = value.clone()
        for text, place in enumerate(places):
            part = (place,) if by == "head" else (..., place, slice(None))
            swapped[text][part] = getattr(source, site)[0][part]
        return swapped

    return edit


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


def _chosen(sites: str | Iterable[str], by: str) -> list[str]:
    """The sites, each once."""
    if by not in ("position", "head"):
        raise ValueError(f'by must be "position" or "head"; got {quoted(by)}')
    allowed = HEAD_SITES if by == "head" else SITES
    chosen = list(dict.fromkeys(names("sites", sites)))
    for site in chosen:
        if site not in allowed:
            raise ValueError(f"{quoted(site)} cannot be patched by {by}; {', '.join(allowed)} can")
    if not chosen:
        raise ValueError("sites is empty: name at least one")
    return chosen
