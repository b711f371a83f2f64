"""How results show themselves in a notebook: as their page, in a frame of its own, so that neither disturbs the other.

A notebook asks an object for `_repr_html_`. The results know nothing of views, so this file gives them that method.
A view is imported when it is asked for: `import minilens` stays quick.
"""

import html
from math import ceil

from ..instruments.attribution import Attribution
from ..instruments.attributions import Attributions
from ..instruments.heads import HeadScores
from ..instruments.parts import Parts
from ..instruments.patching import Patching
from ..table import LensTable
from ..traces import BlockTrace

HIGHEST = 960  # CSS pixels of a frame; what is longer scrolls in it, and its lower edge can be drawn
LINE = 22  # CSS pixels of a line of a table
CONTROLS, WORDS, LITTLE = 250, 360, 100  # CSS pixels: what stands above and below the tables of a page
PANEL = 25  # lines beside the grid of the lens
PATTERN, REPR = 9, 12  # lines: a row of five patterns, and the block's repr below them
MOST = 100  # parts that are shown: of neurons there are thousands

# A frame is as dark as the notebook around it: JupyterLab, VS Code and Colab say how dark they are, and a browser tells
# a page the scheme of its frame. Another notebook's own color-scheme is inherited.
THEMES = """<style>
:is([data-jp-theme-light=false], .vscode-dark, .vscode-high-contrast, [theme=dark]) .minilens { color-scheme: dark }
:is([data-jp-theme-light=true], .vscode-light, .vscode-high-contrast-light, [theme=light]) .minilens {
  color-scheme: light
}
</style>"""


def in_frame(title: str, page: str, *, lines: int | None = None, around: int = WORDS, sandbox: str = "") -> str:
    """An iframe with the text of a page in it.

    lines: those of its tables, by default the rows that it has outside of what is folded. around: CSS pixels of what
    else it has. sandbox: what the page may do, such as allow-scripts.
    """
    lines = page.partition("<details")[0].count("<tr") if lines is None else lines
    style = f"width: 100%; height: {min(HIGHEST, around + LINE * lines)}px; border: 0; resize: vertical"
    return (
        f'{THEMES}<iframe class="minilens" title="{html.escape(title)}" sandbox="{sandbox}" '
        f'srcdoc="{html.escape(page)}" style="{style}"></iframe>'
    )


def lens_html(table: LensTable) -> str | None:
    """The page of a table; its script sees nothing of the notebook. None for a table without statistics."""
    from .lens_page import lens_page

    lines = max(PANEL, 3 + len(table.labels))
    how = {"lines": lines, "around": CONTROLS}
    return in_frame("Logit lens", lens_page(table), **how, sandbox="allow-scripts") if table.stats else None


def patching_html(patching: Patching) -> str:
    """The page of a patching; it has no script."""
    from .patching import patching_page

    return in_frame("Activation patching", patching_page(patching))


def heads_html(scores: HeadScores) -> str:
    """The scores of every head, shaded."""
    from .pictures import heads_page

    return in_frame("Head scores", heads_page(scores), around=LITTLE)


def attribution_html(attribution: Attribution | Attributions) -> str:
    """The page of an attribution, by head; it has no script."""
    from .attribution import attribution_page

    return in_frame("Attribution", attribution_page(attribution))


def parts_html(parts: Parts) -> str:
    """The page of parts: of many, those of the largest norm."""
    from .parts import parts_page

    return in_frame("Parts", parts_page(parts if len(parts.labels) <= MOST else parts.largest(MOST)))


def patterns_html(block: BlockTrace) -> str | None:
    """The attention pattern of each head. None on the device "meta", where there are no numbers."""
    from .pictures import patterns_page

    if block.pattern.is_meta:
        return None
    lines = PATTERN * ceil(block.pattern.shape[1] / 5) + REPR
    return in_frame("Attention", patterns_page(block), lines=lines, around=LITTLE)


def show_in_notebooks() -> None:
    """Give the results the method that a notebook asks for."""
    pages = {
        LensTable: lens_html,
        Patching: patching_html,
        HeadScores: heads_html,
        Attribution: attribution_html,
        Attributions: attribution_html,
        Parts: parts_html,
        BlockTrace: patterns_html,
    }
    for kind, page in pages.items():
        setattr(kind, "_repr_html_", page)  # noqa: B010  (the class declares no such attribute)
