"""What others have published of models on the Hub, for a machine that can download them.

Not here: texts of other searches than the greedy one, and the perplexities in salesforce/ctrl, whose checkpoint is not
certain.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checkpoint.tokenizer import Tokenizer
from ..model import Model, decode, trace


class Published(NamedTuple):
    """An output that others published: the prompt, text or token ids, and what `measure` gave them."""

    repo: str
    measure: Callable[[Model, Tensor, int], Any]
    prompt: str | list[int]
    expected: str | list[int] | float
    length: int = 20  # of a greedy continuation, prompt included; 20 was the default of transformers' `generate`
    tolerance: float = 0.0


def greedy(model: Model, tokens: Tensor, length: int) -> list[int]:
    """The prompt, continued with the best next token again and again."""
    while tokens.shape[1] < length:
        tokens = torch.cat([tokens, logits(model, tokens)[:, -1:].argmax(-1)], dim=1)
    return tokens[0].tolist()


def loss(model: Model, tokens: Tensor, _: int) -> float:
    """Cross-entropy in nats, the mean over all tokens but the first."""
    return F.cross_entropy(logits(model, tokens)[0, :-1], tokens[0, 1:]).item()


def shape(model: Model, tokens: Tensor, _: int) -> list[int]:
    """The shape of the logits."""
    return list(logits(model, tokens).shape)


def window(model: Model, tokens: Tensor, _: int) -> list[int]:
    """The keys to which query 5 of layer 1 gives any weight, in one head or another."""
    pattern = trace(model, tokens).blocks[1].pattern
    return pattern[0, :, 5].ne(0).any(0).nonzero().flatten().tolist()


def logits(model: Model, tokens: Tensor) -> Tensor:
    return decode(model, model.embed(tokens), start=0)


TINY_CTRL, CTRL_REPO = "sshleifer/tiny-ctrl", "Salesforce/ctrl"
GPT2_REPO, NEO_125M, NEO_1B = "openai-community/gpt2", "EleutherAI/gpt-neo-125m", "EleutherAI/gpt-neo-1.3B"
HELLO = "<|endoftext|>Hello world!"

# fmt: off
PUBLISHED = [
    # transformers, tests/pipelines/test_pipelines_text_generation.py, test_small_model_pt, and the ids of its text.
    Published(TINY_CTRL, greedy, [93, 8, 5, 2549],
              [93, 8, 5, 2549, 215827, 215827, 115731, 115731, 115731, 210812, 210812, 114378, 114378, 41539, 41539,
               64579, 195172, 195172, 66462, 66462]),
    Published(TINY_CTRL, greedy, "This is a test",
              "This is a test ☃ ☃ segmental segmental segmental 议议eski eski flutter flutter Lacy oscope. oscope. "
              "FiliFili@@"),
    # transformers, tests/models/gpt_neo/test_modeling_gpt_neo.py, test_local_attn_probs: a window of 4.
    Published("valhalla/gpt-neo-random-tiny", window, [0, 1, 2, 3, 4, 5, 6, 7], [2, 3, 4, 5]),
    # TransformerLens, tests/acceptance/test_hooked_transformer.py, test_model, which lets a smaller loss pass as well.
    Published("roneneldan/TinyStories-33M", loss, HELLO, 12.203617095947266, tolerance=4e-5),
    Published(NEO_125M, loss, HELLO, 4.900552272796631, tolerance=4e-5),
    Published(GPT2_REPO, loss, HELLO, 5.331855773925781, tolerance=4e-5),
    # transformers, tests/models/gpt2/test_modeling_gpt2.py: test_lm_generate_gpt2, also with reorder_and_upcast_attn;
    Published(GPT2_REPO, greedy, [464, 3290],
              [464, 3290, 373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 2688, 290, 2688, 27262, 13, 198, 198, 464,
               3290]),
    # test_batch_generation, where 4 of the 20 tokens of the shorter text are padding;
    Published(GPT2_REPO, greedy, "Hello, my dog is a little",
              "Hello, my dog is a little bit of a mess. I'm not sure if he's going"),
    Published(GPT2_REPO, greedy, "Today, I", "Today, I'm going to be doing a lot of research on this. I", length=16),
    # test_flash_attn_2_generate_padding_left: 20 new tokens, in float16 on a GPU; other GPUs differ in the first text.
    Published(GPT2_REPO, greedy, "hi", "hi, who was born in the city of Kolkata, was a member of the Kolkata",
              length=21),
    Published(GPT2_REPO, greedy, "Hello this is a very long sentence",
              "Hello this is a very long sentence. I'm sorry. I'm sorry. I'm sorry. I'm sorry. I'm sorry", length=27),
    # transformers, tests/models/gpt_neo/test_modeling_gpt_neo.py: test_lm_generate_gpt_neo and test_batch_generation.
    Published(NEO_1B, greedy, [464, 3290],
              [464, 3290, 12, 3380, 4866, 286, 262, 1492, 11, 543, 318, 257, 4947, 286, 27126, 416, 262, 2739, 1772,
               11]),
    Published(NEO_1B, greedy, "Hello, my dog is a little",
              "Hello, my dog is a little bit of a kitty. She is a very sweet and loving"),
    Published(NEO_1B, greedy, "Today, I am", "Today, I am going to talk about the best way to get a job in the",
              length=17),
    # transformers, tests/models/ctrl/test_modeling_ctrl.py, test_lm_generate_ctrl.
    Published(CTRL_REPO, greedy, [11859, 0, 1611, 8],
              [11859, 0, 1611, 8, 5, 150, 26449, 2, 19, 348, 469, 3, 2595, 48, 20740, 246533, 246533, 19, 30, 5]),
    # transformers, the example in the docstring of CTRLLMHeadModel.forward, which rounds the loss to two digits.
    Published(CTRL_REPO, greedy, "Wikipedia The llama is",
              "Wikipedia The llama is a member of the family Bovidae. It is native to the Andes of Peru,"),
    Published(CTRL_REPO, loss, "Wikipedia The llama is", 9.21, tolerance=0.005),
    Published(CTRL_REPO, shape, "Wikipedia The llama is", [1, 5, 246534]),
]


def check(each: Published, model: Model, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The measured value beside the published one: "OK" or "DIFF". Raises ValueError for a text without a tokenizer."""
    if not isinstance(each.prompt, str):
        tokens = torch.tensor([each.prompt])
    elif tokenizer is None:
        raise ValueError(f"{each.repo} has no tokenizer files, so it cannot read {each.prompt!r}")
    else:
        tokens = tokenizer.encode(each.prompt)
    found = each.measure(model, tokens, each.length)
    if isinstance(each.expected, str) and tokenizer is not None:
        found = tokenizer.decode(found)
    holds = abs(found - each.expected) <= each.tolerance if each.tolerance else found == each.expected
    record = dict(model=each.repo, measure=each.measure.__name__, prompt=each.prompt)
    return record | dict(status="OK" if holds else "DIFF", published=each.expected, found=found)
