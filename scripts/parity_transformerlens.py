"""minilens beside TransformerLens: what parts write, circuits, composition, attribution, patching, on the same weights.

    pip install transformer-lens                         for this script alone; it was last run with version 4.3.0
    python scripts/parity_transformerlens.py             the bundled models
    python scripts/parity_transformerlens.py FOLDER ...  models in folders

Both libraries compute in float64, each with its own functions. CTRL is not among the models of TransformerLens: there
transformers' own modules are watched with hooks, and the formulas are written out. A line for each kind of number: the
largest difference, relative to the largest number of that kind, which must be below 1e-4. The exit status is 1 where it
is not.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from math import sqrt
from pathlib import Path
from typing import Any, Protocol

os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported: no bars

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import minilens
from minilens.checkpoint.hub import bundled

BOUND = 1e-4
N, SHORT, K = 70, 20, 5  # tokens of the text, of those that are patched, and that are named
TOKEN, AGAINST = 5, 77  # whose logits are told apart
LAYER, HEADS = 5, ((0, 3), (5, 1))  # whose neurons and circuits are compared
RECEIVER, SENDERS = (6, 1), (4, 5)  # of path patching: a head's queries, and the layers whose heads send
ROWS = slice(0, 200)  # of matrices of tokens by tokens
Pairs = Iterator[tuple[str, Tensor, Tensor]]  # what is compared, ours, theirs


class Reference(Protocol):
    """What both references know of the clean text. A write is [pos d_model]."""

    writes: Tensor  # of the embedding, the positions, and attention and MLP of every block
    heads: Tensor  # [layer head pos d_model]
    neurons: Tensor  # of LAYER

    def shares(self, writes: Tensor) -> Tensor: ...  # [part pos d_vocab], less the mean over the vocabulary
    def attribution(self, writes: Tensor) -> Tensor: ...  # of the two tokens, at the last position
    def alone(self, write: Tensor) -> Tensor: ...  # logits
    def qk(self, layer: int, head: int) -> Tensor: ...  # ROWS of it
    def ov(self, layer: int, head: int) -> tuple[Tensor, Tensor]: ...  # ROWS of it, and the eigenvalues
    def composition(self, kind: str) -> Tensor: ...  # [layer head layer head]
    def patched(self, clean: Tensor, corrupt: Tensor) -> dict[str, Tensor]: ...  # the metric, by site


def metric(logits: Tensor) -> Tensor:
    return logits[0, -1, TOKEN] - logits[0, -1, AGAINST]


def compared(folder: Path) -> Pairs:
    """Both libraries on one model."""
    model, _ = minilens.load(folder, dtype=torch.float64)
    clean = torch.randint(0, model.W_U.shape[1], (1, N), generator=torch.Generator().manual_seed(2023))
    theirs: Any = (OfTransformers if model.family == "ctrl" else OfTransformerLens)(folder, clean)
    yield from parts(model, clean, theirs)
    yield from circuits(model, theirs)
    short = clean[:, :SHORT]
    corrupt = short.clone()
    corrupt[0, [3, 11, 17]] = torch.tensor([11, 42, 300])
    yield from patching(model, short, corrupt, theirs.patched(short, corrupt))


def parts(model: Any, clean: Tensor, theirs: Reference) -> Pairs:
    found, n_heads = minilens.parts(model, clean, top_k=K), model.config.n_heads
    yield "parts: norms", found.norm, theirs.writes.norm(dim=-1)
    logprob = torch.stack([theirs.alone(write).log_softmax(-1).topk(K).values for write in theirs.writes])
    yield "parts: best tokens alone", found.alone.logprob, logprob
    shares = theirs.shares(theirs.writes)
    yield "parts: tokens raised", found.raised.share, shares.topk(K).values
    yield "parts: tokens lowered", found.lowered.share, shares.topk(K, largest=False).values
    by_head = [minilens.parts(model, clean, layer) for layer in range(model.n_layers)]
    yield "heads: norms", torch.stack([each.norm[:n_heads] for each in by_head]), theirs.heads.norm(dim=-1)
    raised = torch.stack([each.raised.share[:n_heads] for each in by_head])
    yield "heads: tokens raised", raised, torch.stack([theirs.shares(each).topk(K).values for each in theirs.heads])
    found, n = minilens.parts(model, clean, LAYER, by="neuron", top_k=1), len(theirs.neurons)
    yield "neurons: norms", found.norm[:n], theirs.neurons.norm(dim=-1)
    yield "neurons: tokens raised", found.raised.share[:n, :, 0], theirs.shares(theirs.neurons).amax(-1)

    attribution = minilens.attribute(model, clean, token=TOKEN, against=AGAINST)
    yield "attribution by head", attribution.by_head, torch.stack([theirs.attribution(each) for each in theirs.heads])
    yield "attribution by layer", attribution.by_layer, theirs.attribution(theirs.writes)[2:].view(-1, 2).sum(1)


def circuits(model: Any, theirs: Reference) -> Pairs:
    copying, composition = minilens.copying_scores(model), minilens.composition(model)
    for layer, head in HEADS:
        circuit = minilens.qk_circuit(model, layer, head)
        yield f"QK of {layer}.{head}", circuit.left[ROWS] @ circuit.right, theirs.qk(layer, head)
        circuit, (ov, eigenvalues) = minilens.ov_circuit(model, layer, head), theirs.ov(layer, head)
        yield f"OV of {layer}.{head}", circuit.left[ROWS] @ circuit.right, ov
        score = eigenvalues.real.sum() / eigenvalues.abs().sum()
        yield f"copying score of {layer}.{head}", copying[layer, head], score
    for kind in ("query", "key", "value"):
        ours = getattr(composition, kind)
        known = ~ours.isnan()
        yield f"composition, {kind}", ours[known], theirs.composition(kind)[known]


def patching(model: Any, clean: Tensor, corrupt: Tensor, theirs: dict[str, Tensor]) -> Pairs:
    ours = minilens.logit_difference(TOKEN, AGAINST)
    by_position = minilens.patching(model, clean, corrupt, ours, sites=("resid_pre", "attn_out", "mlp_out")).metric
    by_head = minilens.patching(model, clean, corrupt, ours, sites="z", by="head").metric
    for site, found in (by_position | by_head).items():
        yield f"patching of {site}", found, theirs[site]
    (layer, head), senders = RECEIVER, list(SENDERS)
    paths = minilens.path_patching(model, clean, corrupt, ours, to=[(layer, "q", head)]).metric["z"]
    yield f"paths to the queries of {layer}.{head}", paths[senders], theirs["paths"]


class OfTransformerLens:
    """TransformerLens, on the weights as they are, and folded and centred as its users have them."""

    def __init__(self, folder: Path, clean: Tensor) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        self.raw, self.folded = (
            TransformerBridge.boot_transformers(str(folder), dtype=torch.float64, device="cpu") for _ in range(2)
        )
        self.raw.enable_compatibility_mode(disable_warnings=True, no_processing=True)
        self.folded.enable_compatibility_mode(disable_warnings=True, fold_value_biases=False)
        (_, seen), (_, self.of_folded) = self.raw.run_with_cache(clean), self.folded.run_with_cache(clean)
        self.writes = seen.decompose_resid()[:, 0]
        self.heads = seen.stack_head_results()[:, 0].unflatten(0, (self.raw.cfg.n_layers, -1))
        self.neurons = seen.get_neuron_results(LAYER)[0].transpose(0, 1)

    def shares(self, writes: Tensor) -> Tensor:
        return self.of_folded.apply_ln_to_stack(writes[:, None])[:, 0] @ self.folded.W_U

    def attribution(self, writes: Tensor) -> Tensor:
        tokens = torch.tensor(TOKEN), torch.tensor(AGAINST)
        return self.of_folded.logit_attrs(writes[:, None, -1], *tokens, pos_slice=-1)[:, 0]

    def alone(self, write: Tensor) -> Tensor:
        return self.raw.unembed(self.raw.ln_final(write[None]))[0]

    def read(self, layer: int) -> Tensor:
        """What a head reads of each token that stands alone."""
        x, first = self.raw.W_E[None], self.raw.blocks[0]
        return self.folded.blocks[layer].ln1(x + first.mlp(first.ln2(x)) if layer else x)[0]

    def qk(self, layer: int, head: int) -> Tensor:
        x, m = self.read(layer), self.folded
        q, k = (x @ W[layer, head] + b[layer, head] for W, b in ((m.W_Q, m.b_Q), (m.W_K, m.b_K)))
        return q[ROWS] @ k.mT

    def ov(self, layer: int, head: int) -> tuple[Tensor, Tensor]:
        whole = self.read(layer) @ self.folded.OV[layer, head] @ self.folded.W_U
        return (whole.A[ROWS] - whole.A.mean(0)) @ whole.B, whole.eigenvalues

    def composition(self, kind: str) -> Tensor:
        return self.folded.all_composition_scores(kind[0].upper()).scores

    def patched(self, clean: Tensor, corrupt: Tensor) -> dict[str, Tensor]:
        from transformer_lens import patching as their

        ours, theirs = (self.raw.run_with_cache(tokens)[1] for tokens in (clean, corrupt))
        given = self.raw, corrupt, ours
        paths = [[self.path(layer, n, corrupt, ours, theirs) for n in range(self.raw.cfg.n_heads)] for layer in SENDERS]
        return {
            "resid_pre": their.get_act_patch_resid_pre(*given, metric),
            "attn_out": their.get_act_patch_attn_out(*given, metric),
            "mlp_out": their.get_act_patch_mlp_out(*given, metric),
            "z": their.get_act_patch_attn_head_out_all_pos(*given, metric),
            "paths": torch.tensor(paths),
        }

    def path(self, layer: int, head: int, corrupt: Tensor, ours: Any, theirs: Any) -> float:
        """Where the receiver's queries alone hear what a head writes in the clean text."""
        from transformer_lens.patching import get_act_patch_direct_path

        try:
            sent = get_act_patch_direct_path(self.raw, corrupt, ours, theirs, metric, layer, head, verbose=False)
            return float(sent[RECEIVER])
        except NotImplementedError:  # for GPT-Neo: there with a hook, as its users write it
            to, receiver = RECEIVER
            z = f"blocks.{layer}.attn.hook_z"
            change = (ours[z] - theirs[z])[:, :, head] @ self.raw.W_O[layer, head]
            read = self.raw.blocks[to].ln1(theirs[f"blocks.{to}.hook_resid_pre"] + change)
            heard = read @ self.raw.W_Q[RECEIVER]  # without a bias: it has none

            def hear(q: Tensor, hook: Any) -> Tensor:
                return torch.cat([q[:, :, :receiver], heard[:, :, None], q[:, :, receiver + 1 :]], 2)

            return float(metric(self.raw.run_with_hooks(corrupt, fwd_hooks=[(f"blocks.{to}.attn.hook_q", hear)])))


class OfTransformers:
    """transformers' CTRL: what hooks on its modules see and change, and the formulas of the papers."""

    def __init__(self, folder: Path, clean: Tensor) -> None:
        self.hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
        self.blocks, self.norm = self.hf.transformer.h, self.hf.transformer.layernorm
        self.n_heads, self.d_head = self.hf.config.n_head, self.hf.config.n_embd // self.hf.config.n_head
        seen, token = self.seen(clean), self.embed(clean[0])
        layers = range(len(self.blocks))
        writes = [seen[f"{layer}.{name}"] for layer in layers for name in ("attn_out", "mlp_out")]
        self.last = seen["last"]
        self.writes = torch.stack([token, seen["0.in"] - token, *writes])
        self.heads = torch.stack([self.writes_of(seen, layer) for layer in layers])
        self.neurons = (seen[f"{LAYER}.mlp_post"][..., None] * self.blocks[LAYER].ffn[2].weight.mT).transpose(0, 1)
        self.U = centred(centred(self.norm.weight[:, None] * self.hf.lm_head.weight.mT, 0), 1)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.hf.transformer.w(tokens) * sqrt(self.hf.config.n_embd)

    def seen(self, tokens: Tensor) -> dict[str, Tensor]:
        """What goes into modules and comes out of them, [pos d] each."""
        found, hooks = {}, []

        def watch(module: Any, name: str, which: int) -> None:
            hook = module.register_forward_hook(lambda _, given, out: found.update({name: (given[0], out)[which][0]}))
            hooks.append(hook)

        for layer, block in enumerate(self.blocks):
            watch(block, f"{layer}.in", 0)
            watch(block.multi_head_attention.dense, f"{layer}.z", 0)
            watch(block.multi_head_attention.dense, f"{layer}.attn_out", 1)
            watch(block.ffn[2], f"{layer}.mlp_post", 0)
            watch(block.ffn, f"{layer}.mlp_out", 1)
        watch(self.norm, "last", 0)
        self.hf(tokens)
        for hook in hooks:
            hook.remove()
        return found

    def writes_of(self, seen: dict[str, Tensor], layer: int) -> Tensor:
        """What each head writes, [head pos d_model]."""
        z = seen[f"{layer}.z"].unflatten(-1, (self.n_heads, self.d_head)).transpose(0, 1)
        return z @ self.weights(layer)["O"]

    def weights(self, layer: int) -> dict[str, Tensor]:
        """W of each head, [head d_model d_head], and of O [head d_head d_model]."""
        attention = self.blocks[layer].multi_head_attention
        found = {
            name: getattr(attention, f"W{name.lower()}").weight.unflatten(0, (self.n_heads, -1)).mT for name in "QKV"
        }
        return found | {"O": attention.dense.weight.mT.unflatten(0, (self.n_heads, -1))}

    def shares(self, writes: Tensor) -> Tensor:
        return writes / (self.last.var(-1, correction=0) + self.norm.eps).sqrt()[:, None] @ self.U

    def attribution(self, writes: Tensor) -> Tensor:
        shares = self.shares(writes)[:, -1]
        return shares[:, TOKEN] - shares[:, AGAINST]

    def alone(self, write: Tensor) -> Tensor:
        return self.hf.lm_head(self.norm(write))

    def read(self, layer: int) -> Tensor:
        x, first = self.embed(torch.arange(self.hf.config.vocab_size)), self.blocks[0]
        return self.blocks[layer].layernorm1(x + first.ffn(first.layernorm2(x)) if layer else x)

    def qk(self, layer: int, head: int) -> Tensor:
        attention, mine = self.blocks[layer].multi_head_attention, slice(head * self.d_head, (head + 1) * self.d_head)
        x = self.read(layer)
        return attention.Wq(x[ROWS])[:, mine] @ attention.Wk(x)[:, mine].mT

    def ov(self, layer: int, head: int) -> tuple[Tensor, Tensor]:
        w = self.weights(layer)
        left, right = self.read(layer) @ w["V"][head], w["O"][head] @ self.U
        return (left[ROWS] - left.mean(0)) @ right, torch.linalg.eigvals(right @ left)

    def composition(self, kind: str) -> Tensor:
        """Of whole matrices, one pair of heads after another."""
        read, written = [], []
        for layer, block in enumerate(self.blocks):
            gain, w = block.layernorm1.weight[:, None], self.weights(layer)
            Q, K, V, O = (*(centred(gain * w[name], 1) for name in "QKV"), centred(w["O"], 2))  # noqa: E741
            written += list(V @ O)
            read += list({"query": Q @ K.mT, "key": K @ Q.mT, "value": V @ O}[kind])
        found = [
            (A @ torch.stack(read)).norm(dim=(1, 2)) / A.norm() / torch.stack([B.norm() for B in read]) for A in written
        ]
        shape = (len(self.blocks), self.n_heads) * 2
        return torch.stack(found).view(shape)

    def patched(self, clean: Tensor, corrupt: Tensor) -> dict[str, Tensor]:
        ours, theirs = self.seen(clean), self.seen(corrupt)
        columns = torch.arange(self.n_heads * self.d_head).split(self.d_head)  # of each head
        receiver = self.blocks[RECEIVER[0]]

        def at(layer: int, name: str, of_input: bool, dim: int, where: Tensor) -> float:
            """The metric with one value of the clean text: at a position, or of a head."""
            block, value = self.blocks[layer], ours[f"{layer}.{name}"][None].index_select(dim, where)
            dense = block.multi_head_attention.dense
            module = {"in": block, "z": dense, "attn_out": dense, "mlp_out": block.ffn}[name]
            return self.metric_with(corrupt, module, lambda old: old.index_copy(dim, where, value), of_input=of_input)

        def path(layer: int, head: int) -> float:
            """Where the receiver's queries alone hear what a head writes in the clean text."""
            change = (self.writes_of(ours, layer) - self.writes_of(theirs, layer))[head]
            W_Q, mine = receiver.multi_head_attention.Wq, columns[RECEIVER[1]]
            heard = W_Q(receiver.layernorm1(theirs[f"{RECEIVER[0]}.in"] + change))[None, :, mine]
            return self.metric_with(corrupt, W_Q, lambda old: old.index_copy(2, mine, heard))

        def grid(name: str, of_input: bool, dim: int, places: Sequence[Tensor]) -> Tensor:
            layers = range(len(self.blocks))
            return torch.tensor([[at(layer, name, of_input, dim, where) for where in places] for layer in layers])

        positions = torch.arange(SHORT).split(1)
        return {
            "resid_pre": grid("in", True, 1, positions),
            "attn_out": grid("attn_out", False, 1, positions),
            "mlp_out": grid("mlp_out", False, 1, positions),
            "z": grid("z", True, 2, columns),
            "paths": torch.tensor([[path(layer, head) for head in range(self.n_heads)] for layer in SENDERS]),
        }

    def metric_with(
        self, tokens: Tensor, module: Any, change: Callable[[Tensor], Tensor], *, of_input: bool = False
    ) -> float:
        """The metric where a module's output, or its input, is changed."""
        if of_input:
            hook = module.register_forward_pre_hook(lambda _, given: (change(given[0]), *given[1:]))
        else:
            hook = module.register_forward_hook(lambda _, given, out: change(out))
        found = float(metric(self.hf(tokens).logits))
        hook.remove()
        return found


def centred(x: Tensor, dim: int) -> Tensor:
    return x - x.mean(dim, keepdim=True)


@torch.no_grad()
def main(folders: list[str]) -> int:
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    failed = False
    for folder in list(map(Path, folders)) or list(bundled().values()):
        for what, ours, theirs in compared(folder):
            worst = float((ours - theirs).abs().max() / theirs.abs().max())
            failed |= not worst <= BOUND
            print(f"{folder.name:14} {what:32} {worst:.0e}{'' if worst <= BOUND else '  DIFFERS'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
