"""What the lens says of a corpus as one HTML file: curves of one model or several, and a table for each."""

import html
import io
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from ..tally import NUMBERS
from .corpus import COLUMNS, corpus_summary, nats
from .corpus_curves import details, overview
from .report import FAMILIES, STYLE, as_image
from .tokens import text_label

TEMPLATE = Path(__file__).with_name("corpus.html")


def corpus_page(records: Sequence[dict[str, Any]]) -> str:
    """One HTML file of the records that `corpus_record` gives; nothing in it runs, and it has no address of anything.

    Write the text as UTF-8.
    """
    names = [text_label(record["model"]) for record in records]
    texts = [
        f"<li>{html.escape(name)}: {html.escape(corpus_summary(record))}. Read: "
        f"{html.escape(', '.join(text_label(file) for file, _ in record['files']))}.</li>"
        for name, record in zip(names, records, strict=True)
    ]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape("The logit lens over a corpus: " + ", ".join(names)),
        style=STYLE.read_text(encoding="utf-8"),
        texts="\n".join(texts),
        overview=as_image(overview(records), "The curves of " + ", ".join(names)),
        models="\n".join(map(_section, records)),
    )


def corpus_picture(records: Sequence[dict[str, Any]]) -> bytes:
    """The curves of all models as a PNG file."""
    drawn = io.BytesIO()
    overview(records).savefig(drawn, format="png", metadata={"Software": None})
    return drawn.getvalue()


def _section(record: dict[str, Any]) -> str:
    """One model: for each decoder a table and the details."""
    name = html.escape(text_label(record["model"]))
    parts = [f"<section><h2>{name}</h2><p>{FAMILIES[record['family']]}, {record['n_layers']} blocks.</p>"]
    for decoder in record["decoders"]:
        image = as_image(details(record, decoder), f"{text_label(record['model'])}, decoder {decoder}, in detail")
        parts.append(
            f'<h3>Decoder {html.escape(decoder)}, norm {html.escape(record["norm"])}</h3><div class="wide">'
            f'{_table(record["decoders"][decoder])}</div><figure class="wide whole">{image}<figcaption>By position in '
            "the window, by the frequency of the next token in these texts, and all tokens by rank and by confidence: "
            "from dark, the first, to bright, the last.</figcaption></figure>"
        )
    return "\n".join([*parts, "</section>"])


def _table(found: dict[str, Any]) -> str:
    """What the rows say of all tokens."""
    heads = "".join(
        f'<th scope="col">{head}{"" if value in NUMBERS else ", %"}</th>' for value, head in COLUMNS.items()
    )
    whole = found["groups"][0]
    rows = []
    for r, row in enumerate(found["rows"]):
        cells = []
        for value in COLUMNS:
            mean, error = (whole[key][value][r] for key in ("mean", "standard_error"))
            if value in NUMBERS or mean is None:
                cells.append(nats(mean, error))
            else:
                cells.append(nats(100 * mean, None if error is None else 100 * error))
        rows.append(f'<tr><th scope="row">{row}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    return f'<table><thead><tr><th scope="col">row</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
