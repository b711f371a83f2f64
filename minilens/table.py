"""What the lens found: numbers for every row and position, which the views show."""

from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

from jaxtyping import Bool, Float, Int
from torch import Tensor

from .text import Tokenizer
from .vocab import Standing, Top

T = TypeVar("T")


class Stat(Generic[T]):
    """A statistic of a LensTable, which is there where it was asked for."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, table: "LensTable | None", owner: type) -> T:
        if table is None:
            return cast(T, self)  # of the class, as help() asks
        if self.name not in table.stats:
            how = "give logit_lens tokens to track" if self.name == "tracked" else "name it in the stats of logit_lens"
            raise AttributeError(f'this table was made without "{self.name}": {how}')
        return cast(T, table.stats[self.name])


@dataclass(frozen=True, eq=False)
class LensTable:
    """What every row of the lens says at every position: numbers on the CPU, no row of logits.

    Rows are residuals, from the stream entering block 0 ("input row") to the one whose logits are the model's own
    ("final row"). Information is in nats. The row axis comes first, then pos.
    """

    labels: tuple[str, ...]  # for each row, as in LensRow
    layers: tuple[int, ...]
    decoder: str
    norm: str
    centre: bool
    positions: Int[Tensor, "pos"]  # the places in the text that the columns show
    tokens: Int[Tensor, "pos"]  # the input token at each
    final_tokens: Int[Tensor, "pos"]  # the model's own top-1: the best token of the final row
    next_tokens: Int[Tensor, "pos"]  # the true next token; -1 at the end of the text
    track: tuple[int, ...]
    stats: dict[str, Any]  # those that were asked for, by name
    tokenizer: Tokenizer | None = None  # how the views show tokens; without one, by their ids

    top = Stat[Top]()  # the best tokens, [row, pos, k]
    final = Stat[Standing]()  # how final_tokens stand in each row, [row, pos]
    next = Stat[Standing]()  # of next_tokens; where there is none, not a number, and rank 0
    input = Stat[Standing]()  # of tokens
    tracked = Stat[Standing]()  # of track, [row, pos, token]
    entropy = Stat[Float[Tensor, "row pos"]]()
    kl_final = Stat[Float[Tensor, "row pos"]]()  # KL(final row || row)
    kl_row_final = Stat[Float[Tensor, "row pos"]]()  # KL(row || final row)
    kl_input = Stat[Float[Tensor, "row pos"]]()  # KL(input row || row)
    kl_row_input = Stat[Float[Tensor, "row pos"]]()  # KL(row || input row)
    js = Stat[Float[Tensor, "row pos"]]()  # Jensen and Shannon's divergence of row and final row
    change = Stat[Float[Tensor, "row pos"]]()  # KL(row || the row before it); in the input row not a number

    @property
    def cross_entropy(self) -> Float[Tensor, "row pos"]:
        """Of the true next token: -log p."""
        return -self.next.logprob

    @property
    def agrees(self) -> Bool[Tensor, "row pos"]:
        """Where the row's best token is the model's own (or ties with it)."""
        return self.final.rank == 1

    @property
    def settled(self) -> Int[Tensor, "pos"]:
        """The first row from which on, to the last, the best token is the model's own."""
        return len(self.labels) - self.agrees.flip(0).int().cumprod(0).sum(0)

    def columns(self, chosen: slice) -> "LensTable":
        """The table of some of its columns."""

        def cut(value: Any) -> Any:
            return type(value)(*map(cut, value)) if isinstance(value, tuple) else value[:, chosen]

        names = ("positions", "tokens", "final_tokens", "next_tokens")
        stats = {name: cut(value) for name, value in self.stats.items()}
        return replace(self, **{name: getattr(self, name)[chosen] for name in names}, stats=stats)

    def __repr__(self) -> str:
        how = f"decoder {self.decoder}, norm {self.norm}" + ", centred" * self.centre
        size, held = f"{len(self.labels)} rows and {len(self.positions)} positions", ", ".join(self.stats)
        return f"LensTable of {size}: {how}; {held or 'no statistics'}"

    def _repr_html_(self) -> str | None:
        """The table as a page to look around in, for a notebook."""
        from .views.page import notebook_html  # upwards in the import graph, but only when a notebook asks

        return notebook_html(self) if self.stats else None
