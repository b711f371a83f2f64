"""scripts/train.py: killed whenever it writes, it goes on to the same weights; windows that tell a passage twice."""

import gzip
import itertools
import os
import runpy
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import minilens

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "train.py"))
N_CTX, BATCH, STEPS = 16, 2, 5


class Killed(BaseException):
    """In place of the signal."""


def train(root: Path, name: str, begin: Path | None = None, lr: float = 0.01) -> dict[str, torch.Tensor]:
    """The weights of a tiny run, which goes on from what the folder of this name has."""
    sizes = dict(family="gpt2", n_layers=1, d_model=8, n_heads=1, n_ctx=N_CTX, d_vocab=300, lr=lr, seed=3)
    run = dict(tokens=STEPS * BATCH * N_CTX, batch=BATCH, keep=4, twice=0.5, corpus=root / "corpus", work=root / name)
    run["begin"] = begin
    model, record = SCRIPT["train"](Namespace(**sizes, **run), torch.device("cpu"))
    assert record["step"] == STEPS
    weights: dict[str, torch.Tensor] = model.state_dict()
    return weights


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killer(n: int, is_torn: bool) -> Callable[[Path, Path], None]:
    """An os.replace that kills the process at its n-th call: after it, or before it, with what was written torn."""
    calls = itertools.count()

    def replace(new: Path, old: Path) -> None:
        if next(calls) < n:
            os.rename(new, old)
            return
        if is_torn:
            torn = next(new.iterdir()) if new.is_dir() else new
            torn.write_bytes(torn.read_bytes()[:100])
        else:
            os.rename(new, old)
        raise Killed

    return replace


def test_killed_at_every_write_it_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus").mkdir()
    for n, part in enumerate(SCRIPT["PARTS"]):
        text = "".join(f"a {word} cat sat\n<|endoftext|>\n" for word in ["red", "big", "sad", "odd"][: n + 2] * 9)
        (tmp_path / "corpus" / f"{part}-train.txt.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.setitem(SCRIPT["train"].__globals__, "SAVE_EVERY", -1)  # after each step
    wanted = train(tmp_path, "whole")
    shutil.copytree(tmp_path / "whole-steps", tmp_path / "killed-steps")  # of another run
    kills, found = 0, None
    while found is None and kills < 100:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killer(kills // 2, is_torn=kills % 2 == 0))
            try:
                found = train(tmp_path, "killed")
            except Killed:
                kills += 1
    assert kills >= 6
    assert found and all(torch.equal(found[name], wanted[name]) for name in wanted)
    kept = files(tmp_path / "killed-steps")
    assert kept == files(tmp_path / "whole-steps")
    assert sorted({Path(name).parts[0] for name in kept}) == ["step-0", "step-1", "step-2", "step-5"]
    model, tokenizer = minilens.load(tmp_path / "killed-steps" / "step-5")
    assert tokenizer is not None
    assert torch.equal(model.W_E, wanted["transformer.wte.weight"].half().float())
    begun = train(tmp_path, "begun", tmp_path / "killed-steps" / "step-5", lr=0.0)
    assert all(torch.equal(begun[name], wanted[name].half().float()) for name in wanted)
    with pytest.raises(SystemExit, match="is of another family or size; give the --family and the sizes"):
        train(tmp_path, "other", Path(__file__).parents[2] / "weights" / "tales-gpt2")


def windows(twice: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Those of one epoch, and what each would be without repeats: every number is its place in the stream."""
    args = Namespace(n_ctx=32, batch=4, seed=0, twice=twice)
    n = 40 * 32 + 1
    batches = SCRIPT["batches"]([np.arange(n, dtype=np.uint16)], args, 0)
    found = np.concatenate([next(batches).numpy() for _ in range(10)])
    return found, found[:, :1] + np.arange(33)


def test_windows_tell_a_passage_twice_and_go_on() -> None:
    plain, expected = windows(0)
    assert (plain == expected).all()
    assert sorted(plain[:, 0]) == [32 * n for n in range(40)]
    found, whole = windows(0.5)
    assert (found[:, 0] == plain[:, 0]).all()  # the order does not depend on the share
    lengths = (found != whole).argmax(1)
    assert 10 < (lengths > 0).sum() < 30
    for window, text, length in zip(found, whole, lengths, strict=True):
        if length:
            assert 2 <= length <= 16
            assert (window == np.concatenate([text[:length], text[:-length]])).all()
    assert len({*lengths}) > 5


def test_the_steps_that_are_kept() -> None:
    for n_steps, kept in ((9, [0, 9]), (1000, [0, 1, 10, 100, 1000]), (5, [*range(6)])):
        assert SCRIPT["steps_to_keep"](len(kept), n_steps) == kept
