"""A fitted lens in the terminal: row by row how well the maps are determined."""

from rich.table import Table
from rich.text import Text

from ..learned.affine import LearnedLens
from ..lens import label


def fit_table(lens: LearnedLens) -> Table:
    """For each row the share of the output stream's variance that its map tells, on text left out, and more.

    ridge: that was chosen or given. twins: the cosine of the maps of two halves of the text, of A - I and of b. The
    last column is the Frobenius norm of A - I.
    """
    made = lens.made
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("row", no_wrap=True, vertical="bottom")
    for head in ("R² on text\nleft out", "ridge", "twins:\nA - I", "twins:\nb", "|A - I|"):
        table.add_column(head, justify="right", vertical="bottom", no_wrap=True)
    columns = zip(
        lens.maps, made["left_out"]["r_squared"], made["ridge"], made["twins"], made["departure"], strict=True
    )
    for site, r_squared, ridge, (weight, bias), departure in columns:
        found = [f"{r_squared:.3f}", "-" if ridge is None else f"{ridge:g}", f"{weight:.2f}", f"{bias:.2f}"]
        table.add_row(Text(label(site)), *found, f"{departure:.3g}")
    return table
