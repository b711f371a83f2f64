"""The study: its numbers are the lens', its verdicts follow from them, and its report says no more than they do."""

import csv
import html
import importlib
import io
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import Tensors, changed
from conftest import Tiny
from rich.console import Console

import minilens
from minilens.checkpoint.tokenizer_files import load_tokenizer
from minilens.command.main import main
from minilens.study.claims import Check, claims
from minilens.study.experiments import (
    PASSAGE,
    PLASMA_WORDINGS,
    PROMPTS,
    READINGS,
    SHARES,
    STATISTICS,
    STORY,
    WORDS,
    Reading,
    Study,
    _words,
    study,
)
from minilens.views.study_curves import study_figure
from minilens.views.study_report import WORDS as WORDS_WIDE
from minilens.views.study_report import study_lines, study_report, verdict_tables
from minilens.views.tokens import token_label
from minilens.vocab import TokenStats, Top

SHORT = "Once upon a time there was a girl who had a cat."
HOSTILE = "</style><img src=x onerror=alert(1)>$title \x1b[31m"


@pytest.fixture(scope="module")
def studied() -> Study:
    model, tokenizer = minilens.load("tales-ctrl")
    assert tokenizer is not None
    learned = Reading("affine", minilens.load_lens("tales-ctrl/affine").options)
    return study("tales-ctrl", model, tokenizer, passage=SHORT, others=[learned])


# ---- What is computed


def test_every_reading_is_the_lens_with_those_options(studied: Study) -> None:
    """By lens_rows, a row of logits at a time."""
    model, tokenizer = minilens.load("tales-ctrl")
    assert tokenizer is not None
    assert list(studied.tables) == [(prompt, reading.name) for prompt in PROMPTS for reading in studied.readings]
    assert studied.readings[:-1] == READINGS
    for prompt, text in zip(PROMPTS, (SHORT, *(form.replace("{}", "diamond") for form in STORY)), strict=True):
        assert studied.texts[prompt] == f"Stories {text}"
        tokens = tokenizer.encode(studied.texts[prompt])
        for name, options in (
            ("final", {}),
            ("plain norm", {"norm": "plain"}),
            ("centred", {"centre": True}),
            ("mlp", {"decoder": "mlp"}),
            ("block:1", {"decoder": "block:1"}),
            ("affine", {"transport": minilens.load_lens("tales-ctrl/affine"), "sites": ("resid_post",)}),
        ):
            rows = list(minilens.lens_rows(model, tokens, **{"sites": ("resid_mid", "resid_post"), **options}))
            logp = torch.stack([row.logits[0].double().log_softmax(-1) for row in rows])
            kl = (logp[-1].exp() * (logp[-1] - logp)).sum(-1)
            rank = 1 + (logp > logp[..., studied.word, None]).sum(-1)
            assert studied.tables[prompt, name].labels == tuple(row.label for row in rows)
            found = studied.quartiles(prompt, name, "kl_final")
            wanted = np.quantile(kl.numpy(), [0.25, 0.5, 0.75], axis=1)
            assert np.allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)
            first = (logp.argmax(-1) == tokens[0]).double().mean(1)
            assert torch.equal(studied.share(prompt, name, "input_first"), first)
            places = [at for at, token in enumerate(tokens[0].tolist()) if token == studied.word]
            assert torch.equal(studied.word_as_input(prompt, name), rank[:, places])
            assert torch.equal(studied.word_ranks(prompt, name), rank[:, [at - 1 for at in places]])
            assert len(places) == {"passage": 0, "repetition": 3, "extreme": 4}[prompt]


def test_settled_is_the_share_from_here_on(studied: Study) -> None:
    table = studied.tables["passage", "final"]
    agrees = table.agrees.numpy()
    wanted = [agrees[r:].all(0).mean() for r in range(len(agrees))]
    assert studied.share("passage", "final", "settled").tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(("name", "wording"), [("gpt2", 0), ("ctrl", 1)])
def test_real_vocabularies_follow_plasma(shared: Path, name: str, wording: int) -> None:
    """In the post's own words where they suit; CTRL has no token for "plasma,"."""
    folder = shared / "tokenizers" / name
    tokenizer = load_tokenizer(lambda file: folder / file if (folder / file).exists() else None, name)
    assert tokenizer is not None
    first, *others = _words(tokenizer, None)
    assert first[1:] == tuple(form.replace("{}", "plasma") for form in PLASMA_WORDINGS[wording])
    assert tokenizer.decode([first.token]).strip() == "plasma"
    assert [tokenizer.decode([each.token]).strip() for each in others] == list(WORDS)


@pytest.mark.parametrize("name", ["tales-gpt2", "tales-gpt-neo", "tales-ctrl"])
def test_the_bundled_vocabularies_have_all_words_but_plasma(name: str) -> None:
    _, tokenizer = minilens.load(name)
    assert tokenizer is not None
    assert [tokenizer.decode([each.token]).strip() for each in _words(tokenizer, None)] == list(WORDS)


def test_a_word_of_ones_own() -> None:
    _, tokenizer = minilens.load("tales-gpt2")
    assert tokenizer is not None
    (own,) = _words(tokenizer, "balloon")
    assert (tokenizer.decode([own.token]), own.extreme.count("balloon")) == (" balloon", 4)
    for word in ("xylophone", "two words", "", " ", "her", "my", "a"):  # the last three are in the text already
        with pytest.raises(ValueError, match=f'must be one token of this model, and none .* "{word}" is not'):
            _words(tokenizer, word)


def test_other_words_are_read_as_the_first_is(studied: Study) -> None:
    model, tokenizer = minilens.load("tales-ctrl")
    assert tokenizer is not None
    alone = study("x", model, tokenizer, passage=SHORT, word="dragon")
    assert alone.others == {} and len(studied.others) == len(WORDS) - 1
    for prompt in ("repetition", "extreme"):
        assert torch.equal(studied.other_ranks(prompt)[alone.word], alone.word_ranks(prompt))
    assert repr(studied) == "Study of 'tales-ctrl': passage, repetition, extreme; 10 rare words"


def test_texts_that_do_not_fit(tiny: Tiny) -> None:
    model, tokenizer = minilens.load("tales-ctrl")
    assert tokenizer is not None
    for passage, n in (("", 0), ("cat", 1)):
        with pytest.raises(ValueError, match=rf"the passage has {n} tokens?: a study needs at least two"):
            study("x", model, tokenizer, passage=passage)
    with pytest.raises(ValueError, match=r"the passage cannot be read: .* tokens"):
        study("x", model, tokenizer, passage="cat " * 1000)
    assert study("x", model, tokenizer, passage="Books " + SHORT).texts["passage"] == "Books " + SHORT


def test_a_vocabulary_without_any_of_the_words(tiny: Tiny) -> None:
    model, _ = minilens.load(tiny("gpt2")[1])

    class Bytes:
        size, codes, bos, special = 101, (), None, MappingProxyType({})

        def encode(self, text: str) -> torch.Tensor:
            return torch.tensor([[byte % 101 for byte in text.encode()]])

        def decode(self, tokens: list[int]) -> str:
            return "".join(map(chr, tokens))

        def id(self, text: str) -> int:
            return int(self.encode(text)[0, 0])

        def tokens(self, text: str) -> list[str]:
            return list(text)

        def piece(self, token: int) -> bytes:
            return bytes([token])

        def state(self) -> str:
            return "words"

        def hint(self, text: str) -> None:
            return None

    with pytest.raises(ValueError, match=r"none of the words plasma, diamond, .* is one token of this model"):
        study("tiny", model, Bytes(), passage="xy")
    small, _ = minilens.load(tiny("gpt2", n_layer=2)[1])
    with pytest.raises(ValueError, match="needs three, not 2"):
        study("tiny", small, Bytes(), passage="xy")


# ---- What follows


LOW, HALF = [0, 0, 0.2, 0.2, 1], [0, 0.2, 0.4, 0.8, 1]


def made_up(
    *,
    kl_final: list[float] = [20, 1, 1, 1, 0],  # noqa: B006
    kl_input: list[float] = [0, 10, 10, 10, 10],  # noqa: B006
    input_first: list[float] = [1, 0, 0, 0, 0],  # noqa: B006
    agrees: list[float] = [0, 0.2, 0.4, 0.8, 1],  # noqa: B006
    extended: list[float] = [0, 0.3, 0.5, 1],  # noqa: B006
    with_mlp: list[float] = [0, 0.3, 0.4, 0.8, 1],  # noqa: B006
    others: list[list[int]] = [],  # noqa: B006
    repeated: list[int] = [900, 900, 900, 5, 1],  # noqa: B006
    extreme: tuple[list[int], list[int]] = ([900] * 5, [900, 900, 900, 50, 5]),
) -> Study:
    """A study of a model of four blocks, with ten positions and these numbers after them; rows between are nonsense."""
    n, positions = 4, 10
    labels = ["embed"]
    for layer in range(n):
        labels += [f"{layer}.resid_mid", f"{layer}.resid_post"]

    def rows(values: list[float]) -> torch.Tensor:
        return torch.tensor([v for value in values for v in (value, 77.0)][:-1])[:, None].expand(-1, positions)

    def share(values: list[float]) -> torch.Tensor:
        ranks = [[1] * round(value * positions) + [9] * (positions - round(value * positions)) for value in values]
        return torch.tensor([each for rank in ranks for each in (rank, [5] * positions)][:-1])

    def standing(rank: torch.Tensor) -> TokenStats:
        return TokenStats(torch.zeros(rank.shape), torch.zeros(rank.shape), rank)

    def table(tracked: list[list[int]], agree: list[float], token: int = 42) -> minilens.LensTable:
        ranks = torch.full((2 * len(agree) - 1, positions, 1), 777)
        for place, column in enumerate(tracked):
            ranks[::2, place, 0] = torch.tensor(column)[: len(agree)]
        next_tokens = torch.zeros(positions, dtype=torch.long)
        next_tokens[: len(tracked)] = token
        size = len(agree)
        return minilens.LensTable(
            labels=tuple(labels[: 2 * size - 1]),
            layers=tuple(int(label.split(".")[0]) if "." in label else -1 for label in labels[: 2 * size - 1]),
            decoder="final",
            norm="final",
            centre=False,
            positions=torch.arange(positions),
            tokens=torch.roll(next_tokens, 1),
            final_tokens=torch.zeros(positions, dtype=torch.long),
            next_tokens=next_tokens,
            track=(token,),
            stats={
                "top": Top(*(torch.zeros(2 * size - 1, positions, 1) for _ in range(3))),
                "final": standing(share(agree)),
                "next": standing(share(agree)),
                "input": standing(share(input_first[:size])),
                "tracked": standing(ranks),
                "entropy": rows(kl_final[:size]),
                "kl_final": rows(kl_final[:size]),
                "kl_input": rows(kl_input[:size]),
            },
        )

    tables = {(prompt, reading.name): table([], agrees) for prompt in PROMPTS for reading in READINGS}
    tables["passage", "block:1"] = table([], extended)
    tables["passage", "mlp"] = table([], with_mlp)
    tables["repetition", "final"] = table([[900] * 5, repeated], agrees)
    tables["extreme", "final"] = table(list(extreme), agrees)
    more = {
        token: {
            "repetition": table([[900] * 5, ranks], agrees, token),
            "extreme": table([[900] * 5, ranks], agrees, token),
        }
        for token, ranks in enumerate(others, 50)
    }
    return Study("made up", "gpt2", n, dict.fromkeys(PROMPTS, "text"), 42, tables, more)


def verdicts(study: Study) -> list[str]:
    return [claim.verdict for claim in claims(study)]


@pytest.mark.parametrize(
    ("numbers", "number", "verdict"),
    [
        ({}, 0, "shown"),
        ({"kl_final": [20, 11, 5, 1, 0]}, 0, "not shown"),  # nearer the input
        ({"kl_final": [20, 10, 5, 1, 0]}, 0, "shown"),  # at most 1
        ({"input_first": [1, 0.2, 0, 0, 0]}, 0, "not shown"),
        ({"input_first": [0.5, 0.1, 0, 0, 0]}, 0, "shown"),
        ({"input_first": [0.4, 0.1, 0, 0, 0]}, 0, "not measurable"),  # the input row does not say the input
        ({}, 1, "not shown"),
        ({"agrees": LOW, "with_mlp": HALF, "extended": [0, 0.5, 0.8, 1]}, 1, "shown"),
        (
            {"agrees": [0, 0, 0.2, 0.3, 1], "with_mlp": [0, 0.2, 0.5, 0.8, 1], "extended": [0, 0.5, 0.8, 1]},
            1,
            "not shown",
        ),
        (
            {"agrees": [0, 0, 0.2, 0.2, 1], "with_mlp": [0, 0.2, 0.2, 0.8, 1], "extended": [0, 0.5, 0.4, 1]},
            1,
            "not shown",
        ),
        (
            {"agrees": [0, 0, 0.2, 0.2, 1], "with_mlp": [0, 0.2, 0.6, 0.8, 1], "extended": [0, 0.5, 0.8, 1]},
            1,
            "not shown",
        ),
        ({"agrees": [0, 0, 0, 0, 1], "with_mlp": [0, 0, 0, 0, 1], "extended": [0, 0, 0, 1]}, 1, "not shown"),
        ({}, 2, "not shown"),
        ({"kl_input": [0, 6, 7, 8, 8], "input_first": [1, 0.5, 0, 0, 0]}, 2, "shown"),
        ({"kl_input": [0, 6.1, 7, 8, 8], "input_first": [1, 0.5, 0, 0, 0]}, 2, "not shown"),  # 3.05 even steps
        ({"kl_input": [0, 6, 7, 8, 8], "input_first": [1, 0.4, 0, 0, 0]}, 2, "not shown"),
        ({"kl_input": [0, 6, 7, 8, 8], "input_first": [1, 1, 1, 1, 0.2]}, 2, "not measurable"),  # it never left
        ({}, 3, "not shown"),  # almost all of it at once
        ({"kl_final": [8, 2, 1, 1, 0]}, 3, "shown"),
        ({"kl_final": [0.8, 0.2, 0.1, 0.1, 0]}, 3, "not measurable"),  # no road worth the name
        ({"kl_final": [8, 1.9, 1, 1, 0]}, 3, "not shown"),
        ({"kl_final": [8, 3, 3.6, 1, 0]}, 3, "shown"),
        ({"kl_final": [8, 3, 3.7, 1, 0]}, 3, "not shown"),  # a rise
        ({}, 4, "shown"),
        ({"repeated": [900, 900, 900, 10, 10]}, 4, "shown"),
        ({"repeated": [900, 900, 900, 10, 11]}, 4, "not measurable"),  # not in the output
        ({"repeated": [900, 900, 10, 10, 1]}, 4, "not shown"),  # half-way is not late
        ({"repeated": [900, 900, 10, 11, 1]}, 4, "shown"),  # it did not stay
        ({"others": [[900] * 5]}, 4, "shown"),  # one word of two
        ({"others": [[900] * 5] * 2}, 4, "not measurable"),
        ({"others": [[900, 1, 1, 1, 1]] * 2}, 4, "not shown"),  # the median of three
        ({"others": [[900, 1, 1, 1, 1], [900, 900, 900, 1, 1]]}, 4, "shown"),
        ({}, 5, "shown"),
        ({"extreme": ([900] * 5, [900, 900, 90, 90, 5])}, 5, "shown"),
        ({"extreme": ([900] * 5, [900, 90, 90, 90, 5])}, 5, "not shown"),
        ({"extreme": ([900] * 5, [900, 900, 900, 900, 91])}, 5, "not measurable"),
    ],
)
def test_verdicts_follow_from_the_numbers(numbers: dict[str, Any], number: int, verdict: str) -> None:
    assert verdicts(made_up(**numbers))[number] == verdict


@pytest.mark.parametrize("name", ["tales-gpt2", "tales-gpt-neo", "tales-ctrl"])
def test_a_model_with_fresh_weights_shows_nothing(name: str, tmp_path: Path) -> None:
    """Drawn as transformers draws them, in the sizes and with the vocabulary of a trained one."""
    folder = next(path for path in (Path(__file__).parents[2] / "weights").iterdir() if path.name == name)

    def fresh(tensors: Tensors) -> Tensors:
        random = torch.Generator().manual_seed(3)
        return {
            key: torch.ones_like(value)
            if re.search(r"(ln_.|layernorm\d?)\.weight$", key)
            else torch.zeros_like(value)
            if key.endswith("bias")
            else torch.randn(value.shape, generator=random).to(value) * 0.02
            for key, value in tensors.items()
        }

    model, tokenizer = minilens.load(changed(folder, tmp_path / name, tensors=fresh))
    assert tokenizer is not None
    found = claims(study(name, model, tokenizer))
    assert [claim.statement for claim in found if claim.verdict == "shown"] == []


def test_what_cannot_be_measured_holds_nothing() -> None:
    for relation in ("at most", "at least"):
        assert not Check("x", float("nan"), relation, 1).holds


def test_the_numbers_of_a_claim() -> None:
    found = [[check.value for check in claim.asked] for claim in claims(made_up(others=[[900, 90, 9, 9, 9]]))]
    assert found[0] == pytest.approx([1, 0, 0.1])
    assert found[1] == pytest.approx([0.8, 0.5, 0.8])
    assert found[2] == pytest.approx([0, 0, 4])
    assert found[3] == pytest.approx([20, 19 * 4 / 20, 0])
    assert found[4] == pytest.approx([1, 0.5])  # of 0.75 and 0.5 torch's median is the lower
    assert found[5] == pytest.approx([1, 0.25])


# ---- The report


def test_the_curves_are_the_numbers(studied: Study) -> None:
    figure = study_figure([("a $title_{", studied, "final"), ("other", studied, "block:1")])
    figure.canvas.draw()
    panels = np.array(figure.axes).reshape(5, 2)
    for column, reading in enumerate(("final", "block:1")):
        labels = studied.tables["passage", reading].labels
        x = [0.0] + [int(label.split(".")[0]) + (0.5 if "mid" in label else 1) for label in labels[1:]]
        shown = {line.get_label(): line for ax in panels[:3, column] for line in ax.lines}
        for name, wanted in {
            "KL(output ‖ row)": studied.quartiles("passage", reading, "kl_final")[1],
            "KL(input ‖ row)": studied.quartiles("passage", reading, "kl_input")[1],
            "output's token": studied.quartiles("passage", reading, "final_rank")[1],
            "input token": studied.quartiles("passage", reading, "input_rank")[1],
            "output's token first": studied.share("passage", reading, "agrees"),
            "input token first": studied.share("passage", reading, "input_first"),
            "settled: first from here on": studied.share("passage", reading, "settled"),
        }.items():
            assert shown[name].get_xdata().tolist() == x
            assert shown[name].get_ydata().tolist() == wanted.tolist()
        assert ("KL(output ‖ row), block:1" in shown) == (reading == "final")
        for ax, ranks in ((panels[3, column], studied.word_ranks), (panels[4, column], studied.word_as_input)):
            lines = [line.get_ydata().tolist() for line in ax.lines if not str(line.get_label()).startswith("_")]
            assert lines == [
                ranks(prompt, reading)[:, place].tolist() for prompt in ("repetition", "extreme") for place in (0, -1)
            ]
    assert panels[0, 0].get_title(loc="left") == "a $title_{"
    faint = [line.get_ydata().tolist() for line in panels[3, 0].lines if str(line.get_label()).startswith("_")]
    assert faint == [ranks[:, -1].tolist() for ranks in studied.other_ranks("repetition").values()]


def test_columns_share_a_scale_that_holds_them_all() -> None:
    small, large = made_up(), made_up(kl_final=[600, 500, 400, 1, 0])
    for pair in ((small, large), (large, small)):
        figure = study_figure([(each.name, each, "final") for each in pair])
        figure.canvas.draw()
        for ax in figure.axes[:2]:
            assert ax.get_ylim()[1] >= 600
            assert 300 in ax.get_yticks()


def test_the_csv_holds_every_number(studied: Study) -> None:
    lines = list(study_lines([studied]))[1:]
    words = {token: token_label(studied.tables["passage", "final"].tokenizer, token) for token in studied.others}
    others = {(line[1], line[2], line[4], line[6]): line[7] for line in lines if line[2] in words.values()}
    for token, word in words.items():
        for prompt in PROMPTS[1:]:
            for place, column in enumerate(studied.other_ranks(prompt)[token].T.tolist(), 1):
                for label, rank in zip(studied.others[token][prompt].labels, column, strict=True):
                    assert others.pop((prompt, word, label, f"word_next_{place}")) == rank
    assert others == {}
    lines = [line for line in lines if line[2] not in words.values()]
    found = {(line[1], line[3], line[4], line[6]): line[7:] for line in lines}
    assert len(found) == len(lines)
    assert {(line[0], line[2]) for line in lines} == {("tales-ctrl", ""), ("tales-ctrl", "diamond")}
    for (prompt, reading), table in studied.tables.items():
        for r, label in enumerate(table.labels):
            for statistic in STATISTICS:
                low, middle, high = studied.quartiles(prompt, reading, statistic)[:, r].tolist()
                assert found.pop((prompt, reading, label, statistic)) == [middle, low, high]
            for share in SHARES:
                wanted = studied.share(prompt, reading, share)[r].item()
                assert found.pop((prompt, reading, label, share)) == [wanted, None, None]
            if prompt != "passage":
                for name, ranks in (("next", studied.word_ranks), ("input", studied.word_as_input)):
                    for place, rank in enumerate(ranks(prompt, reading)[r].tolist(), 1):
                        assert found.pop((prompt, reading, label, f"word_{name}_{place}")) == [rank, None, None]
    assert found == {}


def test_the_report_holds_the_verdicts(studied: Study) -> None:
    other = replace(studied, name=HOSTILE, texts=dict.fromkeys(PROMPTS, HOSTILE))
    text = study_report([studied, other])
    bodies = re.findall(r"<tbody>(.*?)</tbody>", text, re.DOTALL)
    assert len(bodies) == 6
    for body, claim in zip(bodies, claims(studied), strict=True):
        (first, *rows) = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", body)]
        assert html.unescape(first[0]) == f"{claim.statement}<br><small>{claim.source}</small>"
        assert first[1:] == [claim.verdict] * 2
        for row, check in zip(rows, claim.asked, strict=True):
            assert html.unescape(row[0]) == f"{check.what}: {check.relation} {check.threshold:.3g}"
            value, _, holds = row[1].partition(", ")
            shown = float("nan" if value == "none" else value)
            assert shown == pytest.approx(float(f"{check.value:.3g}"), nan_ok=True)
            assert holds == ("yes" if check.holds else "no")
    assert "<img src=x" not in text and "\x1b" not in text
    assert text.count(html.escape(r"</style><img src=x onerror=alert(1)>$title \x1b[31m")) >= 6
    assert "://" not in text and "<script" not in text


def test_the_report_in_a_browser(studied: Study, opened: Callable[..., Any]) -> None:
    page = opened(study_report([studied, replace(studied, name=HOSTILE)]))
    assert page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 300)") == [True] * 5
    assert page.locator("h2").all_inner_texts()[0] == "tales-ctrl"
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400  # figures and the table scroll by themselves


# ---- The command


def test_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, studied: Study
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text(SHORT)
    command = ["study", "tales-ctrl", "--file", "short.txt", "--lens", "affine"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert (
        err
        == "minilens: study/report.html has all figures, study/curves.png the first, study/numbers.csv the numbers\n"
    )
    for claim in claims(studied):
        assert re.search(rf"^{re.escape(claim.statement)} +{claim.verdict} *$", out, re.MULTILINE)
        for check in claim.asked:
            value = "none" if check.value != check.value else f"{check.value:.3g}"
            assert f"  {value}, {'yes' if check.holds else 'no'}" in out
    assert Path("study/report.html").read_text(encoding="utf-8") == study_report([studied])
    with open("study/numbers.csv", encoding="utf-8") as file:
        wanted = [["" if cell is None else str(cell) for cell in line] for line in study_lines([studied])]
        assert list(csv.reader(file)) == wanted
    assert Path("study/curves.png").read_bytes().startswith(b"\x89PNG")

    assert main(command) == 2
    assert "study/report.html exists: give another name, or --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--word", "balloon"]) == 0
    assert "balloon" in Path("study/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "--revision", "main"], "--revision is for one model"),
        (["tales-gpt2", "--out", "a-file"], "a-file is not a folder: give another name with --out"),
        (["tales-gpt2", "--out", "no/such"], "no/such cannot be made: there is no folder no"),
        (["tales-gpt2", "--file", "none.txt"], "none.txt cannot be read: No such file or directory"),
        (["tales-gpt2", "--word", "xylophone"], '"xylophone" is not'),
        (["no-such-model"], "no-such-model"),
        (["--lens", "no-such-lens"], "there is no lens 'no-such-lens'"),
        (["--lens", "affine", "--lens", "affine"], "name each reading once"),
    ],
)
def test_what_the_command_refuses(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    assert main(["study", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not Path("study").exists()


def test_each_goes_through_the_jobs() -> None:
    """What a progress bar is hung on sees every job, in order, before it is done."""
    model, tokenizer = minilens.load("tales-ctrl")
    assert tokenizer is not None
    seen: list[Any] = []

    def each(seen: list[Any], jobs: Any) -> Any:
        for job in jobs:
            seen.append(job)
            yield job

    found = study("x", model, tokenizer, passage=SHORT, each=partial(each, seen))
    jobs = [(prompt, reading.name) for prompt, token, _, reading in seen if token == found.word]
    assert jobs == list(found.tables)
    assert [(token, prompt) for prompt, token, _, _ in seen[len(jobs) :]] == [
        (token, prompt) for token, tables in found.others.items() for prompt in tables
    ]
    assert len(PASSAGE.split()) > 100


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_finding_is_named_in_a_terminal(width: int) -> None:
    """Whatever the names are, and however many models."""
    long = replace(made_up(), name="/home/somebody/models--EleutherAI--gpt-neo-125m/snapshots/" + "21def0189f" * 4)
    for studies in ([long], [made_up(), long] * 3):
        out = io.StringIO()
        console = Console(file=out, width=width)
        console.print(*verdict_tables(studies, width=width), sep="\n\n")
        text = out.getvalue()
        assert max(map(len, text.splitlines())) <= width
        flat = " ".join(text.split())
        tables = flat.count("Block 0 leaves")
        assert 1 <= tables <= len(studies)
        for claim in claims(long):
            first = claim.statement[: min(WORDS_WIDE, width // 2) - 12].rsplit(" ", 1)[0]
            assert flat.count(first) >= tables
        assert flat.count("made up") + flat.count("…1def0189f21def0189f") >= len(studies)


# ---- Over many passages


def test_findings_over_passages_are_means_and_words_are_left_out_in_turn(
    studied: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    findings = importlib.import_module("findings")
    model, tokenizer = minilens.load("tales-ctrl")
    texts = [SHORT, "A boy saw a red bird in the tree and ran home to his mother."]
    column = next(findings.on_passages(studied, model, tokenizer, texts))
    assert tokenizer is not None
    shares = [
        minilens.logit_lens(model, tokenizer.encode(f"Stories {text}"), stats=("input",)).input.rank[0] == 1
        for text in texts
    ]
    one, two = (share.double().mean().item() for share in shares)
    premise = column.claim.premise
    assert premise is not None and one != two
    assert premise.value == pytest.approx((one + two) / 2) and column.errors[0] == pytest.approx(abs(one - two) / 2)
    assert re.fullmatch(r" \([012] of 2\)", column.shown)

    monkeypatch.setattr("minilens.study.claims.LATE", 1)  # a rank that some words have in the output, and some not
    words = next(findings.on_words(studied))
    n = 1 + len(studied.others)
    assert words.claim.premise is not None and 0 < (p := words.claim.premise.value) < 1
    assert words.errors[0] == pytest.approx((p * (1 - p) / (n - 1)) ** 0.5)
    assert {each.word for each in findings.without_one(studied)} == {studied.word, next(iter(studied.others))}
    assert all(len(each.others) == n - 2 for each in findings.without_one(studied))
