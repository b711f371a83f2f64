"""How results are shown: in the terminal, as a page, as a figure, as records of JSON and CSV.

The views that users call are names of `minilens` itself. A view is imported when it is asked for: figures need
matplotlib, and `import minilens` stays quick.
"""

from importlib import import_module
from typing import Any

VIEWS = {  # the name of a view -> its file
    "as_lines": "records",
    "as_record": "records",
    "attention_figure": "attention_figure",
    "attention_page": "attention",
    "attention_view": "attention",
    "attribution_figure": "attribution_figure",
    "attribution_page": "attribution",
    "attribution_view": "attribution",
    "block_view": "walk",
    "diff_view": "diff",
    "heads_view": "heads",
    "generation_view": "generation",
    "lens_figure": "lens_figure",
    "lens_page": "lens_page",
    "lens_view": "lens_terminal",
    "life_figure": "life_figure",
    "life_lines": "life",
    "life_record": "life",
    "life_view": "life",
    "parts_figure": "parts_figure",
    "parts_page": "parts",
    "parts_view": "parts",
    "patching_figure": "patching_figure",
    "patching_page": "patching",
    "patching_view": "patching",
    "save_figure": "plots",
    "walk_view": "walk",
}


def view(name: str) -> Any:
    """The function that shows something, by its name. Raises AttributeError for another name.

    Raises ValueError for a figure where matplotlib is not installed.
    """
    if name not in VIEWS:
        raise AttributeError(f"module 'minilens' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{VIEWS[name]}"), name)
