"""What suits a device: how much it takes at once, and the precision of its large products."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class AtOnce(NamedTuple):
    """How much a device takes at once. Numbers of another size are the same within rounding."""

    width: int | None  # tokens of the vocabulary in a tile; None: all of them
    logits: int  # in a tile, of all rows and some positions
    whole: int  # logits of the last row in each of two buffers, which hold them for the whole vocabulary
    tokens: int  # of documents that a model reads together


CPU = AtOnce(width=576, logits=600_000, whole=2**23, tokens=2**10)  # a tile of 2.4 MB in float32, which caches hold
SHARE = 64  # of a GPU's memory for one tile in float32; up to eight are there at a time
PER_TOKEN = 2**22  # bytes of a GPU's memory for each token of a batch


def at_once(device: torch.device) -> AtOnce:
    """The sizes for a device. A GPU waits for each launch, so it gets few large steps, by the size of its memory."""
    if device.type != "cuda":
        return CPU if device.type == "cpu" else CPU._replace(logits=2**26)
    memory = torch.cuda.get_device_properties(device).total_memory
    logits = memory // (4 * SHARE)
    return AtOnce(None, logits, logits, 1 << max(10, (memory // PER_TOKEN).bit_length() - 1))


PRECISIONS = ("full", "bfloat16", "emulated")


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ValueError for no precision, and for bfloat16 on a device that would only emulate it.

    "full": products in float32 at least. "bfloat16": operands are rounded to bfloat16, and summed in float32.
    "emulated": the same on any device, at the speed of "full".
    """
    if precision not in PRECISIONS:
        raise ValueError(f"there is no precision {precision!r:.80}; there are {', '.join(PRECISIONS)}")
    if precision == "bfloat16" and not has_bfloat16(device):
        raise ValueError(
            f'the precision "bfloat16" gains nothing on this {device.type}, which would emulate it: leave it out, or '
            'take "emulated" for the same numbers'
        )


def has_bfloat16(device: torch.device) -> bool:
    """Whether there are units that take such products: AVX512-BF16 or AMX, or the tensor cores since Ampere.

    A CPU's library may be told to leave them alone, as by ONEDNN_MAX_CPU_ISA. So a product shows whether it rounds.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    ones = torch.full((64, 64), 1 + 2**-10, dtype=torch.float32, device="cpu")  # in bfloat16 they are 1
    with products("bfloat16"):
        return bool(((ones @ ones) == 64).all())


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Within, products of float32 are taken as quickly as numbers of bfloat16 allow, if that is the precision.

    torch rounds the operands itself, which changes none that is rounded already; on a GPU to TF32, which is finer. The
    setting is the whole process's, so another thread's products of this moment are rounded, too.
    """
    if precision != "bfloat16":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
