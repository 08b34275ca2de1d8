"""The attention of Flax and jax.nn, and our drop-in for it, called with their arguments."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import numpy as np

from maskattn.config import AttentionConfig
from maskattn.parity.against.hurry import HURRY
from maskattn.parity.against.libraries.answer import Answer, Theirs
from maskattn.parity.against.libraries.case import Data
from maskattn.typing import NumPyArray as Array


def jitted(function: Callable[..., Theirs]) -> Callable[..., Theirs]:
    """Compiled in a hurry: each program runs once."""
    import jax

    return jax.jit(function, compiler_options=HURRY)


def _ours() -> Theirs:
    return importlib.import_module("maskattn_jax")


def linen(data: Data, ours: bool) -> Answer:
    """flax.linen.MultiHeadDotProductAttention."""
    from flax import linen as nn

    case, config = data.case, data.config
    function: dict[str, Theirs] = {"attention_fn": _ours().attention_fn} if ours else {}
    sizes: dict[str, Theirs] = {"qkv_features": config.num_heads * config.head_dim, "out_features": config.out_dim}
    made = nn.MultiHeadDotProductAttention(
        config.num_heads, use_bias=config.qkv_bias, decode=case.decodes, **sizes, **function, **case.made
    )
    params = _ours().params
    variables = params.load(made, data.tensors)

    def call(variables: Theirs, inputs: Theirs) -> Theirs:
        return made.apply(variables, *inputs, deterministic=True, **case.given)

    if not case.decodes:
        return _both(data, call, variables, lambda found: params.dump(found))
    import jax

    @jitted
    def step(cache: Theirs, inputs: Theirs) -> Theirs:
        found, changed = made.apply(
            variables | {"cache": cache}, *inputs, deterministic=True, mutable=["cache"], **case.given
        )
        return found, changed["cache"]

    cache = jitted(made.init)(jax.random.key(0), *data.inputs.values())["cache"]
    found = []
    for inputs in _tokens(data):
        output, cache = step(cache, inputs)
        found.append(np.asarray(output))
    return Answer(np.concatenate(found, 1))


def nnx(data: Data, ours: bool) -> Answer:
    """flax.nnx.MultiHeadAttention."""
    from flax import nnx as library

    case, config = data.case, data.config
    function: dict[str, Theirs] = {"attention_fn": _ours().attention_fn} if ours else {}
    made = library.MultiHeadAttention(
        config.num_heads,
        config.embed_dim,
        config.num_heads * config.head_dim,
        config.out_dim,
        num_kv_heads=config.num_kv_heads,
        in_kv_features=config.kdim,
        use_bias=config.qkv_bias,
        decode=case.decodes,
        rngs=library.Rngs(0),
        **function,
        **case.made,
    )
    params = _ours().params
    params.load(made, data.tensors)
    if case.decodes:
        made.init_cache(data.inputs["query"].shape)
        step = library.jit(lambda module, inputs: module(*inputs, deterministic=True, **case.given))
        return Answer(np.concatenate([np.asarray(step(made, inputs)) for inputs in _tokens(data)], 1))
    state: Theirs = library.split(made, library.Param, ...)
    graph, held, rest = state

    def call(held: Theirs, inputs: Theirs) -> Theirs:
        return library.merge(graph, held, rest)(*inputs, deterministic=True, **case.given)

    return _both(data, call, held, lambda found: params.dump(library.merge(graph, found, rest)))


def _tokens(data: Data) -> list[list[Array]]:
    """The inputs, token by token."""
    return [[x[:, i : i + 1] for x in data.inputs.values()] for i in range(data.inputs["query"].shape[1])]


def function(name: str, data: Data, ours: bool) -> Answer:
    """`dot_product_attention` of this module, [B, L, H, D]."""
    theirs = importlib.import_module(name).dot_product_attention
    attend = _ours().attention_fn if ours else theirs

    def call(_: Theirs, inputs: Theirs) -> Theirs:
        shaped = [x.reshape(heads.shape) for x, heads in zip(inputs, data.heads, strict=True)]
        return attend(*shaped, **data.case.given).reshape(data.cotangent.shape)

    return _both(data, call, {}, lambda found: {})


def _both(
    data: Data, call: Callable[..., Theirs], held: Theirs, dumped: Callable[[Theirs], dict[str, Array]]
) -> Answer:
    import jax

    @jitted
    def run(held: Theirs, inputs: Theirs, cotangent: Theirs) -> Theirs:
        output, back = jax.vjp(call, held, inputs)
        return output, back(cotangent)

    output, (d_held, d_inputs) = run(held, list(data.inputs.values()), data.cotangent)
    named = {name: np.asarray(x) for name, x in zip(data.inputs, d_inputs, strict=True)}
    return Answer(np.asarray(output), named | dumped(d_held))


def twin(data: Data) -> Answer:
    """Our module. The mask and the bias are arrays, so that one program serves all cases of a configuration."""
    bias = np.zeros((1, 1, 1, 1), np.float32) if data.case.bias is None else data.case.bias
    bias = np.broadcast_to(bias, data.allowed.shape)
    graph, held, run = _program(data.config, bool(data.case.weights))
    from flax import nnx as library

    made = library.merge(graph, held)
    _ours().params.load(made, data.tensors)
    state = library.split(made)[1]
    (output, weights), (d_held, d_inputs) = run(state, list(data.inputs.values()), data.allowed, bias, data.cotangent)
    named = {name: np.asarray(x) for name, x in zip(data.inputs, d_inputs, strict=True)}
    named |= _ours().params.dump(library.merge(graph, d_held))
    return Answer(np.asarray(output), named, None if weights is None else data.averaged(np.asarray(weights)))


@functools.cache
def _program(config: AttentionConfig, weights: bool) -> tuple[Theirs, Theirs, Theirs]:
    import jax
    from flax import nnx as library

    graph, held = library.split(_ours().MultiHeadAttention(config, rngs=library.Rngs(0)))

    @jitted
    def run(held: Theirs, inputs: Theirs, allowed: Theirs, bias: Theirs, cotangent: Theirs) -> Theirs:
        def call(held: Theirs, inputs: Theirs) -> Theirs:
            own = library.merge(graph, held)
            found = own(*inputs, mask=allowed, bias=bias, deterministic=True, return_weights=weights)
            return found if weights else (found, None)

        output, back, found = jax.vjp(call, held, inputs, has_aux=True)
        return (output, found), back(cotangent)

    return graph, held, run
