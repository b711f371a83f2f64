"""GPT-2, GPT-Neo and CTRL line by line, with the logit lens built in: every intermediate value, no hooks.

To read the package, start with gpt2.py, then traces.py, model.py and lens.py.
"""

import gc
import os
import signal
import sys
from typing import Any

_is_command = os.path.basename(sys.argv[0]) in ("minilens", "minilens.exe") or (
    sys.argv[0] == "-m" and "minilens" in sys.orig_argv
)
if _is_command:  # while torch is imported; what follows is in __main__.py
    gc.disable()  # it would look through all of torch's objects several times, for half a second, and free nothing
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C says nothing

from .checkpoint.settings import CheckpointError
from .checkpoint.tokenizer import Tokenizer
from .checks.verify import Report, verify
from .edits import add, at, mean, patch, then, towards, zero
from .instruments.ablation import Ablation, ablation
from .instruments.attribution import Attribution, attribute
from .instruments.attributions import Attributions, attributions
from .instruments.circuits import Circuit, HeadWeights, copying_scores, head_weights, ov_circuit, qk_circuit
from .instruments.composition import Composition, composition
from .instruments.directions import VectorTokens, vector_tokens
from .instruments.generation import GenerationStep, generate, generate_steps
from .instruments.geometry import Geometry, geometry
from .instruments.gradients import attribution_patching, gradient_trace, integrated_gradients
from .instruments.heads import HeadScores, head_scores
from .instruments.metrics import kl_from, log_probability, logit_difference, named_metric
from .instruments.parts import Parts, parts
from .instruments.patching import Patching, patching
from .instruments.paths import path_patching
from .learned.affine import LearnedLens
from .learned.coordinates import clamp, coordinates, swap
from .learned.fit import Recipe, fit
from .learned.jacobian_fit import fit_jacobian
from .learned.named import load_lens
from .lens import Lens, LensRow, lens_rows
from .loading import load
from .model import Model, decode, run, trace
from .study.life import Life, life
from .table import LensTable, logit_lens, logit_lenses
from .traces import SITES, BlockTrace, Edit, Site, Trace, untouched
from .version import __version__
from .views import VIEWS, view
from .views.notebook import show_in_notebooks

show_in_notebooks()

__all__ = [
    "SITES",
    "Ablation",
    "Attribution",
    "Attributions",
    "BlockTrace",
    "CheckpointError",
    "Circuit",
    "Composition",
    "Edit",
    "GenerationStep",
    "Geometry",
    "HeadScores",
    "HeadWeights",
    "LearnedLens",
    "Lens",
    "LensRow",
    "LensTable",
    "Life",
    "Model",
    "Parts",
    "Patching",
    "Recipe",
    "Report",
    "Site",
    "Tokenizer",
    "Trace",
    "VectorTokens",
    "__version__",
    "ablation",
    "add",
    "at",
    "attribute",
    "attribution_patching",
    "attributions",
    "clamp",
    "composition",
    "coordinates",
    "copying_scores",
    "decode",
    "fit",
    "fit_jacobian",
    "generate",
    "generate_steps",
    "geometry",
    "gradient_trace",
    "head_scores",
    "head_weights",
    "integrated_gradients",
    "kl_from",
    "lens_rows",
    "life",
    "load",
    "load_lens",
    "log_probability",
    "logit_difference",
    "logit_lens",
    "logit_lenses",
    "mean",
    "named_metric",
    "ov_circuit",
    "parts",
    "patch",
    "patching",
    "path_patching",
    "qk_circuit",
    "run",
    "swap",
    "then",
    "towards",
    "trace",
    "untouched",
    "vector_tokens",
    "verify",
    "zero",
]


def __getattr__(name: str) -> Any:
    """The views that users call, such as lens_page: each is imported when it is asked for."""
    return view(name)


def __dir__() -> list[str]:
    return [*globals(), *VIEWS]
