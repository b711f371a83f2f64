"""What the lessons ask, checked: check_3_2 looks at the answer of exercise 2 of lesson 3, and says what it sees.

Each answer is worked out here with the library, from the same text; the lessons work it out by hand.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.tokenizer import Tokenizer
from ..edits import patch, zero
from ..instruments.metrics import logit_difference
from ..lens import lens_rows
from ..loading import load
from ..model import Model, decode, trace
from ..table import LensTable, logit_lens
from .answers import checks
from .training import check_8_1 as check_8_1
from .training import check_8_2 as check_8_2
from .training import check_8_3 as check_8_3

STORY = "Once upon a time there was a little girl named Lily. She loved to play with her ball in the park."
GAVE = "One day, Tom and Sue went to the park. {} gave the ball to"
LONG = (
    "Once upon a time there was a little girl named Lily. She loved to play with her ball in the park. One day, "
    "she saw a big dog near the tree. The dog was sad because it had lost its toy. Lily wanted to help, so she "
    "looked under the bench and behind the bush. At last she found the toy in the pond. The dog was very happy "
    "and wagged its tail. Lily gave the toy to the dog and they played together until the sun went down. Then her"
    " mom called her, and she went home."
)


@lru_cache(maxsize=3)
def _loaded(name: str = "tales-gpt2") -> tuple[Model, Tokenizer]:
    model, tokenizer = load(name)
    assert tokenizer is not None
    return model, tokenizer


@checks("A text is a row of numbers; the model sees nothing else.")
def check_1_1() -> list[int]:
    """The ids of the tokens of the story."""
    return _loaded()[1].encode(STORY)[0].tolist()


@checks("What stands in like places has like vectors.")
def check_1_2() -> list[str]:
    """The five tokens whose embeddings have the largest cosine with that of " girl"."""
    model, tokenizer = _loaded()
    unit = torch.nn.functional.normalize(model.W_E, dim=-1)
    best = (unit @ unit[tokenizer.id(" girl")]).topk(6).indices[1:]
    return [tokenizer.decode(token[None]) for token in best]


@checks("The vectors share a direction: two tokens at random have a cosine of 0.38. Hold the others against it.")
def check_1_3() -> Tensor:
    """The mean cosine of two different tokens: the null of exercise 2."""
    unit = torch.nn.functional.normalize(_loaded()[0].W_E, dim=-1)
    cosines = unit @ unit.mT
    n = len(unit)
    mean = (cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1))
    return mean


@checks("Each row sums to 1, and sees nothing to its right.")
def check_2_1() -> Tensor:
    """The attention pattern of block 0."""
    model, tokenizer = _loaded()
    return trace(model, tokenizer.encode(STORY)).blocks[0].pattern


@checks("A block adds to the stream, and does nothing else.")
def check_2_2() -> Tensor:
    """The stream after block 2."""
    model, tokenizer = _loaded()
    return trace(model, tokenizer.encode(STORY)).blocks[2].resid_post


@checks("Compare the two before you call position 0 special.")
def check_2_3() -> Tensor:
    """The weight that the heads of the last block give to position 0, and what it would be if all keys were alike."""
    model, tokenizer = _loaded()
    pattern = trace(model, tokenizer.encode(STORY)).blocks[-1].pattern[0]
    alike = 1 / torch.arange(1, pattern.shape[-1] + 1)
    return torch.stack([pattern[..., 0].mean(), alike.mean()])


@checks("This is the logit lens of 2020, all of it. The last row is the model itself.")
def check_3_1() -> Tensor:
    """The logits of each row at the last position."""
    model, tokenizer = _loaded()
    rows = [row.logits[0, -1] for row in lens_rows(model, tokenizer.encode(STORY))]
    return torch.stack(rows)


@checks("The guess is mostly there some blocks before the end.")
def check_3_2() -> Tensor:
    """At which share of the positions each row's best token is the output's."""
    return _table().agrees.float().mean(1)


@checks("But row 0? It repeats its input, and that is what the output before has guessed: choose a null with care.")
def check_3_3() -> Tensor:
    """The same against the output at the position before: the null of exercise 2."""
    model, tokenizer = _loaded()
    best = torch.stack([row.logits[0].argmax(-1) for row in lens_rows(model, tokenizer.encode(STORY))])
    return (best[:, 1:] == best[-1, :-1]).float().mean(1)


def _table(name: str = "tales-gpt2", **options: Any) -> LensTable:
    model, tokenizer = _loaded(name)
    return logit_lens(model, tokenizer.encode(STORY), **options)


@checks("They sum to the stream that the final norm reads.")
def check_4_1() -> Tensor:
    """What the embedding and each attention and MLP write to the stream at the last position."""
    model, tokenizer = _loaded()
    whole = trace(model, tokenizer.encode(STORY))
    parts = [whole.embed, *(part for block in whole.blocks for part in (block.attn_out, block.mlp_out))]
    return torch.stack([part[0, -1] for part in parts])


@checks("The last MLP adds most, and nearly every part has a share.")
def check_4_2() -> Tensor:
    """What each of these parts adds to the logit of the output's token."""
    model, tokenizer = _loaded()
    tokens = tokenizer.encode(STORY)
    token = int(model(tokens)[0, -1].argmax())
    parts = check_4_1.__wrapped__()  # type: ignore[attr-defined]
    return _shares(model, tokens, parts)[:, token]


@checks("The MLP of block 0 moves any logit by more than this one: it chooses nothing.")
def check_4_3() -> Tensor:
    """The mean size of what each part adds to any token's logit: the null of exercise 2."""
    model, tokenizer = _loaded()
    parts = check_4_1.__wrapped__()  # type: ignore[attr-defined]
    return _shares(model, tokenizer.encode(STORY), parts).abs().mean(1)


def _shares(model: Model, tokens: Tensor, parts: Tensor) -> Tensor:
    """parts @ J, where J is the final norm with its divisor fixed, then W_U."""
    resid = trace(model, tokens).blocks[-1].resid_post[0, -1]
    divisor = (resid.var(correction=0) + model.ln_final_eps).sqrt()
    shares: Tensor = (parts - parts.mean(-1, keepdim=True)) / divisor * model.ln_final.w @ model.W_U
    return shares


@lru_cache(maxsize=1)
def _given() -> tuple[Model, Tensor, Tensor, Any]:
    model, tokenizer = _loaded()
    clean, corrupt = (tokenizer.encode(GAVE.format(name)) for name in ("Tom", "Sue"))
    return model, clean, corrupt, logit_difference(tokenizer.id(" Sue"), tokenizer.id(" Tom"))


@checks("The sign says whom the model names.")
def check_5_1() -> Tensor:
    """The logit of Sue less that of Tom, where Tom gives and where Sue gives."""
    model, clean, corrupt, metric = _given()
    return torch.cat([metric(model(text)[:, -1]) for text in (clean, corrupt)])


@checks("Heads 6.1 and 7.4 stand out. Without 6.1 the model names Tom. The spread of the others is the null.")
def check_5_2() -> Tensor:
    """The same on the clean text without each head of the last four layers."""
    model, clean, _, metric = _given()
    return _for_heads(model, clean, metric, lambda layer, head: zero(layer, "z", heads=head))


@checks("At the median nothing has changed: that is the null. Heads 6.1 and 7.4 turn the answer round.")
def check_5_3() -> Tensor:
    """The same on the corrupt text, with the z of one head at the last position from the clean run."""
    model, clean, corrupt, metric = _given()
    blocks = trace(model, clean).blocks
    found: Tensor = _for_heads(
        model, corrupt, metric, lambda layer, head: patch(blocks[layer], "z", heads=head, positions=-1)
    )
    return found


def _for_heads(model: Model, tokens: Tensor, metric: Any, edit: Callable[[int, int], Any]) -> Tensor:
    """The metric at the last position for each head of layers 4 to 7, under an edit of that head."""
    blocks = trace(model, tokens).blocks[4:]
    return torch.stack(
        [
            torch.cat(
                [
                    metric(decode(model, block.resid_pre, start=block.layer, edit=edit(block.layer, head))[:, -1])
                    for head in range(model.config.n_heads)
                ]
            )
            for block in blocks
        ]
    )


@checks("About a nat in both.")
def check_6_1() -> Tensor:
    """The mean KL(output ‖ row) after block 5, two blocks before the end: of GPT-2 and of GPT-Neo."""
    return torch.stack([_left("tales-gpt2", "final"), _left("tales-gpt-neo", "final")])


@checks("A fifth is left in GPT-2, a sixth in GPT-Neo: both gain, and by much the same share.")
def check_6_2() -> Tensor:
    """The same where the last block is part of the decoder."""
    found = torch.stack([_left("tales-gpt2", "block:1"), _left("tales-gpt-neo", "block:1")])
    return found


def _left(name: str, decoder: str) -> Tensor:
    model, tokenizer = _loaded(name)
    table = logit_lens(model, tokenizer.encode(LONG), decoder=decoder)
    kl: Tensor = table.kl_final[table.labels.index("5.resid_post")].mean()
    return kl


@checks("No other block leaves so little. But some help too: one block more is no proof by itself.")
def check_6_3() -> Tensor:
    """For GPT-Neo, the same with block n in the place of the last, n from 0 to 7: the null of exercise 2."""
    model, tokenizer = _loaded("tales-gpt-neo")
    whole = trace(model, tokenizer.encode(LONG))
    resid, output = whole.blocks[5].resid_post, whole.logits[0].log_softmax(-1)
    rows = [model.unembed(model.block(n, resid).resid_post)[0].log_softmax(-1) for n in range(model.n_layers)]
    found = torch.stack([(output.exp() * (output - row)).sum(-1).mean() for row in rows])
    return found


@checks("In nats. The early rows are far from what the model says.")
def check_7_1() -> Tensor:
    """The mean KL(output ‖ row) of each row of the logit lens."""
    return _table().kl_final.mean(1)


@checks("One linear map for each row finds more than none does.")
def check_7_2(lens: Any) -> Tensor:
    """The same with a learned lens."""
    return _table(transport=lens).kl_final.mean(1)


@checks("A row that is further away than this reads nothing of its place.")
def check_7_3() -> Tensor:
    """The mean KL(output ‖ output at the next position): how far apart two outputs of one text are."""
    model, tokenizer = _loaded()
    logprobs = model(tokenizer.encode(STORY))[0].log_softmax(-1)
    one, other = logprobs[:-1], logprobs[1:]
    return (one.exp() * (one - other)).sum(-1).mean()
