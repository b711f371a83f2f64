"""The colours that terminal, page and figure share."""

from math import isnan

# Anchors of cividis, a colour scale made to look alike with and without colour blindness (Nunez, Anderton and Renslow
# 2018, doi 10.1371/journal.pone.0199239).
CIVIDIS = ((0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56))

# Orange and sky blue of Okabe and Ito's palette (2008, jfly.uni-koeln.de/color), which look different with and without
# colour blindness. Black can be read on both, and on all between them and the neutral grey.
AWAY, NEUTRAL, TOWARDS = (230, 159, 0), (244, 244, 244), (86, 180, 233)

RGB = tuple[int, int, int]


def of_share(share: float) -> RGB:
    """The colour of a share, 0 to 1, on CIVIDIS; neutral where there is no number."""
    if isnan(share):
        return NEUTRAL
    at = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    low = min(int(at), len(CIVIDIS) - 2)
    return _between(CIVIDIS[low], CIVIDIS[low + 1], at - low)


def of_sign(value: float) -> RGB:
    """The colour of a number from -1, AWAY, to 1, TOWARDS; neutral where there is no number."""
    if isnan(value):
        return NEUTRAL
    return _between(NEUTRAL, TOWARDS if value > 0 else AWAY, min(abs(value), 1.0))


def _between(start: RGB, end: RGB, part: float) -> RGB:
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(start, end, strict=True))
    return red, green, blue
