"""How numbers may differ that are equal in mathematics only, and a processor that makes them differ.

What is equal by construction, the same operation on the same operands, is compared bit for bit. Products of another
shape, layout, alignment or number of threads are held to the bound of `near`: each processor rounds them in its way.
"""

import math
import zlib
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm}


def gamma(n: int, dtype: torch.dtype) -> float:
    """A sum of n products, in any order, misses the exact one by this part of the sum of their absolute values.

    Roundings are as often up as down, so n of them add up as sqrt(n) does: 4 sqrt(n) u, u half of eps (Higham and Mary
    2019, "A New Approach to Probabilistic Rounding Error Analysis", section 2). The worst case would be n u.
    """
    return 4 * math.sqrt(n) * torch.finfo(dtype).eps / 2


def near(one: Tensor, other: Tensor, n: int, sums: int) -> bool:
    """Whether two results of `sums` sums in a row, the longest of n products, differ by no more than their order makes.

    Two orders lie up to two gammas apart. To first order sums in a row have the roundings of one as long as all of
    them, relative to the largest number.
    """
    size = max(1.0, other.abs().masked_fill(other.isinf(), 0).max().item())
    return (one - other).masked_fill(one == other, 0).abs().max().item() <= 2 * gamma(n * sums, other.dtype) * size


class OtherRounding(TorchDispatchMode):
    """A processor that nobody has: it rounds products of matrices by the shapes, layouts and alignments of operands.

    The same operation on the same operands gives the same bits, and a row does not depend on other rows, as anywhere.
    Else a number that is not whole is moved by up to two halves of eps, more or less. Other threads do not see it.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS and out.device.type == "cpu" and out.dtype in (torch.float32, torch.float64):
            operands = [each for each in (*args, out) if isinstance(each, Tensor)]
            key = [str(func), self.seed, *((each.shape, each.stride(), each.data_ptr() % 64) for each in operands)]
            drawn = torch.Generator("cpu").manual_seed(zlib.crc32(repr(key).encode()))
            moves = torch.randint(-2, 3, out.shape, generator=drawn, device="cpu") * torch.finfo(out.dtype).eps / 2
            is_whole = ~out.isfinite() | (out == out.round())
            out.copy_(torch.where(is_whole, out, out * (1 + moves.to(out.dtype))))
        return out
