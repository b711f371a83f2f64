"""minilens/corpus.py: files as documents, shards, windows and batches."""

import gzip
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minilens.corpus import documents as corpus
from minilens.corpus.batches import batches, windows
from minilens.corpus.documents import SEPARATOR, TextFile

packed = partial(gzip.compress, mtime=0)  # the same at any time: tests are named after it
DOCUMENTS = ["once upon\n\na time", "", "caf\u00e9 \u2603\r\nnext", "the end"]


def written(path: Path, documents: list[str], end: str = "\n") -> TextFile:
    path.write_bytes("".join(f"{document}\n{SEPARATOR}{end}" for document in documents).encode())
    return TextFile(path)


def test_documents_are_those_between_the_separators(tmp_path: Path) -> None:
    assert list(written(tmp_path / "a.txt", DOCUMENTS).documents()) == DOCUMENTS
    assert list(written(tmp_path / "b.txt", DOCUMENTS, end="\r\n").documents()) == DOCUMENTS
    path = tmp_path / "c.txt"
    path.write_bytes(f"one\r\ntwo\r\n{SEPARATOR}\r\nthree\r\n".encode())
    assert list(TextFile(path).documents()) == ["one\r\ntwo", "three"]
    path.write_bytes(b"\xef\xbb\xbf" + f"{SEPARATOR} \t\none".encode())  # a byte order mark, and blanks nobody sees
    assert list(TextFile(path).documents()) == ["", "one"]


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("one\ntwo\n", ["one\ntwo"]),
        (f"one\n{SEPARATOR}\ntwo", ["one", "two"]),
        (f"one\n{SEPARATOR}\n\n", ["one"]),
        (f"one\n{SEPARATOR}\n\n \r\n\n", ["one"]),
        (f"\n\n{SEPARATOR}\n", ["\n"]),
        (f"one {SEPARATOR}\n {SEPARATOR}\n", [f"one {SEPARATOR}\n {SEPARATOR}"]),
        (f"{SEPARATOR}\n{SEPARATOR}\none", ["", "", "one"]),
        ("", []),
    ],
)
def test_what_is_no_separator_belongs_to_a_document(tmp_path: Path, content: str, documents: list[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content, newline="")
    assert list(TextFile(path).documents()) == documents


def test_one_document_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\n\ntwo  \nthree")
    assert list(TextFile(path, lines=True).documents()) == ["one", "", "two  ", "three"]


def test_names(tmp_path: Path) -> None:
    for name, is_json in {"a.jsonl": True, "a.b.jsonl.gz": True, "a.jsonl.txt": False, "jsonl": False}.items():
        (tmp_path / name).touch()
        assert TextFile(tmp_path / name).is_json == is_json


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "A.JSONL.GZ"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    lines = [json.dumps("one\ntwo"), " ", json.dumps({"text": "three", "id": 4}), json.dumps({"text": ""}), "\r\n\n"]
    content = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    assert list(TextFile(path).documents()) == ["one\ntwo", "three", ""]
    with pytest.raises(ValueError, match=r"(?i)a\.jsonl.*, line 3 has no text: it must be a string.*under \"body\""):
        list(TextFile(path, key="body").documents())


def test_a_compressed_file_holds_the_same(tmp_path: Path) -> None:
    plain = written(tmp_path / "a.txt", DOCUMENTS)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(plain.path.read_bytes()))
    assert list(TextFile(path).documents()) == DOCUMENTS
    assert TextFile(path).digest != plain.digest


@pytest.mark.parametrize("text", ["word " * 1000, "x" * 5000, "line\n" * 1000])
@pytest.mark.parametrize("lines", [False, True])
def test_long_documents_are_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, lines: bool
) -> None:
    monkeypatch.setattr(corpus, "LONGEST", 700)
    text = text.replace("\n", " ") if lines else text
    path = tmp_path / "a.txt"
    path.write_text(f"{text}\n" if lines else f"{text}\n{SEPARATOR}\nend")
    *pieces, last = [*TextFile(path, lines=lines).documents(), *(["end"] if lines else [])]
    assert "".join(pieces) == text
    assert last == "end"
    assert all(len(piece) <= 700 for piece in pieces)
    assert len(pieces) <= 10


def test_a_separator_stands_at_the_start_of_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long line is read in parts, and none but its first part can be a separator."""
    monkeypatch.setattr(corpus, "LONGEST", 700)
    path = tmp_path / "a.txt"
    path.write_text("x" * 700 + f"{SEPARATOR}\n")
    assert "".join(TextFile(path).documents()) == "x" * 700 + SEPARATOR


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9 au lait", r"a\.txt is not UTF-8: it has the byte 0xe9 at 3$"),
        ("a.txt", b"x" * 100_000 + b"\xff", r"a\.txt is not UTF-8: it has the byte 0xff at 100000$"),
        ("a.txt", b"x" * 100_000 + b"\xc3", r"a\.txt is not UTF-8: it has the byte 0xc3 at 100000$"),
        (
            "a.txt.gz",
            packed(b"xx\xc3\xa9\n" * 99_999 + b"\xff"),
            r"not UTF-8: it has the byte 0xff at 499995$",
        ),
        ("a.txt.gz", b"no gzip at all", r"a\.txt\.gz cannot be read: it is cut short or broken \(Not a gzipped file"),
        (
            "a.txt.gz",
            packed(b"once upon a time" * 99)[:-20],
            r"a\.txt\.gz cannot be read: it is cut short or",
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": x\n', r"a\.jsonl, line 2 is not JSON: Expecting value, at character 10$"),
        ("a.jsonl", b"9" * 9999, r"a\.jsonl, line 1 is not JSON: Exceeds the limit"),
        ("a.jsonl", b'"a"\n[1, 2]\n', r"a\.jsonl, line 2 has no text: it must be a string, or an object"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl, line 1 is not JSON: "),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(TextFile(path).documents())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing cannot be read: No such file or directory"):
        TextFile(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is not a file that can be read more than once: save its text in one"):
        TextFile(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a file that can be read more than once: save its text in one"):
        TextFile(tmp_path / "pipe")


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="the file is Linux's")
def test_a_file_of_the_systems_own(tmp_path: Path) -> None:
    """Its size is 0, whatever it gives, and some such files give bytes without end."""
    (tmp_path / "a.txt").symlink_to("/proc/version")
    with pytest.raises(ValueError, match=r"a\.txt cannot be read: it gives more bytes than it has"):
        TextFile(tmp_path / "a.txt")


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LONGEST_LINE", 100)
    path = tmp_path / "a.jsonl"
    path.write_text('"one"\n"' + "x" * 100)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2 has more than 100 characters: cut it up"):
        list(TextFile(path).documents())


@pytest.mark.parametrize("how", ["its text", "its text, of the same size and time", "its end"])
def test_a_file_that_changes(tmp_path: Path, how: str) -> None:
    """It is known by its content, at the end of it."""
    file = written(tmp_path / "a.txt", ["one", "two"])
    path, before = tmp_path / "a.txt", (tmp_path / "a.txt").stat()
    content = path.read_bytes()
    path.write_bytes(content + b"\n" if how == "its end" else content.replace(b"two", b"six"))
    if "time" in how:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    read = file.documents()
    assert next(read) == "one"
    with pytest.raises(
        ValueError,
        match=r"a\.txt has changed while it was read: run again \(with another --out, if its text is another\)",
    ):
        list(read)
    path.write_bytes(content)
    assert list(file.documents()) == ["one", "two"]
    path.unlink()
    with pytest.raises(ValueError, match=r"a\.txt cannot be read: No such file"):
        list(file.documents())


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("with_a_line_end", [False, True])
def test_a_document_as_long_as_can_be_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int, lines: bool, end: str, with_a_line_end: bool
) -> None:
    """It leaves no empty one behind, whatever ends its last line; one that is longer is several."""
    monkeypatch.setattr(corpus, "LONGEST", 700)
    monkeypatch.setattr(corpus, "LONGEST_LINE", 700)
    text = "x" * (700 + more)
    if with_a_line_end and not lines:
        text = text[:300] + "\n" + text[301:]
    path = tmp_path / "a.txt"
    path.write_bytes(f"{text}{end}{'' if lines or not end else SEPARATOR + end}".encode())
    found = list(TextFile(path, lines=lines).documents())
    assert "".join(found) == text
    assert len(found) == (2 if more > 0 else 1)
    assert all(found)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_what_unpacks_to_more_than_a_text_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It is refused before a line of it is read, and soon; a text that is alike everywhere is read."""
    path, unpacked = tmp_path / name, []
    path.write_bytes(gzip.compress(b"\n" * 10**6) * 300)
    read = gzip.GzipFile.read

    def noted(file: gzip.GzipFile, *size: Any) -> bytes:
        unpacked.append(len(found := read(file, *size)))
        return found

    monkeypatch.setattr(gzip.GzipFile, "read", noted)
    with pytest.raises(ValueError, match=rf"{name} cannot be read: it unpacks to more than 100 times its bytes, as"):
        TextFile(path)
    assert sum(unpacked) < 2**22 + 100 * path.stat().st_size + 2**20 < 10**8
    lines = [f"{'once upon a time ' * 50}\n{SEPARATOR}", json.dumps("once upon a time " * 50)]
    path.write_bytes(gzip.compress(f"{lines['json' in name]}\n".encode() * 5000))
    assert len(list(TextFile(path).documents())) == 5000
    assert TextFile(path).longest == len(lines["json" in name] + "\n") * 5000


def test_a_shard_of_empty_documents_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n" * 1000)
    assert [len(shard) for shard in TextFile(path, lines=True).shards(300)] == [300, 300, 300, 100]
    assert TextFile(path).longest == 1000


@given(documents=st.lists(st.text("ab \n", max_size=30).map(str.strip), max_size=20), size=st.integers(1, 50))
def test_shards_are_the_documents_cut_by_their_lengths(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], size: int
) -> None:
    shards = list(written(tmp_path_factory.mktemp("shards") / "a.txt", documents).shards(size))
    assert [document for shard in shards for document in shard] == documents
    for shard in shards[:-1]:
        length = [len(document) + 1 for document in shard]
        assert sum(length) >= size > sum(length[:-1])
    assert all(shards)


TOKENS = st.lists(st.lists(st.integers(0, 100), max_size=30).map(torch.tensor).map(torch.Tensor.long), max_size=12)


@given(documents=TOKENS, length=st.integers(1, 12), prefix=st.integers(0, 3), size=st.integers(1, 60))
def test_every_token_is_read_once_in_its_place(
    documents: list[torch.Tensor], length: int, prefix: int, size: int
) -> None:
    before = torch.full((prefix,), 7)
    found = []
    for batch in batches(windows(documents, length), before, size):
        n, longest = batch.tokens.shape
        assert n == 1 or n * longest <= size
        assert longest <= prefix + length
        assert (batch.tokens[:, :prefix] == 7).all()
        assert not batch.is_text[:, :prefix].any()
        row = torch.arange(n)[:, None].expand(n, longest)[batch.is_text].tolist()
        where = batch.is_text.nonzero()[:, 1].tolist()
        parts = (batch.tokens[batch.is_text], batch.next, batch.place, batch.document)
        for r, at, token, follows, place, document in zip(row, where, *(part.tolist() for part in parts), strict=True):
            assert at == prefix + place
            found.append((document, token, follows, place, r))
    expected = []
    for n, tokens in enumerate(documents):
        ids = tokens.tolist()
        for at, token in enumerate(ids):
            expected.append((n, token, ids[at + 1] if at + 1 < len(ids) else -1, at % length))
    assert sorted(entry[:4] for entry in found) == sorted(expected)


def test_a_window_is_read_as_it_stands_in_its_document() -> None:
    document = torch.arange(10)
    assert [window.tokens.tolist() for window in windows([document], 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [window.next.tolist() for window in windows([document], 4)] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, -1]]
    (first, second) = batches(windows([document, document[:1]], 4), torch.tensor([99]), 10)
    assert first.tokens.tolist() == [[99, 0, 1, 2, 3], [99, 4, 5, 6, 7]]
    assert second.tokens.tolist() == [[99, 0, 0], [99, 8, 9]]
    assert second.is_text.tolist() == [[False, True, False], [False, True, True]]


def test_nothing_of_a_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is streamed: after the first shards, the rest of it has not been read."""
    path = tmp_path / "a.txt"
    path.write_text(f"{'word ' * 20}\n{SEPARATOR}\n" * 100_000)
    reads: list[int] = []
    opened = TextFile(path)
    real = opened._decoded

    def spy(*args: Any) -> object:
        file = real(*args)
        reads.append(0)
        readline: Callable[..., str] = file.readline
        file.readline = lambda *args: reads.__setitem__(0, reads[0] + 1) or readline(*args)  # type: ignore
        return file

    monkeypatch.setattr(TextFile, "_decoded", lambda self, *args: spy(*args))
    shards = opened.shards(1000)
    next(shards), next(shards)
    assert 0 < reads[0] < 100
