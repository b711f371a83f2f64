"""Every block and every link of README and docs, and the pages that are made: as scripts/docs.py checks them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_page_is_as_it_would_be_made_now() -> None:
    """In a process of its own, as a reader runs it: without the checks of shapes that the tests switch on."""
    ran = subprocess.run([sys.executable, str(ROOT / "scripts" / "docs.py")], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
