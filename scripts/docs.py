"""The pages of the documentation: made, run, and checked.

    python scripts/docs.py             check all pages; exit status 1, with what differs, if one is not as it should
    python scripts/docs.py --write     write the made pages, and print every output anew
    python scripts/docs.py docs/lens.md README.md --write      some pages only
    python scripts/docs.py --pictures  make the pictures of docs/images (needs /usr/bin/chromium)

docs/command*.md is made from the options of every command, docs/api*.md from docstrings and signatures.
Links are followed and spelling is checked on every run. All of it needs what `scripts/setup test` installs.

The blocks of a page are run one after another, as by a reader who types them in, in one folder and one Python:

    ```python          the block of text after it is what it prints
    ```console         lines that begin with "$ " are commands; what follows is what they print on both streams
    ```text            what the block of Python before it prints

In an excerpt, a line that is only ... stands for lines that are left out. A number with a decimal point may differ by
one in its last digit: processors round sums differently. A number after the word "rounding" is not compared. After the
kind of a block may stand "not compared: REASON", for what depends on the machine, or "not run: REASON".
"""

import argparse
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from difflib import SequenceMatcher, unified_diff
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlencode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the Hub's client: no page touches a network

WRITTEN = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
NUMBER = re.compile(r"-?\d+\.\d+")
ROUNDING = re.compile(r"(?<=rounding )[+-]?[\d.e+-]*\d")
LIMITS = {"README.md": 200, "CONTRIBUTING.md": 80}  # lines; 250 for every page of docs/
FENCE = re.compile(r"^```(\w+)(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
OUR_COMMANDS = ("minilens", "scripts/lens", ".venv/bin/python")


class Block(NamedTuple):
    """One block of a page: its kind, what is said of running it, and its text."""

    kind: str
    note: str
    text: str
    line: int


def pages() -> list[Path]:
    """All pages, those that are made included."""
    return [ROOT / name for name in WRITTEN] + sorted((ROOT / "docs").glob("*.md"))


def renewed(path: Path, *, all_outputs: bool = False) -> str:
    """The text of a page with the output of every block as a run of it prints it.

    What is not compared stays as it is, but with all_outputs. Raises RuntimeError for a block that fails.
    """
    import minilens.command.main  # noqa: F401  (before the folder is another)

    text = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, in_folder(folder):
        for name in ("scripts", "minilens", "weights"):  # what a checkout holds
            Path(name).symlink_to(ROOT / name)
        return _Run(path.name, all_outputs).page(text)


class _Run:
    """A reader of one page, who types in its blocks."""

    def __init__(self, name: str, all_outputs: bool) -> None:
        self.name, self.all_outputs = name, all_outputs
        self.names: dict[str, object] = {"__name__": "__main__"}
        self.printed: str | None = None  # by the block of Python just run

    def page(self, text: str) -> str:
        parts, at = [], 0
        for match in FENCE.finditer(text):
            block = Block(match[1], match[2].strip(), match[3], text.count("\n", 0, match.start()) + 1)
            between = text[at : match.start()]
            if self.printed and (block.kind != "text" or between.strip()):
                parts.append(f"\n\n```text\n{self.printed}```")
                self.printed = None
            parts += [between, f"```{match[1]}{match[2]}\n", self.block(block), "```"]
            at = match.end()
        if self.printed:
            parts.append(f"\n\n```text\n{self.printed}```")
        return "".join([*parts, text[at:]])

    def block(self, block: Block) -> str:
        """The text of a block as it should be."""
        if re.fullmatch("not run: .+", block.note):
            return block.text
        if block.note and not re.fullmatch("not compared: .+", block.note):
            raise self.trouble(block, f'"{block.note}" is not known: write "not run: REASON" or "not compared: REASON"')
        keep = bool(block.note) and not self.all_outputs
        if block.kind == "python":
            self.printed = self.python(block)
            return block.text
        if block.kind == "console":
            new = self.console(block)
            return block.text if keep else new
        if block.kind == "text" and self.printed is not None:
            printed, self.printed = self.printed, None
            return block.text if keep else excerpt(printed, block.text)
        raise self.trouble(
            block, f'a block of {block.kind} that is not the output of one of Python must be "not run: …"'
        )

    def python(self, block: Block) -> str:
        code = compile("\n" * block.line + block.text, self.name, "exec")
        with listening() as out:
            try:
                exec(code, self.names)
            except Exception:
                raise self.trouble(block, traceback.format_exc()) from None
        return tidy(out.getvalue())

    def console(self, block: Block) -> str:
        parts = []
        for step in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, shown = step.partition("\n")
            status, printed = ours(command) if is_ours(command) else others(command)
            if status and "error: " not in printed:
                raise self.trouble(block, f"{command}\nends with {status}:\n{printed}")
            parts.append(f"$ {command}\n{excerpt(printed, shown)}")
        return "".join(parts)

    def trouble(self, block: Block, what: str) -> RuntimeError:
        return RuntimeError(f"{self.name}, block at line {block.line}: {what}")


@contextmanager
def listening() -> Iterator[io.StringIO]:
    """What is printed on stdout and stderr meanwhile, as a terminal shows it: the two in one text."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        yield out


@contextmanager
def kept_in(name: str) -> Iterator[None]:
    """What is printed on stdout meanwhile goes into a file."""
    with open(name, "w", encoding="utf-8") as file, redirect_stdout(file):
        yield


@contextmanager
def in_folder(folder: str) -> Iterator[None]:
    """Work in this folder meanwhile; contextlib has the same from Python 3.11 on."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def is_ours(command: str) -> bool:
    """Whether a command can be run in this process, which spares it the import of torch."""
    words = [*shlex.shlex(command.partition(" > ")[0], posix=True, punctuation_chars=True)]
    return command.startswith(OUR_COMMANDS) and not any(set(word) <= set("|>&;<") for word in words if word)


def ours(command: str) -> tuple[int, str]:
    """The exit status and the output of minilens, or of a script."""
    from minilens.command.main import main

    command, _, file = command.partition(" > ")
    name, *words = shlex.split(command)
    os.environ["COLUMNS"] = "80"
    with listening() as out, kept_in(file) if file else nullcontext():
        try:
            if name == ".venv/bin/python":
                status = runpy.run_path(words[0])["main"](words[1:])
            else:
                status = main(["lens", *words] if name == "scripts/lens" else words)
        except SystemExit as end:  # argparse, of --help and --version
            status = int(end.code or 0)
    return status or 0, tidy(out.getvalue())


def others(command: str) -> tuple[int, str]:
    """The same of any other command, by the shell."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PATH": path, "COLUMNS": "80"},
    )  # fmt: skip
    return done.returncode, tidy(done.stdout)


def tidy(text: str) -> str:
    """The text without spaces at the ends of lines, or empty lines at its own end."""
    lines = [line.rstrip() for line in text.rstrip().splitlines()]
    return "".join(f"{line}\n" for line in lines)


def excerpt(printed: str, shown: str) -> str:
    """Of a long output the pieces that are shown, or those most like them, with ... between."""
    real = printed.splitlines()
    pieces: list[list[str]] = [[]]
    for line in shown.splitlines():
        if line == "...":
            pieces.append([])
        else:
            pieces[-1].append(line)
    if len(pieces) == 1:
        return printed
    parts, at = [], 0
    for number, piece in enumerate(pieces):
        ends = len(real) - len(piece)
        wanted = "\n".join(piece)
        starts = range(ends + 1) if number else range(1)
        starts = range(max(0, ends), ends + 1) if number == len(pieces) - 1 else starts

        def likeness(start: int, wanted: str = wanted, n: int = len(piece)) -> float:
            found = "\n".join(real[start : start + n])
            return 1 if alike(found, wanted) else 0.99 * SequenceMatcher(None, found, wanted, autojunk=False).ratio()

        at = max((start for start in starts if start >= at), key=likeness, default=at)
        parts.append("".join(f"{line}\n" for line in real[at : at + len(piece)]))
        at += len(piece)
    return "...\n".join(parts)


def alike(one: str, other: str) -> bool:
    """Whether two texts are the same, but for one in the last digit of numbers with a decimal point, and rounding."""
    one, other = ROUNDING.sub("some", one), ROUNDING.sub("some", other)
    ours, theirs = NUMBER.findall(one), NUMBER.findall(other)
    rest = [" ".join(re.sub(" +", " ", NUMBER.sub("#", text)).split(" ")) for text in (one, other)]
    return rest[0] == rest[1] and all(map(_close, ours, theirs))


def _close(one: str, other: str) -> bool:
    places = max(len(number.partition(".")[2]) for number in (one, other))
    return abs(float(one) - float(other)) < 1.5 * 10.0**-places


def differences(path: Path, should: str) -> str:
    """How a page differs from what it should be; nothing where it does not."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if alike(text, should):
        return ""
    lines = unified_diff(text.splitlines(), should.splitlines(), str(path.relative_to(ROOT)), "as it should be", n=2)
    return "\n".join(lines)


def misfits() -> list[str]:
    """Misspelt words, links that lead nowhere, pages too long, and a picture too late: a sentence each."""
    found = []
    everything = [*pages(), *ROOT.glob("weights/*/README.md"), *ROOT.glob(".github/**/*.md")]
    found += misspelt(everything)
    for path in everything:
        name, text = path.relative_to(ROOT), path.read_text(encoding="utf-8")
        n_lines = text.count("\n")
        limit = LIMITS.get(str(name), 250 if name.parts[0] == "docs" else sys.maxsize)
        if n_lines > limit:
            found.append(f"{name} has {n_lines} lines: at most {limit}")
        for link in links(text):
            target, _, anchor = link.partition("#")
            page = (path.parent / target).resolve() if target else path
            if not page.exists():
                found.append(f"{name} links to {link}, which is not there")
            elif anchor and page.suffix == ".md" and anchor not in anchors(page):
                found.append(f"{name} links to {link}, and {page.name} has no such heading")
    first = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25]
    if not any(line.startswith("![") for line in first):
        found.append("README.md has no picture in its first 25 lines")
    index = {(ROOT / "docs" / link.partition("#")[0]).name for link in links((ROOT / "docs/index.md").read_text())}
    found += [f"docs/index.md does not name {path.name}" for path in (ROOT / "docs").glob("*.md")
              if path.name not in index | {"index.md"}]  # fmt: skip
    return found


def misspelt(paths: Sequence[Path]) -> list[str]:
    """What codespell, of the extra named test, takes for misspelt."""
    from codespell_lib import main as codespell

    with listening() as out:
        codespell("--ignore-regex", "^> .*", *map(str, paths))  # a quote is what a model wrote
    return out.getvalue().replace(f"{ROOT}{os.sep}", "").splitlines()


def links(text: str) -> Iterator[str]:
    """The places within the project that a page leads to."""
    prose = FENCE.sub("", text)
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub("`[^`]*`", "`", prose)):
        if not re.match("[a-z]+:", link):
            yield link


@cache
def anchors(page: Path) -> frozenset[str]:
    """The headings of a page as GitHub and MkDocs name them in links."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


def take_pictures() -> None:
    """docs/images: the page of README with a cell chosen and two tokens pinned; the page that computes, with two texts
    and a silenced head; the first figure of the study.

    corpus.png is not made here: it takes the held-out texts, which are not part of the repository.
    """
    from playwright.sync_api import sync_playwright

    import minilens
    from minilens.command.main import main

    _, tokenizer = minilens.load("tales-gpt2")
    pins = "+".join(f"{int(tokenizer.encode(word)[0, 0])}@7" for word in (" girl", ","))
    with tempfile.TemporaryDirectory() as folder:
        path, live, study = (Path(folder) / name for name in ("lens.html", "live.html", "study"))
        main(["lens", "Once upon a time there was a little", "--html", str(path)])
        with sync_playwright() as driver:
            arguments = ["--headless", "--no-sandbox", "--disable-gpu"]
            browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
            page = browser.new_page(viewport={"width": 1200, "height": 1110}, device_scale_factor=1.5)
            page.goto(f"{path.as_uri()}#at=4.resid_post@7&pins={pins}")
            keep_picture(io.BytesIO(page.screenshot()), "page.png")
            main(["live", "tales-gpt2", "--html", str(live)])
            asked = {"text": "Once upon a time there was a little girl who lived in a house with he", "edits": "5.h7"}
            page.set_viewport_size({"width": 1200, "height": 930})
            page.goto(f"{live.as_uri()}#{urlencode(asked, quote_via=quote)}")
            page.wait_for_selector("#asks[data-answered]")
            page.locator("#text").press("Control+End")
            page.keyboard.type("r")
            page.wait_for_selector("#asks[data-answered='2']")
            keep_picture(io.BytesIO(page.screenshot()), "live.png")
            browser.close()
        main(["study", "--compare", "tales-gpt2", "tales-gpt-neo", "tales-ctrl", "--out", str(study)])
        keep_picture(study / "curves.png", "study.png")


def keep_picture(source: Path | io.BytesIO, name: str) -> None:
    """With a palette, which makes a third of the size."""
    from PIL import Image

    Image.open(source).convert("RGB").quantize(256).save(ROOT / "docs" / "images" / name, optimize=True)


def on_page_markdown(markdown: str, **_: object) -> str:
    """A hook of MkDocs (mkdocs.yml), for what only GitHub understands.

    Links to files outside docs/ lead to the repository that the site is built from; where there is none to name, their
    text stays without a link. What stands after the kind of a block goes.
    """
    markdown = re.sub(r"^```(\w+) .+$", r"```\1", markdown, flags=re.MULTILINE)
    repository = os.environ.get("GITHUB_REPOSITORY")
    link = rf"[\1](https://github.com/{repository}/blob/main/\2)" if repository else r"\1"
    return re.sub(r"\[([^\]]*)\]\(\.\./([^)\s]*)\)", link, markdown)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make, run and check the pages of the documentation.")
    parser.add_argument("pages", nargs="*", type=Path, help="README.md, docs/lens.md …; by default all")
    parser.add_argument("--write", action="store_true", help="write the made pages, and print every output anew")
    parser.add_argument("--pictures", action="store_true", help="make the pictures of docs/images, and nothing else")
    args = parser.parse_args(argv)
    if args.pictures:
        take_pictures()
        return 0
    from docs_made import MADE  # it imports minilens, and with it torch

    wrong = False
    for path in [page.resolve() for page in args.pages] or sorted({*pages(), *(ROOT / name for name in MADE)}):
        name = str(path.relative_to(ROOT))
        if name in MADE and args.write:
            path.write_text(MADE[name](), encoding="utf-8")
        found = differences(path, MADE[name]()) if name in MADE else ""
        if not found and (found := differences(path, should := renewed(path, all_outputs=args.write))) and args.write:
            path.write_text(should, encoding="utf-8")
            print(f"{name} is written anew")
        elif found:
            wrong = True
            print(found)
    for misfit in misfits():
        wrong = True
        print(misfit)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
