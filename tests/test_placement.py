"""Everything on a second device: one that is made here of the CPU's numbers, with the rules of Apple's GPUs.

Such a tensor says that it lies on "mps". It meets no tensor of the CPU, there is no float64, and `F.linear` with a
weight that is not contiguous, which torch 2.8 gets wrong there, is refused. Then a device without numbers, "meta".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny
from test_vocab import EVERY, plainly, vectors
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import minilens
from minilens import ctrl, vocab
from minilens.corpus.measure import CorpusLens, Plan
from minilens.traces import HEAD_SITES, SITES

WITHIN = 1e-4  # float32 in another order, and sums over tiles in float32


MPS, META = torch.device("mps"), torch.device("meta")


def _by_torchs_name(argument: Any) -> Any:
    return META if isinstance(argument, torch.device) and argument == MPS else argument


class Elsewhere(Tensor):
    """A tensor that says it lies on another device. torch itself takes it for one on "meta", without numbers."""

    value: Tensor
    device = MPS  # type: ignore[assignment]
    is_meta = False  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, value: Tensor) -> "Elsewhere":
        made = Tensor._make_subclass(
            cls, torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)
        )
        made.value = value
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return elsewhere(func, args, kwargs or {})


MOVES = ("_to_copy", "copy_", "_copy_from")  # between devices
INDEXES = ("index", "index_put", "index_put_", "_index_put_impl_")  # with indices of the CPU, too


def elsewhere(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, on the device of its tensors, or on the one it names."""
    name = func.__name__.split(".")[0]
    given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    theirs = [each for each in given if isinstance(each, Elsewhere)]
    for each in given if theirs and name not in MOVES else ():
        is_index = name in INDEXES and each.dtype in (torch.int64, torch.bool)
        alike = isinstance(each, Elsewhere) or (each.device.type == "cpu" and (each.ndim == 0 or is_index))
        assert alike, f"{func} meets tensors of two devices"
    device = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
    there = device == "meta" or (device is None and bool(theirs))
    if name == "copy_":
        there = isinstance(args[0], Elsewhere)
    plain = tree_map(lambda each: each.value if isinstance(each, Elsewhere) else each, (args, kwargs))
    if device == "meta":
        plain[1]["device"] = "cpu"
    found = func(*plain[0], **plain[1])
    if not there:
        return found

    def back(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        assert value.dtype != torch.float64, f"{func} makes float64, which is not there"
        same = [each for each in theirs if each.value is value]  # what was written to is the tensor that was given
        return same[0] if same else Elsewhere(value)

    return tree_map(back, found)


class Made(TorchDispatchMode):
    """Sees to what is made of no tensor, such as torch.ones(..., device="mps")."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return elsewhere(func, args, kwargs or {})


class Named(TorchFunctionMode):
    """Sees to the name of the device, and to what it cannot do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear:
            assert not isinstance(args[1], Elsewhere) or args[1].is_contiguous(), "torch 2.8 computes this wrongly"
        kwargs = kwargs or {}
        if func in (
            Tensor.__getitem__,
            Tensor.__setitem__,
        ):  # a list of places, too, is made a tensor
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = args[0], tuple(torch.tensor(p) if isinstance(p, list) else p for p in places), *args[2:]
        if func is Tensor.tolist and isinstance(args[0], Elsewhere):  # three that torch does without a dispatch
            return args[0].value.tolist()
        if func is Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return Elsewhere(args[0].value.new_tensor(*args[1:], **kwargs))
        if func is torch.tensor and kwargs.get("device") == MPS:
            return Elsewhere(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        args, kwargs = tree_map(_by_torchs_name, (args, kwargs))
        return func(*args, **kwargs)


@contextmanager
def there_is_a_device() -> Iterator[None]:
    with torch.no_grad(), Made(), Named():
        yield


def moved(part: Any) -> Any:
    """A model, with all its weights elsewhere."""
    if isinstance(part, Tensor):
        return Elsewhere(part)
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{field.name: moved(getattr(part, field.name)) for field in fields(part) if field.init})  # type: ignore[type-var]
    if isinstance(part, tuple):
        values = [moved(each) for each in part]
        return type(part)(*values) if hasattr(part, "_fields") else tuple(values)
    return part


Both = tuple[minilens.Model, minilens.Model]


@pytest.fixture(params=FAMILIES)
def both(request: pytest.FixtureRequest, tiny: Tiny) -> Iterator[Both]:
    """A model there, and the same here. It is loaded first, since loading has a use of its own for "meta"."""
    here, _ = minilens.load(tiny(request.param)[1])
    with there_is_a_device():
        yield moved(here), here


def near(there: Any, here: Tensor) -> bool:
    value = there.value if isinstance(there, Elsewhere) else there
    return torch.allclose(value.double(), here.double(), rtol=WITHIN, atol=WITHIN, equal_nan=True)


def test_the_device_is_strict(both: Both) -> None:
    """It catches what the library must not do, and nothing else."""
    there, here = Elsewhere(torch.arange(6.0).view(2, 3)), torch.ones(2, 3)
    assert (there + torch.ones_like(there)).device == there.mT.device == there.device
    assert torch.equal((there @ there.mT).cpu(), there.value @ there.value.mT)
    with pytest.raises(AssertionError, match="tensors of two devices"):
        there + here
    with pytest.raises(AssertionError, match="float64, which is not there"):
        there.double()
    with pytest.raises(AssertionError, match="wrongly"):
        torch.nn.functional.linear(there, torch.ones(3, 2, device=there.device).mT)


def test_a_forward_pass(both: Both, tokens: Tensor) -> None:
    ours, theirs = (minilens.trace(model, tokens) for model in both)
    pairs = [(ours.embed, theirs.embed), (ours.logits, theirs.logits), (both[0](tokens), theirs.logits)]
    for mine, other in zip(ours.blocks, theirs.blocks, strict=True):
        pairs += [
            (getattr(mine, field.name), getattr(other, field.name)) for field in fields(mine) if field.name != "layer"
        ]
    for there, here in pairs:
        assert isinstance(there, Elsewhere)
        assert near(there, here)


@pytest.mark.parametrize(
    "options", [{}, dict(norm="plain", centre=True), dict(decoder="mlp", positions=[3, -1])], ids=str
)
def test_the_lens(both: Both, tokens: Tensor, options: dict[str, Any]) -> None:
    mine, other = (minilens.logit_lens(model, tokens[:1], stats="all", track=[7], **options) for model in both)
    assert mine.stats.keys() == other.stats.keys()
    for there, here in zip(tree_flatten(mine.stats)[0], tree_flatten(other.stats)[0], strict=True):
        assert type(there) is Tensor
        assert near(there, here)
    rows = (minilens.lens_rows(model, tokens, decoder="block:1") for model in both)
    for row, expected in zip(*rows, strict=True):
        assert isinstance(row.logits, Elsewhere)
        assert near(row.logits, expected.logits)


def test_the_instruments(both: Both, tokens: Tensor) -> None:
    clean, corrupt, metric = tokens[:1, :4], tokens[:1, 5:9], minilens.logit_difference(17, 23)
    for by, site in (("position", "mlp_out"), ("head", "z")):
        ours, theirs = (minilens.patching(model, clean, corrupt, metric, sites=site, by=by) for model in both)
        assert near(ours.metric[site], theirs.metric[site])
        assert torch.equal(ours.can_change[site], theirs.can_change[site])
    parts, expected = (minilens.attribute(model, clean, token=17, against=23, neurons=1) for model in both)
    assert near(parts.contributions, expected.contributions)
    for there, here in zip(*(minilens.head_scores(model, length=7, batch=2) for model in both), strict=True):
        assert near(there, here)
    assert minilens.geometry(both[0]) == minilens.geometry(both[1])
    assert near(*map(minilens.copying_scores, both))
    assert near(*(minilens.composition(model).key.nan_to_num() for model in both))
    for circuits in zip(*((minilens.ov_circuit(m, 1, 2), minilens.qk_circuit(m, 1, 2)) for m in both), strict=True):
        assert near(*(circuit.left @ circuit.right for circuit in circuits))
        assert near(*(circuit.eigenvalues.abs() for circuit in circuits))


@pytest.mark.parametrize("site", SITES)
def test_edits(both: Both, tokens: Tensor, site: str) -> None:
    def edited(model: minilens.Model) -> Tensor:
        source = minilens.trace(model, tokens.flip(1)).blocks[1]
        where: dict[str, Any] = dict(positions=[3, -1], lengths=(33, 20))
        heads = dict(heads=[0, -2]) if site in HEAD_SITES else {}
        edit = minilens.then(
            minilens.zero(0, site, **where, **heads),
            minilens.patch(source, site, source_lengths=(30, 33), **where, **heads),
            minilens.add(2, site, getattr(source, site).flatten(0, -2)[0], **where, **heads),
            minilens.mean(source, "attn_out", reference_lengths=(9, 33)),
            minilens.towards(model, 2, "resid_post", 7, 0.5, **where),
        )
        return minilens.trace(model, tokens, edit=edit).logits

    assert near(*map(edited, both))


@pytest.mark.parametrize("scale", [0.01, 0.3, 3.0])
def test_sums_over_tiles_in_float32(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """They keep the bounds that vocab.py states, over as many tiles as the vocabularies have."""
    monkeypatch.setitem(vocab.SUMS, "cpu", torch.float32)
    x, W_U, b_U = vectors(5, 6, 64, 50_257, scale, 0, torch.float32)
    logits = x.double() @ W_U.double() + b_U.double()
    found = vocab.vocab_stats(x, W_U, b_U, {}, k=1, stats=EVERY)
    largest = 1 + logits.abs().max()
    for name, expected in plainly(logits).items():
        assert ((found.stats[name] - expected)[1:].abs() <= 2e-6 * largest + 1e-5 * expected[1:]).all(), name
    logprob = logits.log_softmax(-1).amax(-1)
    assert ((found.top.logprob[..., 0] - logprob).abs() <= 2e-6 * largest + 1e-5 * logprob.abs()).all()


def test_a_corpus() -> None:
    here, tokenizer = minilens.load("tales-gpt2")
    assert tokenizer is not None
    with there_is_a_device():
        found = []
        for model in (moved(here), here):
            lens = CorpusLens(model, tokenizer, Plan(decoders=("block:1",), batch=20))
            texts = [lens.encode(text) for text in ("Once upon a time", "A cat and a dog.")]
            found.append(lens.tallies(texts, torch.ones(here.W_U.shape[1], dtype=torch.long)))
        for mine, other in zip(*found, strict=True):
            assert torch.equal(mine.tokens, other.tokens)
            assert near(mine.sums, other.sums)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_what_apples_gpus_get_wrong_is_refused(tiny: Tiny, dtype: torch.dtype) -> None:
    for device in ("mps", torch.device("mps")):
        with pytest.raises(ValueError, match=r"'mps' the dtype must be torch\.float32: there is no float64"):
            minilens.load(tiny("gpt2")[1], device=device, dtype=dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_needs_numbers_says_so(tiny: Tiny, tokens: Tensor, family: str) -> None:
    """A model without any still has shapes: it runs, and its lens has rows."""
    model, _ = minilens.load(tiny(family)[1], device="meta")
    edit = minilens.zero(1, "z", positions=-1, heads=0, lengths=(33, 20))
    assert minilens.trace(model, tokens, edit=edit).logits.shape == (2, 33, 101)
    assert [row.logits.shape for row in minilens.lens_rows(model, tokens)] == [(2, 33, 101)] * 4
    text, other = tokens[:1], tokens[1:]
    for asked in (
        lambda: minilens.logit_lens(model, text),
        lambda: minilens.attribute(model, text),
        lambda: minilens.patching(model, text, other, minilens.logit_difference(1, 2)),
        lambda: minilens.head_scores(model, length=15),
        lambda: minilens.geometry(model),
        lambda: minilens.copying_scores(model),
        lambda: minilens.composition(model),
        lambda: minilens.ov_circuit(model, 1, 2),
        lambda: minilens.qk_circuit(model, 1, 2),
    ):
        with pytest.raises(ValueError, match='the model is on the device "meta", where there are no numbers: load it'):
            asked()


# ---- CTRL's positions, which are made and not loaded


def test_positions_are_made_once(tiny: Tiny, tokens: Tensor) -> None:
    """For as many as the texts have, not as the context holds; and whoever asks first, gradients can be taken."""
    model, _ = minilens.load(tiny("ctrl", n_positions=50_000)[1])
    ctrl.sinusoids.cache_clear()
    with torch.inference_mode():
        for n in (33, 32 + 3, 40):
            model.embed(torch.zeros(1, n, dtype=torch.long))
    assert ctrl.sinusoids.cache_info()[:2] == (2, 1)
    table = model.positions(40)
    assert not table.is_inference()
    assert table.untyped_storage().nbytes() == 64 * 30 * 4
    for n in (1, 2, 3, 33):
        assert torch.allclose(model.positions(n), table[:n], rtol=0, atol=1e-6)
