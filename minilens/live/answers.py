"""What the page asks of a model, answered by Python, in the form in which live/engine.js answers."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..checkpoint.tokenizer import Tokenizer
from ..edits import patch, then, zero
from ..instruments.generation import generate_steps
from ..learned.affine import LearnedLens
from ..lens import Lens, label, lens_rows
from ..model import Model, run
from ..ops import check_layer, upcast
from ..shapes import Tokens
from ..table import STATS, logit_lens
from ..traces import Edit, Site
from ..views.lens_page import LARGEST, attention_record, table_record
from ..views.walk import AXES

STAT_NAMES = tuple(name for name in STATS if name != "js")  # which takes another pass
MOST_EDITS = 200


class Abandoned(Exception):
    """Nobody waits for this computation any more."""


@dataclass(frozen=True)
class Question:
    """What the page asks, as live/live.js sends it."""

    text: str
    written: list[int]  # tokens after the text
    other: str | None  # a text to compare with
    decoder: str
    norm: str
    sites: list[str]
    lens: str | None
    edits: list[dict[str, Any]]

    @classmethod
    def read(cls, record: Any) -> "Question":
        """Raises ValueError for what is no question."""
        given: dict[str, Any] = (
            {field.name: record.get(field.name) for field in fields(cls)} if isinstance(record, dict) else {}
        )
        texts = [given.get(name) for name in ("text", "decoder", "norm")]
        optional = [given.get(name) for name in ("other", "lens")]
        lists = {"written": int, "sites": str, "edits": dict}
        if not (
            all(isinstance(text, str) for text in texts)
            and all(text is None or isinstance(text, str) for text in optional)
            and all(
                isinstance(given.get(name), list) and all(type(each) is kind for each in given[name])
                for name, kind in lists.items()
            )
            and len(given["edits"]) <= MOST_EDITS
        ):
            raise ValueError("that is no question of this page")
        return cls(**given)


@dataclass(frozen=True)
class Answerer:
    """A model that answers. Raises ValueError, in every method, for what it cannot read or does not have."""

    model: Model
    tokenizer: Tokenizer
    lenses: Mapping[str, LearnedLens]

    @torch.inference_mode()
    def ask(self, question: Question, is_abandoned: Callable[[], bool]) -> dict[str, Any]:
        """The tables and patterns of a text, and of another one to compare it with."""
        tokens = self._tokens(question.text, question.written)
        if not tokens.shape[1]:
            return {"tokens": [], "hint": None}
        watch = _watching(is_abandoned)
        edit = then(*self._edits(question), watch)
        options = self._options(question)
        shown = {"stats": STAT_NAMES, "tokenizer": self.tokenizer, **options}
        tables = [logit_lens(self.model, tokens, edit=edit, **shown)]
        records = [table_record(tables[0])]
        if question.other and (theirs := self._tokens(question.other)).shape[1]:
            records.append(table_record(logit_lens(self.model, theirs, edit=watch, **shown)))
            records[0]["values"]["difference"] = self._differences(tokens, theirs, edit, watch, options)
        n, n_heads = tokens.shape[1], self.model.config.n_heads
        fits = 4 / 3 * n * (n + 1) * n_heads * self.model.n_layers < LARGEST
        blocks = run(self.model, self.model.embed(tokens), edit=edit)
        return {
            "tokens": tokens[0].tolist(),
            "hint": self.tokenizer.hint(question.text),
            "tables": records,
            "attention": attention_record(tables, tokens, blocks) if fits else None,
        }

    def write(
        self, question: Question, n: int, temperature: float, top_k: int | None, is_abandoned: Callable[[], bool]
    ) -> Iterator[dict[str, Any]]:
        """The tokens that the model writes after a text, one at a time."""
        tokens = self._tokens(question.text, question.written)
        edits = self._edits(question)
        lens = Lens(norm=question.norm, sites=question.sites)
        how: dict[str, Any] = {"edit": then(*edits, _watching(is_abandoned))} if edits else {}  # else keys are kept
        how |= {"temperature": temperature, "top_k": top_k, "lens": lens}
        for step in generate_steps(self.model, tokens, n, **how):
            if is_abandoned():
                raise Abandoned
            row = int(step.settled)
            name = step.labels[row] if row < len(step.labels) else None
            yield {"token": int(step.tokens), "prob": float(step.prob), "settled": row, "label": name}

    @torch.inference_mode()
    def walk(self, question: Question, layer: int, position: int, head: int, few: int) -> dict[str, Any]:
        """The first numbers of each value of a block at one position."""
        check_layer(layer, self.model.n_layers)
        tokens = self._tokens(question.text, question.written)
        place: dict[str, Any] = {"batch": 0, "head": head, "pos": position, "query": position}
        if not (0 <= position < tokens.shape[1] and 0 <= head < self.model.config.n_heads):
            raise ValueError(f"there is no position {position} or no head {head}")
        edit = then(*self._edits(question), _watching(lambda: False))
        blocks = run(self.model, self.model.embed(tokens), edit=edit)
        block = next(block for block in blocks if block.layer == layer)  # edits of later ones are none of its
        found = {}
        for name, axes in AXES.items():
            value: Tensor = getattr(block, name)
            numbers = value[tuple(place[axis] for axis in axes[:-1])]
            numbers = numbers[: position + 1] if axes[-1] == "key" else numbers[:few]
            listed = upcast(numbers).tolist()
            found[name] = {"numbers": [number if abs(number) < torch.inf else None for number in listed]}
        return found

    def continued(self, text: str, tokens: list[int]) -> str:
        """The text with tokens after it."""
        space = " " if self.tokenizer.codes else ""
        return text + space + self.tokenizer.decode(tokens)

    def _tokens(self, text: str, written: list[int] | None = None) -> Tokens:
        tokens = self.tokenizer.encode(text)
        return torch.cat([tokens, torch.tensor([written or []], dtype=tokens.dtype)], 1)

    def _options(self, question: Question) -> dict[str, Any]:
        options: dict[str, Any] = {"decoder": question.decoder, "norm": question.norm, "sites": question.sites}
        if question.lens is not None:
            if question.lens not in self.lenses:
                raise ValueError("there is no such lens")
            options["transport"] = self.lenses[question.lens]
        return options

    def _edits(self, question: Question) -> list[Edit]:
        found: list[Edit] = []
        patches: dict[int, list[dict[str, Any]]] = {}
        theirs = self._tokens(question.other) if question.other else None
        for each in question.edits:
            if each.get("kind") == "zero":
                found.append(zero(each.get("layer", -1), "z", heads=each.get("head")))
            elif theirs is not None and each.get("position", 0) < theirs.shape[1]:
                patches.setdefault(each.get("layer", -1), []).append(each)
        for layer in patches:
            check_layer(layer, self.model.n_layers)
        if theirs is not None and patches:
            for block in run(self.model, self.model.embed(theirs), stop=1 + max(patches)):
                for each in patches.get(block.layer, []):
                    found.append(patch(block, each.get("site", ""), positions=each.get("position")))
        return found

    def _differences(
        self, ours: Tokens, theirs: Int[Tensor, "batch other"], edit: Edit, watch: Edit, options: dict[str, Any]
    ) -> list[float | None]:
        """KL(the other text's row || this one's) at the positions that both have, row by row."""
        n = min(ours.shape[1], theirs.shape[1])
        found: list[float | None] = []
        rows = zip(
            lens_rows(self.model, theirs, edit=watch, **options),
            lens_rows(self.model, ours, edit=edit, **options),
            strict=True,
        )
        for other, row in rows:
            p, q = (upcast(each.logits[0, :n]).log_softmax(-1) for each in (other, row))
            found += (p.exp() * (p - q)).sum(-1).clamp(min=0).tolist() + [None] * (ours.shape[1] - n)
        return found


def _watching(is_abandoned: Callable[[], bool]) -> Edit:
    """An edit that changes nothing, and ends a computation that nobody waits for."""

    def watching(site: Site, value: Tensor) -> Tensor:
        if is_abandoned():
            raise Abandoned(label(site))
        return value

    return watching
