"""The views that users call are names of minilens itself, imported when they are asked for."""

import subprocess
import sys

import pytest

import minilens
from minilens.views import VIEWS


def test_every_view_is_a_name_of_minilens() -> None:
    for name in VIEWS:
        assert callable(getattr(minilens, name)) and name in dir(minilens)
        assert getattr(minilens, name).__doc__
    with pytest.raises(AttributeError, match="module 'minilens' has no attribute 'lens_pages'"):
        minilens.lens_pages  # noqa: B018


def test_importing_minilens_imports_no_view() -> None:
    code = (
        "import sys, minilens; found = {name for name in sys.modules if name.startswith('minilens.views.')}; "
        "assert found == {'minilens.views.notebook'}, found; assert not {'rich', 'matplotlib'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
