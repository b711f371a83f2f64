"""Head scores and attention patterns as HTML pages without a script, for notebooks."""

import html
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor

from ..instruments.heads import HeadScores
from ..traces import BlockTrace
from .colours import RGB, of_share

LARGEST = 256  # pixels of a pattern, across and down
STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #222; --quiet: #555; --line: #ccc }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #15171a; --text: #e4e6e9; --quiet: #9aa2ab; --line: #4a5159 }
}
body { font: 14px system-ui, sans-serif; margin: 1em; color: var(--text); background: var(--page) }
table { border-collapse: collapse; margin-bottom: 1em }
caption { text-align: left; font-weight: 600; padding: 0.3em 0 }
th { font-weight: 400; color: var(--quiet); padding: 0 0.4em; text-align: right }
td { padding: 0.2em 0.4em; text-align: right; font-variant-numeric: tabular-nums }
figure { display: inline-block; margin: 0 1em 1em 0 }
img { width: 11em; height: 11em; image-rendering: pixelated; border: 1px solid var(--line) }
"""


def heads_page(scores: HeadScores) -> str:
    """The three scores of every head, 0 to 1: a row for each layer, the last on top."""
    tables = [_grid(name, getattr(scores, name), of_share) for name in scores._fields]
    return _page("Head scores", *tables)


def patterns_page(block: BlockTrace) -> str:
    """The attention pattern of each head on the first text: queries downwards, keys to the right, yellow is 1."""
    n = block.pattern.shape[-1]
    shrunk = (
        "" if n <= LARGEST else f"; each pixel is the largest weight of some {n / LARGEST:.1f} by {n / LARGEST:.1f}"
    )
    figures = [
        f'<figure><img alt="pattern of head {head}" src="data:image/png;base64,{b64encode(_png(pattern)).decode()}">'
        f"<figcaption>head {head}</figcaption></figure>"
        for head, pattern in enumerate(block.pattern[0].detach().float().cpu())
    ]
    return _page(
        f"Attention of block {block.layer}",
        f"<p>{n} queries downwards, {n} keys to the right; dark is 0, yellow is 1{shrunk}</p>",
        *figures,
        f"<pre>{html.escape(repr(block))}</pre>",
    )


def _page(title: str, *parts: str) -> str:
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>"


def _grid(caption: str, values: Float[Tensor, "layer head"], colour: Callable[[float], RGB]) -> str:
    """A table of shaded numbers, the last layer on top."""
    heads = "".join(f"<th>{head}</th>" for head in range(values.shape[1]))
    rows = [
        f"<tr><th>layer {layer}</th>{''.join(_cell(value, colour(value)) for value in row)}</tr>"
        for layer, row in enumerate(values.tolist())
    ]
    return f"<table><caption>{html.escape(caption)}</caption>{''.join(rows[::-1])}<tr><th>head</th>{heads}</tr></table>"


def _cell(value: float, rgb: RGB) -> str:
    ink = "#000" if sum(rgb) > 330 else "#fff"  # on CIVIDIS both can be read around there
    text = f"{value:.2f}" if isfinite(value) else "none"
    return f'<td style="background: rgb({rgb[0]} {rgb[1]} {rgb[2]}); color: {ink}">{text}</td>'


def _png(pattern: Float[Tensor, "query key"]) -> bytes:
    """A picture of a pattern: a byte for each weight, and a palette of CIVIDIS (PNG, ISO/IEC 15948)."""
    if max(pattern.shape) > LARGEST:
        pattern = torch.nn.functional.adaptive_max_pool2d(pattern[None], LARGEST)[0]
    steps = (pattern.nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    tall, wide = steps.shape
    palette = b"".join(bytes(of_share(step / 255)) for step in range(256))
    lines = b"".join(b"\0" + line.tobytes() for line in steps)  # 0: as it is, without a filter
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", wide, tall, 8, 3, 0, 0, 0)),  # 8 bits, of a palette
            (b"PLTE", palette),
            (b"IDAT", zlib.compress(lines)),
            (b"IEND", b""),
        )
    )
