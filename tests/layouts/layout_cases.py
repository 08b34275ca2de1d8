"""Configurations of distinct, mostly prime sizes, since square shapes hide transposes, and tensors for them."""

import ml_dtypes
import numpy as np

from maskattn import layouts
from maskattn.config import AttentionConfig

DTYPES = [np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)]

CONFIGS = {
    "square heads": AttentionConfig(35, 5),
    "no biases": AttentionConfig(35, 5, qkv_bias=False, out_bias=False),
    "input biases only": AttentionConfig(35, 5, out_bias=False),
    "output bias only": AttentionConfig(35, 5, qkv_bias=False),
    "own head size": AttentionConfig(30, 5, head_dim=7, v_head_dim=3, out_dim=11),
    "grouped": AttentionConfig(30, 6, num_kv_heads=2, head_dim=7, v_head_dim=3, out_dim=11),
    "multi-query": AttentionConfig(30, 5, num_kv_heads=1, head_dim=7),
    "cross": AttentionConfig(35, 5, kdim=11, vdim=13),
    "cross, all differ": AttentionConfig(30, 6, num_kv_heads=2, head_dim=7, v_head_dim=3, kdim=11, vdim=13, out_dim=17),
}


def tensors_for(layout, config, dtype=np.float32, prefix="", seed=0):
    """Every tensor the layout calls for, of random bits: NaNs of any payload, -0.0, subnormals, which no cast keeps."""
    draw = np.random.default_rng(seed)
    out = {}
    for name, shape in layouts.get(layout).shapes(config).items():
        bits = draw.integers(0, 256, size=int(np.prod(shape)) * np.dtype(dtype).itemsize, dtype=np.uint8)
        out[prefix + name] = bits.view(dtype).reshape(shape)
    return out


def normal(layout, config, seed=0, dtype=np.float32):
    draw = np.random.default_rng(seed)
    return {n: draw.standard_normal(s).astype(dtype) for n, s in layouts.get(layout).shapes(config).items()}


def assert_same(left, right):
    assert list(left) == list(right)
    for name in left:
        assert left[name].shape == right[name].shape, name
        assert left[name].dtype == right[name].dtype, name
        assert left[name].tobytes() == right[name].tobytes(), name
