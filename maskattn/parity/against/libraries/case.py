"""What is compared: one peer, called with its own arguments, and what these mean to both twins."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from maskattn import masks
from maskattn.config import AttentionConfig
from maskattn.modules.parameters import parameters
from maskattn.parity.against.libraries.answer import Theirs
from maskattn.parity.layers.oracle import Call, Verdict, judge
from maskattn.typing import NumPyArray as Array

B, L, S, H, D = 2, 5, 7, 4, 3

_draws = np.random.default_rng(16)

#: Masks and biases, True = may attend; every row has the first key.
KEEP = _draws.random((L, S)) > 0.4
KEEP_EACH = _draws.random((B, H, L, S)) > 0.4
PADDING = np.arange(S) < np.array([S, S - 3])[:, None]
KEEP[:, 0] = KEEP_EACH[..., 0] = True
BIAS = _draws.standard_normal((L, S)).astype(np.float32)
BIAS_EACH = _draws.standard_normal((B, H, L, S)).astype(np.float32)
BIAS_OF_KEYS = _draws.standard_normal((B, S)).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """One row of the matrix.

    Attributes:
        peer: what is called, a name of `PEERS`.
        name: the argument that it is about.
        given: the peer's own arguments.
        mask, bias: what these mean, in the algebra, and as what is added to the logits.
        changes: fields of the twins' configuration.
        made: arguments that the peer's module is made with.
        alone: queries, keys and values are of one sequence, L long; decodes: token by token, by the peer's own cache.
        weights: the attention weights that it returns, too: "mean" of the heads, "each", or "".
        trained: whether gradients are compared.
    """

    peer: str
    name: str
    given: Mapping[str, Theirs] = field(default_factory=dict)
    mask: masks.Mask = masks.Full()
    bias: Array | None = None
    changes: Mapping[str, Theirs] = field(default_factory=dict)
    made: Mapping[str, Theirs] = field(default_factory=dict)
    alone: bool = False
    decodes: bool = False
    weights: str = ""
    trained: bool = True

    @property
    def projects(self) -> bool:
        """Whether the peer is a module, with weights, or a function of heads."""
        return self.peer.startswith("module ")


@dataclass
class Data:
    """A case's configuration, weights and inputs, and the oracle's verdict.

    Attributes:
        allowed: bool [B, H, L, S], True = may attend.
        inputs: "query" [B, L, E], "key" [B, S, kdim] and "value" [B, S, vdim].
    """

    case: Case
    config: AttentionConfig
    tensors: dict[str, Array]
    inputs: dict[str, Array]
    cotangent: Array
    allowed: Array
    verdict: Verdict

    @property
    def heads(self) -> list[Array]:
        """The inputs as heads, [B, length, H or K, D or Dv]."""
        counts = self.config.num_heads, self.config.num_kv_heads, self.config.num_kv_heads
        return [x.reshape(*x.shape[:2], n, -1) for x, n in zip(self.inputs.values(), counts, strict=True)]

    def averaged(self, weights: Array) -> Array:
        """Weights [B, H, L, S] as the case has them."""
        return weights.mean(1) if self.case.weights == "mean" else weights


def data_of(case: Case) -> Data:
    """Drawn at random: the same for the same configuration."""
    sizes: dict[str, Theirs] = {"head_dim": D} if case.projects else {"project": False}
    config = AttentionConfig(**{"embed_dim": H * D, "num_heads": H, **sizes, **case.changes})
    draws = np.random.default_rng(5)
    length = L if case.alone else S
    widths = {"query": (L, config.embed_dim), "key": (length, config.kdim), "value": (length, config.vdim)}
    inputs = {name: draws.standard_normal((B, *shape)).astype(np.float32) for name, shape in widths.items()}
    tensors = _tensors(config, draws)
    cotangent = draws.standard_normal((B, L, config.out_dim)).astype(np.float32)
    allowed = np.broadcast_to(np.asarray(case.mask.dense(L, length, B, H)), (B, H, L, length))
    bias = None if case.bias is None else np.asarray(case.bias, np.float64)
    call = Call(inputs["query"], inputs["key"], inputs["value"], allowed, bias)
    verdict = judge(config, tensors, call, "float32", cotangent=cotangent)
    return Data(case, config, tensors, inputs, cotangent, allowed, verdict)


def _tensors(config: AttentionConfig, draws: np.random.Generator) -> dict[str, Array]:
    """Canonical weights: none is 0 or 1, which would hide how it is used."""
    return {
        name: (draws.standard_normal(shape) * 0.5 + 0.2).astype(np.float32) for name, shape in _shapes(config).items()
    }


@functools.cache
def _shapes(config: AttentionConfig) -> dict[str, tuple[int, ...]]:
    shapes = {name: tuple(part.shape) for name, part in parameters(config).items()}
    if not config.project:
        return shapes
    widths = {"query": config.embed_dim, "key": config.kdim, "value": config.vdim}
    for role, width in widths.items():
        heads = config.num_heads if role == "query" else config.num_kv_heads
        each = config.v_head_dim if role == "value" else config.head_dim
        shapes[f"{role}.kernel"] = (width, heads, each)
        if config.qkv_bias:
            shapes[f"{role}.bias"] = (heads, each)
    shapes["out.kernel"] = (config.num_heads, config.v_head_dim, config.out_dim)
    if config.out_bias:
        shapes["out.bias"] = (config.out_dim,)
    return shapes
