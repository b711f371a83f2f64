"""README and docs: every block run, every link followed, the made pages made anew; and that scripts/docs.py tells."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_house import ORDER

ROOT = Path(__file__).parents[1]
docs = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "docs.py")))


def test_every_page_is_as_it_would_be_made_now() -> None:
    """In a process of its own, as a reader runs it: without the checks of shapes that the tests switch on."""
    ran = subprocess.run([sys.executable, str(ROOT / "scripts" / "docs.py")], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_import_list_is_the_one_that_the_house_is_held_to() -> None:
    assert ORDER in (ROOT / "docs" / "design.md").read_text()
    told = re.split("```.*\n", (ROOT / "CONTRIBUTING.md").read_text())[3]
    rooms = [re.split(" {2,}", line)[0] for line in told.splitlines()]
    assert rooms == re.sub(r" \| (learned|live)/", "", ORDER).split("\n")[1:-2]  # without what is to come, and __main__


PAGE = """
```python
print("one", 0.25)
```

```text
two
```

```console
$ printf 'a\\nb\\nc\\n'
a
...
d
$ minilens --version > version
$ wc -l < version
```

```python
from pathlib import Path

print(Path("version").read_text().split()[0])
```
"""


def test_a_page_gets_what_its_blocks_print(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    right = PAGE.replace("two", "one 0.25").replace("d\n$", "c\n$").replace("< version\n", "< version\n1\n")
    right = right.removesuffix("\n") + "\n\n```text\nminilens\n```\n"
    assert docs.renewed(page) == right
    page.write_text(right)
    assert docs.renewed(page) == right


@pytest.mark.parametrize(
    "block, fault",
    [
        ("```python\n1 / 0\n```", "ZeroDivisionError"),
        ("```console\n$ ls nothing\n```", "ends with"),
        ("```text\nof no block\n```", "not run: "),
        ("```python never mind\n```", "never mind"),
    ],
)
def test_a_block_that_fails_is_named(block: str, fault: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"a page\n\n{block}\n")
    with pytest.raises(RuntimeError, match=r"page\.md, block at line 3") as error:
        docs.renewed(page)
    assert fault in str(error.value)


@pytest.mark.parametrize(
    "one, other, same",
    [("p 0.25", "p  0.26", True), ("p 0.25", "p 0.27", False), ("p 25", "p 26", False), ("p 2.0", "q 2.0", False)],
)
def test_only_the_last_digit_may_differ(one: str, other: str, same: bool) -> None:
    assert docs.alike(one, other) is same


def test_links_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "index.md"
    text = page.read_text() + "\n[a](nowhere.md) [b](lens.md#rows) [c](lens.md#no-such-heading) `[d](code)`\n"
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: text if path == page else read(path, *a, **k))
    assert [misfit for misfit in docs.misfits() if "index.md links" in misfit] == [
        "docs/index.md links to nowhere.md, which is not there",
        "docs/index.md links to lens.md#no-such-heading, and lens.md has no such heading",
    ]
