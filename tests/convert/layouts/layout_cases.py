"""Configurations of distinct, mostly prime sizes, since square shapes hide transposes, and tensors for them."""

import ml_dtypes
import numpy as np

from maskattn.config import AttentionConfig
from maskattn.convert import layouts
from maskattn.convert.layouts._buffers import position_index
from maskattn.convert.layouts._extras import EXTRAS, sizes

DTYPES = [np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)]

CONFIGS = {
    "square heads": AttentionConfig(35, 5),
    "no biases": AttentionConfig(35, 5, qkv_bias=False, out_bias=False),
    "input biases only": AttentionConfig(35, 5, out_bias=False),
    "output bias only": AttentionConfig(35, 5, qkv_bias=False),
    "own head size": AttentionConfig(30, 5, head_dim=7, v_head_dim=3, out_dim=11),
    "grouped": AttentionConfig(30, 6, num_kv_heads=2, head_dim=7, v_head_dim=3, out_dim=11),
    "multi-query": AttentionConfig(30, 5, num_kv_heads=1, head_dim=7),
    "grouped, one head size": AttentionConfig(30, 6, num_kv_heads=2, head_dim=7),
    "grouped, pairs": AttentionConfig(60, 6, num_kv_heads=2, qkv_bias=False, out_bias=False),
    "scale one": AttentionConfig(30, 5, head_dim=7, qkv_bias=False, out_bias=False, scale=1.0),
    "cross": AttentionConfig(35, 5, kdim=11, vdim=13),
    "cross, all differ": AttentionConfig(30, 6, num_kv_heads=2, head_dim=7, v_head_dim=3, kdim=11, vdim=13, out_dim=17),
}


FREE = {"rows": 9, "buckets": 11, "hidden": 13}
"""The sizes that extras bring themselves."""


def extra_shapes(layout, config, *, every):
    """Canonical names and shapes of the extras a layer must have, or (``every``, or those it names) may have."""
    known = sizes(config) | FREE
    named = tuple(EXTRAS) if every is True else every or ()
    wanted = [
        e
        for e in layouts.get(layout).extras
        if e.required or (e.canonical.startswith(named) and (config.sinks or e.canonical != "sinks"))
    ]
    axes = {extra.canonical: extra.to or extra.axes for extra in reversed(wanted)}
    return {name: tuple(known.get(axis, axis) for axis in axes[name]) for name in reversed(axes)}


def tensors_for(layout, config, dtype=np.float32, prefix="", seed=0, *, every=False):
    """Every tensor the layout calls for, of random bits: NaNs of any payload, -0.0, subnormals, which no cast keeps.

    ``every``: with all extras it may have, or those whose names begin so, not only those it must have.
    """
    draw = np.random.default_rng(seed)
    out = {}
    for name, shape in layouts.get(layout).shapes(config, extra_shapes(layout, config, every=every)).items():
        bits = draw.integers(0, 256, size=int(np.prod(shape)) * np.dtype(dtype).itemsize, dtype=np.uint8)
        out[prefix + name] = bits.view(dtype).reshape(shape)
    if any(buffer.build for buffer in layouts.get(layout).buffers):
        out[prefix + "relative_position_index"] = position_index(2, 2)
    return out


def normal(layout, config, seed=0, dtype=np.float32):
    draw = np.random.default_rng(seed)
    return {n: draw.standard_normal(s).astype(dtype) for n, s in layouts.get(layout).shapes(config).items()}
