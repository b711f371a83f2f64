"""What the lens says of a corpus as one HTML file: curves of one model or several, and a table for each."""

import html
from collections.abc import Collection, Sequence
from pathlib import Path
from string import Template
from typing import Any

from ..corpus.tally import SHARES
from .corpus_curves import details, overview
from .corpus_record import CALIBRATION, called, mean_and_error
from .corpus_terminal import COLUMNS, corpus_summary, names, nats
from .plots import as_image, drawn
from .study_report import FAMILIES, STYLE
from .tokens import text_label

WIDE = {**COLUMNS, "js": "Jensen-\nShannon", CALIBRATION: "calibration\nerror"}  # of the table
DETAILS = (
    "From the top: tokens by their position in the window; by how frequent the next token is, as a share of all tokens "
    "of these texts; the spread of single tokens; and last, how often a row's best token is the true next one, over "
    "the probability that the row gives it (a line for each row, the first dark, the last bright; on the dotted line "
    "both are the same), and what share of the tokens has which rank."
)
TEMPLATE = Path(__file__).with_name("corpus_page.html")


def corpus_page(records: Sequence[dict[str, Any]], detailed: Collection[str] | None = None) -> str:
    """One HTML file of the records that `corpus_record` gives; nothing in it runs, and it has no address of anything.

    detailed: the decoders that have figures of their own beside their tables; by default all. Write the text as UTF-8.
    """
    called = names(records)
    texts = [
        f"<li>{html.escape(name)}: {html.escape(corpus_summary(record))}. Read: "
        f"{html.escape(', '.join(text_label(file) for file, _ in record['files']))}.</li>"
        for name, record in zip(called, records, strict=True)
    ]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape("The logit lens over a corpus: " + ", ".join(called)),
        style=STYLE.read_text(encoding="utf-8"),
        texts="\n".join(texts),
        overview=as_image(overview(records), "The curves of " + ", ".join(called)),
        models="\n".join(_section(*each, detailed) for each in zip(called, records, strict=True)),
    )


def corpus_picture(records: Sequence[dict[str, Any]]) -> bytes:
    """The curves of all models as a PNG file."""
    return drawn(overview(records), ".png")


def _section(name: str, record: dict[str, Any], detailed: Collection[str] | None) -> str:
    """One model: for each decoder a table, and the details of some or all."""
    parts = [
        f"<section><h2>{html.escape(name)}</h2><p>{FAMILIES[record['family']]}, {int(record['n_layers'])} blocks.</p>"
    ]
    for decoder, found in record["decoders"].items():
        of = text_label(called(decoder, found))
        parts.append(
            f"<h3>{html.escape(of[0].upper() + of[1:])}, norm {html.escape(record['norm'])}</h3>"
            f'<div class="wide">{_table(found)}</div>'
        )
        if detailed is None or decoder in detailed:
            image = as_image(details(record, decoder), f"{name}, {of}, in detail")
            parts.append(f'<figure class="wide overview">{image}<figcaption>{DETAILS}</figcaption></figure>')
    return "\n".join([*parts, "</section>"])


def _table(found: dict[str, Any]) -> str:
    """What the rows say of all tokens."""
    heads = "".join(f'<th scope="col">{head}{", %" if value in SHARES else ""}</th>' for value, head in WIDE.items())
    if "beside" in found:
        heads += f'<th scope="col">KL above\n{html.escape(text_label(found["beside"]))}</th>'
    whole = found["groups"][0]
    rows = []
    for r, row in enumerate(found["rows"]):
        cells = []
        for value in WIDE:
            mean, error = mean_and_error(whole, value, r)
            scale = 100 if value in SHARES else 1
            cells.append(nats(*(None if number is None else scale * number for number in (mean, error))))
        if "beside" in found:
            cells.append(nats(*mean_and_error(whole["above"], "kl_final", r)))
        name = html.escape(text_label(row))
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    return f'<table><thead><tr><th scope="col">row</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
