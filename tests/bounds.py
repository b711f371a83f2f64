"""How far two computations of one number may lie apart that take its sums in another order.

What is equal by construction, the same operation on the same operands, is compared bit for bit. What is equal only in
mathematics (products of another shape, layout, alignment or number of threads) is held to this bound.
"""

import torch
from torch import Tensor


def gamma(n: int, dtype: torch.dtype) -> float:
    """A sum of n products, in any order, misses the exact one by this part of the sum of their absolute values.

    Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1: n u / (1 - n u), u half of eps.
    """
    u = torch.finfo(dtype).eps / 2
    return n * u / (1 - n * u)


def near(one: Tensor, other: Tensor, n: int, sums: int) -> bool:
    """Whether two results of `sums` sums in a row, the longest of n products, differ by no more than their order makes.

    Two orders of a sum lie two gammas apart, and to first order the errors of sums in a row add up, relative to the
    largest number.
    """
    size = max(1.0, other.abs().masked_fill(other.isinf(), 0).max().item())
    return (one - other).masked_fill(one == other, 0).abs().max().item() <= 2 * sums * gamma(n, other.dtype) * size
