"""The command: what it prints is what logit_lens computes, wherever the text comes from and the output goes."""

import csv
import io
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import changed, tokenizer_json
from conftest import Tiny
from rich.cells import cell_len
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

import minilens
from minilens.command.main import main
from minilens.command.outputs import FIGURES
from minilens.command.trace import FIELDS
from minilens.views.lens_page import lens_page
from minilens.views.lens_panels import NAMES
from minilens.views.lens_terminal import lens_view
from minilens.views.tokens import token_label
from minilens.vocab import TokenStats

TEXT = "once upon a time\n cat"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output that goes to a file as wide as it needs to be, and no wish for colours from outside."""
    monkeypatch.setenv("COLUMNS", "500")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def gpt2(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with a tokenizer."""
    folder = tmp_path_factory.mktemp("cli") / "gpt2"
    return changed(tiny("gpt2")[1], folder, files={"tokenizer.json": tokenizer_json()})


def output(capsys: Capture, *args: str | Path) -> str:
    """What the command prints where all is well: on stderr the files that it wrote, and nothing else."""
    status = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    options = {f"--{kind}" for kind in ("html", *FIGURES)} | ({"--out"} if args[0] == "trace" else set())
    files = [path for option, path in pairwise(args) if option in options]
    assert (status, err) == (0, "".join(f"minilens: {path} is written\n" for path in files))
    return out


def lens(capsys: Capture, *args: str | Path) -> str:
    return output(capsys, "lens", *args)


def as_json(capsys: Capture, *args: str | Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    record: dict[str, Any] = json.loads(lens(capsys, *args, "--json"), parse_constant=refuse)
    return record


def rows(text: str) -> dict[str, list[str]]:
    """The lines of a table's first panel, by their labels, from top to bottom."""
    panel, *_ = text.split("\n\n")
    return {line.split()[0]: line.split()[1:] for line in (each.rstrip() for each in panel.splitlines()) if line}


def numbers(values: torch.Tensor, none: float | None = None) -> list[Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        return None if value != value or value == none else value

    return [plain(value) for value in values.tolist()]


def ids(record: list[dict[str, Any] | None]) -> list[int]:
    return [-1 if token is None else token["id"] for token in record]


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ([], dict(top_k=5)),
        (["--top-k", "1"], dict(top_k=1)),
        (["--top-k", "101"], dict(top_k=101)),
        (["--sites", "resid_pre,resid_mid,resid_post"], dict(sites=("resid_pre", "resid_mid", "resid_post"))),
        (["--sites", "resid_mid", "--decoder", "block:1"], dict(sites=("resid_mid",), decoder="block:1")),
        (["--decoder", "block:3"], dict(decoder="block:3")),
        (["--positions", "0,-1"], dict(positions=[0, -1])),
        (["--decoder", "mlp", "--norm", "plain", "--centre"], dict(decoder="mlp", norm="plain", centre=True)),
        (["--layers", "1:"], dict(layers=[1, 2])),
        (["--layers=-1"], dict(layers=[2])),
        (["--stats", "all", "--track", "A", "--track", "#99"], dict(stats="all", track=[33, 99])),
        (["--stats", "js,top"], dict(stats=("js", "top"))),
    ],
    ids=str,
)
def test_json_holds_the_numbers_of_the_lens(
    gpt2: Path, capsys: Capture, options: list[str], arguments: dict[str, Any]
) -> None:
    model, tokenizer = minilens.load(gpt2)
    assert tokenizer is not None
    table = minilens.logit_lens(model, tokenizer.encode(TEXT), **arguments)
    record = as_json(capsys, TEXT, "--model", gpt2, *options)
    assert (record["model"], record["family"], record["decoder"]) == (str(gpt2), "gpt2", table.decoder)
    assert record["positions"] == table.positions.tolist()
    for name in ("tokens", "next_tokens", "final_tokens"):
        assert ids(record[name]) == getattr(table, name).tolist()
    assert [token["label"] for token in record["tokens"]] == [
        token_label(tokenizer, token) for token in table.tokens.tolist()
    ]
    assert [token["text"] for token in record["tokens"]] == [tokenizer.decode(token[None]) for token in table.tokens]
    assert (record["norm"], record["centre"]) == (table.norm, table.centre)
    assert [token["id"] for token in record["tracked_tokens"]] == list(table.track)
    assert record.get("settled") == (table.settled.tolist() if "final" in table.stats else None)
    assert [row["label"] for row in record["rows"]] == list(table.labels)
    assert [row["layer"] for row in record["rows"]] == list(table.layers)
    for r, row in enumerate(record["rows"]):
        names = {"label", "layer"}
        for name, value in table.stats.items():
            if isinstance(value, TokenStats):
                for part in ("prob", "logprob", "logit", "rank"):
                    none = 0 if part == "rank" else None
                    assert row[f"{name}_{part}"] == numbers(getattr(value, part)[r], none)
                    names.add(f"{name}_{part}")
            elif isinstance(value, torch.Tensor):
                assert row[name] == numbers(value[r])
                names.add(name)
            else:
                names.add(name)
        if "final" in table.stats:
            assert row["agrees"] == table.agrees[r].tolist()
        if "next" in table.stats:
            assert row["cross_entropy"] == numbers(table.cross_entropy[r])
        assert row.keys() - {"agrees", "cross_entropy"} == names
        if "top" not in table.stats:
            continue
        assert [ids(best) for best in row["top"]] == table.top.tokens[r].tolist()
        assert [[token["prob"] for token in best] for best in row["top"]] == table.top.prob[r].tolist()
        assert [[token["logit"] for token in best] for best in row["top"]] == table.top.logit[r].tolist()
        assert [[token["logprob"] for token in best] for best in row["top"]] == table.top.logprob[r].tolist()


@pytest.mark.parametrize(
    "options", [[], ["--stats", "all", "--track", "#7", "--top-k", "2"], ["--stats", "js"]], ids=str
)
def test_csv_holds_what_json_holds(gpt2: Path, capsys: Capture, options: list[str]) -> None:
    record = as_json(capsys, TEXT, "--model", gpt2, *options)
    lines = list(csv.DictReader(io.StringIO(lens(capsys, TEXT, "--model", gpt2, "--csv", *options))))
    assert len(lines) == len(record["rows"]) * len(record["positions"])
    for n, line in enumerate(lines):
        assert None not in line and None not in line.values()
        row, column = record["rows"][n // len(record["positions"])], n % len(record["positions"])
        assert (line["label"], line["layer"]) == (row["label"], str(row["layer"]))
        assert line["position"] == str(record["positions"][column])
        assert line["token"] == record["tokens"][column]["label"]
        following = record["next_tokens"][column]
        assert line["next_token_id"] == ("" if following is None else str(following["id"]))
        for name, values in row.items():
            if name == "top":
                for place, best in enumerate(values[column], 1):
                    assert line[f"top{place}_id"] == str(best["id"])
                    assert line[f"top{place}_prob"] == str(best["prob"])
            elif name.startswith("tracked_"):
                assert line[f"token7_{name.removeprefix('tracked_')}"] == str(values[column][0])
            elif isinstance(values, list):
                assert line[name] == ("" if values[column] is None else str(values[column]))


def view(tables: minilens.LensTable | list[minilens.LensTable], show: list[str]) -> str:
    """tests/test_views.py looks into it."""
    out = io.StringIO()
    Console(file=out, width=500).print(lens_view(tables, show=show, width=500))
    return out.getvalue()


def test_several_decoders_are_side_by_side(gpt2: Path, capsys: Capture) -> None:
    model, tokenizer = minilens.load(gpt2)
    assert tokenizer is not None
    tables = [
        minilens.logit_lens(model, tokenizer.encode(TEXT), decoder=decoder, top_k=1, tokenizer=tokenizer)
        for decoder in ("final", "mlp", "block:1")
    ]
    both = lens(capsys, TEXT, "--model", gpt2, "--decoder", "final,mlp,block:1", "--show", "prob,kl")
    assert both == view(tables, ["prob", "kl"])
    assert "final" in both and "block:1" in both


def test_the_page(gpt2: Path, tmp_path: Path, capsys: Capture) -> None:
    """tests/test_page.py looks into it."""
    model, tokenizer = minilens.load(gpt2)
    assert tokenizer is not None
    tokens, path = tokenizer.encode(TEXT), tmp_path / "lens.html"
    stats = (*minilens.table.DEFAULT_STATS, "input")
    tables = [
        minilens.logit_lens(model, tokens, decoder=decoder, stats=stats, tokenizer=tokenizer)
        for decoder in ("final", "mlp")
    ]
    assert lens(capsys, TEXT, "--model", gpt2, "--decoder", "final,mlp", "--html", path) == ""
    assert path.read_text(encoding="utf-8") == lens_page(tables, title=str(gpt2))
    assert main(["lens", TEXT, "--model", str(gpt2), "--html", str(path)]) == 2
    assert "exists: give another name, or --overwrite" in capsys.readouterr().err
    lens(capsys, TEXT, "--model", gpt2, "--html", path, "--overwrite", "--top-k", "2", "--large")
    one = minilens.logit_lens(model, tokens, stats=stats, top_k=2, tokenizer=tokenizer)
    assert path.read_text(encoding="utf-8") == lens_page(one, title=str(gpt2), large=True)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        (["--patterns"], [0, 1, 2]),
        (["--patterns", "1,-1"], [1, 2]),
        (["--patterns=-3", "--decoder", "final,mlp", "--positions", "2"], [0]),
        (["--patterns", ":2", "--layers", "2"], [0, 1]),
    ],
    ids=str,
)
def test_attention_patterns_in_the_page(
    gpt2: Path, tmp_path: Path, capsys: Capture, options: list[str], layers: list[int]
) -> None:
    """They are of the whole text and of the model itself, whatever the columns, rows and decoders are."""
    model, tokenizer = minilens.load(gpt2)
    assert tokenizer is not None
    tokens, path = tokenizer.encode(TEXT), tmp_path / "lens.html"
    arguments: dict[str, Any] = dict(stats=(*minilens.table.DEFAULT_STATS, "input"), tokenizer=tokenizer)
    arguments |= {"positions": [2]} if "--positions" in options else {}
    arguments |= {"layers": [2]} if "--layers" in options else {}
    decoders = ("final", "mlp") if "--decoder" in options else ("final",)
    tables = [minilens.logit_lens(model, tokens, decoder=decoder, **arguments) for decoder in decoders]
    blocks = [minilens.trace(model, tokens).blocks[layer] for layer in layers]
    assert lens(capsys, TEXT, "--model", gpt2, "--html", path, *options) == ""
    assert path.read_text(encoding="utf-8") == lens_page(tables, title=str(gpt2), tokens=tokens, patterns=blocks)


def test_the_figures(gpt2: Path, tmp_path: Path, capsys: Capture) -> None:
    """tests/test_figure.py looks into them."""
    pytest.importorskip("matplotlib", reason="matplotlib, of the extra plot, is not installed")
    files = {kind: tmp_path / f"lens.{kind}" for kind in ("png", "svg", "pdf")}
    options = [option for kind, path in files.items() for option in (f"--{kind}", path)]
    assert lens(capsys, TEXT, "--model", gpt2, *options, "--show", "logit,rank", "--style", "2020") == ""
    assert lens(capsys, TEXT, "--model", gpt2, *options, "--decoder", "final,mlp", "--track", "#7", "--overwrite") == ""
    size = int.from_bytes(files["png"].read_bytes()[16:20], "big")  # its width
    assert lens(capsys, TEXT, "--model", gpt2, *options, "--dpi", "75", "--title", "A title", "--overwrite") == ""
    assert abs(int.from_bytes(files["png"].read_bytes()[16:20], "big") - size / 2) <= 1
    assert lens(capsys, TEXT, "--model", gpt2, "--png", files["png"], "--font-size", "16", "--overwrite") == ""
    assert int.from_bytes(files["png"].read_bytes()[16:20], "big") > 1.5 * size
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert all(path.read_bytes().startswith(begins[kind]) for kind, path in files.items())


def test_trace_saves_what_the_model_computes(gpt2: Path, tmp_path: Path, capsys: Capture) -> None:
    model, tokenizer = minilens.load(gpt2)
    assert tokenizer is not None
    tokens = tokenizer.encode(TEXT)
    trace = minilens.trace(model, tokens)
    path = tmp_path / "trace.safetensors"
    assert output(capsys, "trace", TEXT, "--model", gpt2, "--out", path, "--fields", "all") == ""
    saved = load_file(path)
    assert torch.equal(saved["tokens"], tokens)
    assert torch.equal(saved["embed"], trace.embed)
    assert torch.equal(saved["logits"], trace.logits)
    for block in trace.blocks:
        for name in FIELDS:
            assert torch.equal(saved[f"{block.layer}.{name}"], getattr(block, name))
    assert len(saved) == 3 + 3 * 15
    output(capsys, "trace", "--ids", "5 6", "--model", gpt2, "--out", path, "--overwrite")
    names = {f"{layer}.{name}" for layer in range(3) for name in ("resid_mid", "resid_post")}
    assert load_file(path).keys() == {"tokens", "embed", "logits"} | names
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"model": str(gpt2), "family": "gpt2", "edits": ""}


def test_geometry_by_the_definitions(tiny: Tiny, capsys: Capture) -> None:
    _, folder = tiny("gpt_neo")
    model, _ = minilens.load(folder)
    found = minilens.geometry(model)
    W_E = model.W_U.mT.double()
    mean = W_E.mean(0)

    def mean_cosine(vectors: torch.Tensor) -> torch.Tensor:
        cosines = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
        return cosines[~torch.eye(101, dtype=torch.bool)].mean()

    assert found.mean_cosine == pytest.approx(mean_cosine(W_E).item(), abs=1e-12)
    assert found.mean_cosine_centred == pytest.approx(mean_cosine(W_E - mean).item(), abs=1e-12)
    assert found.norm_of_mean == pytest.approx(mean.norm().item())
    norms = W_E.norm(dim=-1)
    assert found.mean_norm == pytest.approx(norms.mean().item())
    assert (found.largest, found.smallest) == (norms.argmax(), norms.argmin())
    assert (found.largest_norm, found.smallest_norm) == pytest.approx((norms.max().item(), norms.min().item()))
    record = json.loads(output(capsys, "geometry", "--model", folder, "--json"))
    assert record == {"model": str(folder), "family": "gpt_neo", **found._asdict()}
    shown = output(capsys, "geometry", "--model", folder)
    assert f"{found.mean_cosine:.4f}" in shown and f"token {found.largest}, #{found.largest}" in shown


def test_heads(tiny: Tiny, capsys: Capture) -> None:
    _, folder = tiny("gpt_neo")
    model, _ = minilens.load(folder)
    scores, copying = minilens.head_scores(model, length=9, batch=2, seed=3), minilens.copying_scores(model)
    composition = minilens.composition(model)
    asked = ["heads", "--model", folder, "--length", "9", "--batch", "2", "--seed", "3"]
    record = json.loads(output(capsys, *asked, "--json"))
    assert record["induction"] == scores.induction.tolist() and record["previous"] == scores.previous.tolist()
    assert record["copying"] == copying.tolist() and record["composition_random"] == 29**-0.5
    assert record["composition"]["key"][1][4][2] == composition.key[1, 4, 2].tolist()
    assert record["composition"]["key"][1][4][1] == [None] * 5

    blocks = {block.split(":")[0]: block.splitlines() for block in output(capsys, *asked).split("\n\n")}
    assert blocks["copying"][1].split() == ["head", "0", "1", "2", "3", "4"]
    assert blocks["copying"][2].split() == ["2", *(f"{round(x, 2) + 0.0:.2f}" for x in copying[2].tolist())]
    assert blocks["duplicate"][-1].split() == ["0", *(f"{x:.2f}" for x in scores.duplicate[0].tolist())]
    most = composition.value[:2, :, 2].amax((0, 1)) / composition.random
    assert blocks["value composition"][2].split() == ["2", *(f"{x:.1f}" for x in most.tolist())]
    assert blocks["value composition"][4].split() == ["0"]
    a, b, c, d = max(composition.value.isfinite().nonzero().tolist(), key=lambda place: composition.value[tuple(place)])
    best = composition.value[a, b, c, d] / composition.random
    assert blocks["strongest"][0].startswith(f"strongest: {a}.{b} to {c}.{d} {best:.1f}, ")


def test_the_table(gpt2: Path, capsys: Capture) -> None:
    model, tokenizer = minilens.load(gpt2)
    assert tokenizer is not None
    table = minilens.logit_lens(model, tokenizer.encode(TEXT))

    def labels(tokens: torch.Tensor) -> list[str]:
        return [token_label(tokenizer, token) for token in tokens.tolist()]

    shown = rows(lens(capsys, TEXT, "--model", gpt2))
    assert list(shown) == ["position", "next", "2.resid_post", "1.resid_post", "0.resid_post", "embed", "input"]
    assert shown["position"] == [str(position) for position in table.positions.tolist()]
    for r, label in enumerate(table.labels):
        assert shown[label] == labels(table.top.tokens[r, :, 0])
    assert shown["input"] == labels(table.tokens)
    right = (table.final_tokens == table.next_tokens).tolist()
    assert shown["next"] == [
        "*" * said + label for said, label in zip(right, labels(table.next_tokens[:-1]), strict=False)
    ]


def test_a_star_where_the_model_is_right(gpt2: Path, capsys: Capture) -> None:
    model, _ = minilens.load(gpt2)
    right = minilens.trace(model, torch.tensor([[5, 17]])).logits[0, 1].argmax().item()
    wrong = (right + 1) % 101
    record = as_json(capsys, "--ids", f"5 17 {right} {wrong}", "--model", gpt2)
    shown = rows(lens(capsys, "--ids", f"5 17 {right} {wrong}", "--model", gpt2))
    assert shown["next"][1] == "*" + record["tokens"][2]["text"]
    assert not shown["next"][0].startswith("*")


@pytest.mark.parametrize("show", NAMES)
def test_every_panel_is_computed(gpt2: Path, capsys: Capture, show: str) -> None:
    """The statistics that it needs, without a word from the user."""
    model, tokenizer = minilens.load(gpt2)
    options: Any = dict(stats="all", track=[7, 50], top_k=1, tokenizer=tokenizer)
    table = minilens.logit_lens(model, torch.tensor([[5, 17, 3, 8]]), **options)
    track = ("--track", "#7", "--track", "#50") if "tracked" in show else ()
    assert lens(capsys, "--ids", "5 17 3 8", "--model", gpt2, "--show", show, *track) == view(table, [show])


def test_only_what_is_shown_is_computed(gpt2: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(*args: Any, stats: Any, **options: Any) -> minilens.LensTable:
        asked.append(set(stats))
        return minilens.logit_lens(*args, stats=stats, **options)

    monkeypatch.setattr("minilens.command.lens.logit_lens", spy)
    for show in ("prob", "kl,input_rank", "agrees"):
        lens(capsys, "--ids", "5 17", "--model", gpt2, "--show", show)
    assert asked == [{"top"}, {"top", "kl_final", "input"}, {"top", "final"}]


def test_tracked_tokens(gpt2: Path, capsys: Capture) -> None:
    model, tokenizer = minilens.load(gpt2)
    assert tokenizer is not None
    tokens = torch.tensor([[5, 17, 3]])
    table = minilens.logit_lens(model, tokens, track=[33, 7], top_k=1, tokenizer=tokenizer)
    args = ("--ids", "5 17 3", "--model", gpt2, "--track", "A", "--track", "#7")
    assert lens(capsys, *args) == view(table, ["prob", "token33_rank", "token7_rank"])
    assert lens(capsys, *args, "--show", "token7_prob") == view(table, ["token7_prob"])
    rows = minilens.logit_lens(model, tokens, track=[33, 7], top_k=1, sites=["resid_mid"], tokenizer=tokenizer)
    assert lens(capsys, *args, "--sites", "resid_mid") == view(rows, ["prob", "tracked_rank"])


@pytest.mark.parametrize("show", ["prob", "logit", "rank", "kl", "entropy"])
def test_every_show(gpt2: Path, capsys: Capture, show: str) -> None:
    model, _ = minilens.load(gpt2)
    table = minilens.logit_lens(model, torch.tensor([[5, 17, 3, 8]]))
    shown = rows(lens(capsys, "--ids", "5 17 3 8", "--model", gpt2, "--show", show))
    record = as_json(capsys, "--ids", "5 17 3 8", "--model", gpt2)
    for r, row in enumerate(record["rows"]):
        assert (
            shown[row["label"]]
            == {
                "prob": [best[0]["text"] for best in row["top"]],
                "logit": [f"{logit:.1f}" for logit in table.top.logit[r, :, 0].tolist()],
                "rank": [str(rank) for rank in table.final.rank[r].tolist()],
                "kl": [f"{kl:.2f}" for kl in table.kl_final[r].tolist()],
                "entropy": [f"{entropy:.2f}" for entropy in table.entropy[r].tolist()],
            }[show]
        )
    assert ("output" in shown) == (show != "prob")


def test_more_tokens_in_each_cell(gpt2: Path, capsys: Capture) -> None:
    record = as_json(capsys, "--ids", "5", "--model", gpt2)
    lines = lens(capsys, "--ids", "5", "--model", gpt2, "--top-k", "3").splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("embed"))
    assert [line.split()[-1] for line in lines[at : at + 3]] == [
        token["text"] for token in record["rows"][0]["top"][0][:3]
    ]


@pytest.mark.parametrize(
    ("form", "positions"),
    [("2", [2]), ("0,3,-1", [0, 3, 5]), ("1:3", [1, 2]), ("-2:", [4, 5]), ("::2", [0, 2, 4]), ("5,:2", [5, 0, 1])],
)
def test_positions(gpt2: Path, capsys: Capture, form: str, positions: list[int]) -> None:
    """Columns are chosen; what the model reads stays the same."""
    whole = as_json(capsys, "--ids", "5 17 3 8 99 1", "--model", gpt2)
    chosen = as_json(capsys, "--ids", "5 17 3 8 99 1", "--model", gpt2, f"--positions={form}")
    assert chosen["positions"] == positions
    assert chosen["tokens"] == [whole["tokens"][position] for position in positions]
    for few, many in zip(chosen["rows"], whole["rows"], strict=True):
        assert few["final_rank"] == [many["final_rank"][position] for position in positions]
        assert few["kl_final"] == pytest.approx([many["kl_final"][position] for position in positions], abs=1e-4)


def test_one_text_from_four_places(
    gpt2: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--model", gpt2)
    expected = lens(capsys, TEXT, *model)
    (tmp_path / "text").write_text(TEXT + "\n", encoding="utf-8")
    assert lens(capsys, "--file", tmp_path / "text", *model) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode() + b"\n")))
    assert lens(capsys, *model) == expected
    tokens = " ".join(str(token) for token in ids(as_json(capsys, TEXT, *model)["tokens"]))
    assert lens(capsys, "--ids", tokens, *model) == expected
    assert lens(capsys, "--ids", tokens.replace(" ", ","), *model) == expected


def test_only_one_newline_at_the_end_of_a_file_is_dropped(gpt2: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "text").write_bytes(b"once\n\n")
    record = as_json(capsys, "--file", tmp_path / "text", "--model", gpt2)
    assert "".join(token["text"] for token in record["tokens"]) == "once\n"


def test_the_opening_token_stands_before_every_text(capsys: Capture) -> None:
    """--bos is what typing the token is, in the text of --from too."""
    for command in ("lens", "walk"):
        typed = output(capsys, command, "<|endoftext|>Tom had a")
        assert output(capsys, command, "Tom had a", "--bos") == typed != output(capsys, command, "Tom had a")
    patched = ["lens", "--patch", "3.resid_post@1", "--from"]
    typed, opened = (["<|endoftext|>Sue", "<|endoftext|>Tom had a"], ["Sue", "Tom had a", "--bos"])
    typed, opened = (output(capsys, *patched, *words).split("edited:")[0] for words in (typed, opened))
    assert typed == opened
    pair = ["patching", "--right", " big"]
    typed = output(capsys, *pair, "<|endoftext|>Tom had a", "<|endoftext|>Sue had a")
    assert output(capsys, *pair, "Tom had a", "Sue had a", "--bos") == typed


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["a", "--model", "tales-ctrl"],
            "--bos: the tokenizer has no opening token; begin with a control code, such as",
        ),
        (["--ids", "1 2"], "--bos is for text: put the token's id before the others of --ids"),
    ],
)
def test_no_opening_token(capsys: Capture, options: list[str], message: str) -> None:
    assert main(["lens", *options, "--bos"]) == 2
    assert message in capsys.readouterr().err


def test_ids_where_there_is_no_tokenizer(tiny: Tiny, capsys: Capture) -> None:
    shown = rows(lens(capsys, "--ids", "5 17 3", "--model", tiny("gpt_neo")[1]))
    assert shown["input"] == ["#5", "#17", "#3"]
    assert shown["next"] == ["#17", "#3"]


def test_nothing_in_the_output_is_for_the_terminal_to_obey(gpt2: Path, capsys: Capture) -> None:
    """The escape character is in the text, and with 101 tokens in each cell it is in every one of them."""
    _, tokenizer = minilens.load(gpt2)
    assert tokenizer is not None
    assert any(b"\x1b" in tokenizer.piece(token) for token in range(101))
    for options in (["--top-k", "101"], ["--show", ",".join(NAMES), "--track", "#99"]):
        out = lens(capsys, "\x1b[31mred\n", "--model", gpt2, *options)
        assert "\\x1b" in out
        assert all(char.isprintable() or char == "\n" for char in out)


def test_long_texts_are_cut_into_panels_that_fit(gpt2: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = rows(lens(capsys, "A" * 30, "--model", gpt2))
    monkeypatch.setenv("COLUMNS", "60")
    out = lens(capsys, "A" * 30, "--model", gpt2)
    assert max(map(len, out.splitlines()[:-1])) <= 60
    panels = out.split("\n\n")[:-1]
    assert len(panels) > 1
    for label in ("embed", "2.resid_post", "input"):
        assert [cell for panel in panels for cell in rows(panel)[label]] == wide[label]


def test_a_hint_for_ctrl_without_a_control_code(tiny: Tiny, tmp_path: Path, capsys: Capture) -> None:
    entries = ["Links", "a", "<unk>", *(f"word{n}" for n in range(98))]
    files: dict[str, bytes | None] = {
        "vocab.json": json.dumps({entry: token for token, entry in enumerate(entries)}).encode(),
        "merges.txt": b"#version: 0.2\nL i\nLi n\nLin k\nLink s</w>\n",
    }
    folder = changed(tiny("ctrl")[1], tmp_path / "ctrl", files=files)
    assert rows(lens(capsys, "Links a", "--model", folder))["input"] == ["Links", "a"]
    assert main(["lens", "a Links", "--model", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert rows(out)["input"] == ["a", "Links"]
    assert err.startswith("minilens: note: CTRL was trained on texts that begin with a control code")
    assert err.count("\n") == 1


def test_a_note_about_a_pickle_file(tiny: Tiny, tmp_path: Path, capsys: Capture) -> None:
    _, original = tiny("gpt2")
    folder = changed(original, tmp_path / "bin", files={"model.safetensors": None})
    torch.save(load_file(original / "model.safetensors"), folder / "pytorch_model.bin")
    expected = lens(capsys, "--ids", "5 17", "--model", original)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.filters", [])  # as outside of pytest
        assert main(["lens", "--ids", "5 17", "--model", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert out == expected
    assert err == (
        f"minilens: note: {folder / 'pytorch_model.bin'} is a pickle file; "
        "reading it with torch's weights-only loader\n"
    )


def test_models(tiny: Tiny, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each; a name or a folder in the cache may hold anything."""
    hostile = "some/\x1b[31m\u202egpt2 \u732b"
    folder = tmp_path / "\x1b]0;title\x07"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    neo = tiny("gpt_neo")[1]
    monkeypatch.setattr("minilens.command.models.bundled", lambda: {"tales": neo})
    monkeypatch.setattr("minilens.command.models.cached", lambda: {hostile: folder})
    shown = output(capsys, "models")
    heads, first, second = shown.splitlines()
    assert heads.split() == "model family layers width context size where".split()
    size = sum(path.stat().st_size for path in neo.iterdir())
    assert first.split() == ["tales", "gpt_neo", "3", "30", "40", f"{size / 1e6:.1f}", "MB", str(neo)]
    assert second.startswith("some/\\x1b[31m\\u202egpt2 \u732b  -        -")  # its sizes cannot be read
    assert second.endswith("\\x1b]0;title\\x07")
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert cell_len(first[: first.index("gpt_neo")]) == cell_len(second[: second.index(" - ")]) + 1
    monkeypatch.setattr("minilens.command.models.bundled", dict)
    monkeypatch.setattr("minilens.command.models.cached", dict)
    assert output(capsys, "models") == ""


def test_the_bundled_models_are_described(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minilens.command.models.cached", dict)
    lines = [line.split() for line in output(capsys, "models").splitlines()[1:]]
    assert [line[0] for line in lines] == ["tales-ctrl", "tales-gpt-neo", "tales-gpt2"]
    for name, family, layers, width, context, *_ in lines:
        model, _ = minilens.load(name)
        assert (family, int(layers), int(width)) == (model.family, model.n_layers, model.W_U.shape[0])
        assert int(context) == model.config.n_ctx


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--help"], ["lens", "models"]),
        (
            ["lens", "--help"],
            "--file --ids --model --revision --decoder --positions --top-k --show --json prob kl next_rank".split(),
        ),
        (["models", "--help"], ["usage: minilens models"]),
    ],
    ids=" ".join,
)
def test_help(capsys: Capture, args: list[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(args)
    assert exit_status.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(word in out for word in words)


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "minilens", *map(str, args)]


def test_python_m_minilens(gpt2: Path, capsys: Capture) -> None:
    args = ("lens", TEXT, "--model", gpt2)
    ran = subprocess.run(command(*args), capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1"})
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == output(capsys, *args)


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_a_reader_who_has_seen_enough(gpt2: Path, options: list[str]) -> None:
    """As in `minilens lens ... | head -1`, but always before the first line is written."""
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(command("lens", "--ids", "5 17", "--model", gpt2, *options), stdout=writer, stderr=-1)
    os.close(writer)
    assert ran.stderr == b""


def test_nothing_is_imported_before_it_is_needed() -> None:
    """Neither by the library nor by the command's help."""
    script = """
import sys
import minilens
heavy = {"transformers", "tokenizers", "rich", "matplotlib", "huggingface_hub"}
print(*sorted(heavy & sys.modules.keys()))
from minilens.command.main import main
from minilens.command.outputs import FIGURES
try:
    main(["--help"])
finally:
    print(*sorted(heavy & sys.modules.keys()))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    first, *usage, last = ran.stdout.split("\n")[:-1]
    assert (first, last) == ("", "")
    assert usage[0].startswith("usage: minilens")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this system")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=str)
def test_a_disk_that_is_full(gpt2: Path, options: list[str]) -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "minilens", "lens", TEXT, "--model", str(gpt2), *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ran.returncode == 2
    assert ran.stderr == "minilens: error: the output cannot be written: No space left on device\n"


def test_an_output_that_cannot_hold_the_marks(gpt2: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "minilens", "lens", TEXT, "--model", str(gpt2)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert ran.stderr == "minilens: error: the output cannot be written as ascii: set PYTHONIOENCODING=utf-8\n"


def test_a_newline_on_an_output_of_windows(gpt2: Path) -> None:
    """cp1252 has the dot of a space and no arrow for a newline: that is shown as the escape of its byte."""
    options = ["--model", str(gpt2), "--track", "B", "--show", "tracked_rank,kl"]
    command = [sys.executable, "-m", "minilens", "lens", "once\nupon", *options]
    shown = [
        subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True)
        for encoding in ("utf-8", "cp1252")
    ]
    assert [(ran.returncode, ran.stderr) for ran in shown] == [(0, b"")] * 2
    assert "↵" in shown[0].stdout.decode() and "\\x0a" in shown[1].stdout.decode("cp1252")
    assert "KL(output ‖ row)" in shown[0].stdout.decode() and b"KL(output || row)" in shown[1].stdout


# ---- Edits


def test_edits_are_those_of_the_library(gpt2: Path, capsys: Capture, tmp_path: Path) -> None:
    model, tokenizer = minilens.load(gpt2)
    assert tokenizer is not None
    tokens, source = tokenizer.encode(TEXT), tokenizer.encode("a time there was")
    blocks = minilens.trace(model, source).blocks
    edit = minilens.then(
        minilens.zero(0, "z", heads=[0, 3], positions=[-1]),
        minilens.zero(2, "mlp_out"),
        minilens.mean(blocks[1], "attn_out", positions=[2, 3]),
        minilens.patch(blocks[0], "resid_post", positions=[-1]),
    )
    edits = ["zero 0.z:0,3@-1", "zero 2.mlp_out", "mean 1.attn_out@2,3", "patch 0.resid_post@-1"]
    options = [word for named in edits for word in ("--" + named).split()]
    edits = [named if named.startswith("zero") else f"{named} from 'a time there was'" for named in edits]
    record = as_json(capsys, TEXT, "--model", gpt2, *options, "--from", "a time there was")
    table = minilens.logit_lens(model, tokens, edit=edit)
    assert record["edits"] == edits
    assert [row["kl_final"] for row in record["rows"]] == table.kl_final.tolist()
    assert ids(record["final_tokens"]) == table.final_tokens.tolist()
    assert as_json(capsys, TEXT, "--model", gpt2)["edits"] == []

    path = tmp_path / "edited.safetensors"
    output(capsys, "trace", TEXT, "--model", gpt2, *options, "--from", "a time there was", "--out", path)
    assert torch.equal(load_file(path)["logits"], minilens.trace(model, tokens, edit=edit).logits)
    with safe_open(path, "pt") as file:
        assert file.metadata()["edits"] == ", ".join(edits)

    page = tmp_path / "edited.html"
    output(capsys, "lens", TEXT, "--model", gpt2, "--zero", "1.attn_out", "--html", page)
    assert ", zero 1.attn_out" in page.read_text(encoding="utf-8")
    assert lens(capsys, TEXT, "--model", gpt2, "--zero", "1.z@0").splitlines()[-1].strip() == "edited: zero 1.z@0"
    assert main(["lens", TEXT, "--model", str(gpt2), "--zero", "1.z@0", "--csv"]) == 0
    assert "edited model: zero 1.z@0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--zero", "3.z"], "the edit at 3.z matches nothing: the blocks run are 0 to 2"),
        (["--zero", "1.scores"], '"scores" is not a site that can be edited'),
        (["--zero", "1.q:5"], "the edit at 1.q has no head 5: there are 5"),
        (["--zero", "1.mlp_out@99"], "the edit at 1.mlp_out has no position 99: there are"),
        (["--zero", "mlp_out"], "an edit is named like 5.attn_out, 5.z:0,3 (heads) or 3.resid_post@-1 (positions)"),
        (["--zero", "1.z:,"], "an edit is named like 5.attn_out"),
        (["--zero", "1.mlp_out:0"], '"mlp_out" is not split into heads'),
        (["--patch", "1.z"], "--patch needs --from, the text that its values come from"),
        (["--mean", "1.z"], "--mean needs --from, the text that its values come from"),
        (["--patch", "1.z", "--from", ""], "the text of --from cannot be read: the prompt is empty"),
        (["--from", "a"], "--from is the text of --patch and --mean, and there is none of them"),
        (["--patch", "3.z", "--from", "a"], "layer 3 does not exist: the model's layers are 0 to 2"),
        (["--patch", "1.z@7", "--from", "a"], "the edit at 1.z has no position 7: there are 1"),
        (["--patch", "1.z", "--from", "a"], "the patch at 1.z is of 1 positions, and goes into"),
        (["--mean", "1.pattern", "--from", "a"], '"pattern" has no mean over the positions'),
    ],
)
def test_edits_that_do_not_fit(gpt2: Path, capsys: Capture, options: list[str], message: str) -> None:
    assert main(["lens", TEXT, "--model", str(gpt2), *options]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


def test_a_model_without_a_tokenizer_has_no_other_text(tiny: Tiny, capsys: Capture) -> None:
    arguments = ["lens", "--ids", "1 2 3", "--model", str(tiny("ctrl")[1]), "--patch", "1.z", "--from", "a"]
    assert main(arguments) == 2
    assert "no tokenizer that minilens reads, so it cannot read the text of --from" in capsys.readouterr().err
