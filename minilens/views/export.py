"""A LensTable as plain data, for other programs."""

from typing import Any

from torch import Tensor

from ..lens import LensTable
from ..text import Tokenizer
from .tokens import token_label


def as_record(table: LensTable, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The table as what JSON can hold: lists over positions, an object for each row, null for no number."""

    def token(number: int) -> dict[str, Any]:
        """label: as the terminal shows it, nothing hidden; text: what it stands for, broken UTF-8 as U+FFFD."""
        try:
            text = tokenizer.decode([number]) if tokenizer else None
        except ValueError:  # as in token_label
            text = None
        return {"id": number, "label": token_label(tokenizer, number), "text": text}

    def tokens(numbers: Tensor) -> list[dict[str, Any] | None]:
        return [token(number) if number >= 0 else None for number in numbers.tolist()]

    def numbers(values: Tensor) -> list[float | None]:
        return [value if value == value else None for value in values.tolist()]

    def row(r: int) -> dict[str, Any]:
        return {
            "label": table.labels[r],
            "layer": table.layers[r],
            "top": [
                [{**token(number), "prob": prob, "logit": logit} for number, prob, logit in zip(*best, strict=True)]
                for best in zip(
                    table.top.tokens[r].tolist(), table.top.prob[r].tolist(), table.top.logit[r].tolist(), strict=True
                )
            ],
            "final_prob": numbers(table.final.prob[r]),
            "final_rank": table.final.rank[r].tolist(),
            "next_prob": numbers(table.next.prob[r]),
            "next_rank": [rank or None for rank in table.next.rank[r].tolist()],
            "kl_final": numbers(table.kl_final[r]),
            "entropy": numbers(table.entropy[r]),
        }

    return {
        "schema": 1,
        "decoder": table.decoder,
        "positions": table.positions.tolist(),
        "tokens": tokens(table.tokens),
        "next_tokens": tokens(table.next_tokens),
        "final_tokens": tokens(table.final_tokens),
        "rows": [row(r) for r in range(len(table.labels))],
    }
