"""scripts/parity.py: what is right is OK, what it calls equal is equal, and what is planted is found."""

import copy
import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Tensors, changed, tokenizer_json
from conftest import FAMILIES, Tiny

import minilens
from minilens.checkpoint.tokenizer import Tokenizer
from minilens.checkpoint.tokenizer_files import load_tokenizer
from minilens.checks.published import PUBLISHED, Published, greedy, shape, window
from minilens.checks.published import loss as loss_of

SCRIPT: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "parity.py"))
GLOBALS = SCRIPT["main"].__globals__  # those that its functions see; SCRIPT is a copy
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
LOAD = minilens.load


def run(capsys: Capture, *args: object) -> tuple[int, Any]:
    """The exit status, and what was printed as JSON."""
    status = SCRIPT["main"]([*map(str, args), "--json"])
    out, err = capsys.readouterr()
    assert err == ""
    return status, json.loads(out)


def by_status(report: dict[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in report["rows"]:
        found.setdefault(row["status"], []).append(
            row["name"] if row["layer"] is None else f"{row['layer']}.{row['name']}"
        )
    return found


def altered(model: Any, edit: minilens.Edit = minilens.untouched, drop: int = 0) -> Any:
    """A copy of the model whose blocks or unembedding give something else."""
    copied = copy.copy(model)
    vars(copied)["block"] = lambda layer, resid, _: model.block(layer, resid, edit)
    vars(copied)["unembed"] = lambda resid: model.unembed(resid)[..., : -drop or None]
    return copied


def plant(monkeypatch: Patch, **change: Any) -> None:
    """Have minilens give something else; transformers is left alone."""

    def load(*args: Any, **options: Any) -> tuple[Any, Any]:
        model, tokenizer = LOAD(*args, **options)
        return altered(model, **change), tokenizer

    monkeypatch.setattr(minilens, "load", load)


def test_each_family_is_ok_in_both_dtypes(tiny: Tiny, capsys: Capture) -> None:
    status, reports = run(capsys, *(tiny(family)[1] for family in FAMILIES))
    assert status == 0
    assert [report["dtype"] for report in reports] == ["float32", "float64"] * 3
    for report in reports:
        found = by_status(report)
        assert found.keys() == {"OK", "MISSING"}
        assert found["MISSING"] == ["0.scores", "1.scores", "2.scores"]
        assert len(report["rows"]) == 3 * (len(minilens.BlockTrace.__slots__) - 1) + 3
        for row in report["rows"]:
            assert row["equal"] == (row["largest"] == 0)
            assert row["equal"] or (row["name"], row["layer"]) not in [
                ("embed", None),
                ("resid_pre", 0),
                ("ln1_out", 0),
            ]
        assert report["tokens"] == [2, 40]  # longer than GPT-Neo's window of 7


def test_a_flag_with_which_transformers_refuses_float64(tiny: Tiny, capsys: Capture) -> None:
    status, reports = run(capsys, tiny("gpt2", reorder_and_upcast_attn=True)[1])
    assert status == 0
    assert [by_status(report).keys() for report in reports] == [{"OK", "MISSING"}] * 2


def test_a_changed_weight_is_found_where_it_first_matters(
    tiny: Tiny, tmp_path: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    def change(tensors: Tensors) -> Tensors:
        tensors["transformer.h.1.mlp.c_proj.weight"][3, 4] += 0.1
        return tensors

    folder = tiny("gpt_neo")[1]
    other = changed(folder, tmp_path / "other", tensors=change)
    monkeypatch.setattr(minilens, "load", lambda name, **options: LOAD(other, **options))
    status, reports = run(capsys, folder)
    assert status == 1
    for report in reports:
        found = by_status(report)
        assert found["DIFF"][0] == "1.mlp_out"
        assert found["OK"][-1] == "1.mlp_post"
        assert {"2.pattern", "final_norm", "logits"} <= set(found["DIFF"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), SCRIPT["TOLERANCES"].items())
def test_an_edited_value_counts_from_the_tolerance_on(
    tiny: Tiny, capsys: Capture, monkeypatch: Patch, family: str, dtype: str, tolerance: float
) -> None:
    for factor, expected in ((10, "DIFF"), (0.1, "OK")):

        def nudge(z: torch.Tensor, factor: float = factor) -> torch.Tensor:
            return z + factor * tolerance * max(1, z.abs().max())

        plant(monkeypatch, edit=minilens.at(2, "z", nudge))
        status, (report,) = run(capsys, tiny(family)[1], "--dtype", dtype)
        (row,) = (row for row in report["rows"] if (row["name"], row["layer"]) == ("z", 2))
        assert (row["status"], row["equal"]) == (expected, False)
        assert 0 < row["mean"] <= row["largest"]
        assert "2.v" in by_status(report)["OK"]
    assert status == 0  # the last nudge moves nothing else beyond its tolerance


def test_a_pattern_counts_by_its_largest_score(tiny: Tiny, tmp_path: Path, capsys: Capture, monkeypatch: Patch) -> None:
    def sharpened(tensors: Tensors) -> Tensors:
        return {name: each * 1000 if name.endswith("q_proj.weight") else each for name, each in tensors.items()}

    folder = changed(tiny("gpt_neo")[1], tmp_path / "sharp", tensors=sharpened)
    model, _ = LOAD(folder)
    tokens = torch.randint(model.W_U.shape[1], (2, 40), generator=torch.Generator().manual_seed(SCRIPT["SEED"]))
    scores = model.block(0, model.embed(tokens)).scores
    room = 1e-5 * scores[scores.isfinite()].abs().max() / 2
    assert room > 1e-3
    for factor, expected in ((2, "DIFF"), (0.5, "OK")):
        plant(monkeypatch, edit=minilens.at(0, "pattern", lambda pattern, by=factor * room: pattern + by))
        _, (report,) = run(capsys, folder, "--dtype", "float32")
        assert "0.pattern" in by_status(report)[expected]


def test_a_wrong_shape_is_said_as_such(tiny: Tiny, capsys: Capture, monkeypatch: Patch) -> None:
    plant(monkeypatch, drop=1)
    status, reports = run(capsys, tiny("ctrl")[1])
    assert status == 1
    assert [by_status(report)["SHAPE"] for report in reports] == [["logits"]] * 2
    assert reports[0]["rows"][-1]["note"] == "[2, 40, 100] here, [2, 40, 101] in transformers"


def test_a_value_that_is_not_finite_is_different() -> None:
    one = torch.ones(2, 3)
    for number in (math.nan, math.inf):
        for ours, theirs in ((one * number, one), (one, one * number), (one * number, one * number)):
            row = SCRIPT["compare"](("z", 0), ours, theirs, 1e-5)
            assert row.status == "DIFF"
            assert SCRIPT["as_record"](SCRIPT["Report"]("m", "float32", (1, 2), [row]))["rows"][0]["largest"] is None


def test_what_transformers_does_not_give_is_missing(tiny: Tiny, capsys: Capture, monkeypatch: Patch) -> None:
    """As with a version that has given a module another name."""
    monkeypatch.setitem(SCRIPT["IN_BLOCKS"]["gpt2"], "ln2_out", ("ln_two", SCRIPT["given"]))
    status, (report,) = run(capsys, tiny("gpt2")[1], "--dtype", "float32")
    assert status == 0
    assert by_status(report)["MISSING"] == [f"{layer}.{name}" for layer in range(3) for name in ("scores", "ln2_out")]


def test_the_tables(tiny: Tiny, capsys: Capture, monkeypatch: Patch) -> None:
    """One model: a line for each kind. --all: for each value. Several: only what differs. Always a summary."""
    folder = str(tiny("gpt2")[1])
    plant(monkeypatch, edit=minilens.at(1, "mlp_out", lambda value: value + 1e-2), drop=1)

    def lines(*args: str) -> list[list[str]]:
        assert SCRIPT["main"]([*args, "--dtype", "float64"]) == 1
        return [line.split() for line in capsys.readouterr().out.replace(" of ", "/").splitlines() if line]

    kinds = lines(folder)
    assert kinds[0] == [f"{folder},", "float64,", "2", "x", "40", "tokens"]
    names = [line[0] for line in kinds[2:20]]
    assert names == ["embed", *minilens.BlockTrace.__slots__[1:], "final_norm", "logits"]
    assert ["scores", "MISSING", "0/3"] in kinds
    assert ["embed", "OK", "1/1", "0", "0"] in kinds
    # The norm of the next block takes the shift out again, and leaves rounding.
    (line,) = (line for line in kinds if line[0] == "mlp_out")
    assert [line[1], *line[3:]] == ["DIFF", "1.0e-02", "1.0e-02", "layer", "1"]
    assert next(line for line in kinds if line[0] == "logits")[1] == "SHAPE"
    summary, seen, _, largest = kinds[-4:]
    assert summary[:3] == [folder, "float64", "48"]
    assert summary[5:] == ["1", "1e-10", "3", "scores"]
    assert seen[:2] == ["seen", "on"] and f"{torch.__version__}," in seen
    assert (largest[:2], largest[3]) == ([folder, "float64"], "1.0e-02")
    assert ["1.mlp_out", "DIFF", "0/1", "1.0e-02", "1.0e-02", "layer", "1"] in lines(folder, "--all")
    several = lines(folder, folder)
    assert {line[1] for line in several if line[:1] in ([name] for name in names)} == {"DIFF", "SHAPE"}
    assert [line[0] for line in several[-2:]] == [folder, folder]


def test_what_a_machine_may_change_is_said_of_that_machine(capsys: Capture, monkeypatch: Patch) -> None:
    """The first table is the same wherever all is OK; the second counts what was seen, and names the machine."""
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    tables = []
    for largest, shown in ((0.0, ["1", "0"]), (3e-7, ["0", "3.0e-07"])):
        SCRIPT["summary_table"]([SCRIPT["Report"]("m", "float32", (2, 9), [SCRIPT["Row"]("z", 0, "OK", largest, 0.0)])])
        holds, _, seen = capsys.readouterr().out.partition("\n\n")
        tables.append(holds)
        named, _, line = seen.splitlines()
        assert named.startswith("seen on ") and "; MKL_CBWR=COMPATIBLE; " in named
        assert line.split() == ["m", "float32", *shown]
    assert tables[0] == tables[1]


def test_a_text_instead_of_random_tokens(tiny: Tiny, tmp_path: Path, capsys: Capture) -> None:
    folder = changed(tiny("gpt2")[1], tmp_path / "read", files={"tokenizer.json": tokenizer_json()})
    status, reports = run(capsys, folder, "--prompt", "once upon")
    tokens = minilens.load(folder)[1].encode("once upon")  # type: ignore[union-attr]
    assert status == 0
    assert [report["tokens"] for report in reports] == [list(tokens.shape)] * 2
    assert run(capsys, folder, "--tokens", 9)[1][0]["tokens"] == [2, 9]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "name a MODEL"),
        (("no/such",), "there is no folder 'no/such'"),
        (("tales-gpt2", "--tokens", "257"), "the model's context holds 256"),
        (("tales-gpt2", "--tokens", "0"), "--tokens must be at least 1"),
        (("tales-gpt2", "--tokens", "3", "--prompt", "a"), "choose one"),
        (("tales-gpt2", "--prompt", ""), "the prompt is empty"),
        (("tales-gpt2", "--all", "--json"), "leave out --all"),
        (("tales-gpt2", "--dtype", "float16"), "invalid choice"),
        (("tales-gpt2", "--revision", "main"), "only a repository on the Hub has a revision"),
        (("--nonsense",), "unrecognized arguments"),
        (("--published",), "the Hub cannot be reached"),
        (("--published", "tales-gpt2"), "nothing is listed here as published about 'tales-gpt2'"),
        (("--published", "--tokens", "3"), "leave out --tokens"),
        (("--published", "--all"), "leave out --all"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(capsys: Capture, args: tuple[str, ...], words: str) -> None:
    assert SCRIPT["main"](args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("parity: error: ")
    assert words in line


def test_a_model_that_only_transformers_refuses(
    tiny: Tiny, capsys: Capture, monkeypatch: Patch, tmp_path: Path
) -> None:
    folder = tiny("gpt2")[1]
    monkeypatch.setattr(minilens, "load", lambda name, **options: LOAD(folder, **options))
    (tmp_path / "config.json").write_text("{}")
    assert SCRIPT["main"]([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"parity: error: transformers cannot load {tmp_path}: ")


# What others have published, on checkpoints that stand in for theirs.


def test_published_outputs_are_measured_as_transformers_measures_them(
    tiny: Tiny, tmp_path: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    file = {"tokenizer.json": tokenizer_json()}
    reference, gpt2 = tiny("gpt2")
    neo = tiny("gpt_neo", window_size=4, attention_types=[[["global", "local", "local"], 1]])[1]
    folders = {"a/gpt2": changed(gpt2, tmp_path / "gpt2", files=file), "a/neo": neo}
    monkeypatch.setattr(minilens, "load", lambda name: LOAD(folders[name]))
    ids, text = [5, 17, 3], "once upon"
    _, tokenizer = LOAD(folders["a/gpt2"])
    assert tokenizer is not None
    tokens = tokenizer.encode(text)
    with torch.no_grad():
        continued = reference.generate(torch.tensor([ids]), max_length=20, do_sample=False, pad_token_id=0)[0]
        longer = reference.generate(tokens, max_length=23, do_sample=False, pad_token_id=0)[0]
        loss = reference(tokens, labels=tokens).loss.item()
    entries = [
        Published("a/gpt2", greedy, ids, continued.tolist()),
        Published("a/gpt2", greedy, text, tokenizer.decode(longer), length=23),
        Published("a/gpt2", loss_of, text, loss, tolerance=4e-5),
        Published("a/gpt2", shape, text, [1, tokens.shape[1], 101]),
        Published("a/neo", window, list(range(8)), [2, 3, 4, 5]),
    ]
    monkeypatch.setitem(GLOBALS, "PUBLISHED", entries)
    status, records = run(capsys, "--published")
    assert (status, [record["status"] for record in records]) == (0, ["OK"] * 5)

    wrong: tuple[Any, ...] = ([*continued.tolist()[:-1], 100], "once", loss + 1e-4, [1, 2, 3], [1, 2, 3, 4, 5])
    for n, other in enumerate(wrong):
        monkeypatch.setitem(
            GLOBALS, "PUBLISHED", [*entries[:n], entries[n]._replace(expected=other), *entries[n + 1 :]]
        )
        assert SCRIPT["main"](["--published"]) == 1
        out = capsys.readouterr().out
        assert out.count("OK") == 4
        assert f"published {other!r}\n      found     " in out.partition("DIFF")[2]
    assert run(capsys, "--published", "a/gpt2")[0] == 0  # the last one is of the other model


def test_published_texts_are_as_long_as_they_are_said_to_be(shared: Path) -> None:
    """With the real vocabularies: else no model could give them."""

    def real(family: str) -> Tokenizer:
        folder = shared / "tokenizers" / family
        found = load_tokenizer(lambda file: folder / file if (folder / file).is_file() else None, family)
        assert found is not None
        return found

    tokenizers = {family: real(family) for family in ("gpt2", "ctrl")}
    published = PUBLISHED
    for repo, measure, prompt, expected, length, _ in published:
        tokenizer = tokenizers["ctrl" if "ctrl" in repo else "gpt2"]
        tokens = torch.tensor([prompt]) if isinstance(prompt, list) else tokenizer.encode(prompt)
        if measure is shape:
            assert expected == [*tokens.shape, tokenizer.size]
        elif measure is loss_of:
            assert tokenizer is tokenizers["ctrl"] or tokens.tolist() == [[50256, 15496, 995, 0]]
        elif measure is greedy:
            assert expected[: len(prompt)] == prompt
            if expected != published[1].expected:  # which ends within a word
                assert length == (tokenizer.encode(expected).shape[1] if isinstance(expected, str) else len(expected))
    assert tokenizers["ctrl"].decode(published[0].expected) == published[1].expected
