"""What all figures share: matplotlib, colours, axes, and a figure as an image."""

import base64
import html
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint.tokenizer import Tokenizer
from ..files import replacing
from .tokens import printable, token_label

try:
    from matplotlib import colormaps, rc_context, rcParams
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.patches import Rectangle
except ModuleNotFoundError:
    raise ValueError("drawing a figure needs matplotlib, which is not installed: pip install matplotlib") from None


__all__ = [
    "Axes",
    "Figure",
    "FigureCanvasAgg",
    "FontProperties",
    "LinearSegmentedColormap",
    "LogNorm",
    "Normalize",
    "PatchCollection",
    "Rectangle",
    "add_legend",
    "as_image",
    "colormaps",
    "depths",
    "drawable",
    "drawn",
    "findfont",
    "get_font",
    "labels",
    "legend_label",
    "plain",
    "rc_context",
    "save_figure",
    "scale_nats",
]  # every figure takes matplotlib from here, where its absence is explained

OUTPUT, INPUT = "#0072b2", "#c04f00"  # of the palette that the page's pins have
INK, LINES = "#5c646d", "#dfe2e6"
PLAIN: dict[str, Any] = {"parse_math": False, "usetex": False}  # a token's $ and \ are letters, never TeX
LEGEND: dict[str, Any] = {"fontsize": 7, "frameon": False, "labelcolor": INK, "handlelength": 2.2}


def add_legend(ax: Axes, of: Axes | None = None, **where: Any) -> None:
    """The legend of what is drawn in these axes, or `of` others. Its words are letters and never TeX, as PLAIN has it.

    matplotlib leaves out a label that begins with _: `legend_label` makes one that it takes.
    """
    legend = ax.legend(*(of or ax).get_legend_handles_labels(), **{**LEGEND, **where})
    for text in legend.get_texts():
        text.set(**PLAIN)


def legend_label(name: str) -> str:
    return f" {name}" if name.startswith("_") else name


def scale_nats(row: Iterable[Axes], least: float = 50.0) -> None:
    """One scale for all of them, when all are drawn: in proportion up to 1 nat, logarithmic above."""
    drawn = np.concatenate([[least], *(line.get_ydata() for ax in row for line in ax.lines)])
    highest = float(np.nanmax(drawn))  # what is no number is not drawn
    for ax in row:
        ax.set_yscale("symlog", linthresh=1)
        ax.set_ylim(-0.05, 1.2 * highest)
        ax.set_yticks([tick for tick in (0, 1, 3, 10, 30, 100, 300, 1000) if tick < highest])
        ax.yaxis.set_major_formatter("{x:g}")


def depths(labels: Iterable[str], layers: Iterable[int]) -> list[float]:
    """How many blocks are done at each row."""
    part = {"resid_pre": 0.0, "attn_out": 0.25, "resid_mid": 0.5, "mlp_out": 0.75}
    return [layer + part.get(label.rpartition(".")[2], 1.0) for label, layer in zip(labels, layers, strict=True)]


def plain(ax: Axes) -> None:
    """Few lines and small letters."""
    ax.grid(axis="y", color=LINES, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.minorticks_off()
    ax.tick_params(labelsize=7, colors=INK, length=2)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINES)


def save_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as .png, .svg or .pdf; drawn again from the same table it is the same file, to the byte.

    Raises ValueError for another suffix, and for a file that cannot be written.
    """
    path = Path(path)
    content = drawn(figure, path.suffix)
    with replacing(path) as new:
        new.write_bytes(content)


def drawn(figure: Figure, suffix: str, *, svg_text: bool = False, dpi: int | None = None) -> bytes:
    """A figure as the content of a .png, .svg or .pdf file. svg_text: letters as text, which are few bytes. dpi:
    pixels of an inch, by default the figure's own.

    Raises ValueError for another suffix.
    """
    undated: dict[str, dict[str, Any]] = {
        ".png": {"Software": None},
        ".svg": {"Date": None},
        ".pdf": {"CreationDate": None},
    }
    if suffix.lower() not in undated:
        raise ValueError(f'a figure is written as {", ".join(undated)}, by the end of its name; got "{suffix}"')
    content = io.BytesIO()
    letters = "none" if svg_text else rcParams["svg.fonttype"]
    with rc_context({"svg.hashsalt": "minilens", "svg.fonttype": letters}):  # without the first its ids come by lot
        figure.savefig(content, format=suffix[1:].lower(), metadata=undated[suffix.lower()], dpi=dpi or "figure")
    return content.getvalue()


def as_image(figure: Figure, what: str) -> str:
    """A figure within a page itself, as an image: its ids stay its own."""
    data = base64.b64encode(drawn(figure, ".svg", svg_text=True)).decode()
    return f'<img alt="{html.escape(what)}" src="data:image/svg+xml;base64,{data}">'


def labels(tokenizer: Tokenizer | None) -> Callable[[int, int], str]:
    """A function that gives a token as every view shows it, cut to so many characters."""
    draw = drawable()

    def label(token: int, longest: int) -> str:
        shown = draw(token_label(tokenizer, token))
        return shown if len(shown) <= longest else shown[: longest - 1] + "…"

    return label


def drawable() -> Callable[[str], str]:
    """A function that escapes what the font has no glyph for, and what is not printable.

    matplotlib would warn whenever such a character is drawn, and draw a box that tells nothing; an SVG that held a
    control character would not be XML. A caller whose rcParams name more fonts sees more.
    """
    fonts = [get_font(findfont(FontProperties(family=[name]))) for name in FontProperties().get_family()]
    glyphs = {code for font in fonts for code in font.get_charmap()}

    def draw(text: str) -> str:
        return "".join(c if ord(c) in glyphs else c.encode("unicode_escape").decode() for c in printable(text))

    return draw
