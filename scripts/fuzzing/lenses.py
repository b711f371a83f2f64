"""Published lenses, good and spoiled: a folder of tuned-lens, a file of the Jacobian lens; and a second reading."""

import contextlib
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from minilens.learned.affine import LearnedLens
from minilens.learned.published import read_jacobian, read_tuned
from minilens.lens import EMBED
from minilens.traces import Site

from .by_hand import CALLS, bad_json, odd_tensors, programs, special
from .drawn import STEPS, WRONG, flipped, shuffled, twisted
from .good import Content, Files, encoded, torch_save, unzipped, zipped
from .second import second_json, second_pickle

Named = Iterator[tuple[str, Files]]
D, LAYERS = 8, 3
CONFIG = dict(
    **dict(base_model_name_or_path="x", d_model=D, num_hidden_layers=LAYERS, bias=True),
    **dict(base_model_revision=None, unembed_hash="0" * 64, lens_type="linear_tuned_lens"),
)
FILES = {"tuned": "params.pt", "jacobian": "lens.pt"}


@cache
def whole(kind: str) -> dict[Any, Any]:
    """What the file of a good lens holds."""
    generator = torch.Generator().manual_seed(2020)
    if kind == "tuned":
        shapes = {f"{n}.{part}": size for n in range(LAYERS) for part, size in (("weight", (D, D)), ("bias", (D,)))}
        return {name: torch.randn(size, generator=generator) for name, size in shapes.items()}
    J = {n: torch.randn(D, D, generator=generator).half() for n in range(LAYERS)}
    metadata = {"corpus": "x", "rate": 0.5, "of": None, "raw": [True, {"n": -1}]}
    return {"J": J, "n_prompts": 9, "source_layers": [*J], "d_model": D, "metadata": metadata}


@cache
def good_lens(kind: str, form: str = "zip") -> dict[str, bytes]:
    config = {"config.json": encoded(CONFIG)} if kind == "tuned" else {}
    return {FILES[kind]: torch_save(whole(kind), form), **config}


def read(kind: str, folder: Path) -> LearnedLens:
    return read_tuned(folder) if kind == "tuned" else read_jacobian(folder / FILES[kind])


def hand(kind: str) -> Named:
    file, good = FILES[kind], whole(kind)
    _, storages = unzipped(good_lens(kind)[file])
    found: dict[str, Content] = dict(special())
    found |= {label: zipped(b"\x80\x02" + steps, storages) for label, steps in programs()}
    tensors: dict[Any, Any] = good if kind == "tuned" else good["J"]
    first = next(iter(tensors))

    def with_(value: Any) -> dict[Any, Any]:
        """The good file with another first tensor."""
        changed = {**tensors, first: value}
        return changed if kind == "tuned" else {**good, "J": changed}

    for form in ("zip", "legacy"):
        for label, call in CALLS.items():
            found[f"{label}, {form}"] = torch_save(with_(call), form)
        right = torch.ones(D, D)  # in shape; those of odd_tensors are larger
        odd = dict(
            odd_tensors(torch.ones(300, D)), right=right, diagonal=right.half().tril().T, rows=right[:1].expand(D, D)
        )
        for label, value in odd.items():
            with contextlib.suppress(Exception):  # not every one can be saved in the older form
                found[f"{label}, {form}"] = torch_save(with_(value), form)
    if kind == "jacobian":
        sums = {n: 9 * matrix.float() for n, matrix in good["J"].items()}
        one = torch.zeros(1)
        deep: list[Any] = []
        for _ in range(200):
            deep = [deep]
        for label, value in {
            "sums": {"jacobian_sum": sums, "n_done": 9, "next_idx": 12, "target_layer": LAYERS},
            "sums of nothing": {"jacobian_sum": sums, "n_done": 0},
            "sums of 2**400": {"jacobian_sum": sums, "n_done": 2**400},
            "both": {**good, "jacobian_sum": sums, "n_done": 9},
            "layers as texts": {**good, "J": {str(n): matrix for n, matrix in good["J"].items()}},
            "a key of 2**20": {**good, "metadata": {2**20: 1}},
            "a key of -1": {**good, "J": {-1: torch.eye(D)}, "source_layers": [-1]},
            "a key of True": {**good, "J": {True: torch.eye(D)}, "source_layers": [True]},
            "a key of 1.0": {**good, "J": {1.0: torch.eye(D)}, "source_layers": [1.0]},
            "a key of None": {**good, None: 1},
            "200 deep": {**good, "metadata": deep},
            "one for 9,000 layers": {"J": dict.fromkeys(range(9_000), torch.eye(D)), "d_model": D},
            "a TB of zeros within": {**good, "metadata": [{"x": (one.expand(2**38),)}]},
            "no d_model": {"J": good["J"]},
            "all layers are one": {"J": {n: good["J"][0] for n in range(LAYERS)}, "d_model": D},
            **{f"d_model {n}": {**good, "d_model": value} for n, value in enumerate(WRONG) if not too_long(value)},
            **{f"layers {n}": {**good, "source_layers": value} for n, value in enumerate(WRONG) if not too_long(value)},
            **{f"texts {n}": {**good, "n_prompts": value} for n, value in enumerate(WRONG) if not too_long(value)},
        }.items():
            found[label] = torch_save(value, "zip")
    yield from ((label, {file: content}) for label, content in found.items())
    if kind == "tuned":
        for label, content in (*special(), *bad_json("d_model")):
            yield f"config: {label}", {"config.json": content}
        for key in (*CONFIG, "rank"):
            for n, wrong in enumerate(WRONG):
                yield f"config: {key} {n}", {"config.json": encoded({**CONFIG, key: wrong})}


def too_long(value: Any) -> bool:
    """Whether a pickle of protocol 2 cannot hold it, or only as bytes that torch refuses to write."""
    return value in (10**400, "\ud800")


def draw(kind: str) -> Callable[[random.Random, str], Files]:
    def drawn(rng: random.Random, family: str) -> Files:
        file, form = FILES[kind], rng.choice(["zip", "legacy"])
        data = good_lens(kind, form)[file]
        program, storages = unzipped(good_lens(kind)[file])
        match rng.randrange(6):
            case 0:
                data = flipped(rng, data)
            case 1:
                data = data[: rng.randrange(len(data))]
            case 2 if kind == "tuned":
                return {"config.json": twisted(rng, CONFIG)}
            case 2 | 3:
                data = zipped(flipped(rng, program), storages)
            case _:
                data = zipped(shuffled(rng, program, STEPS), storages)
        return {file: data}

    return drawn


HAND: dict[str, Callable[[], Named]] = {kind: lambda kind=kind: hand(kind) for kind in FILES}  # type: ignore[misc]
DRAW = {kind: draw(kind) for kind in FILES}


def second_maps(kind: str, folder: Path) -> dict[Site, tuple[torch.Tensor, torch.Tensor]]:
    """The weight and the bias of each row, without any of the checks."""
    found: Any = second_pickle((folder / FILES[kind]).read_bytes())
    if kind == "tuned":
        config = second_json((folder / "config.json").read_bytes())
        sites = [EMBED, *(Site(n, "resid_post") for n in range(config["num_hidden_layers"] - 1))]
        has_bias = config.get("bias", True)
        nothing = torch.zeros(config["d_model"])
        return {
            site: (found[f"{n}.weight"].float(), found[f"{n}.bias"].float() if has_bias else nothing)
            for n, site in enumerate(sites)
        }
    J, n = (found["J"], 1) if "J" in found else (found["jacobian_sum"], found["n_done"])
    d = next(iter(J.values())).shape[0]
    maps = {Site(layer, "resid_post"): (J[layer].float() / n - torch.eye(d), torch.zeros(d)) for layer in J}
    return {EMBED: (torch.zeros(d, d), torch.zeros(d)), **maps}


def lens_difference(kind: str, folder: Path, lens: LearnedLens) -> str | None:
    """What is not as in the second reading; None where all is."""
    maps = second_maps(kind, folder)
    if lens.maps.keys() != maps.keys():
        return f"the rows are {[*lens.maps]}, and should be {[*maps]}"
    for site, (weight, bias) in maps.items():
        ours = lens.maps[site]
        if not (torch.equal(ours.weight.float(), weight) and torch.equal(ours.bias.float(), bias)):
            return f"the map of {site} differs"
        if not (weight.isfinite().all() and bias.isfinite().all()):
            return f"the map of {site} is not finite"
    return None
