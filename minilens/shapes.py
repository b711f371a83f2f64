"""The glossary of dimensions: every shape in minilens is spelled with these words.

batch  texts side by side                   pos         places in a text
head   attention heads of one layer         d_model     width of the residual stream
d_head width of one head                    d_mlp       width of the hidden layer of an MLP
query  the place that attends               key         the place attended to
d_vocab  number of tokens in the vocabulary

The tests check these shapes at run time (jaxtyping with beartype); the library does not.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Int[Tensor, "batch pos"]
Resid = Float[Tensor, "batch pos d_model"]
Heads = Float[Tensor, "batch head pos d_head"]
Grid = Float[Tensor, "batch head query key"]
Hidden = Float[Tensor, "batch pos d_mlp"]
Logits = Float[Tensor, "batch pos d_vocab"]
Mask = Bool[Tensor, "query key"]
