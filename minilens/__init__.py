"""GPT-2, GPT-Neo and CTRL line by line, with the logit lens built in: every intermediate value, no hooks."""

from .attribution import Attribution, attribute
from .checkpoint import CheckpointError
from .edits import add, at, mean, patch, then, towards, zero
from .geometry import Geometry, geometry
from .heads import HeadScores, head_scores
from .hub import load
from .lens import LensRow, lens_rows, logit_lens, logit_lenses
from .patching import Patching, log_probability, logit_difference, patching
from .run import decode, run, trace
from .table import LensTable
from .trace import SITES, BlockTrace, Edit, Model, Site, Trace, untouched
from .verify import Report, verify

__version__ = "0.1.0"

__all__ = [
    "SITES",
    "Attribution",
    "BlockTrace",
    "CheckpointError",
    "Edit",
    "Geometry",
    "HeadScores",
    "LensRow",
    "LensTable",
    "Model",
    "Patching",
    "Report",
    "Site",
    "Trace",
    "add",
    "at",
    "attribute",
    "decode",
    "geometry",
    "head_scores",
    "lens_rows",
    "load",
    "log_probability",
    "logit_difference",
    "logit_lens",
    "logit_lenses",
    "mean",
    "patch",
    "patching",
    "run",
    "then",
    "towards",
    "trace",
    "untouched",
    "verify",
    "zero",
]
