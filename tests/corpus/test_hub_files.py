"""minilens/corpus/hub_files.py and named.py: datasets of a Hub on this machine, through the real client."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import Tiny
from local_hub import Fault, LocalHub
from texts import documents, loaded, text_file

from minilens.corpus.documents import TextFile
from minilens.corpus.measure import CorpusLens, Findings, Plan
from minilens.corpus.named import text_files
from minilens.corpus.sweep import Sweep
from minilens.views.corpus_record import corpus_record

REPO = "datasets/some/tales"


def made(folder: Path, *seeds: int) -> Path:
    """A dataset of one file in each form, of other texts for other seeds."""
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("about")
    for name, seed in zip(("a.jsonl.zst", "b.parquet", "c.txt"), seeds, strict=True):
        text_file(folder / "data" / name, documents(seed, n=6))
    return folder


def texts_of(files: Sequence[TextFile]) -> list[list[str]]:
    return [list(file.documents()) for file in files]


def test_files_of_a_dataset(hub: LocalHub, tmp_path: Path) -> None:
    """By name, by a pattern and in a revision; the same as on the disk, and known by the same digests."""
    folder = made(tmp_path / "1", 1, 2, 3)
    commit = hub.push(REPO, folder, "main", "refs/convert/parquet")
    on_disk = [TextFile(path) for path in sorted((folder / "data").iterdir())]
    found = text_files(f"hf://{REPO}/data/*", tmp_path)
    assert texts_of(found) == texts_of(on_disk)
    assert [file.digest for file in found] == [file.digest for file in on_disk]
    assert [file.longest for file in found] == [file.longest for file in on_disk]
    assert [file.name for file in found] == [f"hf://{REPO}@{commit}/data/{file.path.name}" for file in on_disk]
    for name in (f"{REPO}/data/b.parquet", f"{REPO}@refs/convert/parquet/**/*.parquet", f"{REPO}@{commit}/data/b.*"):
        assert texts_of(text_files([f"hf://{name}", on_disk[0]], tmp_path)) == texts_of([on_disk[1], on_disk[0]])
        assert texts_of(text_files(Path(f"hf://{name}"), tmp_path)) == texts_of([on_disk[1]])
    assert not list((tmp_path / "cache").rglob("*.parquet"))


def test_a_sweep_keeps_to_its_commit(hub: LocalHub, tiny: Tiny, tmp_path: Path) -> None:
    """Resumed after a push, it reads what it began with; a new one reads what is there now."""
    model = loaded(tiny, tmp_path, "gpt2", torch.float32)
    name, folder = f"hf://{REPO}/data/*", tmp_path / "out"

    def sweep(to: Path) -> Sweep[Findings]:
        return Sweep(CorpusLens(*model, Plan(shard=300)), text_files(name, to), to)

    first = hub.push(REPO, made(tmp_path / "1", 1, 2, 3))
    begun = sweep(folder)
    next(begun.run())
    second = hub.push(REPO, made(tmp_path / "2", 4, 5, 6))
    again = sweep(folder)
    assert len(list(again.run())) == int(again.count().shards.sum()) - 1
    report = corpus_record("tiny", again.findings())
    assert json.loads((folder / "sweep.json").read_text())["hub"] == {"some/tales@main": first}
    assert {file.partition("@")[2][:40] for file, _ in report["files"]} == {first}
    assert {file.name.partition("@")[2][:40] for file in text_files(name, tmp_path / "new")} == {second}


@pytest.mark.parametrize("lie", ["../b.parquet", "data/../../b.parquet", "/b.parquet", "data/\x1bb.parquet"])
def test_paths_that_lead_out(hub: LocalHub, tmp_path: Path, lie: str) -> None:
    hub.push(REPO, made(tmp_path / "1", 1, 2, 3))
    hub.lies["data/b.parquet"] = lie
    with pytest.raises(ValueError, match=r"the Hub names a file '.*', which is no path in a dataset"):
        text_files(f"hf://{REPO}/**", tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "b.parquet", "c.txt"])
@pytest.mark.parametrize("what", ["fewer", "more", "others"])
def test_bytes_that_are_not_those_named(hub: LocalHub, tmp_path: Path, name: str, what: str) -> None:
    """Refused when they are read: by their number, by what the Hub says of a large file, or by what was read before.

    Nobody asks for what comes after the end of a .parquet file.
    """
    folder = made(tmp_path / "1", 1, 2, 3)
    hub.push(REPO, folder)
    content = (folder / "data" / name).read_bytes()
    (good,) = text_files(f"hf://{REPO}/data/{name}", tmp_path)
    others = text_file(tmp_path / f"other-{name}", documents(9, n=6)).path.read_bytes() + bytes(len(content))
    body = {"fewer": content[:-9], "more": content + b"\n" * 9, "others": others[: len(content)]}[what]
    hub.faults.append(Fault(f"*{name}", "GET", body=body))
    if (name, what) == ("b.parquet", "more"):
        assert list(good.documents()) == documents(2, n=6)
        return
    told = rf"hf://{REPO}@.*{name} (cannot be read|has changed|is not UTF-8)"
    with pytest.raises(ValueError, match=told):
        list(good.documents())
    if (name, what) != ("c.txt", "others"):  # a small file of which nothing is known yet
        with pytest.raises(ValueError, match=told):
            text_files(f"hf://{REPO}/data/{name}", tmp_path)


def test_a_connection_that_breaks(hub: LocalHub, tmp_path: Path) -> None:
    """It is taken up where it broke off; where nobody answers any more, one sentence says so."""
    hub.push(REPO, made(tmp_path / "1", 1, 2, 3))
    (file,) = text_files(f"hf://{REPO}/data/a.jsonl.zst", tmp_path)
    hub.faults.append(breaks := Fault("*a.jsonl.zst", "GET", times=1, after=1, cut=100))
    assert list(file.documents()) == documents(1, n=6)
    assert not breaks.times
    hub.stop()
    with pytest.raises(ValueError, match=r"a\.jsonl\.zst cannot be read: the Hub cannot be reached, or refuses \("):
        list(file.documents())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://datasets/tales/a.txt", "is no file of a dataset: it must be hf://datasets/OWNER/NAME"),
        ("hf://models/a/b/c.txt", "is no file of a dataset: it must be hf://datasets/OWNER/NAME"),
        (f"hf://{REPO}@a..b/c.txt", "is no file of a dataset: it must be hf://datasets/OWNER/NAME"),
        ("hf://datasets/-/b/c.txt", "is no file of a dataset: '-/b' cannot be the name of one"),
        ("hf://datasets/no/thing/c.txt", "there is no dataset no/thing: it is not on the Hub, or it is private there"),
        (f"hf://{REPO}@v9/data/c.txt", "the dataset some/tales has no revision 'v9'"),
        (f"hf://{REPO}@{'0' * 40}/data/c.txt", "the dataset some/tales has no revision '0{40}'"),
        (
            f"hf://{REPO}/data/d.txt",
            r"/d\.txt is no file: the dataset has none of that name at [0-9a-f]{12}; a f",
        ),
        (f"hf://{REPO}/nowhere/d.txt", "is no file: the dataset has none of that name at"),
        (f"hf://{REPO}/data", "is no file: the dataset has none of that name at .*; a folder needs"),
        (f"hf://{REPO}/*.jsonl", "is no file: the dataset has none of that name at"),
    ],
)
def test_what_is_not_there(hub: LocalHub, tmp_path: Path, name: str, message: str) -> None:
    hub.push(REPO, made(tmp_path / "1", 1, 2, 3))
    with pytest.raises(ValueError, match=message):
        text_files(name, tmp_path)


def test_what_answers_in_place_of_the_hub(hub: LocalHub, tmp_path: Path) -> None:
    """A login page, or a commit that is none or another than was asked for."""
    commit = hub.push(REPO, made(tmp_path / "1", 1, 2, 3))
    for body in (b"<html>log in</html>", b'{"id": "a", "sha": "../../x"}', b'{"id": "a"}', b"[]"):
        hub.faults = [Fault(f"{REPO}/revision", status=200, body=body)]
        with pytest.raises(
            ValueError, match=r"c\.txt cannot be found: the Hub cannot be reached, or refuses \("
        ) as told:
            text_files(f"hf://{REPO}/data/c.txt", tmp_path)
        assert "\n" not in str(told.value)
    hub.faults = [Fault(f"{REPO}/revision", status=200, body=json.dumps({"id": "a", "sha": "1" * 40}).encode())]
    with pytest.raises(ValueError, match="what answers in place of the Hub is a proxy"):
        text_files(f"hf://{REPO}@{commit}/data/c.txt", tmp_path)
    hub.faults = [Fault(f"{REPO}/revision", status=403, headers={"X-Error-Code": "GatedRepo"})]
    with pytest.raises(ValueError, match="some/tales asks for permission: get it on the Hub, then `hf auth login`"):
        text_files(f"hf://{REPO}/data/c.txt", tmp_path)
