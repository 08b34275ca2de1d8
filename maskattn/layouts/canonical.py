"""The canonical form of an attention layer: heads are axes, inputs come first.

===============  ==================  =============  =========
query.kernel     [E, H, D]           query.bias     [H, D]
key.kernel       [kdim, K, D]        key.bias       [K, D]
value.kernel     [vdim, K, Dv]       value.bias     [K, Dv]
out.kernel       [H, Dv, out]        out.bias       [out]
===============  ==================  =============  =========
"""

from __future__ import annotations

from collections.abc import Mapping

from maskattn.config import AttentionConfig
from maskattn.layouts._base import PROJECTIONS, Array, Layout, Shape, Tensors, need, projection_biases


class Canonical(Layout):
    """What every conversion passes through. Its names and shapes are those of ``flax-nnx``, which ``detect``
    reports.
    """

    name = "canonical"
    anchors = ("query.kernel", "key.kernel", "value.kernel")
    detectable = False
    stores_heads = True

    def shapes(self, config: AttentionConfig) -> dict[str, Shape]:
        """See the module's table; tensors a configuration does without are absent."""
        heads, kv_heads, dim, v_dim = config.num_heads, config.kv_heads, config.qk_head_dim, config.value_head_dim
        if not config.project:
            return {}
        kernels: dict[str, Shape] = {
            "query": (config.embed_dim, heads, dim),
            "key": (config.key_dim, kv_heads, dim),
            "value": (config.value_dim, kv_heads, v_dim),
            "out": (heads, v_dim, config.output_dim),
        }
        shapes: dict[str, Shape] = {}
        for role, shape in kernels.items():
            shapes[self._join(role, "kernel")] = shape
            if config.out_bias if role == "out" else projection_biases(config):
                shapes[self._join(role, "bias")] = shape[2:] if role == "out" else shape[1:]
        return shapes

    def to_canonical(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Tensors:
        """The same arrays under names joined by a dot."""
        return {name.replace(self.separator, "."): array for name, array in tensors.items()}

    def from_canonical(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Tensors:
        """The same arrays under names joined by this layout's separator."""
        return {name.replace(".", self.separator): array for name, array in tensors.items()}

    def infer(self, tensors: Mapping[str, Array], num_heads: int | None, num_kv_heads: int | None) -> AttentionConfig:
        """Every size is in the shapes; ``num_heads`` and ``num_kv_heads``, where given, must agree with them."""
        embed_dim, heads, dim = need(tensors, self._join("query", "kernel"), 3)
        kdim, kv_heads, _ = need(tensors, self._join("key", "kernel"), 3)
        vdim, _, v_dim = need(tensors, self._join("value", "kernel"), 3)
        out_dim = need(tensors, self._join("out", "kernel"), 3)[2]
        for what, given, found in (("num_heads", num_heads, heads), ("num_kv_heads", num_kv_heads, kv_heads)):
            if given is not None and given != found:
                raise ValueError(f"{what} is {given}, but the kernels have {found}")
        return AttentionConfig(
            embed_dim,
            heads,
            num_kv_heads=kv_heads,
            head_dim=dim,
            v_head_dim=v_dim,
            kdim=kdim,
            vdim=vdim,
            out_dim=out_dim,
            qkv_bias=any(self._join(role, "bias") in tensors for role in PROJECTIONS),
            out_bias=self._join("out", "bias") in tensors,
        )

    def _join(self, role: str, part: str) -> str:
        return role + self.separator + part
