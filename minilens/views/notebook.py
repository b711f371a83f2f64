"""How results show themselves in a notebook: as their page, in a frame of its own, so that neither disturbs the other.

A notebook asks an object for `_repr_html_`. The results know nothing of views, so this file gives them that method.
A view is imported when it is asked for: `import minilens` stays quick.
"""

import html

from ..instruments.patching import Patching
from ..table import LensTable

HEIGHT = 720  # CSS pixels


def in_frame(title: str, page: str, *, sandbox: str = "") -> str:
    """An iframe with the text of a page in it. sandbox: what the page may do, such as allow-scripts."""
    return (
        f'<iframe title="{html.escape(title)}" sandbox="{sandbox}" srcdoc="{html.escape(page)}" '
        f'style="width: 100%; height: {HEIGHT}px; border: 0"></iframe>'
    )


def lens_html(table: LensTable) -> str | None:
    """The page of a table; its script sees nothing of the notebook. None for a table without statistics."""
    from .lens_page import lens_page

    return in_frame("Logit lens", lens_page(table), sandbox="allow-scripts") if table.stats else None


def patching_html(patching: Patching) -> str:
    """The page of a patching, which has no script."""
    from .patching import patching_page

    return in_frame("Activation patching", patching_page(patching))


def show_in_notebooks() -> None:
    """Give the results the method that a notebook asks for."""
    for kind, page in ((LensTable, lens_html), (Patching, patching_html)):
        setattr(kind, "_repr_html_", page)  # noqa: B010  (the class declares no such attribute)
