"""The lens of a name: a folder, one that comes with a bundled model, or one that others have published."""

import os
from pathlib import Path

from ..checkpoint.hub import bundled
from .affine import LearnedLens, read_lens
from .published import is_published, load_published


def load_lens(name: str | os.PathLike[str], *, revision: str | None = None) -> LearnedLens:
    """A learned lens: by the path of its folder, as MODEL/NAME, such as "tales-gpt2/affine", or a published one.

    Published are tuned:MODEL and jacobian:MODEL, such as "tuned:gpt2", from the Hugging Face Hub; or in place of MODEL
    the path of a folder of tuned-lens, or of a file of the Jacobian lens.
    revision: of a published lens; branch, tag or commit of the repository.

    Raises ValueError for a name that leads nowhere, and CheckpointError for files that are broken or of no lens.
    """
    name = os.fspath(name)
    folder = Path(os.path.expanduser(name))
    is_folder = os.path.isdir(folder)  # unlike Path.is_dir, it takes any text
    if is_published(name) and not is_folder:
        return load_published(name, revision)
    if revision is not None:
        raise ValueError(f"only a published lens has a revision, and {name!r} is none; leave out {revision!r}")
    if not is_folder:
        model, _, lens = name.rpartition("/")
        known = bundled_lenses(model)
        if lens not in known:
            every = ", ".join(f"{model}/{each}" for model in bundled() for each in bundled_lenses(model))
            raise ValueError(f"there is no lens {name!r}: it is not a folder, and not bundled ({every or 'none is'})")
        folder = known[lens]
    return read_lens(folder)


def find_lens(name: str, model: str) -> LearnedLens:
    """The lens that comes with a model under this name, or else that of `load_lens`. model: by its own name."""
    return load_lens(f"{model}/{name}" if name in bundled_lenses(model) else name)


def bundled_lenses(model: str) -> dict[str, Path]:
    """The lenses that come with a bundled model, by their names: each a folder in the model's own."""
    folder = bundled().get(model)
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/lens.json"))} if folder else {}
