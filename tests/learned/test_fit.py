"""Fitting: what is known is found, the formulas are those of the plain way, and it does not matter who did the work."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, Tiny
from rounding import gamma
from texts import Loaded, documents, forked, loaded, text_file

import minilens
from minilens.corpus.documents import TextFile
from minilens.corpus.measure import CorpusLens, Plan
from minilens.corpus.sweep import Sweep
from minilens.learned.affine import LearnedLens, read_lens
from minilens.learned.fit import FitReader, Recipe, fit
from minilens.learned.moments import (
    Moments,
    MomentSums,
    best_map,
    choose_ridge,
    constant_map,
    error,
    likeness,
    r_squared,
)
from minilens.learned.tuned import Point, next_map, slope, whitening
from minilens.learned.tuned import _target as target_of
from minilens.lens import EMBED

D = 7


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def residuals(n: int, seed: int = 0) -> torch.Tensor:
    """With a mean far from 0 and directions of very different size, as those of a model have."""
    return drawn(n, D, seed=seed) @ drawn(D, D, seed=77) * torch.logspace(-1, 1, D).double() + 5


def moments(h: torch.Tensor, y: torch.Tensor) -> Moments:
    sums = MomentSums()
    found = sums.empty(1, D)
    for part in torch.arange(len(h)).split(10):
        sums.add(found, [h[part]], y[part])
    return found


def test_a_map_that_is_there_is_found() -> None:
    h, A, b = residuals(60), drawn(D, D, seed=1), drawn(D, seed=2)
    T = best_map(moments(h, h @ A + b), 0, ridge=0.0)
    assert torch.allclose(T, torch.cat([A, b[None]]), rtol=0, atol=1e-9)
    assert r_squared(moments(h, h @ A + b), 0, T) == pytest.approx(1, abs=1e-9)


def test_without_a_ridge_nothing_is_left_that_h_could_tell() -> None:
    h, y = residuals(60), residuals(60, seed=1)
    X = torch.cat([h, torch.ones(60, 1)], 1)
    T = best_map(moments(h, y), 0, ridge=0.0)
    assert (X.T @ (y - X @ T)).abs().max() <= 1e-9 * (X.T @ y).abs().max()


def test_an_endless_ridge_is_the_lens_of_two_means() -> None:
    h, y = residuals(60), residuals(60, seed=1)
    of_both = moments(h, y)
    mean = best_map(of_both, 0, math.inf)
    assert torch.equal(mean[:-1], torch.eye(D).double())
    assert torch.allclose(mean[-1], y.mean(0) - h.mean(0))
    assert torch.allclose(best_map(of_both, 0, 1e12), mean, rtol=0, atol=1e-9)
    far = [float((best_map(of_both, 0, ridge) - mean).norm()) for ridge in (0.0, 1e-3, 1e-1, 10.0)]
    assert far == sorted(far, reverse=True) and far[-1] > 0


def test_the_ridge_is_that_with_the_smallest_error_on_what_is_left_out() -> None:
    h, noise = residuals(3 * D), drawn(3 * D, D, seed=4)
    y = h + noise
    rest, left_out = moments(h, y), moments(other := residuals(500, seed=5), other + drawn(500, D, seed=6))
    ridge = choose_ridge(rest, left_out, 0)
    T = {each: best_map(rest, 0, each) for each in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)}
    errors = {each: error(left_out, 0, T[each]) for each in T}
    assert errors[ridge] == min(errors.values()) < errors[1e-6]


def test_the_error_by_way_of_sums_is_the_direct_one() -> None:
    h, y, T = residuals(60), residuals(60, seed=1), drawn(D + 1, D, seed=3)
    of_both = moments(h, y)
    direct = (y - h @ T[:-1] - T[-1]).square().sum(-1).mean()
    assert error(of_both, 0, T) == pytest.approx(float(direct), rel=7e-12)
    variance = (y - y.mean(0)).square().sum(-1).mean()
    assert r_squared(of_both, 0, T) == pytest.approx(float(1 - direct / variance), rel=1e-10)


def test_sums_of_parts_are_those_of_the_whole() -> None:
    h, y = residuals(60), residuals(60, seed=1)
    whole, parts = moments(h, y), moments(h[:13], y[:13]) + moments(h[13:], y[13:])
    for name, value in vars(parts).items():
        of_whole = getattr(whole, name)
        assert torch.allclose(value, of_whole, rtol=2 * gamma(60, torch.float64), atol=0), name


def test_shuffled_targets_leave_the_constant_lens() -> None:
    """With each y that of another token, least squares finds no map: what is left is noise, which goes with n."""
    h, y = residuals(40_000), residuals(40_000, seed=1)
    constant = constant_map(moments(h, y), 0)
    assert torch.equal(constant[:-1], torch.zeros(D, D).double()) and torch.allclose(constant[-1], y.mean(0))
    X = torch.cat([h, torch.ones(len(h), 1)], 1)
    found = best_map(moments(h, y), 0, ridge=0.0)
    assert (X @ found - X @ constant).square().sum(-1).mean() < 1e-3 * (y - y.mean(0)).square().sum(-1).mean()


def test_likeness_is_of_what_departs_from_the_identity() -> None:
    T = drawn(D + 1, D)
    same = torch.cat([torch.eye(D) + 2 * (T[:-1] - torch.eye(D)), 3 * T[-1:]])
    assert likeness(T, same) == pytest.approx((1, 1))
    assert likeness(T, torch.cat([2 * torch.eye(D) - T[:-1], -T[-1:]])) == pytest.approx((-1, -1))


@pytest.mark.parametrize(
    "found, ridge, message",
    [
        (moments(residuals(5), residuals(5)), 0.0, "5 tokens do not determine a map with a ridge of 0: give more text"),
        (moments(residuals(9) * torch.nan, residuals(9)), 0.1, "do not determine a map"),
        (MomentSums().empty(1, D), 0.1, "there are no tokens to fit a lens to"),
    ],
)
def test_what_determines_no_map_is_refused(found: Moments, ridge: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        best_map(found, 0, ridge)


@pytest.mark.parametrize("family", FAMILIES)  # CTRL has a bias of the unembedding
def test_kl_and_its_gradient_are_those_of_autograd(tiny: Tiny, family: str) -> None:
    model, _ = minilens.load(tiny(family)[1], dtype=torch.float64)
    h, y, T = drawn(9, 30), drawn(9, 30, seed=1), torch.cat([torch.eye(30), torch.zeros(1, 30)]).double()
    T = (T + drawn(31, 30, seed=2) / 10).requires_grad_()
    logp = model.unembed(y[None])[0].log_softmax(-1)
    logq = model.unembed((h @ T[:-1] + T[-1])[None])[0].log_softmax(-1)
    expected = (logp.exp() * (logp - logq)).sum(-1)
    expected.sum().backward()
    kl, G = slope(model, target_of(model, y), h, T.detach())
    assert torch.allclose(kl, expected, rtol=0, atol=1e-13)
    assert T.grad is not None and torch.allclose(G, T.grad, rtol=0, atol=1e-12 * float(T.grad.abs().max()))
    assert (model.b_U is not None) == (family == "ctrl")


def test_l_bfgs_goes_down_to_where_newton_would_be() -> None:
    """On a quadratic form of which S is one factor: the whitened problem is well conditioned, whatever S is."""
    h = residuals(300)
    of_h, best = moments(h, h), drawn(D + 1, D, seed=1)
    L, H = whitening(of_h, 0), of_h.S[0] / of_h.n
    scale = torch.linspace(1, 3, D).double()
    points: list[Point] = []
    T = torch.zeros(D + 1, D).double()
    for _ in range(40):
        off = T - best
        points.append(Point(T, float((off * (H @ off * scale)).sum() / 2), H @ off * scale))
        T = next_map(points, L)
    values = [point.kl for point in points]
    assert min(values) < 1e-8 * values[0]
    slope = (points[0].gradient * (points[0].T - points[1].T)).sum()
    assert float(slope) == pytest.approx(0.2 * values[0])


def test_after_a_step_that_goes_up_the_next_is_a_quarter_as_long() -> None:
    of_h = moments(residuals(50), residuals(50))
    L, start, g = whitening(of_h, 0), drawn(D + 1, D), drawn(D + 1, D, seed=1)
    points = [Point(start, 1.0, g)]
    first = next_map(points, L)
    points.append(Point(first, 2.0, g))
    second = next_map(points, L)
    points.append(Point(second, 1.5, g))
    third = next_map(points, L)
    assert torch.allclose(second - start, (first - start) / 4)
    assert torch.allclose(third - start, (first - start) / 16)


# ---- with a model


@pytest.fixture
def gpt2(tiny: Tiny, tmp_path: Path) -> Loaded:
    return loaded(tiny, tmp_path, "gpt2")


@pytest.fixture
def text(tmp_path: Path) -> TextFile:
    return text_file(tmp_path / "a.txt", documents(1, n=80))


OPTIONS: dict[str, Any] = dict(shard=1000, batch=200)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["mean", "affine"])
def test_blocks_that_write_their_biases_alone_are_undone(
    tiny: Tiny, tmp_path: Path, text: TextFile, family: str, kind: str
) -> None:
    """W_O = W_out = 0: the stream gains each block's biases, whatever the text. Then A = I, and KL is 0."""
    model, tokenizer = loaded(tiny, tmp_path, family)
    zeros = [replace(b, W_O=b.W_O * 0, W_out=b.W_out * 0) for b in model.blocks]  # type: ignore[type-var]
    model = replace(model, blocks=tuple(zeros))  # type: ignore[type-var]
    lens = fit(model, tokenizer, text, tmp_path / "out", kind=kind, ridge=1e-6 if kind == "affine" else None, **OPTIONS)
    steps = [block.b_O + block.b_out for block in zeros]
    for n, of_row in enumerate(lens.maps.values()):
        assert of_row.weight.abs().max() < 1e-6
        assert torch.allclose(of_row.bias.double(), torch.stack(steps[n:]).sum(0), atol=1e-5)
    table = minilens.logit_lens(model, tokenizer.encode("once upon a cat"), transport=lens)
    assert table.kl_final.max() < 1e-9


@pytest.mark.parametrize(
    "options",
    [
        dict(kind="affine", sites=("resid_mid", "resid_post"), window=9, skip=2),
        dict(kind="affine", decoder="block:1", prefix=" cat red", skip=0),
        dict(kind="mean", decoder="mlp", norm="plain"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_maps_are_those_of_the_plain_way(tiny: Tiny, tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    """One window at a time, with numpy's own least squares on all residuals at once."""
    model, tokenizer = loaded(tiny, tmp_path, family)
    texts = documents(3, n=60)
    recipe = Recipe(**options, ridge=1e-4 if options["kind"] == "affine" else None, shard=700, batch=90)
    lens = fit(model, tokenizer, text_file(tmp_path / "a.txt", texts), tmp_path / "out", **vars(recipe))
    prefix = tokenizer.encode(recipe.prefix)[0]
    rows: dict[minilens.Site, list[torch.Tensor]] = {site: [] for site in lens.maps}
    ys = []
    for document in filter(None, texts):
        for window in tokenizer.encode(document)[0].split((recipe.window or 40) - len(prefix)):
            trace = minilens.trace(model, torch.cat([prefix, window])[None])
            kept = slice(max(recipe.skip, len(prefix)), None)
            before, last = trace.blocks[1:]
            stream = {"final": last.resid_post, "block:1": before.resid_post, "mlp": last.resid_mid}[recipe.decoder]
            ys.append(stream[0, kept])
            for site, found in rows.items():
                value = trace.embed if site == EMBED else getattr(trace.blocks[site.layer], site.name)
                found.append(value[0, kept])
    y = torch.cat(ys)
    assert lens.made["tokens"] == len(y)
    for site, found in rows.items():
        h = torch.cat(found)
        centred, of_y = h - h.mean(0), y - y.mean(0)
        if recipe.kind == "mean":
            A = torch.eye(30).double()
        else:  # ridge regression of y - h, with the ridge as further observations
            weight = (1e-4 * centred.square().sum() / 30).sqrt()
            more = torch.cat([centred, weight * torch.eye(30)])
            target = torch.cat([of_y - centred, torch.zeros(30, 30)])
            A = torch.eye(30) + torch.linalg.lstsq(more, target).solution
        assert torch.allclose(lens.maps[site].A.double(), A, atol=1e-4), site
        assert torch.allclose(lens.maps[site].bias.double(), y.mean(0) - h.mean(0) @ A, atol=1e-3), site


def test_what_was_made_is_told(gpt2: Loaded, text: TextFile, tmp_path: Path) -> None:
    options = {**OPTIONS, "shard": 200}
    lens = fit(*gpt2, text, tmp_path / "out", **options)
    made = json.loads((tmp_path / "out" / "lens.json").read_text())["made"]
    assert made == lens.made == read_lens(tmp_path / "out").made
    assert made["files"] == [["a.txt", text.digest]] and made["documents"] == 80 and made["skip"] == 1
    counted = sum(max(0, len(part) - 1) for d in documents(1, n=80) for part in gpt2[1].encode(d)[0].split(40))
    assert made["tokens"] == counted
    for name in ("ridge", "twins", "departure"):
        assert len(made[name]) == len(lens.maps) == 3
    reader = FitReader(CorpusLens(*gpt2, Recipe(**options).plan([text])), 1, MomentSums())
    sweep = Sweep(reader, [text], tmp_path / "out" / "sums")
    n_shards = int(sweep.count().shards.sum())
    assert n_shards > 8
    whole, left_out, rest, *halves = (
        sweep.total(which)[0]
        for which in (
            lambda n: True,
            lambda n: n % 8 == 7,
            lambda n: n % 8 != 7,
            lambda n: n % 2 == 0,
            lambda n: n % 2 == 1,
        )
    )
    assert made["left_out"]["tokens"] == int(left_out.n) and int(rest.n) == counted - int(left_out.n)
    for row, of_row in enumerate(lens.maps.values()):
        ridge = choose_ridge(rest, left_out, row)
        assert made["ridge"][row] == ridge
        assert torch.equal(of_row.bias, best_map(whole, row, ridge)[-1].float())
        assert made["left_out"]["r_squared"][row] == r_squared(left_out, row, best_map(rest, row, ridge))
        twins = likeness(*(best_map(half, row, ridge) for half in halves))
        assert made["twins"][row] == [*twins] and max(twins) < 1
        assert made["departure"][row] == pytest.approx(float(of_row.weight.norm()), rel=1e-5)


def work(model: Loaded, text: TextFile, folder: Path, kind: str, meet: Any) -> None:
    meet.wait()
    fit(*model, text, folder, kind=kind, steps=3, **OPTIONS)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("lens.safetensors", "lens.json")}


@pytest.mark.parametrize("kind", ["affine", "tuned"])
def test_two_workers_find_the_lens_of_one(gpt2: Loaded, tmp_path: Path, kind: str) -> None:
    text = text_file(tmp_path / "a.txt", documents(1, n=120))
    work(gpt2, text, tmp_path / "alone" / "lens", kind, type("Now", (), {"wait": lambda: None}))
    context = forked()
    meet = context.Barrier(2)
    folder = tmp_path / "together" / "lens"
    workers = [context.Process(target=work, args=(gpt2, text, folder, kind, meet)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert contents(folder) == contents(tmp_path / "alone" / "lens")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind", ["affine", "tuned"])
def test_a_fit_that_is_killed_goes_on(gpt2: Loaded, tmp_path: Path, kind: str) -> None:
    text = text_file(tmp_path / "a.txt", documents(1, n=120))
    options = {**OPTIONS, "kind": kind, "steps": 3, "shard": 300}
    n_shards = 0

    def dies_after(last: int) -> Callable[[Sweep[Any]], None]:
        def read(sweep: Sweep[Any]) -> None:
            nonlocal n_shards
            for _ in sweep.run():
                n_shards += 1
                if n_shards == last:
                    raise Killed

        return read

    fit(*gpt2, text, tmp_path / "alone" / "lens", read=dies_after(-1), **options)
    in_one_go, n_shards = n_shards, 0
    folder = tmp_path / "killed" / "lens"
    for last in (2, in_one_go // 2, in_one_go - 1):
        with pytest.raises(Killed):
            fit(*gpt2, text, folder, read=dies_after(last), **options)
        assert not (folder / "lens.json").exists()
    fit(*gpt2, text, folder, read=dies_after(-1), **options)
    assert n_shards == in_one_go  # none was read twice
    assert contents(folder) == contents(tmp_path / "alone" / "lens")
    again = n_shards
    fit(*gpt2, text, folder, read=dies_after(-1), **options)
    assert n_shards == again and contents(folder) == contents(tmp_path / "alone" / "lens")


def test_tuned_comes_closer_to_the_output_than_affine(gpt2: Loaded, tmp_path: Path) -> None:
    files = [text_file(tmp_path / f"{seed}.txt", documents(seed, n=150)) for seed in (1, 2)]
    options = {**OPTIONS, "ridge": 10.0}  # which leaves much to be found
    tuned = fit(*gpt2, files[0], tmp_path / "tuned", kind="tuned", steps=8, **options)
    affine = fit(*gpt2, files[0], tmp_path / "affine", kind="affine", **options)
    steps = tuned.made["steps"]
    for row in range(3):
        rest, left_out = ([step[row] for step in steps[name]] for name in ("kl", "kl_left_out"))
        assert steps["best"][row] == left_out.index(min(left_out)) > 0
        assert min(rest) < 0.9 * rest[0]
    others = {lens.name: minilens.Lens(transport=lens) for lens in (tuned, affine)}
    sweep = Sweep(CorpusLens(*gpt2, Plan(), others), files[1:], tmp_path / "out")
    for _ in sweep.run():
        pass
    means = {name: of.tally.mean("kl_final")[0] for name, of in sweep.findings().decoders.items()}
    assert (means["tuned"] < means["affine"])[:-1].all() and (means["affine"] < means["final"])[:-1].all()
    assert means["tuned"][-1] == means["final"][-1]
    shards = [path for path in (tmp_path / "tuned").glob("step-*") if path.is_dir()]
    assert len(shards) == 1  # those of earlier steps have gone


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(kind="jacobian"), 'of the kind "jacobian" is none that fit knows; mean, affine, tuned are'),
        (dict(kind="tuned"), "a tuned lens has 930 numbers a row, and the text gives .* give more text, or fit an aff"),
        (dict(kind="tuned", norm="plain"), 'a tuned lens is for the decoder "final" and the norm "final"'),
        (dict(kind="mean", ridge=1.0), '"mean" has none'),
        (dict(ridge=-1.0), "the ridge must be a number from 0 up; it is -1"),
        (dict(ridge=math.nan), "the ridge must be a number from 0 up; it is nan"),
        (dict(skip=-1), "skip must be at least 0"),
        (dict(skip=40), "holds no tokens: give more text"),
        (dict(steps=0), "steps must be at least 1"),
        (dict(decoder="block:3"), "there is nothing to fit: the lens has no row but the model's own output"),
        (dict(decoder="block:9"), "does not fit: this model has 3 blocks"),
        (dict(sites=("z",)), 'no rows for "z"'),
        (dict(window=41), "the window must be of 1 to 40 tokens"),
        (dict(shard=10**6), "the text is one shard of 1,000,000 characters"),
    ],
)
def test_what_cannot_be_fitted_is_refused(gpt2: Loaded, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    few = text_file(tmp_path / "a.txt", documents(1, n=20))
    with pytest.raises(ValueError, match=message):
        fit(*gpt2, few, tmp_path / "out", **{**OPTIONS, "shard": 300, **options})
    assert not (tmp_path / "out" / "lens.json").exists()


def test_a_folder_of_another_fit_is_refused(gpt2: Loaded, text: TextFile, tmp_path: Path) -> None:
    fit(*gpt2, text, tmp_path / "out", kind="mean", **OPTIONS)
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=r"lens\.safetensors exists: give another name, or --overwrite"):
        fit(*gpt2, text, tmp_path / "out", kind="affine", **OPTIONS)
    with pytest.raises(ValueError, match="holds a sweep with another value of skip"):
        fit(*gpt2, text, tmp_path / "out", kind="mean", skip=2, **OPTIONS)
    assert contents(tmp_path / "out") == before
    assert fit(*gpt2, text, tmp_path / "out", kind="affine", overwrite=True, **OPTIONS).kind == "affine"
    read_lens(tmp_path / "out").save(tmp_path / "copy")
    with pytest.raises(ValueError, match="copy holds a lens already: give another folder, or --overwrite"):
        fit(*gpt2, text, tmp_path / "copy", read=lambda sweep: pytest.fail("hours are spent"), **OPTIONS)


def test_residuals_that_are_no_numbers_are_refused(gpt2: Loaded, text: TextFile, tmp_path: Path) -> None:
    model, tokenizer = gpt2
    broken = replace(model, W_E=model.W_E * torch.inf)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="the residuals are not finite: there is a NaN or an infinity in the weights"):
        fit(broken, tokenizer, text, tmp_path / "out", **OPTIONS)


# ---- mistakes that must be seen


def kl_of(gpt2: Loaded, lens: LearnedLens) -> torch.Tensor:
    tokens = gpt2[1].encode(" ".join(documents(9, n=4)))[:, :40]
    return minilens.logit_lens(gpt2[0], tokens, transport=lens).kl_final[:-1].mean(1)


def test_the_right_map_for_the_right_row_is_best(gpt2: Loaded, tmp_path: Path) -> None:
    """A transposed, a row off by one, or a bias that is lost: each makes every row worse than the plain lens or so."""
    text = text_file(tmp_path / "a.txt", documents(1, n=150))
    lens = fit(*gpt2, text, tmp_path / "out", **OPTIONS)
    right = kl_of(gpt2, lens)
    sites = [*lens.maps]
    mistakes = {
        "transposed": {site: m._replace(weight=m.weight.T) for site, m in lens.maps.items()},
        "off by one": {site: lens.maps[sites[(n + 1) % 3]] for n, site in enumerate(sites)},
        "no bias": {site: m._replace(bias=m.bias * 0) for site, m in lens.maps.items()},
    }
    for what, maps in mistakes.items():
        assert (right < kl_of(gpt2, replace(lens, maps=maps))).all(), what
