"""One attention layer of another library against both twins: its weights, its output, its gradients, its decoding."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from maskattn import masks, standards
from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.convert.modules import Layout
from maskattn.parity.against.capture import Captured
from maskattn.parity.against.families import Site
from maskattn.parity.against.hurry import HURRY
from maskattn.parity.checkpoint.layers import canonical_layer
from maskattn.parity.layers.oracle import Call, Verdict, judge
from maskattn.typing import NumPyArray as Array

#: How many units in the last place PyTorch's rotary frequencies were seen to be off.
FREQUENCY_ULPS = 5.0

#: What a twin gives: its output, and by name the gradients of query, key and every canonical tensor.
Answer = tuple[Array, dict[str, Array]]


@dataclass(frozen=True)
class Found:
    """What one comparison found: the largest error as a share of its limit, and of what; or in words what is wrong."""

    share: float
    what: str = ""

    @property
    def held(self) -> bool:
        """Whether every number was within its limit."""
        return self.share <= 1


@dataclass
class Judge:
    """A layer as captured, with its configuration: what is right, and how far two computations may be apart."""

    site: Site
    captured: Captured
    config: AttentionConfig
    kind: Layout

    def __post_init__(self) -> None:
        captured = self.captured
        self.canonical = canonical_layer(self.kind, captured.tensors, self.config, self.site.prefix)
        length = captured.query.shape[1]
        self.bias = None if self.site.bias is None else self.site.bias(length)
        # limits that hold for Hugging Face's arithmetic hold for ours
        self.verdict = self.judged(self.written)

    @property
    def padding(self) -> masks.Mask:
        """What the batch adds to the mask of a layer."""
        captured, mask = self.captured, masks.KeyMask(self.captured.keys)
        return masks.Full() if captured.keys.all() else mask

    @property
    def written(self) -> masks.Mask:
        """The mask in the algebra."""
        return self.whole(self.site.mask)

    def whole(self, mask: masks.Mask) -> masks.Mask:
        """A layer's mask with what the batch adds to it."""
        tokens = self.captured.global_tokens
        if tokens is not None:
            mask = mask | masks.Global(tokens)
        return mask if self.captured.keys.all() else mask & self.padding

    def judged(self, mask: masks.Mask) -> Verdict:
        """The oracle's verdict under a mask."""
        captured = self.captured
        batch, length, kv_length = captured.query.shape[0], captured.query.shape[1], captured.key.shape[1]
        call = Call(
            captured.query,
            None if captured.key is captured.query else captured.key,
            allowed=np.asarray(mask.dense(length, kv_length, batch)),
            bias=self.bias,
            global_tokens=captured.global_tokens,
            relative=captured.relative,
        )
        cotangent, ulps = captured.cotangent, FREQUENCY_ULPS
        return judge(self.config, self.canonical, call, "float32", cotangent=cotangent, frequency_ulps=ulps)

    def output(self, found: Array) -> Found:
        """A twin's output against Hugging Face's, where it is compared, by the sum of both bounds."""
        rows = self.captured.rows
        limit = standards.value("module.peer") * self.verdict.limit
        share = standards.share(np.abs(found.astype(np.float64) - self.captured.output), limit)[rows]
        return Found(float(share.max(initial=0)))

    def gradients(self, found: dict[str, Array]) -> Found:
        """A twin's gradients against Hugging Face's."""
        theirs = dict(self.captured.gradients)
        inputs = {name: theirs.pop(name) for name in ("query", "key") if name in theirs}
        right = inputs | canonical_layer(self.kind, theirs, self.config, self.site.prefix)
        worst = Found(0.0)
        for name, gradient in right.items():
            if name == "key.bias" and not self.kind.key_bias:
                continue  # theirs has none
            limit = standards.value("module.peer") * self.verdict.gradient_limits[name]
            share = float(standards.share(np.abs(found[name].astype(np.float64) - gradient), limit).max(initial=0))
            worst = max(worst, Found(share, name), key=lambda each: each.share)
        return worst

    def given(self) -> dict[str, Array]:
        """What a twin's module is called with beside its inputs and the mask."""
        captured = self.captured
        named = {"global_tokens": captured.global_tokens, "relative": captured.relative, "bias": self.bias}
        return {name: x for name, x in named.items() if x is not None}


class Torch:
    """The PyTorch twin's module of a layer."""

    name = "torch"

    def __init__(self, judge: Judge) -> None:
        self.judge, self.twin = judge, importlib.import_module("maskattn_torch")
        self.module = self.twin.MultiHeadAttention(judge.config).eval()
        self.twin.params.load(self.module, judge.canonical)

    def dump(self) -> dict[str, Array]:
        """The canonical tensors that the module holds."""
        held: dict[str, Array] = self.twin.params.dump(self.module)
        return held

    def run(self, mask: masks.Mask, gradients: bool = True) -> Answer:
        """Its output and, where asked for, its gradients."""
        import torch

        captured, own = self.judge.captured, self.module
        query = torch.tensor(captured.query, requires_grad=True)
        key = query if captured.key is captured.query else torch.tensor(captured.key, requires_grad=True)
        given = {name: torch.tensor(x) for name, x in self.judge.given().items()}
        output = own(query, None if key is query else key, mask=mask, **given)
        if not gradients:
            return output.detach().numpy(), {}
        leaves = {"query": query} | ({} if key is query else {"key": key})
        wanted = [*leaves.values(), *own.parameters()]
        found = torch.autograd.grad(output, wanted, torch.tensor(captured.cotangent), allow_unused=True)
        made = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]
        holder = self.twin.MultiHeadAttention(self.judge.config)
        with torch.no_grad():
            for parameter, gradient in zip(holder.parameters(), made[len(leaves) :], strict=True):
                parameter.copy_(gradient)
        named = {name: x.numpy() for name, x in zip(leaves, made, strict=False)}
        return output.detach().numpy(), named | self.twin.params.dump(holder)

    def decode(self, mask: masks.Mask, steps: Sequence[int]) -> Array:
        """Its output, so many tokens at a time, by a cache."""
        import torch

        cache = importlib.import_module("maskattn_torch.cache").Cache
        query, config = self.judge.captured.query, self.judge.config
        held, outputs, start = cache.for_config(config, *query.shape[:2]), [], 0
        with torch.no_grad():
            for count in steps:
                output, held = self.module(torch.tensor(query[:, start : start + count]), mask=mask, cache=held)
                outputs.append(output.numpy())
                start += count
        return np.concatenate(outputs, 1)


class Jax:
    """The JAX twin's NNX module of a layer."""

    name = "jax"

    def __init__(self, judge: Judge) -> None:
        from flax import nnx

        self.judge, self.twin = judge, importlib.import_module("maskattn_jax")
        self.module = self.twin.MultiHeadAttention(judge.config, rngs=nnx.Rngs(0))
        self.twin.params.load(self.module, judge.canonical)

    def dump(self) -> dict[str, Array]:
        """The canonical tensors that the module holds."""
        held: dict[str, Array] = self.twin.params.dump(self.module)
        return held

    def run(self, mask: masks.Mask, gradients: bool = True) -> Answer:
        """Its output and, where asked for, its gradients."""
        import jax
        import jax.numpy as jnp
        from flax import nnx

        captured, (graph, held) = self.judge.captured, nnx.split(self.module)
        alone = captured.key is captured.query
        leaves = {"query": jnp.asarray(captured.query)} | ({} if alone else {"key": jnp.asarray(captured.key)})

        def call(state: Any, inputs: Any) -> Any:
            module = nnx.merge(graph, state)
            given = {"mask": mask, "deterministic": True, **self.judge.given()}
            return module(inputs["query"], inputs.get("key"), **given)

        def both(state: Any, inputs: Any, cotangent: Any) -> Any:
            output, back = jax.vjp(call, state, inputs)
            return output, back(cotangent)

        # one program for each layer: eagerly, each operation would be compiled
        if not gradients:
            return np.asarray(jax.jit(call, compiler_options=HURRY)(held, leaves)), {}
        run = jax.jit(both, compiler_options=HURRY)
        output, (d_state, d_inputs) = run(held, leaves, jnp.asarray(captured.cotangent))
        named = {name: np.asarray(x) for name, x in d_inputs.items()}
        return np.asarray(output), named | self.twin.params.dump(nnx.merge(graph, d_state))

    def decode(self, mask: masks.Mask, steps: Sequence[int]) -> Array:
        """Its output, so many tokens at a time, by a cache."""
        import jax
        from flax import nnx

        graph, state = nnx.split(self.module)

        @partial(jax.jit, compiler_options=HURRY)
        def step(state: Any, tokens: Any, held: Any) -> Any:
            return nnx.merge(graph, state)(tokens, mask=mask, cache=held, deterministic=True)

        query, config = self.judge.captured.query, self.judge.config
        held: Any = importlib.import_module("maskattn_jax.cache").Cache.for_config(config, *query.shape[:2])
        outputs, start = [], 0
        for count in steps:
            output, held = step(state, query[:, start : start + count], held)
            outputs.append(np.asarray(output))
            start += count
        return np.concatenate(outputs, 1)


TWINS: tuple[type[Torch | Jax], ...] = (Torch, Jax)


def weights(judge: Judge, module: Torch | Jax) -> Found:
    """What a module holds against what the layer has, byte for byte, there and back."""
    held = module.dump()
    for name, tensor in judge.canonical.items():
        if held.get(name) is None or held[name].tobytes() != tensor.tobytes():
            return Found(np.inf, f"{module.name}: {name}")
    back = judge.kind.from_canonical(held, judge.config)
    for name, tensor in judge.captured.tensors.items():
        if name not in back or np.ascontiguousarray(back[name]).tobytes() != np.ascontiguousarray(tensor).tobytes():
            return Found(np.inf, f"{module.name}: {name}")
    return Found(0.0)


def layout_of(name: str) -> Layout:
    """The layout of this name."""
    return layouts.get(name)
