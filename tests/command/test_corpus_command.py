"""`minilens corpus`: what it prints, what it writes, and torchrun."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import changed, tokenizer_json
from conftest import Tiny
from safetensors.torch import load_file, save_file

import minilens
from minilens.command import sweeps
from minilens.command.main import main
from minilens.corpus.documents import SEPARATOR, TextFile
from minilens.corpus.measure import CorpusLens, Plan
from minilens.corpus.sweep import Sweep
from minilens.corpus.tally import NUMBERS, SHARES, VALUES
from minilens.views.corpus_curves import details, overview
from minilens.views.corpus_page import WIDE, corpus_page
from minilens.views.corpus_record import corpus_lines, corpus_record, mean_and_error
from minilens.views.corpus_terminal import corpus_tables, names, nats
from minilens.views.plots import drawn
from minilens.views.tokens import text_label

pytestmark = pytest.mark.usefixtures("undrawn")
Capture = pytest.CaptureFixture[str]
WITH_NEXT = ("cross_entropy", "next_first", "calibration_error")
WRITTEN = ["curves.png", "numbers.csv", "report.html", "report.json"]


@pytest.fixture(scope="module")
def model(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed(
        tiny("gpt2")[1], tmp_path_factory.mktemp("corpus") / "gpt2", files={"tokenizer.json": tokenizer_json()}
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text(f"\n{SEPARATOR}\n".join(["once upon a time there was a cat " * 3, "", "a red cat", "once"]))
    return path


def run(capsys: Capture, *args: str | Path) -> tuple[str, str]:
    assert main(["corpus", *map(str, args)]) == 0
    out, err = capsys.readouterr()
    return out, err


def refused(capsys: Capture, *args: str | Path) -> str:
    assert main(["corpus", *map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


def expected(model: Path, text: Path, folder: Path, **plan: Any) -> dict[str, Any]:
    sweep = Sweep(CorpusLens(*minilens.load(model), Plan(**plan)), [TextFile(text)], folder)
    list(sweep.run())
    return json.loads(json.dumps(corpus_record(str(model), sweep.findings())))


def test_the_report_holds_the_findings(
    model: Path, text: Path, tmp_path: Path, capsys: Capture, undrawn: pytest.MonkeyPatch
) -> None:
    undrawn.undo()  # of the second run every file is the same to the byte: else it would be refused
    options = ("--decoder", "final,mlp", "--sites", "resid_mid,resid_post", "--window", "9", "--shard", "20")
    out, err = run(capsys, model, text, "--out", tmp_path / "out", *options, "--json")
    record = expected(
        model, text, tmp_path / "mine", decoders=("final", "mlp"), sites=("resid_mid", "resid_post"), window=9, shard=20
    )
    assert json.loads(out) == record
    assert record["documents"] == 4
    assert record["empty_documents"] == 1
    assert record["files"] == [["a.txt", TextFile(text).digest]]
    assert record["tokens"] == sum(group["tokens"] for group in record["decoders"]["mlp"]["groups"][1:6])
    assert (tmp_path / "out" / "report.json").read_text() == out.removesuffix("\n")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        [*WRITTEN, "counts.npz", "shards", "sweep.json"]
    )
    assert err == f"minilens: {tmp_path}/out holds report.json, numbers.csv, report.html, curves.png\n"
    out, _ = run(capsys, model, text, "--out", tmp_path / "out", *options, "--csv")
    assert out == (tmp_path / "out" / "numbers.csv").read_text()
    assert list(csv.reader(io.StringIO(out))) == [
        ["" if cell is None else str(cell) for cell in line] for line in corpus_lines(record)
    ]


def test_csv_holds_every_number(model: Path, text: Path, tmp_path: Path) -> None:
    record = expected(model, text, tmp_path / "out", decoders=("final", "block:1"))
    heading, *lines = corpus_lines(record)
    for line in lines:
        cells = dict(zip(heading, line, strict=True))
        found = record["decoders"][cells["decoder"]]
        (group,) = [g for g in found["groups"] if (g["split"], g["group"]) == (cells["split"], cells["group"])]
        r = found["rows"].index(cells["row"])
        assert cells["layer"] == found["layers"][r]
        of = group["with_next"] if cells["statistic"] in WITH_NEXT else group
        assert (cells["tokens"], cells["documents"]) == (of["tokens"], of["documents"])
        if cells["statistic"] == "calibration_error":
            assert cells["mean"] == group["calibration"]["error"][r]
            continue
        assert cells["mean"] == group["mean"][cells["statistic"]][r]
        assert cells["standard_error"] == group["standard_error"][cells["statistic"]][r]
        for q, values in group["quantiles"].get(cells["statistic"], {}).items():
            assert cells[f"quantile_{q}"] == values[r]
        assert (cells["quantile_0.5"] is None) == (cells["statistic"] not in NUMBERS or group["tokens"] == 0)
    rows = sum(len(found["rows"]) * len(found["groups"]) for found in record["decoders"].values())
    assert len(lines) == rows * (len(VALUES) + 1)


def test_the_terminal(model: Path, text: Path, tmp_path: Path, capsys: Capture) -> None:
    out, _ = run(capsys, model, text, "--out", tmp_path / "out")
    whole = expected(model, text, tmp_path / "mine")["decoders"]["final"]["groups"][0]
    lines = [line.split() for line in out.splitlines() if line]
    for r, row in enumerate(("embed", "0.post", "1.post", "2.post")):
        (cells,) = [line for line in lines if line[0] == row]
        pairs = [(whole["mean"][v][r], whole["standard_error"][v][r]) for v in NUMBERS if v != "js"]
        shown = [nats(*pair).replace(" ±0", "±") for pair in pairs]
        shares = [f"{100 * whole['mean'][v][r]:.1f}" for v in VALUES if v not in NUMBERS]
        assert cells[1:] == [*shown, *shares]
    assert max(map(len, out.splitlines()[1:-2])) <= 80
    assert "of 4 documents (1 of them empty), read in windows of up to 40 tokens\n" in out
    assert whole["with_next"] == {"tokens": whole["tokens"] - 3, "documents": 2 if whole["documents"] == 2 else 3}


def test_a_narrow_terminal_cuts_no_number(
    model: Path, text: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide, _ = run(capsys, model, text, "--out", tmp_path / "out")
    monkeypatch.setenv("COLUMNS", "40")
    narrow, _ = run(capsys, model, text, "--out", tmp_path / "out")
    assert narrow == wide  # nothing is folded or cut


@pytest.mark.parametrize(
    ("mean", "error", "shown"),
    [
        (3.3627, 0.0309, "3.36 ±0.03"),
        (27.14, 0.5, "27.1 ±0.5"),
        (0.5425, 0.00144, "0.542 ±0.001"),
        (1e-5, 1e-6, "0.000 ±0.000"),
        (1234.5, 23.0, "1234.5 ±23.0"),
        (0.0, 0.0, "0"),
        (100.0, 0.0, "100"),
        (3.3627, None, "3.363"),
        (None, None, "-"),
    ],
)
def test_a_mean_is_shown_as_far_as_it_is_known(mean: float | None, error: float | None, shown: str) -> None:
    assert nats(mean, error) == shown


class Cells(HTMLParser):
    """The tables of a page, and all its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("td", "th") and data.strip():
            self.rows[-1][-1] += data


def test_the_page_holds_the_numbers_of_the_record(model: Path, text: Path, tmp_path: Path) -> None:
    record = expected(model, text, tmp_path / "out", decoders=("final", "block:1"))
    rows = Cells(corpus_page([record])).rows
    for found in record["decoders"].values():
        whole = found["groups"][0]
        for r, row in enumerate(found["rows"]):
            cells = next(cells for cells in rows if cells[0] == row)
            rows.remove(cells)
            for cell, value in zip(cells[1:], WIDE, strict=True):
                mean, error = mean_and_error(whole, value, r)
                scale = 100 if value in SHARES else 1
                assert mean is not None
                assert cell == nats(scale * mean, None if error is None else scale * error)
    assert [cells[0] for cells in rows] == ["row", "row"]


NIGHTMARE = 'a"><script>alert(1)</script>\x1b[31m\u202e $x_1$ [red]&amp;'


def test_hostile_names_stay_text(
    model: Path, text: Path, tmp_path: Path, opened: Callable[..., Any], undrawn: pytest.MonkeyPatch
) -> None:
    undrawn.undo()
    record = expected(model, text, tmp_path / "out", prefix=" cat")
    harmless = Cells(corpus_page([record, record])).tags
    found = record["decoders"]["final"]
    named = {**found, "rows": [NIGHTMARE, *found["rows"][1:-1], NIGHTMARE]}
    named["groups"] = [{**group, "group": NIGHTMARE} for group in found["groups"]]
    hostile = {**record, "model": NIGHTMARE, "files": [[NIGHTMARE, "0"]], "prefix": NIGHTMARE}
    hostile["decoders"] = {"final": named}
    page = corpus_page([hostile, record])
    assert Cells(page).tags == harmless
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert 'a"><script>alert(1)</script>\\x1b[31m\\u202e $x_1$ [red]&amp;' in opened(page).inner_text("h1")
    from rich.console import Console

    console = Console(file=io.StringIO(), width=300)
    for table in corpus_tables(hostile):
        console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]" in shown
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)


def test_legends_have_the_names_of_models(model: Path, text: Path, tmp_path: Path) -> None:
    record = expected(model, text, tmp_path / "out")
    called = ["$x_{$", "_model", "plain"]
    records = [{**record, "model": name} for name in called]
    figure = overview(records)
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert [text.get_text().strip() for text in legend.get_texts()] == called
    found = record["decoders"]["final"]
    found = {**found, "rows": ["$x_{$", *found["rows"][1:-1], "_last"]}
    found["groups"] = [{**group, "group": "$x_{$"} for group in found["groups"]]
    hostile = {**record, "decoders": {"final": found}}
    figures = [figure, overview([{**hostile, "model": "$x_{$"}]), details(hostile, "final")]
    assert all(drawn(each, ".png").startswith(b"\x89PNG") for each in figures)


def test_a_page_fits_a_phone_and_a_desktop(
    model: Path, text: Path, tmp_path: Path, opened: Callable[..., Any], undrawn: pytest.MonkeyPatch
) -> None:
    undrawn.undo()
    page = corpus_page([expected(model, text, tmp_path / "out")])
    for width in (400, 1400):
        view = opened(page)
        view.set_viewport_size({"width": width, "height": 800})
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        assert view.evaluate("[...document.images].every(image => image.naturalWidth > 100)")


def test_another_worker_ends_at_the_same_time(
    model: Path, text: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes each file of the report just after this one has seen that it is not there."""
    run(capsys, model, text, "--out", tmp_path / "one")
    real, out = Path.is_file, tmp_path / "two"

    def is_file(path: Path) -> bool:
        found = real(path)
        if path.parent == out and not found and real(tmp_path / "one" / path.name):
            shutil.copy(tmp_path / "one" / path.name, path)
        return found

    monkeypatch.setattr(Path, "is_file", is_file)
    assert "holds report.json" in run(capsys, model, text, "--out", out)[1]


def test_other_sweeps_beside(model: Path, text: Path, tmp_path: Path, capsys: Capture) -> None:
    run(capsys, model, text, "--out", tmp_path / "one")
    alone = (tmp_path / "one" / "report.html").read_bytes()
    assert "holds report.json" in run(capsys, model, text, "--out", tmp_path / "one")[1]  # the same again: no complaint
    args = (model, text, "--out", tmp_path / "two", "--window", "9")
    run(capsys, *args)
    before = {path: path.read_bytes() for path in (tmp_path / "two").glob("*.*")}
    _, err = run(capsys, *args, "--beside", tmp_path / "one")
    assert err.endswith("numbers.csv, report.html, curves.png, beside.html, beside.png\n")
    both = (tmp_path / "two" / "beside.html").read_text()
    assert both.count("<section>") == 2
    assert "windows of up to 9 tokens" in both
    assert "windows of up to 40 tokens" in both
    run(capsys, *args)  # without it again: the report is of this run alone, and is there
    assert all(path.read_bytes() == content for path, content in before.items())
    why = "beside.html is there, with other names or other runs beside"
    others = ("--beside", tmp_path / "one", "--beside", tmp_path / "one")
    assert f"{why}: --overwrite replaces it, and reads no text again" in refused(capsys, *args, *others)
    run(capsys, *args, *others, "--overwrite")
    assert (tmp_path / "two" / "beside.html").read_text().count("<section>") == 3
    assert (tmp_path / "one" / "report.html").read_bytes() == alone


def test_weights_that_are_cut_short_while_they_are_in_use(
    model: Path, text: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in memory: a mapped file would end the process."""
    model = Path(shutil.copytree(model, tmp_path / "model"))
    weights = model / "model.safetensors"
    save_file({name: tensor.float() for name, tensor in load_file(weights).items()}, weights)  # else load would copy
    record = expected(model, text, tmp_path / "mine")
    tallies = CorpusLens.tallies

    def cut(*args: Any) -> Any:
        os.truncate(weights, 100)
        return tallies(*args)

    monkeypatch.setattr(CorpusLens, "tallies", cut)
    assert json.loads(run(capsys, model, text, "--out", tmp_path / "out", "--json")[0]) == record


def test_what_a_killed_run_left_of_its_report_is_taken_away(
    model: Path, text: Path, tmp_path: Path, capsys: Capture
) -> None:
    run(capsys, model, text, "--out", tmp_path / "out")
    whole = sorted(path.name for path in (tmp_path / "out").iterdir())
    for name in WRITTEN:
        (tmp_path / "out" / name).rename(tmp_path / "out" / f"{name}.123.abc")
    run(capsys, model, text, "--out", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == whole


def test_without_matplotlib_there_is_no_page(
    model: Path, text: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(("matplotlib", "minilens.views."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    _, err = run(capsys, model, text, "--out", tmp_path / "out")
    assert err.splitlines() == [
        "minilens: note: no report.html: drawing a figure needs matplotlib, which is not installed: pip install "
        "matplotlib",
        f"minilens: {tmp_path}/out holds report.json, numbers.csv",
    ]


def test_what_cannot_be_done_is_said_in_one_line(model: Path, text: Path, tmp_path: Path, capsys: Capture) -> None:
    out = ("--out", tmp_path / "out")
    assert "there is no decoder" in refused(capsys, model, text, *out, "--decoder", "best")
    assert "--threads must be from 1 to 1024; it is 0" in refused(capsys, model, text, *out, "--threads", "0")
    assert "nothing.txt cannot be read: No such file" in refused(capsys, model, tmp_path / "nothing.txt", *out)
    assert "has no report.json: it must be" in refused(capsys, model, text, *out, "--beside", tmp_path)
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    assert "has no report.json: it must be" in refused(capsys, model, text, *out, "--beside", tmp_path / "itself")
    assert "is the folder of this very run" in refused(capsys, model, text, *out, "--beside", tmp_path / "out")
    assert "--threads must be from 1 to 1024" in refused(capsys, model, text, *out, "--threads", str(10**9))
    assert 'on the device "meta"' in refused(capsys, model, text, *out, "--device", "meta")
    assert "--key is for .jsonl and .parquet files, and none is given" in refused(
        capsys, model, text, *out, "--key", "body"
    )
    lines = tmp_path / "a.jsonl"
    lines.write_text('"a cat"')
    assert "--lines is for text files" in refused(capsys, model, lines, *out, "--lines")
    assert "--json and --csv" in refused(capsys, model, text, *out, "--json", "--csv")
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    assert "latin.txt is not UTF-8: it has the byte 0xe9" in refused(capsys, model, latin, "--out", tmp_path / "l")
    assert "is there, and no sweep has begun in it" in refused(capsys, model, text, "--out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_reports_beside_that_are_none(
    model: Path, text: Path, tmp_path: Path, capsys: Capture, undrawn: pytest.MonkeyPatch
) -> None:
    undrawn.undo()
    whole = json.dumps(expected(model, text, tmp_path / "mine"))
    beside = tmp_path / "beside"
    beside.mkdir()
    command = (model, text, "--out", tmp_path / "out", "--beside", beside)
    for content in (
        "{}",
        whole.replace('"schema": 1', '"schema": 2'),
        whole.replace('"family": "gpt2"', '"family": "bert"'),
        whole.replace('"n_layers": 3', '"n_layers": "<b>"'),
        re.sub(r'"decoders": .*', '"decoders": {}}', whole),
        whole.replace('"documents": 4', '"documents": "4"'),
        re.sub(r'"layers": \[.*?,', '"layers": [', whole),
        re.sub(r'"ranks": \{.*?\}', '"ranks": {}', whole),
        re.sub(r'"accuracy": \[\[.*?\]', '"accuracy": [[]', whole),
        whole.replace('"agrees": [', '"agrees": ["x", '),
    ):
        assert content != whole
        (beside / "report.json").write_text(content)
        assert "report.json is not a report of minilens corpus, or one of another version" in refused(capsys, *command)
    assert not (tmp_path / "out").exists()
    (beside / "report.json").write_text(whole)
    run(capsys, *command)


def test_reports_are_written_before_they_are_shown(
    model: Path,
    text: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    undrawn: pytest.MonkeyPatch,
) -> None:
    """Whoever has seen enough, or has closed stdout, still has the files; and a full disk leaves what was there."""
    undrawn.undo()
    read, write = os.pipe()
    os.close(read)
    broken = [sys.executable, "-m", "minilens", "corpus", str(model), str(text), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(minilens.__file__).parents[1])}
    ran = subprocess.run(broken, stdout=write, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(write)
    assert ran.stderr == ""
    assert set(WRITTEN) <= {path.name for path in (tmp_path / "out").iterdir()}

    before = (tmp_path / "out" / "numbers.csv").read_bytes()
    real = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        real(path, content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    (tmp_path / "out" / "report.json").unlink()
    assert "report.json cannot be written: No space left" in refused(capsys, model, text, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "report.json").exists()
    assert (tmp_path / "out" / "numbers.csv").read_bytes() == before
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["corpus", str(model), str(text), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.json").exists()


def test_models_of_one_name_are_told_apart(model: Path, text: Path, tmp_path: Path) -> None:
    one = expected(model, text, tmp_path / "one", window=9)
    other = {**one, "model": "other"}
    assert names([one, other]) == [text_label(str(model)), "other"]
    page = corpus_page([one, other, one])
    for n in (1, 2):
        assert f"<h2>{text_label(str(model))} ({n})</h2>" in page


def test_a_model_without_a_tokenizer(tiny: Tiny, text: Path, tmp_path: Path, capsys: Capture) -> None:
    assert "has no tokenizer that minilens reads" in refused(capsys, tiny("gpt2")[1], text, "--out", tmp_path / "out")


def test_ctrl_reads_each_window_after_a_control_code(text: Path, tmp_path: Path, capsys: Capture) -> None:
    out, _ = run(capsys, "tales-ctrl", text, "--out", tmp_path / "out")
    assert "each after Stories" in out
    run(capsys, "tales-ctrl", text, "--out", tmp_path / "none", "--prefix", "", "--json")
    assert json.loads((tmp_path / "none" / "report.json").read_text())["prefix"] == ""


@pytest.mark.skipif("OTHER_ROUNDING" in os.environ, reason="another program's products are rounded as ever")
def test_torchrun_gives_the_same(model: Path, text: Path, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "b.txt"
    other.write_text(f"a little cat\n{SEPARATOR}\n" * 30)
    options = ("--shard", "50", "--out")
    alone, _ = run(capsys, model, text, other, *options, tmp_path / "one", "--json")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    args = ["-m", "minilens", "corpus", model, other, text, *options, tmp_path / "two", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(minilens.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([*torchrun, *map(str, args)], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == alone
    said = sorted(line for line in ran.stderr.splitlines() if line.startswith("minilens: worker "))
    found = [re.fullmatch(r"minilens: worker ([12]) of 2: ([0-9,]+) tokens in 0:00:[0-9]+", line) for line in said]
    assert [line and line[1] for line in found] == ["1", "2"]
    n_tokens = json.loads(alone)["tokens"]
    assert sum(int(line[2].replace(",", "")) for line in found if line) == n_tokens


def test_lines_where_there_is_no_terminal(
    model: Path, text: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "PAUSE", 0)
    _, err = run(capsys, model, text, "--out", tmp_path / "out", "--shard", "50")
    n_shards = len(list((tmp_path / "out" / "shards").iterdir()))
    assert n_shards > 1
    *lines, _ = err.splitlines()
    for n, line in enumerate(lines, 1):
        pattern = rf"minilens: {n} of {n_shards} shards are done, [0-9,]+ tokens/s, [0-9:]+ left"
        assert re.fullmatch(pattern, line)
    assert len(lines) == n_shards


def test_a_worker_that_stops_is_said_in_one_line(
    model: Path, text: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gloo has it where the other one has gone."""

    def broadcast(*_: Any) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer\nException raised from ...")

    sweep = Sweep(CorpusLens(*minilens.load(model), Plan()), [TextFile(text)], tmp_path / "out")
    monkeypatch.setattr("torch.distributed.broadcast", broadcast)
    with pytest.raises(ValueError, match=r"^another worker has stopped, or cannot be reached: run again$"):
        sweep.count(0, 2)


def test_the_bar(model: Path, text: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, err = run(capsys, model, text, "--out", tmp_path / "out", "--shard", "9")
    assert re.search(r"tokens/s, 0:00:0[0-9] left", err)


def test_a_shard_without_a_token(model: Path, text: Path, tmp_path: Path, capsys: Capture) -> None:
    """Nothing is divided by what was read in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stderr, "isatty", lambda: True)
        blank = tmp_path / "blank.txt"
        blank.write_text(f"{SEPARATOR}\n" * 9)
        run(capsys, model, text, blank, "--out", tmp_path / "out", "--shard", "1")


def test_threads_are_as_asked(model: Path, text: Path, tmp_path: Path, capsys: Capture) -> None:
    try:
        run(capsys, model, text, "--out", tmp_path / "out", "--threads", "2")
        assert torch.get_num_threads() == 2
        assert json.loads((tmp_path / "out" / "sweep.json").read_text())["threads"] == 2
    finally:
        torch.set_num_threads(1)
    shutil.rmtree(tmp_path / "out")
