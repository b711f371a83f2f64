"""Plant known mistakes, one at a time, and show that a test turns red for each.

    python scripts/mutate.py            all of them
    python scripts/mutate.py window     those with this word in their description

Every mistake is one replacement in a copy of the package; tests run on the copy. Most mistakes are of the mathematics.
Those of "safety" undo what keeps files whole and nobody waiting: they are in mistakes_of_safety.py. Exit status 1 if a
mistake goes unnoticed.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mistakes_of_safety import SAFETY

ROOT = Path(__file__).parents[1]
TESTS = ("parity", "run", "lens", "vocab", "edits", "patching", "attribution", "heads", "study")


class Mistake(NamedTuple):
    what: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...] = TESTS  # files, or a test of one: "sweep" is test_sweep.py, and "sweep::test_counts" in it


MISTAKES = [
    Mistake(
        "parts: what an MLP writes compared with the stream before attention",
        "instruments/parts.py",
        'block.resid_pre if name == "attn_out" else block.resid_mid',
        "block.resid_pre",
        ("parts",),
    ),
    Mistake(
        "parts: the scale of another position",
        "instruments/parts.py",
        "scale[here], k",
        "scale[:1].expand_as(scale[here]), k",
        ("parts",),
    ),
    Mistake(
        "shares: the norm's mean not subtracted",
        "instruments/directions.py",
        "(vectors - vectors.mean(-1, keepdim=True)) / scale",
        "vectors / scale",
        ("parts",),
    ),
    Mistake(
        "coordinates: along each token alone",
        "learned/pushes.py",
        "torch.linalg.pinv(V)",
        "V.mT / V.square().sum(1)",
        ("coordinates",),
    ),
    Mistake("bfloat16: on any processor", "device.py", "bool(((ones @ ones) == 64).all())", "True", ("lens",)),
    Mistake("exact GELU for gelu_new", "ops.py", '"gelu_new": gelu_new', '"gelu_new": F.gelu'),
    Mistake("GPT-Neo: window one too long", "gpt_neo.py", "triu(1 - cfg.window)", "triu(-cfg.window)"),
    Mistake("GPT-Neo: window one too short", "gpt_neo.py", "triu(1 - cfg.window)", "triu(2 - cfg.window)"),
    Mistake("GPT-Neo: window dropped", "gpt_neo.py", "if cfg.is_local[layer]:", "if False:"),
    Mistake("GPT-Neo: local and global swapped", "gpt_neo.py", 'kind == "local"', 'kind == "global"'),
    Mistake(
        "GPT-Neo: scores scaled",
        "gpt_neo.py",
        "attention_scores(q.float(), k.float())",
        "attention_scores(q.float(), k.float()) * q.shape[-1] ** -0.5",
    ),
    Mistake("scores not in float32", "ops.py", "upcast(q) @ upcast(k).mT", "q @ k.mT"),
    Mistake("GPT-2: scores not scaled", "gpt2.py", " * cfg.score_scale[layer]", ""),
    Mistake("GPT-2: scores of layer n divided by n + 2", "gpt2.py", "(layer + 1)", "(layer + 2)"),
    Mistake("GPT-2: queries and keys swapped", "gpt2.py", "q, k, v = linear", "k, q, v = linear"),
    Mistake("GPT-2: bias of the attention output dropped", "gpt2.py", "w.W_O, w.b_O)", "w.W_O)"),
    Mistake("GPT-2: positions dropped", "gpt2.py", " + self.positions(tokens.shape[1])", ""),
    Mistake(
        "GPT-2: positions shifted by one",
        "gpt2.py",
        "return self.W_pos[:n]",
        "return self.W_pos[1:][:n]",
    ),
    Mistake(
        "GPT-2: MLP reads the stream before attention", "gpt2.py", "layer_norm(resid_mid,", "layer_norm(resid_pre,"
    ),
    Mistake(
        "GPT-2: norms after the sums",
        "gpt2.py",
        "resid_mid + mlp_out)",
        "layer_norm(resid_mid + mlp_out, w.ln2, cfg.ln_eps))",
    ),
    Mistake("GPT-2: the two norms swapped", "gpt2.py", "layer_norm(resid_pre, w.ln1", "layer_norm(resid_pre, w.ln2"),
    Mistake(
        "GPT-2: final norm twice",
        "gpt2.py",
        "linear(self.final_norm(resid)",
        "linear(self.final_norm(self.final_norm(resid))",
    ),
    Mistake("CTRL: sines and cosines take turns", "ctrl.py", "dim=-1)\n", "dim=-1).view(n, 2, -1).mT.reshape(n, -1)\n"),
    Mistake("CTRL: sinusoids in float64", "ctrl.py", "dtype=torch.float32, device", "dtype=torch.float64, device"),
    Mistake("CTRL: embedding not scaled", "ctrl.py", " * math.sqrt(self.config.d_model)", ""),
    Mistake("CTRL: bias of the unembedding dropped", "ctrl.py", "self.W_U, self.b_U)", "self.W_U)"),
    Mistake("CTRL: bias of the keys dropped", "ctrl.py", "w.W_K, w.b_K)", "w.W_K)"),
    Mistake("CTRL: epsilon of the inner norms", "ctrl.py", "ClassVar[float] = 1e-6", "ClassVar[float] = 1e-5"),
    Mistake(
        "CTRL: final norm with the inner epsilon",
        "ctrl.py",
        "return self.config.ln_final_eps",
        "return self.config.ln_eps",
    ),
    Mistake("GELU for CTRL's ReLU", "ctrl.py", "mlp_pre.relu()", "torch.nn.functional.gelu(mlp_pre)"),
    Mistake("a look at the next token", "ops.py", ".tril()", ".tril(1)"),
    Mistake("softmax over queries", "ops.py", "scores.softmax(-1,", "scores.softmax(-2,"),
    Mistake(
        "heads cut the other way",
        "ops.py",
        "x.view(*x.shape[:-1], n_heads, -1).transpose(1, 2)",
        "x.view(*x.shape[:-1], -1, n_heads).movedim(-1, 1)",
    ),
    Mistake(
        "lens: rows one block early",
        "lens.py",
        "getattr(block, name)",
        'getattr(block, "resid_pre" if name == "resid_post" else name)',
    ),
    Mistake(
        "lens: final norm twice",
        "lens.py",
        "reader.unembed(resid)",
        "reader.unembed(reader.final_norm(resid))",
    ),
    Mistake(
        "lens: extended decoder one block short",
        "lens.py",
        'resid_post"), n_layers - count\n',
        'resid_post"), n_layers - count + 1\n',
    ),
    Mistake("lens: KL the other way round", "vocab.py", '"kl_final": (LAST, ALL)', '"kl_final": (ALL, LAST)'),
    Mistake(
        "lens: the true next token is the input",
        "table.py",
        "tokens[texts, columns + goes_on]",
        "tokens[texts, columns]",
    ),
    Mistake(
        "lens: MLP decoder with attention",
        "lens.py",
        'torch.zeros_like(value) if site.name == "attn_out" else value',
        "value",
    ),
    Mistake(
        "lens: the decoder is not edited",
        "lens.py",
        "decoding=_from_mlp_on(edit) if",
        "decoding=untouched if",
    ),
    Mistake(
        "edits: heads and positions exchanged",
        "edits.py",
        "texts[:, None, None], heads[:, None], positions[:, None]",
        "texts[:, None, None], positions[:, :, None], heads",
    ),
    Mistake(
        "edits: a patch from the wrong layer", "edits.py", "source.layer if layer is None else layer", "source.layer"
    ),
    Mistake("patching: the cone forgets the keys", "instruments/cells.py", "before = keys | after", "before = after"),
    Mistake(
        "patching: the blocks below are run again",
        "instruments/cells.py",
        "resid, start=layer, edit",
        "resid, start=0, edit",
    ),
    Mistake(
        "patching: positions and heads exchanged",
        "instruments/cells.py",
        'at.get("pos", slice(None))',
        'at.get("head", slice(None))',
        ("patching",),
    ),
    Mistake(
        "patching: padding is part of a text",
        "instruments/texts.py",
        "tokens[text : text + 1, :end]",
        "tokens[text : text + 1]",
        ("patching",),
    ),
    Mistake(
        "patching: an error as if pairs were alike",
        "instruments/patching.py",
        "- recovered * (each.clean - each.corrupt)",
        "- recovered * (self.clean - self.corrupt)",
        ("patching",),
    ),
    Mistake(
        "paths: what lies between is not frozen",
        "instruments/paths.py",
        "if here.name in frozen and",
        "if here.name in ('mlp_out',) and here.name in frozen and",
        ("paths",),
    ),
    Mistake(
        "paths: a frozen block writes nothing",
        "instruments/paths.py",
        "resid = resid + theirs[layer].attn_out + theirs[layer].mlp_out",
        "resid = resid + theirs[layer].attn_out",
        ("paths",),
    ),
    Mistake(
        "paths: other heads hear, too",
        "instruments/paths.py",
        "new[:, heads] = heard[here][:, heads]",
        "new = heard[here]",
        ("paths",),
    ),
    Mistake(
        "ablation: a text drawn for itself",
        "instruments/ablation.py",
        "if not (self.are_own and at == number)",
        "if True",
        ("ablation",),
    ),
    Mistake(
        "ablation: padding in the mean",
        "instruments/ablation.py",
        '(torch.arange(longest, device="cpu") < ends[:, None]).sum(0)',
        "torch.full((longest,), len(ends))",
        ("ablation",),
    ),
    Mistake(
        "gradients: from the clean run",
        "instruments/gradients.py",
        "run(model, subject.embed.detach().requires_grad_())",
        "run(model, pair.clean_embed.detach().requires_grad_())",
        ("gradients",),
    ),
    Mistake(
        "gradients: points at the ends of the steps",
        "instruments/gradients.py",
        "dtype=start.dtype) + 0.5) / steps",
        "dtype=start.dtype) + 1.0) / steps",
        ("gradients",),
    ),
    Mistake(
        "attribution: values of the wrong position",
        "instruments/writes.py",
        "written.pattern * torch.einsum",
        "written.pattern.flip(-1) * torch.einsum",
        ("attribution",),
    ),
    Mistake(
        "attribution: the bias of attention is the MLP's",
        "instruments/attribution.py",
        'self._in_layers("head.", "attn_")',
        'self._in_layers("head.")',
        ("attribution",),
    ),
    Mistake(
        "circuits: OV without the gain",
        "instruments/circuits.py",
        "torch.cat([x * w @ W_V for x in _alone(model, layer)])",
        "torch.cat([x @ W_V for x in _alone(model, layer)])",
        ("circuits",),
    ),
    Mistake(
        "circuits: heads of another layer's MLP",
        "instruments/circuits.py",
        "if layer > 0:",
        "if layer > 1:",
        ("circuits",),
    ),
    Mistake(
        "composition: keys read as queries",
        "instruments/composition.py",
        "_unit(Q @ _R(K).mT), _unit(K @ _R(Q).mT)",
        "_unit(K @ _R(Q).mT), _unit(Q @ _R(K).mT)",
        ("circuits",),
    ),
    Mistake(
        "claims: a word that is found early passes",
        "study/claims.py",
        '_onset(late), "at least", 2 / 3',
        '_onset(late), "at least", 0',
    ),
    Mistake(
        "study: the ranks of the word at the input",
        "study/experiments.py",
        "table.next_tokens == token",
        "table.tokens == token",
    ),
    Mistake(
        "lens: plain norm for the last row, too", "lens.py", "self.model if is_last else self.reader", "self.reader"
    ),
    Mistake("rank: ties count against the token", "vocab.py", "torch.gt(D,", "torch.ge(D,"),
    Mistake(
        "rank: tokens alike are told apart by rounding",
        "vocab.py",
        "self.vocabulary.first[tokens, None]",
        "torch.arange(self.vocabulary.size)[tokens, None]",
    ),
    Mistake(
        "rank: each token alike has a logit of its own",
        "vocab.py",
        "vocabulary.first[torch.cat([self.best[1].mT[:1], asked])]",
        "torch.cat([self.best[1].mT[:1], asked])",
    ),
    Mistake(
        "vocabulary: the last tile is left out",
        "vocab.py",
        "whole.shape[1] // vocabulary.width, vocabulary.width",
        "vocabulary.size // vocabulary.width, vocabulary.width",
    ),
    Mistake(
        "vocabulary: tiles not rescaled", "vocab.py", "Z_tiles = self.Z * shift.exp()", "Z_tiles = self.Z.double()"
    ),
    Mistake("vocabulary: shift of q forgotten", "vocab.py", "(shift[:, p] - shift[:, q])", "shift[:, p]"),
    Mistake("vocabulary: the last row a chunk late", "vocab.py", "slice(p + n, p + 2 * n)", "slice(p, p + n)"),
    Mistake(
        "run: the stream is not carried on",
        "model.py",
        "resid = block.resid_post\n        yield",
        "resid = block.resid_mid\n        yield",
    ),
    Mistake(
        "corpus: the prefix is counted",
        "corpus/batches.py",
        "torch.arange(longest) - len(prefix)",
        "torch.arange(longest)",
        ("documents",),
    ),
    Mistake(
        "corpus: nothing follows a window",
        "corpus/batches.py",
        "torch.split(follows, length)",
        "[each.index_fill(0, each.new_tensor([-1]) % len(each), -1) for each in torch.split(follows, length)]",
        ("documents",),
    ),
    Mistake(
        "corpus: errors as if tokens were documents",
        "corpus/tally.py",
        "torch.unique(document[at] * n_groups",
        "torch.unique(torch.arange(len(document))[at] * n_groups",
        ("sweep",),
    ),
    Mistake(
        "corpus: settled before it is for good",
        "corpus/tally.py",
        "agrees.flip(0).int().cumprod(0).flip(0)",
        "agrees.int()",
        ("sweep",),
    ),
    Mistake(
        "corpus: a quantile of the bucket before",
        "corpus/tally.py",
        "edges[bucket] + part",
        "edges[bucket - 1] + part",
        ("sweep",),
    ),
    Mistake("corpus: frequent for rare", "corpus/measure.py", "(share < torch", "(share > torch", ("sweep",)),
    Mistake(
        "corpus: places one too far", "corpus/measure.py", "(batch.place + 0.5)", "(batch.place + 1.5)", ("sweep",)
    ),
    Mistake(
        "corpus: the input's numbers for the next token's",
        "corpus/measure.py",
        '-found.tokens["next"].logprob',
        '-found.tokens["input"].logprob',
        ("sweep",),
    ),
    Mistake("corpus: sums of the first part alone", "corpus/measure.py", "sorted({*turn.tolist()})", "[0]", ("sweep",)),
    Mistake(
        "corpus: documents torn between sums",
        "corpus/measure.py",
        "document.bincount().cumsum(0)[document] // AT_ONCE",
        "torch.arange(len(document)) // AT_ONCE",
        ("sweep",),
    ),
    Mistake(
        "corpus: all that is rare alike",
        "corpus/measure.py",
        "[:, None]).sum(0) + splits",
        "[:, None]).sum(0).clamp(max=2) + splits",
        ("sweep",),
    ),
    Mistake(
        "corpus: counts of any files",
        "corpus/sweep.py",
        "or (shards.shape, total.shape) != ((n_files,), (n_total,))\n",
        "\n",
        ("sweep",),
    ),
    Mistake(
        "corpus: a shard done twice", "corpus/sweep.py", "if is_ours and not shard.path.exists()", "if True", ("sweep",)
    ),
    Mistake(
        "corpus: sums in the order of the files",
        "corpus/sweep.py",
        "sorted(files, key=lambda file: file.digest)",
        "list(files)",
        ("sweep",),
    ),
    Mistake(
        "corpus: what runs is not waited for",
        "corpus/sweep.py",
        "for wait in (False, True)",
        "for wait in (False,)",
        ("sweep",),
    ),
    Mistake("corpus: a .zst without its end", "corpus/unpacking.py", "if self.frame:", "if False:", ("formats",)),
    Mistake(
        "corpus: a dataset in the commit of today",
        "corpus/hub_files.py",
        'begun.get(f"{dataset}@{revision}", revision)',
        "revision",
        ("hub_files",),
    ),
    Mistake(
        "attribution: the last place of the longest text",
        "instruments/attribution.py",
        "position, n) for n in lengths",
        "position, max(lengths)) for _ in lengths",
        ("attribution",),
    ),
    Mistake("corpus: a broken folder is gone on with", "corpus/shared_files.py", "if other:", "if False:", ("sweep",)),
    Mistake(
        "corpus: a file that changes is read on",
        "corpus/sweep.py",
        "if not torch.equal(as_tensor(digest(tuple(documents))), shard.text):",
        "if False:",
        ("sweep",),
    ),
    Mistake(
        "corpus: sums of other shapes",
        "corpus/sweep.py",
        "if any((v.shape, v.dtype) != (part[k].shape, part[k].dtype) for k, v in vars(so_far).items()):",
        "if False:",
        ("sweep",),
    ),
    Mistake("corpus: counts of other texts", "corpus/sweep.py", "if n_tokens != n_counted:", "if False:", ("sweep",)),
    Mistake(
        "corpus: who begins last has the folder",
        "corpus/shared_files.py",
        "if not path.exists():\n            with replacing",
        "if True:\n            with replacing",
        ("sweep",),
    ),
    Mistake("learned: A transposed", "learned/affine.py", ".mT.contiguous(), b)", ".contiguous(), b)", ("fit",)),
    Mistake(
        "learned: A transposed in use", "learned/affine.py", "self.weight.to(h).mT", "self.weight.to(h)", ("affine",)
    ),
    Mistake(
        "learned: a row off by one",
        "learned/fit.py",
        "zip(self.sites, maps, strict=True)",
        "zip(self.sites, [*maps[1:], maps[0]], strict=True)",
        ("fit",),
    ),
    Mistake(
        "learned: the bias lost", "learned/moments.py", "(mean_y - mean_h @ A)[None]", "(0 * mean_y)[None]", ("fit",)
    ),
    Mistake(
        "learned: ridge towards 0",
        "learned/moments.py",
        "A = A + torch.cholesky_solve(Cxy - Cxx, factor)",
        "A = torch.cholesky_solve(Cxy, factor)",
        ("fit",),
    ),
    Mistake("learned: the first token is not left out", "learned/fit.py", ">= self.skip", ">= 0", ("fit",)),
    Mistake(
        "learned: a ridge chosen on its own text",
        "learned/fit.py",
        "left_out, rest = self._parts(sweep)",
        "rest, left_out = self._parts(sweep)",
        ("fit",),
    ),
    Mistake(
        "learned: a gradient without its mean", "learned/tuned.py", "g_n - g_n.mean(-1, keepdim=True)", "g_n", ("fit",)
    ),
    Mistake("learned: a gradient without the gain", "learned/tuned.py", "g_n = gain * (", "g_n = (", ("fit",)),
    Mistake("learned: the output's bias lost", "learned/tuned.py", "- target.bias + lse", "+ lse", ("fit",)),
    Mistake(
        "learned: a step that goes up is taken", "learned/tuned.py", "if point.kl >= best.kl:", "if False:", ("fit",)
    ),
    Mistake(
        "learned: another model's lens",
        "learned/affine.py",
        "if others := self.model.departures",
        "if others := 0 and self.model.departures",
        ("affine",),
    ),
    Mistake(
        "learned: no map is the plain lens",
        "learned/affine.py",
        "            raise ValueError(self._no_map(site))\n        if resid",
        "            return resid\n        if resid",
        ("affine",),
    ),
    Mistake(
        "jacobian: transposed", "learned/jacobian.py", "Z.mT @ correction", "(Z.mT @ correction).mT", ("jacobian",)
    ),
    Mistake(
        "jacobian: I is left in",
        "learned/jacobian.py",
        "for g in gradients]) - some)",
        "for g in gradients]))",
        ("jacobian",),
    ),
    Mistake(
        "jacobian: the last position counts",
        "learned/jacobian.py",
        "cotangent[skip:-1] = 1",
        "cotangent[skip:] = 1",
        ("jacobian",),
    ),
    Mistake(
        "jacobian: the first positions count",
        "learned/jacobian.py",
        "g[:, 0, skip:-1].mean(1)",
        "g[:, 0, :-1].mean(1)",
        ("jacobian",),
    ),
    Mistake(
        "jacobian: cotangents of another length", "learned/jacobian.py", "math.sqrt(d_model / k)", "1.0", ("jacobian",)
    ),
    Mistake("jacobian: errors of one text", "learned/jacobian.py", "(n * (n - 1))", "(n - 1)", ("jacobian",)),
    Mistake("published: tuned-lens off by one", "learned/published.py", "Site(n - 1, ", "Site(n, ", ("published",)),
    Mistake(
        "published: Jacobian off by one", "learned/published.py", "Site(layer, ", "Site(layer + 1, ", ("published",)
    ),
    Mistake(
        "published: J transposed", "learned/published.py", "matrix / divisor -", "matrix.mT / divisor -", ("published",)
    ),
    Mistake(
        "published: a sum is a mean",
        "learned/published.py",
        "divisor = n_texts if is_sum else 1",
        "divisor = 1",
        ("published",),
    ),
    Mistake("published: keys of any size", "checkpoint/pickled.py", "0 <= key < LARGEST_KEY", "True", ("published",)),
    Mistake(
        "published: tensors of any size",
        "checkpoint/pickled.py",
        "if _n_bytes(",
        "if not nested and _n_bytes(",
        ("published",),
    ),
    Mistake("fidelity: a swap of nothing", "learned/pushes.py", "self.read(h).flip(-1)", "self.read(h)", ("fidelity",)),
    Mistake(
        "fidelity: the null is no null",
        "learned/pushes.py",
        "upcast(push.change(h) - h) @ rotation",
        "upcast(push.change(h) - h)",
        ("fidelity",),
    ),
    Mistake(
        "fidelity: the vocabulary's mean stays",
        "learned/pushes.py",
        " - model.W_U.mean(1, keepdim=True, dtype=W_U.dtype) if centred",
        " if centred",
        ("fidelity",),
    ),
    Mistake("fidelity: errors too small", "learned/fidelity.py", "(n - 1) * without.var", "without.var", ("fidelity",)),
    Mistake(
        "learned: differences with another sign",
        "corpus/tally.py",
        "(ours - theirs)",
        "(theirs - ours)",
        ("fit_command",),
    ),
    *(Mistake(f"safety: {what}", *where) for what, *where in SAFETY),
]


def named(test: str) -> list[str]:
    """What pytest is given for a test's name."""
    file, *rest = test.split("::")
    return ["::".join([str(path.relative_to(ROOT)), *rest]) for path in (ROOT / "tests").rglob(f"test_{file}.py")]


def first_red(mistake: Mistake | None, tests: Iterable[str]) -> str | None:
    """The first of the tests that fails with this mistake planted, or None where all pass."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for part in ("minilens", "tests", "scripts", "docs"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        (copy / "weights").symlink_to(ROOT / "weights")
        if mistake:
            path = copy / "minilens" / mistake.file
            path.write_text(path.read_text().replace(mistake.right, mistake.wrong))
        own = (
            Path(mistake.file).with_suffix("").parts if mistake else ()
        )  # the tests of the file itself find it soonest
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-x",
                "-p",
                "no:cacheprovider",
                *(path for name in sorted(tests, key=lambda name: name not in own) for path in named(name)),
            ],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        if run.returncode == 0:
            return None
        if run.returncode == -signal.SIGBUS:  # the end of whoever reads a mapped file that is cut short
            return "SIGBUS"
        failed = re.search(r"^(?:FAILED|ERROR) \S*?::(\S+)", run.stdout, re.MULTILINE)
        if run.returncode != 1 or not failed:
            raise SystemExit(f"{mistake}: the tests did not run\n{run.stdout}{run.stderr}")
        return failed[1]


def main() -> int:
    chosen = [mistake for mistake in MISTAKES if all(word in mistake.what for word in sys.argv[1:])]
    if not chosen:
        print(f"no mistake has {' and '.join(sys.argv[1:])} in its name")
        return 1
    for mistake in chosen:
        if mistake.right not in (ROOT / "minilens" / mistake.file).read_text():
            print(f"{mistake.what}: {mistake.file} no longer holds {mistake.right!r}; mend this script")
            return 1
    if red := first_red(None, sorted({name for mistake in chosen for name in mistake.tests})):
        print(f"without a mistake, {red} is red already")
        return 1
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reds = pool.map(lambda mistake: first_red(mistake, mistake.tests), chosen)
        unnoticed = 0
        for mistake, red in zip(chosen, reds, strict=True):
            print(f"{mistake.what:48} {red or 'NOT NOTICED'}", flush=True)
            unnoticed += red is None
    print(f"{len(chosen) - unnoticed} of {len(chosen)} mistakes turn a test red")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
