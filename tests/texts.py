"""Documents of few words, a tiny model that reads them, and processes that share a folder."""

import json
import multiprocessing
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
import zstandard
from checkpoints import tokenizer_json
from conftest import Tiny

import minilens
from minilens.checkpoint.tokenizer import Tokenizer
from minilens.checkpoint.tokenizer_files import load_tokenizer
from minilens.corpus.documents import SEPARATOR, TextFile

WORDS = "once upon a time there was little cat red".split()
Loaded = tuple[minilens.Model, Tokenizer]


def forked() -> Any:
    """Processes that begin with all that is there now."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork a process")
    return multiprocessing.get_context("fork")


def loaded(tiny: Tiny, tmp_path: Path, family: str, dtype: torch.dtype = torch.float64) -> Loaded:
    folder = tmp_path / family
    shutil.copytree(tiny(family)[1], folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    model, _ = minilens.load(folder, dtype=dtype)
    # CTRL reads tokenizer.json of no family; the byte-level one does for its ids, too.
    tokenizer = load_tokenizer(lambda name: folder / name if name == "tokenizer.json" else None, "gpt2")
    assert tokenizer is not None
    return model, tokenizer


def documents(seed: int, n: int = 12, longest: int = 60) -> list[str]:
    """Some words each, a few of them none; longer than the tiny models' context of 40."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.choice([0, 1, 2, rng.randint(3, longest)]))) for _ in range(n)]


def text_file(path: Path, texts: Sequence[str]) -> TextFile:
    """A file of these documents, in the form that its name asks for."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"id": range(len(texts)), "text": texts}), path, row_group_size=5)
    elif path.name.endswith(".jsonl.zst"):  # of several frames, one of them for others to skip
        lines = [zstandard.compress(f"{json.dumps({'text': text, 'id': 1})}\n".encode()) for text in texts]
        path.write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0skip".join(lines))
    else:
        path.write_text("".join(f"{text}\n{SEPARATOR}\n" for text in texts))
    return TextFile(path)
