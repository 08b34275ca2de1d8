"""What tests of other libraries' modules share: configurations, inputs, the limit, attention by its formula."""

import numpy as np

from maskattn import convert_tensors, standards
from maskattn.config import AttentionConfig
from tests.convert.layouts.layout_cases import normal
from tests.twin import same_tensors

PLAIN = AttentionConfig(35, 5)
WIDE = AttentionConfig(35, 5, head_dim=3, v_head_dim=2, kdim=11, vdim=13, out_dim=17)
GROUPED = AttentionConfig(30, 6, num_kv_heads=2, head_dim=7)
LENGTHS = np.array([11, 4])
ALLOWED = (np.arange(11) < LENGTHS[:, None])[:, None, None, :]


def inputs_of(config):
    widths = (config.embed_dim, config.kdim, config.vdim)
    return [np.random.default_rng(8).standard_normal((2, 11, width)).astype(np.float32) for width in widths]


def canonical_of(config):
    return {name: array / 6 for name, array in normal("canonical", config).items()}


def converted(layout, config):
    """Canonical weights, and the same in a layout; on the way back every byte is the same."""
    canonical = canonical_of(config)
    tensors = convert_tensors(canonical, source="canonical", target=layout, config=config)
    same_tensors(convert_tensors(tensors, source=layout, target="canonical", config=config), canonical)
    return canonical, tensors


def judge(output, canonical, config, x, fault=False):
    given = {"key": x[1], "value_input": x[2], "scale": config.scale}
    right = standards.module_oracle(x[0], canonical, ALLOWED, "float32", **given)
    limit = standards.value("module.peer") * standards.module_limit(x[0], canonical, ALLOWED, "float32", **given)
    assert float(np.abs(right).max()) > 500 * float(limit.max())  # a wrong order of numbers would be seen
    assert (np.abs(np.asarray(output) - right) <= limit).all() != fault


def heads(x, count):
    return x.reshape(*x.shape[:-1], count, -1)


def attend(q, k, v, scale=None):
    """[B, L, H, D] -> [B, L, H * D], in float64 NumPy. True in ALLOWED = may attend."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = np.einsum("blhd,bshd->bhls", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = np.where(ALLOWED, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = np.einsum("bhls,bshd->blhd", weights / weights.sum(-1, keepdims=True), v)
    return out.reshape(*out.shape[:2], -1)
