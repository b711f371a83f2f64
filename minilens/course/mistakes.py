"""The mistakes that people make in a transformer, each as a change of the solution's own lines.

A change that a family does not have the line for is no mistake of that family. Another mistake is another line of one
of the two tables.
"""

from typing import NamedTuple

from .mistakes_in_block import IN_BLOCK
from .mistakes_in_functions import IN_FUNCTIONS


class Mistake(NamedTuple):
    """One change: in the function, the method, or the value of `block` by this name, `right` becomes `wrong`."""

    where: str
    right: str
    wrong: str
    what: str  # one sentence for the student


MISTAKES = [
    Mistake(where, right, wrong, what)
    for (where, right), changes in (IN_FUNCTIONS | IN_BLOCK).items()
    for wrong, what in changes.items()
]
