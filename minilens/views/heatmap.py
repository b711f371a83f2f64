"""A heat map of words: the cells of a figure, their sizes, and the words in them."""

from math import ceil

from .plots import PLAIN, Axes, Figure

# Inches. A cell is CELL, or less where there would be more than WIDEST by TALLEST of them.
CELL, WIDEST, TALLEST, NARROWEST = (0.8, 0.26), 16.0, 10.0, 3.6
LEFT, RIGHT, ABOVE, BELOW, FOOT = 1.1, 0.8, 1.05, 0.65, 0.5
# Points. Letters in cells are as large as the panel's longest text allows, and left out where that is below SMALLEST:
# then colours and outlines speak alone. Labels at the axes keep their size: where they would run into one another only
# every second is there, or every third, and so on, above and below the same.
LETTERS, SMALLEST, LABELS = 8.0, 4.5, 7.5
ADVANCE = 0.65  # of one letter to the next, in font sizes
LONGEST, LONGEST_LABEL = 10, 12  # characters of a token, in a cell and at an axis


def cell_size(n_columns: int, n_rows: int, letters: float | None = None) -> tuple[float, float]:
    """Of each of so many cells, in inches; letters: points, for cells that have room for words of this size."""
    if letters is not None:
        return CELL[0] * letters / LETTERS, CELL[1] * letters / LETTERS
    return max(NARROWEST / n_columns, min(CELL[0], WIDEST / n_columns)), min(CELL[1], TALLEST / n_rows)


def add_axes(figure: Figure, bottom: float, across: float, up: float, letters: float = LETTERS) -> tuple[Axes, Axes]:
    """For a heat map of this size, in inches, at this height, and for the scale to its right. letters: points."""
    wide, tall = figure.get_size_inches()
    left = LEFT * letters / LETTERS
    places = (left, across), (left + across + 0.2, 0.12)
    ax, bar = (figure.add_axes((x / wide, bottom / tall, w / wide, up / tall)) for x, w in places)
    return ax, bar


def label_axes(
    ax: Axes,
    cell: tuple[float, float],
    below: list[str],
    above: list[str],
    rows: list[str],
    letters: float = LETTERS,
) -> None:
    """What stands below and above the columns, and beside the rows: as many of them as fit, from the last row down."""
    size = LABELS * letters / LETTERS
    xs = range(0, len(below), ceil(1.3 * size / 72 / cell[0]))
    ys = range(len(rows) - 1, -1, -ceil(1.2 * size / 72 / cell[1]))
    slanted = {"rotation": 45, "rotation_mode": "anchor", "fontsize": size, "va": "center", **PLAIN}
    ax.set_xticks(xs, [below[x] for x in xs], ha="right", **slanted)
    ax.secondary_xaxis("top").set_xticks(xs, [above[x] for x in xs], ha="left", **slanted)
    ax.set_yticks(ys, [rows[y] for y in ys], fontsize=size, **PLAIN)


def write_cells(
    ax: Axes, cell: tuple[float, float], texts: list[list[str]], ink: list[list[str]], letters: float = LETTERS
) -> None:
    """A text in each cell, as large as the longest allows; none where that is too small to read."""
    longest = max(len(text) for row in texts for text in row)
    size = min(letters, 72 * 0.6 * cell[1], 72 * cell[0] / ADVANCE / max(longest, 1))
    for y, row in enumerate(texts if size >= SMALLEST else ()):
        for x, text in enumerate(row):
            ax.text(x, y, text, color=ink[y][x], fontsize=size, ha="center", va="center", **PLAIN)
