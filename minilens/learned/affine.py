"""A lens with weights of its own: the residual h of each row is mapped, and the model decodes what comes out.

    z = h A + b        then the model's own final norm and W_U

However A and b were found, this is the value that holds them. A is kept as the matrix by which it departs from the
identity, turned as torch's Linear has it: weight = (A - I)^T, so that z = h + h @ weight.T + b. That is the residual
form of tuned-lens (Belrose et al. 2023, arXiv 2303.08112).

A learned lens gives the best guess of the output from a residual. That is not what the layer "thinks".
"""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import quoted
from ..checkpoint.reading import opened, sha256_of
from ..checkpoint.settings import CheckpointError, Settings, read_json, shown, why
from ..checkpoint.tensors import DTYPES, read_tensors
from ..corpus.shared_files import digest, locked
from ..files import check_new, replacing
from ..lens import EMBED, NORMS, Lens, label
from ..model import Model
from ..ops import linear, upcast
from ..shapes import Resid, shapes_of
from ..traces import ROW_SITES, Site
from ..version import __version__

KINDS = ("mean", "affine", "tuned", "jacobian")
SCHEMA = 1  # of lens.json
WEIGHTS, RECORD = "lens.safetensors", "lens.json"


class RowMap(NamedTuple):
    """What one row's residual goes through: h -> h + h @ weight.T + bias."""

    weight: Float[Tensor, "d_out d_in"]  # (A - I)^T; both axes are d_model
    bias: Float[Tensor, "d_model"]

    @classmethod
    def of(cls, A: Float[Tensor, "d_in d_out"], b: Float[Tensor, "d_model"]) -> "RowMap":
        """The map h -> h A + b."""
        return cls((A - torch.eye(len(A)).to(A)).mT.contiguous(), b)

    @property
    def A(self) -> Float[Tensor, "d_in d_out"]:
        return self.weight.mT + torch.eye(len(self.weight)).to(self.weight)

    def to(self, dtype: torch.dtype) -> "RowMap":
        return RowMap(self.weight.to(dtype), self.bias.to(dtype))

    def __call__(self, resid: Resid) -> Resid:
        """The mapped residual, in the dtype of the one given, computed in float32 at least."""
        h = upcast(resid)
        return (h + linear(h, self.weight.to(h).mT, self.bias.to(h))).to(resid.dtype)

    def __repr__(self) -> str:
        return shapes_of(self)


@dataclass(frozen=True)
class Subject:
    """The model that a lens is for, by its sizes; None for what a published file does not say."""

    family: str | None
    d_model: int
    n_layers: int | None
    d_vocab: int | None
    digest: str | None = None  # sha256 of its config and its weights in float32

    @classmethod
    def of(cls, model: Model) -> "Subject":
        """A model in half precision has no digest: its weights were rounded."""
        d_model, d_vocab = model.W_U.shape
        return cls(model.family, d_model, model.n_layers, d_vocab, _digest(model))

    def departures(self, other: "Subject") -> list[str]:
        """In what another model differs, where both say it."""
        pairs = ((name, value, getattr(other, name)) for name, value in vars(self).items())
        differ = [(name, one, two) for name, one, two in pairs if None not in (one, two) and one != two]
        return ["other weights" if name == "digest" else f"{name} {one} and not {two}" for name, one, two in differ]


_digests: "WeakKeyDictionary[Model, str]" = WeakKeyDictionary()  # a model never changes, and is read once


def _digest(model: Model) -> str | None:
    if model.W_U.dtype not in (torch.float32, torch.float64):
        return None
    if model not in _digests:
        _digests[model] = digest(model, torch.float32)
    return _digests[model]


def unembed_hash(model: Model) -> str:
    """What tuned-lens knows a model's W_U by: sha256 of numpy's abbreviated print, which few of its numbers are in."""
    W_U = model.W_U.mT.detach().cpu()
    text = np.array_str((W_U if W_U.dtype != torch.bfloat16 else W_U.float()).numpy(), precision=1)
    return sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class LearnedLens:
    """The maps for the rows of one model: a `transport` for `Lens`, `lens_rows`, `logit_lens` and the corpus.

    kind: one of KINDS, which says how the maps were found.
    maps: of each row's site; the first row is (-1, "embed"). The last row has none: it is the model's own.
    model: whose rows they are.
    decoder, norm: as in `Lens`; the maps are for these alone.
    made: how they were found, for lens.json.
    name: what views call it; by default its kind.

    Called with a site and a residual, it gives the mapped residual. Raises ValueError for a row without a map and for
    another width; `check_fits` raises it for another model or other options. Raises ValueError also for maps of other
    shapes than [d_model, d_model] and [d_model], or with numbers that are not finite.
    """

    kind: str
    maps: Mapping[Site, RowMap]
    model: Subject
    decoder: str = "final"
    norm: str = "final"
    made: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no learned lens of the kind {quoted(self.kind)}; there are {', '.join(KINDS)}")
        Lens(self.decoder, self.norm)  # raises ValueError for options that no lens has
        if not self.maps:
            raise ValueError("a learned lens needs a map for at least one row")
        d = self.model.d_model
        for site, of_row in self.maps.items():
            if site != EMBED and (site.layer < 0 or site.name not in ROW_SITES):
                raise ValueError(f"the lens has no row {site.layer}.{site.name}")
            for name, tensor, shape in (("weight", of_row.weight, [d, d]), ("bias", of_row.bias, [d])):
                if list(tensor.shape) != shape:
                    raise ValueError(
                        f"the {name} of the map for {label(site)} must have the shape {shape}; it has "
                        f"{list(tensor.shape)}"
                    )
                if not tensor.isfinite().all():
                    raise ValueError(f"the {name} of the map for {label(site)} holds a NaN or an infinity")
        if not self.name:
            object.__setattr__(self, "name", self.kind)

    @property
    def options(self) -> dict[str, Any]:
        """Those of the `Lens` that reads through these maps, with a row for each."""
        sites = tuple(name for name in ROW_SITES if any(site.name == name for site in self.maps))
        return {"decoder": self.decoder, "norm": self.norm, "sites": sites, "transport": self}

    def __call__(self, site: Site, resid: Resid) -> Resid:
        of_row = self.maps.get(site)
        if of_row is None:
            raise ValueError(self._no_map(site))
        if resid.shape[-1] != self.model.d_model:
            raise ValueError(
                f"the lens {self.name} is for residuals of width {self.model.d_model}; got {resid.shape[-1]}"
            )
        return of_row(resid)

    def check_fits(self, lens: Lens, model: Model, sites: Sequence[Site]) -> None:
        """Raise ValueError unless these maps are for that model, for the options of that lens and for all its rows.

        sites: of the rows that are transported. The weights are compared where the model has them in float32 or wider.
        """
        if others := self.model.departures(Subject.of(model)):
            raise ValueError(f"the lens {self.name} is for another model: {', '.join(others)}")
        if self.made.get("unembed_hash") not in (None, unembed_hash(model)):
            warnings.warn(
                f"the lens {self.name} may be for another model: its unembed_hash is not that of this one's W_U",
                stacklevel=4,
            )
        for option in ("decoder", "norm"):
            ours, theirs = getattr(self, option), getattr(lens, option)
            if ours != theirs:
                raise ValueError(f'the lens {self.name} is for the {option} "{ours}"; got "{theirs}"')
        if lens.centre:
            raise ValueError(f"the lens {self.name} maps residuals as they are: centre must be False")
        for site in sites:
            if site not in self.maps:
                raise ValueError(self._no_map(site))

    def _no_map(self, site: Site) -> str:
        return (
            f"the lens {self.name} has no map for the row {label(site)}; it has them for "
            f"{', '.join(map(label, self.maps))}"
        )

    def __repr__(self) -> str:
        model = f"{self.model.family or 'a model'} of d_model {self.model.d_model}"
        rows = ", ".join(map(label, self.maps))
        rows = rows if len(rows) <= 80 else f"{rows[:80]}…"
        return f"LearnedLens {self.name}: {self.kind}, for {model}; {len(self.maps)} rows: {rows}"

    def save(self, folder: Path, *, dtype: torch.dtype = torch.float32, overwrite: bool = False) -> None:
        """Write lens.safetensors and lens.json, which `read_lens` reads, into a folder, which is made.

        dtype: of the maps there. Raises ValueError where a file cannot be written, or is another one that may not be
        replaced.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{folder} cannot be made: {error.strerror}") from error
        tensors = {
            f"{label(site)}.{name}": tensor.detach().cpu().to(dtype).contiguous()
            for site, of_row in self.maps.items()
            for name, tensor in of_row._asdict().items()
        }
        content = safetensors.torch.save(tensors)
        record = {
            "schema": SCHEMA,
            "minilens": __version__,
            "kind": self.kind,
            "model": vars(self.model),
            "decoder": self.decoder,
            "norm": self.norm,
            "sites": [label(site) for site in self.maps],
            "weights": sha256(content).hexdigest(),  # so that a file of another lens beside it is seen
            "made": dict(self.made),
        }
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        files = {folder / WEIGHTS: content, folder / RECORD: text.encode()}
        with locked(folder / RECORD, wait=True):  # others of one fit write the same files just now
            others = {path: new for path, new in files.items() if not _holds(path, new)}
            for path in others:
                check_new(path, overwrite)
            for path, new_content in others.items():
                with replacing(path, overwrite=overwrite) as new:
                    new.write_bytes(new_content)


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file is there and has this content."""
    try:
        with opened(path) as file:
            return file.read(len(content) + 1) == content
    except OSError:
        return False


def read_lens(folder: Path) -> LearnedLens:
    """The lens in a folder, as `save` wrote it, in float32 at least.

    Raises CheckpointError for files that are missing, broken, or not of one lens.
    """
    path, weights = folder / RECORD, folder / WEIGHTS
    for needed in (path, weights):
        if not needed.is_file():
            raise CheckpointError(f"{folder} has no {needed.name}, so it is not a lens that minilens wrote")
    settings = Settings(read_json(path), path)
    if (schema := settings.integer("schema")) != SCHEMA:
        raise settings.refusal("schema", schema, f"{SCHEMA} only")
    kind = settings.choice("kind", {name: name for name in KINDS})
    decoder, norm = settings.text("decoder") or "", settings.choice("norm", {name: name for name in NORMS})
    made = settings.take("made", {})
    if not isinstance(made, dict):
        raise settings.refusal("made", made, "an object")
    sites = [_site(settings, name) for name in _list(settings, "sites")]
    model = _subject(settings)
    tensors = read_tensors(weights)
    try:
        with opened(weights) as file:
            found = sha256_of(file)
    except OSError as error:
        raise CheckpointError(f"{weights} cannot be read: {why(weights, error)}") from error
    if found != settings.take("weights"):
        raise CheckpointError(f"{weights} is not the file that {path} is about: fit the lens again, or copy both files")
    names = {f"{label(site)}.{part}" for site in sites for part in RowMap._fields}
    if others := sorted(names ^ tensors.keys()):
        what = "lacks" if others[0] in names else "has no place for"
        raise CheckpointError(f"{weights} {what} the tensor {shown(others[0])}")
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise CheckpointError(f'{weights}: the tensor "{name}" holds {tensor.dtype}, and maps are of real numbers')
    maps = {site: RowMap(*(upcast(tensors[f"{label(site)}.{part}"]) for part in RowMap._fields)) for site in sites}
    try:
        return LearnedLens(kind, maps, model, decoder, norm, made, folder.name)
    except ValueError as error:
        raise CheckpointError(f"{folder} holds no lens: {error}") from error


def _list(settings: Settings, key: str) -> list[Any]:
    value = settings.take(key)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value) or len({*value}) < len(value):
        raise settings.refusal(key, value, "a list of names, each once")
    return value


def _site(settings: Settings, name: str) -> Site:
    """The site of a row by its label."""
    if name == "embed":
        return EMBED
    if not re.fullmatch(rf"[0-9]{{1,4}}\.({'|'.join(ROW_SITES)})", name):
        raise settings.refusal("sites", name, 'the names of rows, such as "embed" and "3.resid_post"')
    layer, _, site = name.partition(".")
    return Site(int(layer), site)


def _subject(settings: Settings) -> Subject:
    values = settings.take("model")
    if not isinstance(values, dict):
        raise settings.refusal("model", values, "an object")
    of_model = Settings(values, settings.path)

    def size(key: str) -> int | None:
        return None if values.get(key) is None else of_model.integer(key)

    family, identity = of_model.text("family"), of_model.text("digest")
    return Subject(family, of_model.integer("d_model"), size("n_layers"), size("d_vocab"), identity)
