"""A study as a report: the verdicts as a table in the terminal, everything as one HTML file, the numbers as CSV."""

import html
from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from string import Template
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..study.claims import Check, claims
from ..study.experiments import SHARES, STATISTICS, Study
from ..table import LensTable
from .lens_figure import lens_figure
from .plots import Figure, as_image
from .study_curves import study_figure
from .tokens import printable, text_label, token_label

READ = (
    "final: the final norm and the unembedding; plain norm: without the norm's gain and bias, as in 2020; centred: "
    "less the mean over the positions; mlp and block:1: with the last MLP, or the last block, in the decoder; "
    "any other: through the learned lens of that name."
)
WORDS, LONGEST = 30, 20  # terminal cells: of the words at least, of a model's name at most
LAST = 12  # columns of the heat maps: the end of the repetition is what counts
FAMILIES = {"gpt2": "GPT-2", "gpt_neo": "GPT-Neo", "ctrl": "CTRL"}
TEMPLATE, STYLE = (Path(__file__).with_name(name) for name in ("study_report.html", "study_report.css"))


def verdict_tables(studies: Sequence[Study], *, width: int = 80) -> Iterator[Table]:
    """Each claim, its checks and what each model has of them, for a terminal: as many models side by side as fit."""
    heads = [_head(study.name) for study in studies]
    together = max(1, (width - WORDS) // (2 + max(len("not measurable"), *map(len, heads))))
    for first in range(0, len(studies), together):
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("", min_width=min(WORDS, width // 2), overflow="fold")
        for head in heads[first : first + together]:
            table.add_column(Text(head), no_wrap=True)
        for each in zip(*map(claims, studies[first : first + together]), strict=True):
            table.add_row(Text(each[0].statement, "bold"), *(Text(claim.verdict, "bold") for claim in each))
            for checks in zip(*(claim.asked for claim in each), strict=True):
                asked = Padding(Text(_asked(checks[0]), "dim"), (0, 0, 0, 2))
                table.add_row(asked, *(Text(_found(check)) for check in checks))
        yield table


def study_report(studies: Sequence[Study]) -> str:
    """One HTML file with the verdicts and the figures; nothing in it runs, and it has no address of anything else.

    Write the text as UTF-8.
    """
    names = [text_label(study.name) for study in studies]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        style=STYLE.read_text(encoding="utf-8"),
        title=html.escape("Logit lens study: " + ", ".join(names)),
        verdicts=_verdicts(studies),
        overview=as_image(overview(studies), "The curves of " + ", ".join(names)),
        models="\n".join(map(_section, studies)),
    )


def overview(studies: Sequence[Study]) -> Figure:
    """The curves of the final decoder, a column for each model."""
    return study_figure([(text_label(study.name), study, "final") for study in studies])


def study_lines(studies: Sequence[Study]) -> Iterator[list[Any]]:
    """The numbers as lines of CSV: a heading, then one line for each model, text, reading, row and statistic.

    value is the median over the positions where the quartiles stand beside it, else a share of the positions, or the
    rank of the rare word at its n-th place (word_next: where it is the true next token; word_input: where it is read).
    """
    yield ["model", "text", "word", "reading", "row", "layer", "statistic", "value", "lower_quartile", "upper_quartile"]
    for study in studies:
        for (text, reading), table in study.tables.items():
            found: dict[str, list[list[float | None]]] = {}
            for statistic in STATISTICS:
                low, middle, high = study.quartiles(text, reading, statistic).tolist()
                found[statistic] = [list(numbers) for numbers in zip(middle, low, high, strict=True)]
            for share in SHARES:
                found[share] = [[value, None, None] for value in study.share(text, reading, share).tolist()]
            word = "" if text == "passage" else token_label(table.tokenizer, study.word)
            if word:
                found |= _places("next", study.word_ranks(text, reading))
                found |= _places("input", study.word_as_input(text, reading))
            yield from _lines([printable(study.name), text, word, reading], table, found)
        for token, tables in study.others.items():
            for text, table in tables.items():
                word = token_label(table.tokenizer, token)
                found = _places("next", study.other_ranks(text)[token])
                yield from _lines([printable(study.name), text, word, "final"], table, found)


def _places(name: str, ranks: Tensor) -> dict[str, list[list[float | None]]]:
    """Ranks of a word at each of its places."""
    columns = ranks.T.double().tolist()
    return {f"word_{name}_{place}": [[rank, None, None] for rank in column] for place, column in enumerate(columns, 1)}


def _lines(start: list[str], table: LensTable, found: dict[str, list[list[float | None]]]) -> Iterator[list[Any]]:
    for r, (label, layer) in enumerate(zip(table.labels, table.layers, strict=True)):
        yield from ([*start, label, layer, statistic, *values[r]] for statistic, values in found.items())


def _verdicts(studies: Sequence[Study]) -> str:
    """The claims as an HTML table, a body for each."""

    def row(first: str, cells: Sequence[str]) -> str:
        return f'<tr><th scope="row">{first}</th>{"".join(cells)}</tr>'

    bodies = []
    for together in zip(*map(claims, studies), strict=True):
        first = f"{html.escape(together[0].statement)}<br><small>{html.escape(together[0].source)}</small>"
        verdicts = [f'<td class="{"shown" if c.verdict == "shown" else "quiet"}">{c.verdict}</td>' for c in together]
        checks = zip(*(claim.asked for claim in together), strict=True)
        rows = [row(html.escape(_asked(each[0])), [f"<td>{_found(check)}</td>" for check in each]) for each in checks]
        bodies.append(f"<tbody>{row(first, verdicts)}{''.join(rows)}</tbody>")
    heads = "".join(f'<th scope="col">{html.escape(_head(study.name))}</th>' for study in studies)
    return f'<table><thead><tr><th scope="col">Finding</th>{heads}</tr></thead>{"".join(bodies)}</table>'


def _section(study: Study) -> str:
    """One model: its texts, the curves of all readings, and the repetition as a heat map."""
    table = study.tables["repetition", "final"]
    word, name = token_label(table.tokenizer, study.word), text_label(study.name)
    texts = "".join(
        f"<dt>{prompt}, {len(study.tables[prompt, 'final'].tokens)} tokens</dt><dd>{html.escape(text_label(text))}</dd>"
        for prompt, text in study.texts.items()
    )
    others = ", ".join(token_label(table.tokenizer, token) for token in study.others)
    followed = f" The verdicts on rare words are of it and of {html.escape(others)}." if others else ""
    readings = study_figure([(reading.name, study, reading.name) for reading in study.readings])
    cells = lens_figure(table.columns(slice(-LAST, None)), show=("prob", f"token{study.word}_rank"))
    curves = as_image(readings, f"The curves of {name} in all readings")
    heat = as_image(cells, f"What each row of {name} says on the repetition, and the rank of the word")
    return f"""<section><h2>{html.escape(name)}</h2>
<p>{FAMILIES[study.family]}, {study.n_layers} blocks. The rare word shown is {html.escape(word)}.{followed}</p>
<dl>{texts}</dl>
<h3>All readings</h3>
<figure class="wide whole">{curves}<figcaption>{READ}</figcaption></figure>
<h3>The repetition</h3>
<figure class="wide whole">{heat}</figure>
</section>"""


def _asked(check: Check) -> str:
    return f"{check.what}: {check.relation} {check.threshold:.3g}"


def _found(check: Check) -> str:
    number = f"{check.value:.3g}" if abs(check.value) < 1000 else f"{check.value:.0f}"
    return f"{'none' if isnan(check.value) else number}, {'yes' if check.holds else 'no'}"


def _head(name: str) -> str:
    """A model's name without its folders, cut from the left."""
    shown = text_label(name).rstrip("/").rpartition("/")[2]
    return shown if len(shown) <= LONGEST else f"…{shown[1 - LONGEST :]}"
