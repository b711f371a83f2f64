"""What the lessons ask, checked: check_3_2 looks at the answer of exercise 2 of lesson 3, and says what it sees.

Each answer is worked out here with the library, from the same text; the lessons work it out by hand.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

from ..edits import patch, zero
from ..instruments.patching import logit_difference
from ..lens import lens_rows
from ..loading import load
from ..model import trace
from ..table import logit_lens
from .compare import tells

STORY = "Once upon a time there was a little girl named Lily. She loved to play with her ball in the park."
GAVE = "Tom and Sue went to the park. {} gave the ball to"
CLOSE = 2e-3  # of the largest number: float32, in other steps


@lru_cache(maxsize=3)
def _loaded(name: str = "tales-gpt2") -> tuple[Any, Any]:
    return load(name)


def _check(right: Callable[..., tuple[Any, str]]) -> Callable[..., None]:
    """A check that prints one sentence: whether an answer is right, and what it means, or how it differs."""

    @wraps(right)
    @torch.no_grad()
    def check(answer: Any, *given: Any) -> None:
        if answer is Ellipsis:
            print("Not yet: write code in the place of `...`, and run its cell before this one.")
            return
        expected, meaning = right(*given)
        told = _differs(answer, expected)
        print(f"Not yet: the answer {told}." if told else f"Right. {meaning}")

    return check


def _differs(answer: Any, expected: Any) -> str:
    """How an answer differs from the one expected; nothing where it does not."""
    if isinstance(expected, Tensor):
        answer = (
            torch.tensor(answer) if isinstance(answer, float | int | list | tuple) and _are_numbers(answer) else answer
        )
        told = tells(answer, expected, "")
        if not told or not isinstance(answer, Tensor) or answer.shape != expected.shape:
            return told
        off = (answer.double() - expected.double()).abs().max()
        return "" if off <= CLOSE * expected.abs().max() else told
    if isinstance(expected, list):
        answer = answer.tolist() if isinstance(answer, Tensor) else answer
        if not isinstance(answer, Sequence) or isinstance(answer, str):
            return f"is a {type(answer).__name__}, and should be a list of {len(expected)}"
        if len(answer) != len(expected):
            return f"has {len(answer)} parts, and should have {len(expected)}"
        for at, (mine, real) in enumerate(zip(answer, expected, strict=True)):
            if mine != real:
                return f"is right up to part {at}, which should be another than {mine!r:.40}"
    return ""


def _are_numbers(answer: Any) -> bool:
    return not isinstance(answer, list | tuple) or all(isinstance(each, float | int) for each in answer)


@_check
def check_1_1() -> tuple[list[int], str]:
    """The ids of the tokens of the story."""
    return _loaded()[1].encode(STORY)[0].tolist(), "A text is a row of numbers; the model sees nothing else."


@_check
def check_1_2() -> tuple[list[str], str]:
    """The five tokens whose embeddings have the largest cosine with that of " girl"."""
    model, tokenizer = _loaded()
    unit = torch.nn.functional.normalize(model.W_E, dim=-1)
    best = (unit @ unit[tokenizer.id(" girl")]).topk(6).indices[1:]
    return [tokenizer.decode(token[None]) for token in best], "What stands in like places has like vectors."


@_check
def check_1_3() -> tuple[Tensor, str]:
    """The mean cosine of two different tokens: the null of exercise 2."""
    unit = torch.nn.functional.normalize(_loaded()[0].W_E, dim=-1)
    cosines = unit @ unit.mT
    n = len(unit)
    mean = (cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1))
    return mean, "Two tokens at random are almost at right angles, so a cosine of 0.3 says something."


@_check
def check_2_1() -> tuple[Tensor, str]:
    """The attention pattern of block 0."""
    model, tokenizer = _loaded()
    return trace(model, tokenizer.encode(STORY)).blocks[0].pattern, "Each row sums to 1, and sees nothing to its right."


@_check
def check_2_2() -> tuple[Tensor, str]:
    """The stream after block 2."""
    model, tokenizer = _loaded()
    return trace(model, tokenizer.encode(STORY)).blocks[
        2
    ].resid_post, "A block adds to the stream, and does nothing else."


@_check
def check_2_3() -> tuple[Tensor, str]:
    """The weight that the heads of the last block give to position 0, and what it would be if all keys were alike."""
    model, tokenizer = _loaded()
    pattern = trace(model, tokenizer.encode(STORY)).blocks[-1].pattern[0]
    alike = 1 / torch.arange(1, pattern.shape[-1] + 1)
    return torch.stack([pattern[..., 0].mean(), alike.mean()]), "Compare the two before you call position 0 special."


@_check
def check_3_1() -> tuple[Tensor, str]:
    """The logits of each row at the last position."""
    model, tokenizer = _loaded()
    rows = [row.logits[0, -1] for row in lens_rows(model, tokenizer.encode(STORY))]
    return torch.stack(rows), "This is the logit lens of 2020, all of it. The last row is the model itself."


@_check
def check_3_2() -> tuple[Tensor, str]:
    """At which share of the positions each row's best token is the output's."""
    table = _table()
    return table.agrees.float().mean(1), "The guess is mostly there some blocks before the end."


@_check
def check_3_3() -> tuple[Tensor, str]:
    """The same against the output at the position before: the null of exercise 2."""
    model, tokenizer = _loaded()
    best = torch.stack([row.logits[0].argmax(-1) for row in lens_rows(model, tokenizer.encode(STORY))])
    return (best[:, 1:] == best[-1, :-1]).float().mean(1), "What agrees with any text is no reading of this one."


def _table(name: str = "tales-gpt2", **options: Any) -> Any:
    model, tokenizer = _loaded(name)
    return logit_lens(model, tokenizer.encode(STORY), **options)


@_check
def check_4_1() -> tuple[Tensor, str]:
    """What the embedding and each attention and MLP write to the stream at the last position."""
    model, tokenizer = _loaded()
    whole = trace(model, tokenizer.encode(STORY))
    parts = [whole.embed, *(part for block in whole.blocks for part in (block.attn_out, block.mlp_out))]
    return torch.stack([part[0, -1] for part in parts]), "They sum to the stream that the final norm reads."


@_check
def check_4_2() -> tuple[Tensor, str]:
    """What each of these parts adds to the logit of the output's token."""
    model, tokenizer = _loaded()
    tokens = tokenizer.encode(STORY)
    token = int(model(tokens)[0, -1].argmax())
    parts = check_4_1.__wrapped__()[0]  # type: ignore[attr-defined]
    return _shares(model, tokens, parts)[:, token], "The last blocks write most of what is said in the end."


@_check
def check_4_3() -> tuple[Tensor, str]:
    """The mean size of what each part adds to any token's logit: the null of exercise 2."""
    model, tokenizer = _loaded()
    parts = check_4_1.__wrapped__()[0]  # type: ignore[attr-defined]
    return _shares(model, tokenizer.encode(STORY), parts).abs().mean(1), "A part that moves all logits chooses none."


def _shares(model: Any, tokens: Tensor, parts: Tensor) -> Tensor:
    """parts @ J, where J is the final norm with its divisor fixed, then W_U."""
    resid = trace(model, tokens).blocks[-1].resid_post[0, -1]
    divisor = (resid.var(correction=0) + model.ln_final_eps).sqrt()
    shares: Tensor = (parts - parts.mean(-1, keepdim=True)) / divisor * model.ln_final.w @ model.W_U
    return shares


@lru_cache(maxsize=1)
def _given() -> tuple[Any, Tensor, Tensor, Any]:
    model, tokenizer = _loaded()
    clean, corrupt = (tokenizer.encode(GAVE.format(name)) for name in ("Tom", "Sue"))
    return model, clean, corrupt, logit_difference(tokenizer.id(" Sue"), tokenizer.id(" Tom"))


@_check
def check_5_1() -> tuple[Tensor, str]:
    """The logit of Sue less that of Tom, where Tom gives and where Sue gives."""
    model, clean, corrupt, metric = _given()
    return torch.cat([metric(model(text)[:, -1]) for text in (clean, corrupt)]), "The sign says whom the model names."


@_check
def check_5_2() -> tuple[Tensor, str]:
    """The same on the clean text without each head."""
    model, clean, _, metric = _given()
    return _for_heads(model, clean, metric, lambda layer, head: zero(layer, "z", heads=head)), "Few heads matter."


@_check
def check_5_3() -> tuple[Tensor, str]:
    """The same on the corrupt text, with the z of one head at the last position from the clean run."""
    model, clean, corrupt, metric = _given()
    blocks = trace(model, clean).blocks
    found: Tensor = _for_heads(
        model, corrupt, metric, lambda layer, head: patch(blocks[layer], "z", heads=head, positions=-1)
    )
    return found, "The median head is the null: it carries nothing of who gave the ball."


def _for_heads(model: Any, tokens: Tensor, metric: Any, edit: Callable[[int, int], Any]) -> Tensor:
    layers, heads = range(model.n_layers), range(model.config.n_heads)
    return torch.stack(
        [torch.cat([metric(trace(model, tokens, edit=edit(n, head)).logits[:, -1]) for head in heads]) for n in layers]
    )


@_check
def check_6_1() -> tuple[Tensor, str]:
    """At which share of the positions the row before the last agrees with the output: GPT-2 and GPT-Neo."""
    found = [_table(name, decoder="final").agrees[-2].float().mean() for name in ("tales-gpt2", "tales-gpt-neo")]
    return torch.stack(found), "One of the two says something else before its last block."


@_check
def check_6_2() -> tuple[Tensor, str]:
    """The same where the last block is part of the decoder."""
    found = [_table(name, decoder="block:1").agrees[-2].float().mean() for name in ("tales-gpt2", "tales-gpt-neo")]
    return torch.stack(found), "With its last block in the decoder, the earlier rows are read as well as in the other."


@_check
def check_6_3() -> tuple[Tensor, str]:
    """For GPT-Neo, the same with another block in the place of the last: the null of exercise 2."""
    model, tokenizer = _loaded("tales-gpt-neo")
    whole = trace(model, tokenizer.encode(STORY))
    best = whole.logits[0].argmax(-1)
    resid = whole.blocks[-3].resid_post
    found = [(model.unembed(model.block(n, resid).resid_post)[0].argmax(-1) == best).float().mean() for n in range(8)]
    return torch.stack(found), "It is the last block that is needed, and not just any."


@_check
def check_7_1() -> tuple[Tensor, str]:
    """The mean KL(output ‖ row) of each row of the logit lens."""
    return _table().kl_final.mean(1), "In nats. The early rows are far from what the model says."


@_check
def check_7_2(lens: Any) -> tuple[Tensor, str]:
    """The same with a learned lens."""
    return _table(transport=lens).kl_final.mean(1), "One linear map for each row finds more than none does."


@_check
def check_7_3() -> tuple[Tensor, str]:
    """The mean KL(output ‖ output at the next position): how far apart two outputs of one text are."""
    model, tokenizer = _loaded()
    logprobs = model(tokenizer.encode(STORY))[0].log_softmax(-1)
    one, other = logprobs[:-1], logprobs[1:]
    return (one.exp() * (one - other)).sum(
        -1
    ).mean(), "A row that is further away than this reads nothing of its place."
