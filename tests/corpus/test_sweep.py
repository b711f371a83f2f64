"""The lens over a corpus: equal to the plain way, however the work is shared, and whatever breaks off."""

import errno
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from checkpoints import tokenizer_json
from conftest import Tiny
from texts import Loaded, documents, forked, loaded, text_file

import minilens
from minilens.checkpoint.tokenizer import Tokenizer
from minilens.checkpoint.tokenizer_files import load_tokenizer
from minilens.corpus import measure as corpus_lens
from minilens.corpus.documents import TextFile
from minilens.corpus.measure import CorpusLens, Findings, Plan
from minilens.corpus.shared_files import locked, read_arrays, write_arrays
from minilens.corpus.sweep import Sweep
from minilens.corpus.tally import FREQUENCIES, LOWEST, NUMBERS, PER_OCTAVE, RANKS, VALUES, Tally
from minilens.views.corpus_page import corpus_page
from minilens.views.corpus_record import corpus_record


def swept(lens: CorpusLens, files: Sequence[TextFile], folder: Path) -> Findings:
    sweep = Sweep(lens, files, folder)
    for _ in sweep.run():
        pass
    return sweep.findings()


def record(findings: Findings) -> str:
    return json.dumps(corpus_record("tiny", findings), allow_nan=False)


@pytest.fixture
def gpt2(tiny: Tiny, tmp_path: Path) -> Loaded:
    return loaded(tiny, tmp_path, "gpt2", torch.float32)


# The plain way: each window by itself, all its logits, and sums over lists.


class Plain:
    """Values of every token: by name [row, token], with what the groups are made of."""

    def __init__(self, model: minilens.Model, tokenizer: Tokenizer, plan: Plan, texts: Sequence[str], how: str) -> None:
        prefix = tokenizer.encode(plan.prefix)[0].tolist()
        length = (plan.window or model.config.n_ctx) - len(prefix)
        columns: list[dict[str, Any]] = []
        counts: dict[int, int] = {}
        for d, text in enumerate(texts):
            ids = tokenizer.encode(text)[0].tolist()
            for token in ids:
                counts[token] = counts.get(token, 0) + 1
            for start in range(0, len(ids), length):
                window = ids[start : start + length]
                tokens = torch.tensor([prefix + window])
                rows = minilens.lens_rows(model, tokens, decoder=how, norm=plan.norm, sites=plan.sites)
                logits = torch.stack([row.logits[0, len(prefix) :] for row in rows]).double()
                for place, token in enumerate(window):
                    follows = ids[start + place + 1] if start + place + 1 < len(ids) else None
                    columns.append(
                        dict(document=d, place=place, next=follows, **self.column(logits[:, place], token, follows))
                    )
        self.columns, self.counts = columns, counts

    def column(self, logits: torch.Tensor, token: int, follows: int | None) -> dict[str, Any]:
        logp = logits.log_softmax(-1)
        p, final, first = logp.exp(), logp[-1], logp[0]
        middle = ((p + p[-1]) / 2).log()
        best = int(final.argmax())
        agrees = [bool(row.max() == row[best]) for row in logits]
        asked = {"final": best, "next": follows, "input": token}
        return {
            "kl_final": (final.exp() * (final - logp)).sum(-1).tolist(),
            "kl_input": (first.exp() * (first - logp)).sum(-1).tolist(),
            "entropy": (-p * logp).sum(-1).tolist(),
            "cross_entropy": None if follows is None else (-logp[:, follows]).tolist(),
            "js": ((p * (logp - middle)).sum(-1) / 2 + (final.exp() * (final - middle)).sum(-1) / 2).tolist(),
            "agrees": agrees,
            "next_first": None if follows is None else [bool(row.max() == row[follows]) for row in logits],
            "input_first": [bool(row.max() == row[token]) for row in logits],
            "settled": [all(agrees[r:]) for r in range(len(agrees))],
            "confidence": p.amax(-1).tolist(),
            "ranks": {
                whose: None if of is None else [1 + int((row > row[of]).sum()) for row in logits]
                for whose, of in asked.items()
            },
        }

    def group(self, split: str, name: str) -> list[dict[str, Any]]:
        if split == "all":
            return self.columns
        if split == "position":
            low, _, high = name.partition("-")
            return [c for c in self.columns if int(low) <= c["place"] <= int(high or low)]
        total = sum(self.counts.values())
        low, high = {
            "0.01 or more": (FREQUENCIES[0], 2.0),
            "0.001 to 0.01": (FREQUENCIES[1], FREQUENCIES[0]),
            "0.0001 to 0.001": (FREQUENCIES[2], FREQUENCIES[1]),
            "1e-05 to 0.0001": (FREQUENCIES[3], FREQUENCIES[2]),
            "below 1e-05": (-1.0, FREQUENCIES[3]),
        }[name]
        return [c for c in self.columns if c["next"] is not None and low <= self.counts[c["next"]] / total < high]


def clustered(values: np.ndarray, document: np.ndarray) -> float:
    """The standard error of a mean, from what each document adds to its residuals."""
    sums = np.array([(values - values.mean())[document == d].sum() for d in np.unique(document)])
    D = len(sums)
    return float(np.sqrt(D / (D - 1) * (sums**2).sum()) / len(values)) if D > 1 else np.nan


PLANS = [
    Plan(shard=100, batch=100),
    Plan(decoders=("final", "mlp", "block:2"), sites=("resid_mid", "resid_post"), window=9, shard=300, batch=7),
    Plan(decoders=("block:1", "final"), norm="plain", prefix=" cat red", window=40, shard=10**6),
    Plan(sites=("resid_pre",), window=1, shard=1, batch=1),
]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "ctrl"])
@pytest.mark.parametrize("plan", PLANS, ids=range(len(PLANS)))
def test_every_number_is_that_of_the_plain_way(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, plan: Plan
) -> None:
    monkeypatch.setattr(corpus_lens, "AT_ONCE", 40)  # so that the sums of even these few tokens are taken in parts
    model, tokenizer = loaded(tiny, tmp_path, family)
    texts = ["", *documents(3, n=5)]
    findings = swept(CorpusLens(model, tokenizer, plan), [text_file(tmp_path / "a.txt", texts)], tmp_path / "out")
    close = dict(rtol=1e-9, atol=1e-10) if family != "gpt_neo" else dict(rtol=1e-4, atol=1e-5)  # its scores: float32
    assert list(findings.decoders) == list(plan.decoders)
    assert findings.counted.documents == len(texts)
    assert findings.counted.empty == texts.count("")
    for decoder, found in findings.decoders.items():
        plain = Plain(model, tokenizer, plan, texts, decoder)
        rows = list(minilens.lens_rows(model, torch.zeros(1, 2).long(), decoder=decoder, sites=plan.sites))
        assert found.labels == tuple(row.label for row in rows)
        assert found.layers == tuple(row.layer for row in rows)
        tally = found.tally
        assert sum(len(plain.group(*group)) for group in findings.groups if group.split == "position") == len(
            plain.columns
        )
        for g, group in enumerate(findings.groups):
            columns = plain.group(*group)
            assert tally.tokens[g, 0] == len(columns)
            for v, value in enumerate(VALUES):
                known = [c for c in columns if c[value] is not None]
                assert tally.tokens[g, v] == len(known)
                of = np.array([c["document"] for c in known])
                assert tally.documents[g, v] == len(set(of.tolist()))
                for r in range(len(rows)):
                    values = np.array([c[value][r] for c in known], float)
                    mean, error = tally.mean(value)[g, r].item(), tally.standard_error(value)[g, r].item()
                    np.testing.assert_allclose(mean, values.mean() if known else np.nan, **close)
                    np.testing.assert_allclose(error, clustered(values, of) if known else np.nan, rtol=1e-4, atol=1e-6)
                    if value in NUMBERS and known:
                        for q in (0.05, 0.5, 0.9):
                            estimate = tally.quantile(value, q)[g, r].item()
                            low, high = np.quantile(values, q, method="inverted_cdf"), 2 ** (1 / PER_OCTAVE)
                            assert low / high - 2**LOWEST <= estimate <= low * high + 2**LOWEST
            for r in range(len(rows)):
                settles = [c["settled"][r] and not (r and c["settled"][r - 1]) for c in columns]
                assert tally.settled()[g, r] == sum(settles)
                for n, whose in enumerate(RANKS):
                    ranks = [c["ranks"][whose][r] for c in columns if c["ranks"][whose]]
                    expected = np.bincount([rank.bit_length() - 1 for rank in ranks], minlength=32)
                    assert tally.ranks[g, r, n].tolist() == expected.tolist()
                known = [c for c in columns if c["next"] is not None]
                sure = np.array([c["confidence"][r] for c in known])
                right = np.array([c["next_first"][r] for c in known], float)
                bins = np.minimum((sure * 10).astype(int), 9)
                gaps = [abs(sure[bins == b].sum() - right[bins == b].sum()) for b in range(10)]
                error = sum(gaps) / len(known) if known else np.nan
                np.testing.assert_allclose(tally.calibration_error()[g, r].item(), error, rtol=1e-4, atol=1e-6)
                assert tally.confident[g, r].tolist() == [int((bins == b).sum()) for b in range(10)]
                assert tally.correct[g, r].tolist() == [int(right[bins == b].sum()) for b in range(10)]


def test_tokens_go_by_how_frequent_the_next_one_is(gpt2: Loaded) -> None:
    """A share on the edge counts as the more frequent; where nothing follows, there is none."""
    lens = CorpusLens(*gpt2, Plan())
    counts = torch.zeros(lens.model.W_U.shape[1], dtype=torch.long)
    counts[:7] = torch.tensor([0, 10**6, 10**5, 10**4, 10**3, 10**2, 10])
    counts[0] = 10**7 - counts.sum()
    (found,) = lens.tallies([torch.tensor([9, 0, 1, 2, 3, 4, 5, 6])], counts)
    assert [
        (group.name, int(n))
        for group, n in zip(lens.groups, found.tokens[:, 0], strict=True)
        if group.split == "frequency"
    ] == [("0.01 or more", 3), ("0.001 to 0.01", 1), ("0.0001 to 0.001", 1), ("1e-05 to 0.0001", 1), ("below 1e-05", 1)]


def work(meet: Any, lens: CorpusLens, files: Sequence[TextFile], folder: Path, log: Path) -> None:
    """A process of its own; it notes each shard that it has done. After its first it waits for that of the others."""
    for n, n_tokens in enumerate(Sweep(lens, files, folder).run()):
        with log.open("a") as file:
            file.write(f"{os.getpid()} {n_tokens}\n")
        if n == 0:
            meet.wait()


def workers(n: int, *arguments: Any) -> list[Any]:
    context = forked()  # torch is there already, with one thread
    meet = context.Barrier(n)
    found = [context.Process(target=work, args=(meet, *arguments)) for _ in range(n)]
    for process in found:
        process.start()
    return found


def calls(act: Callable[[], Any], last: int | None = None) -> int:
    """How many functions are called and left meanwhile; after the last of so many the process is killed."""
    n = 0

    def count(*_: Any) -> None:
        nonlocal n
        n += 1
        if n == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(None)
    return n


def test_one_two_and_four_workers_and_any_order_of_files(gpt2: Loaded, tmp_path: Path) -> None:
    lens = CorpusLens(*gpt2, Plan(decoders=("final", "block:1"), shard=200))
    names = ("a.txt", "b.jsonl.zst", "c.parquet")
    files = [text_file(tmp_path / name, documents(seed, n=20)) for seed, name in enumerate(names)]
    alone = record(swept(lens, files, tmp_path / "alone"))
    assert record(swept(lens, files[::-1], tmp_path / "order")) == alone
    n_shards = int(Sweep(lens, files, tmp_path / "alone").count().shards.sum())
    assert n_shards > 8
    for n in (2, 4):
        folder, log = tmp_path / f"by{n}", tmp_path / f"log{n}"
        for process in workers(n, lens, files, folder, log):
            process.join()
            assert process.exitcode == 0
        done = [line.split()[0] for line in log.read_text().splitlines()]
        assert len(done) == n_shards  # none was done twice
        assert len(set(done)) == n  # and nobody did all
        assert record(Sweep(lens, files, folder).findings()) == alone
        assert not list(folder.glob("shards/*.lock"))


def test_a_killed_run_is_resumed_and_gives_the_same(gpt2: Loaded, tmp_path: Path) -> None:
    lens = CorpusLens(*gpt2, Plan(shard=150))
    names = ("a.txt", "b.jsonl.zst", "c.parquet")
    files = [text_file(tmp_path / name, documents(seed, n=9)) for seed, name in enumerate(names)]
    undisturbed = record(swept(lens, files, tmp_path / "whole"))
    n_calls = calls(lambda: list(Sweep(lens, files, tmp_path / "counted").run()))
    context, left = forked(), set()
    for n, last in enumerate(random.Random(9).sample(range(1, n_calls), 10)):  # at any moment

        def dies(folder: Path = tmp_path / str(n), last: int = last) -> None:
            calls(lambda: list(Sweep(lens, files, folder).run()), last)

        process = context.Process(target=dies)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        left.add(len(list((tmp_path / str(n)).glob("shards/*.npz"))))
        assert record(swept(lens, files, tmp_path / str(n))) == undisturbed
    assert len(left) > 2


def hold(path: Path, has_it: Any) -> None:
    with locked(path, wait=True):
        has_it.set()
        time.sleep(600)


def test_a_shard_that_another_is_at_is_waited_for(gpt2: Loaded, tmp_path: Path) -> None:
    """And done here if the other one has ended without it."""
    lens = CorpusLens(*gpt2, Plan(shard=200))
    files = [text_file(tmp_path / "a.txt", documents(1))]
    alone = record(swept(lens, files, tmp_path / "alone"))
    sweep = Sweep(lens, files, tmp_path / "out")
    sweep.count()
    first = min(path.name for path in tmp_path.glob("alone/shards/*"))
    context = forked()
    has_it = context.Event()
    other = context.Process(target=hold, args=(tmp_path / "out" / "shards" / first, has_it))
    other.start()
    has_it.wait()
    order: list[str] = []

    def gives_up() -> None:
        order.append("given up")
        other.kill()

    timer = threading.Timer(1.0, gives_up)
    timer.start()
    n = len(list(sweep.run()))
    order.append("done")
    timer.join()
    assert order == ["given up", "done"]
    assert n == len(list(tmp_path.glob("alone/shards/*")))
    assert record(sweep.findings()) == alone


def test_a_lock_goes_with_its_work_and_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(KeyError), locked(path, wait=True), locked(path, wait=False) as is_ours:
        assert not is_ours
        raise KeyError
    assert not list(tmp_path.iterdir())
    context = forked()
    has_it = context.Event()
    process = context.Process(target=hold, args=(path, has_it))
    process.start()
    has_it.wait()
    with locked(path, wait=False) as is_ours:
        assert not is_ours
    process.kill()
    process.join()
    with locked(path, wait=False) as is_ours:
        assert is_ours
    assert not list(tmp_path.iterdir())


def enter(path: Path, inside: Path, n_times: int) -> None:
    """Whoever has the lock is alone: a folder that is made and taken away."""
    for _ in range(n_times):
        with locked(path, wait=True):
            inside.mkdir()
            inside.rmdir()


def test_one_at_a_time_though_the_lock_is_taken_away(tmp_path: Path) -> None:
    """Those who wait for a lock that is taken away and those who make a new one have never both got it."""
    context = forked()
    found = [context.Process(target=enter, args=(tmp_path / "a", tmp_path / "inside", 50)) for _ in range(3)]
    for process in found:
        process.start()
    for process in found:
        process.join()
        assert process.exitcode == 0


@pytest.mark.skipif(os.name == "nt", reason="links need a right that few have on Windows, and there are no such pipes")
def test_what_is_in_the_place_of_a_lock(tmp_path: Path) -> None:
    """A link is not followed, a hard link's file stays as it is, and nobody waits for a pipe's other end."""
    precious, lock = tmp_path / "precious", tmp_path / "a.lock"
    precious.write_text("precious")
    lock.symlink_to(precious)
    with pytest.raises(ValueError, match=r"a\.lock cannot be locked: "), locked(tmp_path / "a.npz", wait=True):
        pass
    lock.unlink()
    lock.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"a\.lock cannot be locked: "), locked(tmp_path / "a.npz", wait=True):
        pass
    lock.unlink()
    lock.hardlink_to(precious)
    for make in (lambda: None, lambda: os.mkfifo(lock)):
        make()
        with locked(tmp_path / "a.npz", wait=True) as is_ours:
            assert is_ours
    lock.mkdir()
    with (
        pytest.raises(ValueError, match=r"a\.lock cannot be locked: Is a directory"),
        locked(tmp_path / "a", wait=True),
    ):
        pass
    assert precious.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.lock", "precious"]


def test_what_is_there_is_not_read_again(gpt2: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lens = CorpusLens(*gpt2, Plan(shard=200))
    files = [text_file(tmp_path / "a.txt", documents(1))]
    first = record(swept(lens, files, tmp_path / "out"))
    paths = sorted((tmp_path / "out" / "shards").iterdir())
    paths[1].unlink()
    assert [path.stem[-1] for path in paths[:2]] == ["0", "1"]
    with pytest.raises(ValueError, match=r"0000001\.npz is missing: run again to have it made anew"):
        Sweep(lens, files, tmp_path / "out").findings()
    sweep = Sweep(lens, files, tmp_path / "out")
    assert len(list(sweep.run())) == 1
    assert record(sweep.findings()) == first
    monkeypatch.setattr(CorpusLens, "tallies", lambda *_: pytest.fail("a shard is read again"))
    assert list(Sweep(lens, files, tmp_path / "out").run()) == []


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 100,
        None,
        npz(**{"0.tokens": "text"}),
        npz(x=1).replace(b"PK\1\2\24\0\24\0\0\0\0\0", b"PK\1\2\24\0\24\0\0\0\x63\0"),
    ],
    ids=["empty", "text", "cut", "strings", "method"],
)
def test_a_shard_that_cannot_be_read(gpt2: Loaded, tmp_path: Path, content: bytes | None) -> None:
    lens = CorpusLens(*gpt2, Plan(shard=200))
    files = [text_file(tmp_path / "a.txt", documents(1))]
    whole = record(swept(lens, files, tmp_path / "out"))
    path = min((tmp_path / "out" / "shards").iterdir())
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read \(.*\): delete it, and run again") as error:
        Sweep(lens, files, tmp_path / "out").findings()
    assert "\n" not in str(error.value)
    path.unlink()
    assert record(swept(lens, files, tmp_path / "out")) == whole


@pytest.mark.parametrize("fault", ["not finite", "one row for all", "another dtype", "other texts", "none"])
def test_a_shard_whose_sums_are_no_tally(
    gpt2: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Though its digest is right. It is seen before a tally is made, whose types only the tests check."""
    lens, files = CorpusLens(*gpt2, Plan()), [text_file(tmp_path / "a.txt", documents(1))]
    whole = record(swept(lens, files, tmp_path / "out"))
    (path,) = (tmp_path / "out" / "shards").iterdir()
    with read_arrays(path, 2**27) as found:
        arrays = dict(found)
    if fault == "not finite":
        arrays["0.sums"][0, 1, 2] = torch.nan
    elif fault == "one row for all":
        arrays["0.sums"] = arrays["0.sums"][:, :1]
    elif fault == "another dtype":
        arrays["0.ranks"] = arrays["0.ranks"].double()
    elif fault == "other texts":
        arrays["text"] = arrays["text"].flip(0)
    write_arrays(path, arrays)
    if fault == "none":
        assert record(Sweep(lens, files, tmp_path / "out").findings()) == whole
        return
    make, made = Tally.__init__, []

    def noted(self: Tally, **parts: torch.Tensor) -> None:
        made.append(parts)
        make(self, **parts)

    monkeypatch.setattr(Tally, "__init__", noted)
    with pytest.raises(ValueError, match=r"cannot be read \(broken, or of another sweep\): delete it"):
        Sweep(lens, files, tmp_path / "out").findings()
    assert len(made) == 1  # that of no text


@pytest.mark.parametrize("name", ["0.sums", "0.squares", "0.confidence", "0.buckets", "0.documents", "text", "of"])
@pytest.mark.parametrize("file", ["shard", "counts.npz"])
def test_a_number_that_was_changed(gpt2: Loaded, tmp_path: Path, file: str, name: str) -> None:
    """One, by a little: it is finite, and the count of tokens is right."""
    lens, files = CorpusLens(*gpt2, Plan()), [text_file(tmp_path / "a.txt", documents(1))]
    swept(lens, files, tmp_path / "out")
    path = next((tmp_path / "out" / "shards").iterdir()) if file == "shard" else tmp_path / "out" / file
    arrays = dict(np.load(path))
    if file == "counts.npz":
        name = {"0.sums": "total", "0.squares": "texts", "of": "of"}.get(name, "shards")
    is_float = arrays[name].dtype == np.float64
    arrays[name].flat[0] = np.nextafter(arrays[name].flat[0], np.inf) if is_float else arrays[name].flat[0] ^ 1
    np.savez_compressed(path, **arrays)
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read \(broken, or of another sweep\): delete it"):
        Sweep(lens, files, tmp_path / "out").findings()


def unpacks(path: Path) -> None:
    """To 3.2 GB, were it unpacked."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("0.sums.npy", "w") as entry:
        np.lib.format.write_array_header_1_0(entry, dict(descr="<f8", fortran_order=False, shape=(4 * 10**8,)))  # type: ignore[no-untyped-call]
        for _ in range(200):
            entry.write(bytes(2**20))


def of_another_method(path: Path) -> None:
    """What unpacks it may take any memory to do so."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("0.sums.npy", bytes(100))


def claims(path: Path) -> None:
    """More numbers than are there."""
    with zipfile.ZipFile(path, "w") as archive, archive.open("0.sums.npy", "w") as entry:
        np.lib.format.write_array_header_1_0(entry, dict(descr="<f8", fortran_order=False, shape=(10**12,)))  # type: ignore[no-untyped-call]


PLACES: dict[str, Callable[[Path], Any]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a file of the system's": lambda path: path.symlink_to("/proc/self/pagemap"),
    "a folder": os.mkdir,
    "a file that unpacks to gigabytes": unpacks,
    "a file of another method": of_another_method,
    "a file that claims more than it has": claims,
}


@pytest.mark.parametrize("what", PLACES)
@pytest.mark.parametrize("file", ["shards", "counts.npz", "sweep.json"])
def test_what_is_in_the_place_of_a_file(gpt2: Loaded, tmp_path: Path, file: str, what: str) -> None:
    """Nobody waits for it, or reads all of it."""
    lens, files, folder = CorpusLens(*gpt2, Plan()), [text_file(tmp_path / "a.txt", documents(1))], tmp_path / "out"
    swept(lens, files, folder)
    path = next((folder / "shards").iterdir()) if file == "shards" else folder / file
    path.unlink()
    PLACES[what](path)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read \(.*\): (delete it|give another folder)"):
            swept(lens, files, folder)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_what_a_killed_writer_left_is_taken_away(gpt2: Loaded, tmp_path: Path) -> None:
    lens, files = CorpusLens(*gpt2, Plan(shard=200)), [text_file(tmp_path / "a.txt", documents(1))]
    sweep = Sweep(lens, files, tmp_path / "out")
    sweep.count()
    for shard in next(sweep._shards())[1]:
        (tmp_path / "out" / "shards" / f"{shard.path.name}.123.host").write_bytes(b"half of i")
    (tmp_path / "out" / "sweep.json.123.host").write_text("{")
    (tmp_path / "out" / "counts.npz").rename(tmp_path / "out" / "counts.npz.123.host")
    swept(lens, files, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"counts.npz", "shards", "sweep.json"}
    assert all(path.suffix == ".npz" for path in (tmp_path / "out" / "shards").iterdir())


def test_a_shard_of_another_sweep_is_refused(gpt2: Loaded, tmp_path: Path) -> None:
    files = [text_file(tmp_path / "a.txt", documents(1))]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, window in zip(folders, (40, 9), strict=True):
        swept(CorpusLens(*gpt2, Plan(window=window)), files, folder)
    (name,) = [path.name for path in (folders[0] / "shards").iterdir()]
    shutil.copy(folders[1] / "shards" / name, folders[0] / "shards" / name)
    with pytest.raises(ValueError, match=r"cannot be read \(broken, or of another sweep\): delete it"):
        Sweep(CorpusLens(*gpt2, Plan(window=40)), files, folders[0]).findings()


@pytest.mark.parametrize(
    ("other", "keys"),
    [
        (dict(window=9), r"window \(40; here 9\)"),
        (dict(norm="plain"), r'norm \("final"; here "plain"\)'),
        (
            dict(decoders=("mlp",), sites=("resid_mid",)),
            r'decoder \(\["final"\]; here \["mlp"\]\), sites \(\["resid_post"\]; here \["resid_mid"\]\)',
        ),
        (dict(prefix=" cat"), r"prefix \(\[\]; here \[[0-9, ]+\]\)"),
        (dict(batch=9, shard=9), r"batch \(1024; here 9\), shard \([0-9]+; here 9\)"),
    ],
)
def test_a_folder_belongs_to_one_sweep(gpt2: Loaded, tmp_path: Path, other: dict[str, Any], keys: str) -> None:
    files = [text_file(tmp_path / "a.txt", documents(1))]
    Sweep(CorpusLens(*gpt2, Plan()), files, tmp_path / "out").count()
    with pytest.raises(ValueError, match=f"out holds a sweep with another value of {keys}: give another folder"):
        Sweep(CorpusLens(*gpt2, Plan(**other)), files, tmp_path / "out")


def test_other_files_weights_or_folders(gpt2: Loaded, tiny: Tiny, tmp_path: Path) -> None:
    model, tokenizer = gpt2
    lens = CorpusLens(model, tokenizer, Plan())
    one, other = (text_file(tmp_path / f"{seed}.txt", documents(seed)) for seed in range(2))
    Sweep(lens, [one], tmp_path / "out").count()
    with pytest.raises(
        ValueError, match=r'another value of files \(\["[0-9a-f]+\.\.\.; here .*\), json .*, lines .*, key .*: give'
    ):
        Sweep(lens, [one, other], tmp_path / "out")
    with pytest.raises(ValueError, match=r"another value of lines \(\[false\]; here \[true\]\): give"):
        Sweep(lens, [TextFile(one.path, lines=True)], tmp_path / "out")
    changed = minilens.load(tmp_path / "gpt2")[0]
    changed.blocks[2].b_out[0] += 1  # type: ignore[index]
    with pytest.raises(ValueError, match="another value of model"):
        Sweep(CorpusLens(changed, tokenizer, Plan()), [one], tmp_path / "out")
    whole = json.loads(tokenizer_json())
    whole["model"]["merges"].pop()  # the same vocabulary, and other tokens
    (tmp_path / "fewer.json").write_text(json.dumps(whole))
    fewer = load_tokenizer(lambda name: tmp_path / "fewer.json" if name == "tokenizer.json" else None, "gpt2")
    assert fewer is not None
    with pytest.raises(ValueError, match=r"another value of tokenizer \("):
        Sweep(CorpusLens(model, fewer, Plan()), [one], tmp_path / "out")
    shutil.copy(one.path, tmp_path / "copy.txt")
    with pytest.raises(ValueError, match=r"0\.txt and .*copy\.txt hold the same text: name it once"):
        Sweep(lens, [one, TextFile(tmp_path / "copy.txt")], tmp_path / "new")
    with pytest.raises(ValueError, match="is there, and no sweep has begun in it"):
        Sweep(lens, [one], tmp_path)
    with pytest.raises(ValueError, match=r"0\.txt cannot be made: File exists"):
        Sweep(lens, [one], one.path)
    for broken in ("{", "[]", "[" * 100_000):
        (tmp_path / "out" / "sweep.json").write_text(broken)
        with pytest.raises(ValueError, match=r"sweep\.json cannot be read .*: give another folder"):
            Sweep(lens, [one], tmp_path / "out")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(window=41), "the window must be of 1 to 40 tokens, the model's context; it is 41"),
        (Plan(window=0), "the window must be of 1 to 40 tokens, the model's context; it is 0"),
        (
            Plan(window=1, prefix=" cat"),
            "the window must be of [2-9] to 40 tokens, the model's context, for [1-8] are the prefix; it is 1",
        ),
        (Plan(batch=0), "batch must be at least 1; it is 0"),
        (Plan(shard=-1), "shard must be at least 1; it is -1"),
        (Plan(decoders=("best",)), 'there is no decoder "best"'),
        (Plan(decoders=("final", "final")), "name each decoder once; got final, final"),
        (Plan(decoders=()), "name each decoder once; got none"),
        (Plan(norm="none"), 'there is no norm "none"'),
        (Plan(sites=("z",)), 'the lens has no rows for "z"'),
    ],
)
def test_plans_that_do_not_suit(gpt2: Loaded, plan: Plan, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorpusLens(*gpt2, plan)


def test_the_same_bytes_as_lines_of_json(gpt2: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('"once"\n"upon"\n')
    swept(CorpusLens(*gpt2, Plan()), [TextFile(path)], tmp_path / "out")
    shutil.copy(path, tmp_path / "a.txt")
    with pytest.raises(ValueError, match="another value of json"):
        Sweep(CorpusLens(*gpt2, Plan()), [TextFile(tmp_path / "a.txt")], tmp_path / "out")


def test_a_folder_of_other_things(gpt2: Loaded, tmp_path: Path) -> None:
    """However like ours their names may be."""
    for name in ("sweep.md", "shards.txt", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
        with pytest.raises(ValueError, match="is there, and no sweep has begun in it"):
            Sweep(CorpusLens(*gpt2, Plan()), [text_file(tmp_path / "a.txt", ["once"])], tmp_path / name)


def test_texts_that_cannot_be_read_leave_the_folder_to_another_run(gpt2: Loaded, tmp_path: Path) -> None:
    lens = CorpusLens(*gpt2, Plan())
    path = tmp_path / "a.jsonl"
    path.write_text('"once"\n"\\ud800"\n')
    with pytest.raises(ValueError, match=r"a\.jsonl cannot be read: .*surrogate"):
        Sweep(lens, [TextFile(path)], tmp_path / "out").count()
    assert not list((tmp_path / "out").iterdir())
    path.write_text('"once"\n"upon"\n')
    assert swept(lens, [TextFile(path)], tmp_path / "out").counted.documents == 2


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_only_empty_documents(gpt2: Loaded, tmp_path: Path, texts: list[str]) -> None:
    files = [text_file(tmp_path / "a.txt", texts)]
    for _ in range(2):  # now, and when that is known already
        with pytest.raises(ValueError, match="there is nothing to read: the files hold no tokens"):
            Sweep(CorpusLens(*gpt2, Plan()), files, tmp_path / "out").count()


def test_documents_of_one_token(gpt2: Loaded, tmp_path: Path) -> None:
    """Nothing follows any of them; warnings are errors here."""
    findings = swept(CorpusLens(*gpt2, Plan()), [text_file(tmp_path / "a.txt", ["o"])], tmp_path / "out")
    found = corpus_record("tiny", findings)
    whole = found["decoders"]["final"]["groups"][0]
    assert (whole["tokens"], whole["documents"], whole["with_next"]) == (1, 1, {"tokens": 0, "documents": 0})
    assert whole["mean"]["cross_entropy"] == whole["calibration"]["error"] == [None] * 4
    assert whole["quantiles"]["cross_entropy"]["0.5"] == whole["standard_error"]["kl_final"] == [None] * 4
    assert None not in whole["mean"]["entropy"]
    assert "no standard errors, which need two documents with tokens" in corpus_page([found])


def written_while(monkeypatch: pytest.MonkeyPatch, path: Path, texts: Sequence[str]) -> None:
    """From now on the file is written again while the model reads."""
    real = CorpusLens.tallies

    def tallies(*args: Any) -> Any:
        text_file(path, texts)
        return real(*args)

    monkeypatch.setattr(CorpusLens, "tallies", tallies)


def disguised(path: Path, text: str) -> None:
    """Another text under the same size and time, as rsync -t and touch -r leave it."""
    before = path.stat()
    assert len(text.encode()) == before.st_size
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("when", ["before it is counted", "before it is read", "between two shards"])
def test_a_file_that_changes_in_disguise(
    gpt2: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """No sum is taken of the other text; with the first text again, what was begun is gone on with."""
    lens, path = CorpusLens(*gpt2, Plan(shard=200)), tmp_path / "a.txt"
    files = [text_file(path, [*documents(1), "once " * 20_000, *documents(1)])]
    text = path.read_text()
    other = text.replace("once", "upon")
    sweep = Sweep(lens, files, tmp_path / "out")
    monkeypatch.setattr(CorpusLens, "tallies", lambda self, documents, counts: self.empty())
    if when == "before it is read":
        sweep.count()
    if when == "between two shards":
        steps = sweep.run()
        next(steps)
    disguised(path, other)
    with pytest.raises(ValueError, match=r"a\.txt has changed while it was read: run again \(with another --out"):
        list(sweep.run())
    n_done = len(list(tmp_path.glob("out/shards/*.npz")))
    assert n_done < 20 if when == "between two shards" else n_done == 0
    disguised(path, text)
    again = Sweep(lens, files, tmp_path / "out")
    assert len(list(again.run())) == int(again.count().shards.sum()) - n_done


def test_a_file_that_changes_while_it_is_read(gpt2: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of its shards that are there are right."""
    lens, path, texts = CorpusLens(*gpt2, Plan(shard=2000)), tmp_path / "a.txt", documents(1, n=200)
    sweep = Sweep(lens, [text_file(path, texts)], tmp_path / "out")
    sweep.count()
    written_while(monkeypatch, path, documents(2, n=200))
    with pytest.raises(ValueError, match=r"a\.txt has changed while it was read"):
        list(sweep.run())
    n_done = len(list(tmp_path.glob("out/shards/*.npz")))
    assert 0 < n_done < int(sweep.count().shards.sum())
    monkeypatch.undo()
    text_file(path, texts)
    assert record(swept(lens, [TextFile(path)], tmp_path / "out")) == record(
        swept(lens, [TextFile(path)], tmp_path / "new")
    )


def test_a_file_that_changes_before_it_is_counted(gpt2: Loaded, tmp_path: Path) -> None:
    sweep = Sweep(CorpusLens(*gpt2, Plan()), [text_file(tmp_path / "a.txt", documents(1))], tmp_path / "out")
    text_file(tmp_path / "a.txt", documents(2))
    with pytest.raises(ValueError, match=r"a\.txt has changed while it was read"):
        sweep.count()
    assert not (tmp_path / "out" / "counts.npz").exists()


def test_counts_of_other_texts(gpt2: Loaded, tmp_path: Path) -> None:
    lens = CorpusLens(*gpt2, Plan())
    for n in (1, 2):
        swept(lens, [text_file(tmp_path / f"{n}.txt", documents(n))], tmp_path / f"out{n}")
    shutil.copy(tmp_path / "out2" / "counts.npz", tmp_path / "out1" / "counts.npz")
    with pytest.raises(ValueError, match=r"counts\.npz cannot be read \(broken, or of another sweep\): delete it"):
        Sweep(lens, [TextFile(tmp_path / "1.txt")], tmp_path / "out1").findings()


def counts(folder: Path, **changes: torch.Tensor) -> None:
    """The counts of a sweep with others in their place, written as the sweep would."""
    with read_arrays(folder / "counts.npz", 2**20) as found:
        arrays = dict(found)
    write_arrays(folder / "counts.npz", {**arrays, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        dict(shards=torch.tensor([1, 1])),
        dict(shards=torch.tensor([10**7])),
        dict(shards=torch.tensor([10**12])),
        dict(shards=torch.tensor([-1])),
        dict(shards=torch.tensor([1.0])),
        dict(shards=torch.tensor([1.5])),
        dict(shards=torch.tensor([torch.nan])),
        dict(shards=torch.tensor([[1]])),
        dict(shards=torch.tensor(1)),
        dict(shards=torch.tensor([], dtype=torch.long)),
        dict(shards=torch.tensor([10**3]), texts=torch.zeros(10**3, 32, dtype=torch.uint8)),
        dict(texts=torch.zeros(1, 31, dtype=torch.uint8)),
        dict(texts=torch.zeros(0, 32, dtype=torch.uint8)),
        dict(total=torch.zeros(4)),
        dict(total=torch.full((103,), -1)),
        dict(total=torch.zeros(103)),
        dict(total=torch.zeros(10**6, dtype=torch.long)),
        dict(of=torch.zeros(32, dtype=torch.uint8)),
    ],
    ids=str,
)
def test_counts_that_cannot_be(gpt2: Loaded, tmp_path: Path, changes: dict[str, torch.Tensor]) -> None:
    lens, files = CorpusLens(*gpt2, Plan()), [text_file(tmp_path / "a.txt", documents(1))]
    Sweep(lens, files, tmp_path / "out").count()
    counts(tmp_path / "out")
    assert Sweep(lens, files, tmp_path / "out").count().documents == 12
    counts(tmp_path / "out", **changes)
    with pytest.raises(ValueError, match=r"counts\.npz cannot be read \(broken, or of another sweep\): delete it"):
        Sweep(lens, files, tmp_path / "out").count()


def test_counts_and_shards_that_do_not_agree(gpt2: Loaded, tmp_path: Path) -> None:
    lens, files = CorpusLens(*gpt2, Plan()), [text_file(tmp_path / "a.txt", documents(1))]
    total = Sweep(lens, files, tmp_path / "out").count().tokens
    swept(lens, files, tmp_path / "out")
    counts(tmp_path / "out", total=torch.cat([torch.tensor([12, 0]), total + 1]))
    with pytest.raises(ValueError, match=r"out hold [0-9]+ tokens, and its counts\.npz [0-9]+: give another"):
        Sweep(lens, files, tmp_path / "out").findings()


def begin(lenses: Sequence[CorpusLens], n: int, files: Sequence[TextFile], folder: Path, log: Path, start: Any) -> None:
    start.wait()
    try:
        Sweep(lenses[n], files, folder).count()
        said = f"{n}"
    except ValueError as error:
        said = str(error)
    with log.open("a") as file:
        file.write(f"{said}\n")


def test_two_sweeps_that_begin_in_one_folder(gpt2: Loaded, tmp_path: Path) -> None:
    """One has it, and the other is told so."""
    lenses = [CorpusLens(*gpt2, Plan(window=window)) for window in (20, 30)]
    files = [text_file(tmp_path / "a.txt", documents(1))]
    context = forked()
    for trial in range(10):
        folder, log, start = tmp_path / f"out{trial}", tmp_path / f"log{trial}", context.Barrier(2)
        both = [context.Process(target=begin, args=(lenses, n, files, folder, log, start)) for n in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join()
        said = sorted(log.read_text().splitlines(), key=len)
        assert said[0] in ("0", "1")
        assert "another value of window (" in said[1]
        assert json.loads((folder / "sweep.json").read_text())["window"] == lenses[int(said[0])].window
        assert sorted(path.name for path in folder.iterdir()) == ["counts.npz", "shards", "sweep.json"]


LOOKS = ("exists", "is_dir", "is_file", "iterdir", "mkdir", "stat")


@pytest.mark.parametrize("n", range(5))
def test_another_worker_begins_between_two_looks(
    gpt2: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """After the n-th look at the folder, or at what is in it, another worker begins the same sweep and counts."""
    lens, files = CorpusLens(*gpt2, Plan()), [text_file(tmp_path / "a.txt", documents(1))]
    folder, seen = tmp_path / "out", []

    def watched(real: Any) -> Any:
        def look(path: Any, *arguments: Any, **options: Any) -> Any:
            found = real(path, *arguments, **options)
            if str(path).startswith(str(folder)):
                seen.append(path)
                if len(seen) == n + 1:
                    Sweep(lens, files, folder).count()
            return found

        return look

    with monkeypatch.context() as patched:
        for name in LOOKS:
            patched.setattr(Path, name, watched(getattr(Path, name)))
        patched.setattr(os, "listdir", watched(os.listdir))
        sweep = Sweep(lens, files, folder)
    assert len(seen) > 1
    assert sweep.count().documents == 12


def test_one_of_three_is_killed_while_it_begins(gpt2: Loaded, tmp_path: Path) -> None:
    """It has the lock, and half a sweep.json; the others wait for it, and are none the wiser."""
    lens, files = CorpusLens(*gpt2, Plan(shard=200)), [text_file(tmp_path / "a.txt", documents(1))]
    alone, folder = record(swept(lens, files, tmp_path / "alone")), tmp_path / "out"
    folder.mkdir()
    (folder / "sweep.json.1.host").write_text('{"minilens"')
    context = forked()
    has_it = context.Event()
    first = context.Process(target=hold, args=(folder / "sweep.json", has_it))
    first.start()
    has_it.wait()
    others = workers(2, lens, files, folder, tmp_path / "log")
    first.kill()
    for process in others:
        process.join()
        assert process.exitcode == 0
    assert record(Sweep(lens, files, folder).findings()) == alone


@pytest.mark.parametrize(
    ("what", "function", "gives"),
    [
        ("processor", "minilens.corpus.machine._processor", "Z80"),
        ("capability", "torch.backends.cpu.get_cpu_capability", "MMX"),
        ("libraries", "torch.__config__.show", "  - Build settings: BLAS_INFO=open, LAPACK_INFO=open"),
        ("threads", "torch.get_num_threads", 2),
        ("settings", "MKL_CBWR", "COMPATIBLE"),
    ],
)
def test_a_machine_of_another_kind(
    gpt2: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, function: str, gives: Any
) -> None:
    """It is told what differs and how it may go on, and a sum over both kinds is known as one; all else is refused."""
    lens, other = (CorpusLens(*gpt2, Plan(window=window, shard=100)) for window in (40, 9))
    files, folder = [text_file(tmp_path / "a.txt", documents(1))], tmp_path / "out"
    monkeypatch.delenv("MKL_CBWR", raising=False)
    Sweep(lens, files, folder).count()
    says = re.escape(str(gives).partition("BLAS")[2].partition(",")[0] or str(gives))
    with monkeypatch.context() as there:
        if what == "settings":
            there.setenv(function, gives)
        else:
            there.setattr(function, lambda: gives)
        with pytest.raises(
            ValueError, match=f"another value of {what} \\(.*; here .*{says}.* --any-machine, for numbers that"
        ):
            Sweep(lens, files, folder)
        with pytest.raises(ValueError, match=r"another value of window \(40; here 9\)") as error:
            Sweep(other, files, folder, any_machine=True)
        assert "any-machine" not in str(error.value)
        mixed = Sweep(lens, files, folder, any_machine=True)
        assert mixed.count().documents == 12
        first = next(mixed.run())
    rest = Sweep(lens, files, folder)
    n_tokens = int(rest.count().tokens.sum())
    assert 0 < first < n_tokens
    assert sum(rest.run()) == n_tokens - first
    rest.findings()
    assert rest.n_machines == 2


def test_a_sweep_that_another_overtakes(gpt2: Loaded, tmp_path: Path) -> None:
    files = [text_file(tmp_path / "a.txt", documents(1))]
    late, early = (Sweep(CorpusLens(*gpt2, Plan(window=window)), files, tmp_path / "out") for window in (20, 30))
    early.count()
    with pytest.raises(ValueError, match="another value of window"):
        late.count()


def test_a_folder_that_cannot_be_made_or_locked(gpt2: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lens, files = CorpusLens(*gpt2, Plan()), [text_file(tmp_path / "a.txt", documents(1))]
    with pytest.raises(ValueError, match=r"a\.txt/out cannot be made: Not a directory"):
        Sweep(lens, files, tmp_path / "a.txt" / "out")

    def acquire(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(ValueError, match=r"out/sweep\.lock cannot be locked: No locks available"):
        Sweep(lens, files, tmp_path / "out").count()


def test_a_model_without_numbers(gpt2: Loaded, tmp_path: Path) -> None:
    model, _ = minilens.load(tmp_path / "gpt2", device="meta")
    with pytest.raises(ValueError, match='the model is on the device "meta", where there are no numbers'):
        CorpusLens(model, gpt2[1], Plan())


def test_weights_that_are_not_finite(gpt2: Loaded, tmp_path: Path) -> None:
    model, tokenizer = gpt2
    model.ln_final.w[3] = torch.nan
    sweep = Sweep(CorpusLens(model, tokenizer, Plan()), [text_file(tmp_path / "a.txt", ["a cat"])], tmp_path / "out")
    with pytest.raises(ValueError, match="the logits of row embed are not finite"):
        list(sweep.run())
    assert not list(tmp_path.glob("out/shards/*"))


def test_decoders_share_the_forward_pass(gpt2: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    real = corpus_lens.residuals
    monkeypatch.setattr(corpus_lens, "residuals", lambda *args: passes.append(1) or real(*args))  # type: ignore
    plan = Plan(decoders=("final", "mlp", "block:1", "block:3"), batch=10**6)
    swept(CorpusLens(*gpt2, plan), [text_file(tmp_path / "a.txt", documents(1))], tmp_path / "out")
    assert passes == [1]


def test_a_row_and_itself_are_no_distance_apart(gpt2: Loaded, tmp_path: Path) -> None:
    """Neither the mean nor any quantile says otherwise."""
    findings = swept(CorpusLens(*gpt2, Plan()), [text_file(tmp_path / "a.txt", documents(1))], tmp_path / "out")
    tally = findings.decoders["final"].tally
    for number, row in (("kl_final", -1), ("js", -1), ("kl_input", 0)):
        assert tally.mean(number)[0, row] == tally.quantile(number, 0.95)[0, row] == 0
        assert tally.quantile(number, 0.5)[0, -1 - row] > 0
