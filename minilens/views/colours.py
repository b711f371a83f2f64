"""The colours that terminal, page and figure share."""

# Anchors of cividis, a colour scale made to look alike with and without colour blindness (Nunez, Anderton and Renslow
# 2018, doi 10.1371/journal.pone.0199239).
CIVIDIS = ((0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56))

# Orange and sky blue of Okabe and Ito's palette (2008, jfly.uni-koeln.de/color), which look different with and without
# colour blindness. Black can be read on both, and on all between them and the neutral grey.
AWAY, NEUTRAL, TOWARDS = (230, 159, 0), (244, 244, 244), (86, 180, 233)
