"""Path patching: what one part of a run tells another directly, past all that lies between.

The method is that of Wang et al. 2022, "Interpretability in the Wild" (arXiv 2211.00593), and Goldowsky-Dill et al.
2023, "Localizing Model Behavior with Path Patching" (arXiv 2304.05969). Two passes of the corrupt text make a cell:

1. The sender's value is the clean run's. What lies between sender and receivers is frozen: it writes what it writes in
   the corrupt run. So the change goes along the stream alone, and what each receiver then computes is noted.
2. The receivers have what was noted, and all else is computed as usual. The metric is taken.

With attention alone frozen, MLPs pass a change on, as in Wang et al. With MLPs frozen too, the default, the path is one
step of the stream.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from ..arguments import check_function, names, quoted, whole_number, whole_numbers
from ..checkpoint.tokenizer import Tokenizer
from ..edits import Lengths, Places
from ..model import Model, run
from ..ops import check_layer
from ..shapes import Tokens
from ..traces import HEAD_SITES, SITES, BlockTrace, Edit, Site
from .cells import Each, Grid, chosen, swapped
from .metrics import Metric
from .patching import Pair, Patching, of_pairs

WRITES = {"attn_out": HEAD_SITES, "mlp_out": ("mlp_post",)}  # what reaches the stream through them alone
Receivers = dict[Site, list[int] | None]  # with the heads, or all of the value


@torch.no_grad()
def path_patching(
    model: Model,
    clean: Tokens,
    corrupt: Int[Tensor, "corrupt_batch corrupt_pos"],
    metric: Metric | Sequence[Metric],
    *,
    to: Iterable[tuple[int, str] | tuple[int, str, Places]] | None = None,
    frozen: str | Iterable[str] = ("attn_out", "mlp_out"),
    sites: str | Iterable[str] = "z",
    by: str = "head",
    position: int = -1,
    lengths: Lengths = None,
    tokenizer: Tokenizer | None = None,
    each: Each = iter,
) -> Patching:
    """The metric of the corrupt text with each cell's value from the clean text, as the receivers alone hear of it.

    to: the receivers, such as [(6, "q", 1), (7, "q", [0, 4])]: layer, site and heads, or layer and site for the whole
    value. "q", "k" and "v" of a head, or "mlp_post" of an MLP, are computed from what reaches them. Without any, the
    receiver is the stream that the final norm reads: the direct effect on the logits.
    frozen: of "attn_out" and "mlp_out", those that lie between and write what they write in the corrupt run.
    sites, by: the senders. All else is as in `patching`. A cell that no receiver comes after cannot change.

    Raises ValueError as `patching` does, and for receivers that do not exist.

    >>> model, tokenizer = minilens.load("tales-gpt2")
    >>> clean, corrupt = (tokenizer.encode(f"Tom and Sue are here. {name} gave it to") for name in ("Tom", "Sue"))
    >>> metric = minilens.logit_difference(tokenizer.id(" Sue"), tokenizer.id(" Tom"))
    >>> found = minilens.path_patching(model, clean, corrupt, metric, to=[(6, "q", 1)])
    >>> found.recovered("z").shape, found.can_change["z"].any(1).tolist()
    (torch.Size([8, 8]), [True, True, True, True, True, True, False, False])
    """
    sites = chosen(sites, by)
    check_function("each", each, "a function that gives what it goes through")
    receivers, freeze = _receivers(model, to), _frozen(frozen)
    last = max(receivers, key=_order)

    def found(pair: Pair) -> Grid:
        subject, grid = pair.corrupt, pair.corrupt.blank(sites, by)
        theirs, ours = (tuple(run(model, embed)) for embed in (subject.embed, pair.clean_embed))
        reach = None
        if to is None and "attn_out" in freeze:  # nothing goes from one position to another
            reach = torch.arange(subject.tokens.shape[1], device=subject.embed.device) == subject.position
        for layer, site in each([(layer, site) for layer in range(model.n_layers) for site in sites]):
            sender = Site(layer, site)
            if _order(sender) >= _order(last):
                continue
            source: Tensor = getattr(ours[layer], site)
            differs = subject.differs(source, getattr(theirs[layer], site), sender, by, reach)
            grid.can_change[site][layer] = differs.cpu()
            for places in subject.batches(differs):
                swap = swapped(sender, source, by, places)
                heard = _heard(model, theirs, sender, swap, freeze, receivers, len(places))
                first = min(heard, key=_order).layer
                resid = theirs[first].resid_pre.expand(len(places), -1, -1)
                for block in run(model, resid, start=first, edit=_told(heard, receivers)):
                    resid = block.resid_post
                grid.metric[site][layer][tuple(places.mT.cpu())] = subject.measured(resid).cpu().double()
        return grid

    return of_pairs(found, model, clean, corrupt, metric, by, position, lengths, tokenizer)


def _heard(
    model: Model,
    theirs: Sequence[BlockTrace],
    sender: Site,
    swap: Edit,
    frozen: Sequence[str],
    receivers: Receivers,
    n: int,
) -> dict[Site, Tensor]:
    """What each receiver after the sender computes, in n texts with a swap each: the first pass."""
    heard: dict[Site, Tensor] = {}
    last = max(receivers, key=_order).layer

    def direct(here: Site, value: Tensor) -> Tensor:
        if here in receivers and _order(here) > _order(sender):
            heard[here] = value
        is_its_own = here.layer == sender.layer and sender.name in (here.name, *WRITES.get(here.name, ()))
        if here.name in frozen and _order(here) > _order(sender) and not is_its_own:
            frozen_at: Tensor = getattr(theirs[here.layer], here.name)
            return frozen_at.expand_as(value)
        return swap(here, value)

    resid = theirs[sender.layer].resid_pre.expand(n, -1, -1)
    listening = {sender.layer, *(site.layer for site in receivers)}
    for layer in range(sender.layer, last + 1):
        if layer in listening or len(frozen) < len(WRITES):
            resid = model.block(layer, resid, direct).resid_post
        else:  # frozen whole: it writes what it wrote
            resid = resid + theirs[layer].attn_out + theirs[layer].mlp_out
    return heard


def _told(heard: dict[Site, Tensor], receivers: Receivers) -> Edit:
    """The edit that gives the receivers what was noted for them: the second pass."""

    def edit(here: Site, value: Tensor) -> Tensor:
        if here not in heard:
            return value
        heads = receivers[here]
        if heads is None:
            return heard[here]
        new = value.clone()
        new[:, heads] = heard[here][:, heads]
        return new

    return edit


def _order(site: Site) -> tuple[int, int]:
    """When a value is computed."""
    return site.layer, SITES.index(site.name)


def _receivers(model: Model, to: Iterable[tuple[int, str] | tuple[int, str, Places]] | None) -> Receivers:
    if to is None:
        return {Site(model.n_layers - 1, "resid_post"): None}
    found: Receivers = {}
    for one in to if isinstance(to, Iterable) and not isinstance(to, str) else (to,):
        if not isinstance(one, (tuple, list)) or len(one) not in (2, 3):
            raise ValueError(f'to must be receivers, such as [(6, "q", 1)]; got {quoted(one)}')
        layer, site, heads = (*one, None) if len(one) == 2 else one
        check_layer(layer, model.n_layers)
        if site not in SITES or (heads is not None and site not in HEAD_SITES):
            kind = "a receiver" if heads is None else "split into heads"
            raise ValueError(f"{quoted(site)} is not {kind}; {', '.join(SITES if heads is None else HEAD_SITES)} are")
        numbers = None if heads is None else whole_numbers("heads", heads)
        for head in numbers or ():
            if head not in range(model.config.n_heads):
                raise ValueError(f"head {head} does not exist: the model's heads are 0 to {model.config.n_heads - 1}")
        place = Site(whole_number("layer", layer), site)
        before = found.get(place, [])
        found[place] = None if numbers is None or before is None else sorted({*before, *numbers})
    if not found:
        raise ValueError("to is empty: name at least one receiver, or leave it out for the logits")
    return found


def _frozen(frozen: str | Iterable[str]) -> tuple[str, ...]:
    found = names("frozen", frozen)
    for site in found:
        if site not in WRITES:
            raise ValueError(f"{quoted(site)} cannot be frozen; {', '.join(WRITES)} can")
    return found
