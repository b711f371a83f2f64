"""Checkpoints made from a good one by changing one thing, and a tokenizer that fits the tiny models."""

import json
import shutil
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import minilens

Tensors = dict[str, torch.Tensor]


def changed(
    source: Path,
    to: Path,
    *,
    config: dict[str, Any] | None = None,
    drop: Iterable[str] = (),
    tensors: Callable[[Tensors], Tensors] | None = None,
    files: dict[str, bytes | None] | None = None,
) -> Path:
    """A copy of a checkpoint with keys of its config added and dropped, its tensors mapped, and files replaced.

    None removes a file.
    """
    shutil.copytree(source, to)
    if config or drop:
        settings = {**json.loads((to / "config.json").read_text()), **(config or {})}
        (to / "config.json").write_text(json.dumps({key: settings[key] for key in settings.keys() - set(drop)}))
    if tensors:
        save_file(tensors(load_file(to / "model.safetensors")), to / "model.safetensors")
    for name, content in (files or {}).items():
        if content is None:
            (to / name).unlink()
        else:
            (to / name).write_bytes(content)
    return to


def logits(model: minilens.Model) -> torch.Tensor:
    return minilens.trace(model, torch.tensor([[5, 17, 3, 99, 0, 42, 42, 8, 64, 11]])).logits


@cache
def tokenizer_json() -> bytes:
    """A byte-level BPE of 101 tokens, as many as the tiny models have. One of them is the escape character."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    text = "once upon a time there was a little \x1b[31mred\n cat"
    trainer = trainers.BpeTrainer(
        vocab_size=101,
        show_progress=False,
        initial_alphabet=[chr(c) for c in range(ord("!"), ord("l"))],
        special_tokens=["<|endoftext|>"],
    )
    raw.train_from_iterator([text] * 9, trainer)
    assert raw.get_vocab_size() == 101
    return raw.to_str().encode()


class Letters:
    """A tokenizer of the tiny models' ids, less the last: t7 is token 7, but for those that are a view's nightmare."""

    codes: tuple[str, ...] = ()
    bos: str | None = None
    special: ClassVar[dict[str, str]] = {}

    def __init__(self, nightmares: dict[int, bytes], form: str = "t{}", size: int = 100) -> None:
        self.nightmares, self.form, self.size = nightmares, form, size

    def encode(self, text: str) -> torch.Tensor:
        raise ValueError("this tokenizer cannot read")

    def decode(self, tokens: torch.Tensor | list[int]) -> str:
        return b"".join(map(self.piece, torch.as_tensor(tokens).tolist())).decode(errors="replace")

    def id(self, text: str) -> int:
        raise ValueError("this tokenizer cannot read")

    def tokens(self, text: str) -> list[str]:
        raise ValueError("this tokenizer cannot read")

    def piece(self, token: int) -> bytes:
        if token >= self.size:
            raise ValueError(f"token id {token} does not exist")
        return self.nightmares.get(token, self.form.format(token).encode())

    def state(self) -> str:
        return "letters"

    def hint(self, text: str) -> None:
        return None
