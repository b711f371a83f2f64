"""minilens/corpus/unpacking.py and parquet.py: .zst and .parquet as people have them, and broken ones."""

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import text_file

from minilens.corpus import documents as corpus
from minilens.corpus.documents import TextFile

DOCUMENTS = ["once upon\n\na time", "", "caf\u00e9 \u2603\r\nnext", "the end " * 50]
LINES = "".join(f"{json.dumps({'text': text})}\n" for text in DOCUMENTS).encode()
ZST = zstandard.compress(LINES)

TOO_LARGE = "cannot be read: it unpacks to more than 100 times its bytes, as no text does; if it is one"
WINDOW = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=False)
wide = zstandard.ZstdCompressor(compression_params=WINDOW).compressobj()
WIDE = wide.compress(LINES) + wide.flush()


def parquet(texts: Any, key: str = "text", **how: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({key: texts}), file, **how)
    return file.getvalue()


def not_utf_8() -> pyarrow.Array:
    return pyarrow.Array.from_buffers(pyarrow.string(), 1, pyarrow.array([b"caf\xe9"]).buffers())


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [
        ("a.jsonl.zst", ZST, "text"),
        (
            "A.JSONL.ZST",
            zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(LINES),
            "text",
        ),
        ("a.jsonl.zst", b"\x50\x2a\x4d\x18\x02\0\0\0!!".join(map(zstandard.compress, (LINES[:9], LINES[9:]))), "text"),
        ("a.parquet", parquet(DOCUMENTS, row_group_size=3), "text"),
        ("a.PARQUET", parquet(DOCUMENTS, "a.b", use_dictionary=False, compression="zstd"), "a.b"),
        ("a.parquet", parquet(pyarrow.array(DOCUMENTS).dictionary_encode()), "text"),
        ("a.parquet", parquet(pyarrow.array(DOCUMENTS, pyarrow.large_string())), "text"),
        ("a.parquet", parquet(pyarrow.array(DOCUMENTS, pyarrow.string_view())), "text"),
        ("a.jsonl.zst", b"", "text"),
        ("a.parquet", parquet(pyarrow.array([], pyarrow.string())), "text"),
    ],
)
def test_what_they_hold(tmp_path: Path, name: str, content: bytes, key: str) -> None:
    (tmp_path / name).write_bytes(content)
    file = TextFile(tmp_path / name, key=key)
    found = list(file.documents())
    assert found == (DOCUMENTS if file.longest else [])
    assert file.longest >= sum(len(text) + 1 for text in found)


def test_a_parquet_file_is_known_by_its_texts(tmp_path: Path) -> None:
    """Whatever else is in it, and however it was written."""
    path, other = tmp_path / "a.parquet", tmp_path / "b.parquet"
    path.write_bytes(parquet(DOCUMENTS))
    other.write_bytes(parquet(DOCUMENTS, compression="gzip", row_group_size=1))
    file, beside = TextFile(path), text_file(tmp_path / "c.parquet", DOCUMENTS)  # with another column, too
    assert file.digest == TextFile(other).digest == beside.digest
    other.write_bytes(parquet([DOCUMENTS[0] + DOCUMENTS[1], *DOCUMENTS[2:], ""]))
    assert file.digest != TextFile(other).digest
    path.write_bytes(parquet([*DOCUMENTS[:3], "the fin " * 50]))
    read = file.documents()
    assert next(read) == DOCUMENTS[0]
    with pytest.raises(ValueError, match=r"a\.parquet has changed while it was read"):
        list(read)


def test_long_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LONGEST", 700)
    monkeypatch.setattr(corpus, "LONGEST_LINE", 2000)
    (tmp_path / "a.parquet").write_bytes(parquet(["x" * 1500, "y"]))
    assert list(map(len, TextFile(tmp_path / "a.parquet").documents())) == [700, 700, 100, 1]
    (tmp_path / "a.parquet").write_bytes(parquet(["y", "x" * 2001]))
    with pytest.raises(ValueError, match=r"a\.parquet, row 2 has more than 2,000 characters: cut it up"):
        TextFile(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt.zst", ZST[:-1], r"cannot be read: it is cut short or broken \(the last frame has no end\)$"),
        ("a.txt.zst", ZST * 2 + ZST[:-9], r"cannot be read: it is cut short or broken \(the last frame has no end\)$"),
        ("a.txt.zst", b"no zst at all", r"cannot be read: it is cut short or broken \(zstd .* error: Unknown frame"),
        ("a.txt.zst", ZST + b"and more", r"cannot be read: it is cut short or broken \(zstd .* error: Unknown frame"),
        ("a.txt.zst", zstandard.compress(b"x" * 9999 + b"\xff"), r"is not UTF-8: it has the byte 0xff at 9999$"),
        ("a.txt.zst", zstandard.compress(b"\n" * 10**8), TOO_LARGE),
        ("a.txt.zst", WIDE, r"cannot be read: its window is of more than 128 MiB: pack it without --long$"),
        ("a.parquet", b"", r"cannot be read: it is cut short or broken \(Parquet file size is 0 bytes\)$"),
        ("a.parquet", b"no parquet at all", r"cannot be read: it is cut short or broken \(Parquet magic bytes"),
        ("a.parquet", parquet(DOCUMENTS)[:-9], r"cannot be read: it is cut short or broken \(Parquet magic bytes not"),
        ("a.parquet", parquet(DOCUMENTS, "b"), r'has no column "text" to read: --key names one; there are "b"$'),
        ("a.parquet", parquet([1, 2]), 'has no text in its column "text": it holds int64$'),
        ("a.parquet", parquet([["a"], ["b"]]), 'has no text in its column "text": it holds list<'),
        ("a.parquet", parquet([b"a"]), 'has no text in its column "text": it holds binary$'),
        ("a.parquet", parquet(pyarrow.nulls(2)), 'has no text in its column "text": it holds null$'),
        ("a.parquet", parquet(["a", None, "c"]), r'a\.parquet, row 2 has no text: its "text" is null$'),
        ("a.parquet", parquet(not_utf_8()), r"a\.parquet, row 1 is not UTF-8: .* at byte 3$"),
        ("a.parquet", parquet(["x" * 10**6] * 300), TOO_LARGE),
        ("a.parquet", parquet(["x" * 10**6] * 9, use_dictionary=False, compression="zstd"), TOO_LARGE),
        ("a.parquet", parquet([""] * 10**7), TOO_LARGE),
    ],
)  # fmt: skip
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as told:
        list(TextFile(tmp_path / name).documents())
    assert str(tmp_path / name) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("a.jsonl.zst", "zstandard", r'zst needs zstandard, which is not installed: pip install "minilens\[zst\]"$'),
        ("a.parquet", "pyarrow", r'parquet needs pyarrow, which is not installed: pip install "minilens\[parquet\]"$'),
    ],
)  # fmt: skip
def test_a_library_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, message: str
) -> None:
    text_file(tmp_path / name, DOCUMENTS)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=message):
        TextFile(tmp_path / name)


def test_a_row_group_is_never_whole(tmp_path: Path) -> None:
    """Of one row group of 10 MB some pages are in memory."""
    path, rng = tmp_path / "a.parquet", random.Random(0)
    path.write_bytes(parquet([rng.randbytes(1000).hex() for _ in range(5000)], compression="zstd"))
    assert pyarrow.parquet.read_metadata(path).row_group(0).total_byte_size > 10**7
    before = pyarrow.total_allocated_bytes()
    most = max(pyarrow.total_allocated_bytes() - before for _ in TextFile(path).documents())
    assert most < 5 * 10**6


FLIPS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3)


@settings(max_examples=40)
@given(flip=FLIPS, end=st.integers(0, 99))
@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.parquet"])
def test_files_with_flipped_bytes(
    tmp_path_factory: pytest.TempPathFactory, name: str, flip: list[tuple[int, int]], end: int
) -> None:
    """They are read, or refused in one sentence."""
    content = bytearray(ZST if "zst" in name else parquet(DOCUMENTS))
    for at, by in flip:
        content[at % len(content)] ^= by
    path = tmp_path_factory.mktemp("flipped") / name
    path.write_bytes(content[: len(content) - max(0, end - 50)])
    try:
        found = list(TextFile(path).documents())
    except ValueError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        assert all(isinstance(text, str) for text in found)
