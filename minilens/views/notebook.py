"""How a notebook shows a page: in a frame of its own, so that neither disturbs the other."""

import html

HEIGHT = 720  # CSS pixels


def in_frame(title: str, page: str, *, sandbox: str = "") -> str:
    """An iframe with the text of a page in it. sandbox: what the page may do, such as allow-scripts."""
    return (
        f'<iframe title="{html.escape(title)}" sandbox="{sandbox}" srcdoc="{html.escape(page)}" '
        f'style="width: 100%; height: {HEIGHT}px; border: 0"></iframe>'
    )
