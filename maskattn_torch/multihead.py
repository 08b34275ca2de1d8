"""MultiHeadAttention: projections around attention(...), its parameters named as timm names them."""

from __future__ import annotations

from typing import Any, Unpack, overload

import torch
from torch import nn
from torch.nn import functional as F

from maskattn.config import AttentionConfig, ConfigOptions
from maskattn.modules import attend_heads, dropout_rates, given_config, head_shapes, module_inputs, of_kernel
from maskattn_torch import rng
from maskattn_torch.dropout import drop, module_keys
from maskattn_torch.functional import FRAMEWORK

Array = Any

__all__ = ["MultiHeadAttention"]


class MultiHeadAttention(nn.Module):
    """Multi-head attention: `MultiHeadAttention(config)`, or `MultiHeadAttention(embed_dim, num_heads, ...)`.

    Parameters, initialised as `nn.Linear` initialises: where query, key and value have one width, `qkv.weight`
    [H * D + K * D + K * Dv, E] (rows in blocks q, k, v, head-major) and `qkv.bias`; otherwise `q_proj`, `k_proj`,
    `v_proj`. The output is `proj` [out, H * Dv]. With `project=False` there are none of these. With `sinks=True` there
    is `sinks` [H], zeros.

    Args:
        config: an `AttentionConfig`; or embed_dim, with num_heads and its other fields by their names.
        num_heads: H, where no configuration is given.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: neither a configuration nor sizes, both, or one error that lists every field at fault.
    """

    @overload
    def __init__(self, config: AttentionConfig, *, device: Any = None, dtype: Any = None) -> None: ...
    @overload
    def __init__(
        self, embed_dim: int, num_heads: int, *, device: Any = None, dtype: Any = None, **options: Unpack[ConfigOptions]
    ) -> None: ...
    def __init__(  # type: ignore[misc]
        self, config: Any = None, num_heads: Any = None, *, device: Any = None, dtype: Any = None, **options: Any
    ) -> None:
        super().__init__()
        self.config = config = given_config(type(self).__name__, config, num_heads, options)
        self.rows = tuple(heads * width for heads, width in head_shapes(config))
        self.fused = config.embed_dim == config.kdim == config.vdim
        zeros = torch.zeros(config.num_heads, device=device, dtype=dtype) if config.sinks else None
        self.register_parameter("sinks", None if zeros is None else nn.Parameter(zeros))
        if not config.project:
            return
        options = {"bias": config.qkv_bias, "device": device, "dtype": dtype}
        if self.fused:
            self.qkv = nn.Linear(config.embed_dim, sum(self.rows), **options)
        else:
            self.q_proj = nn.Linear(config.embed_dim, self.rows[0], **options)
            self.k_proj = nn.Linear(config.kdim, self.rows[1], **options)
            self.v_proj = nn.Linear(config.vdim, self.rows[2], **options)
        options["bias"] = config.out_bias
        self.proj = nn.Linear(config.num_heads * config.v_head_dim, config.out_dim, **options)

    def forward(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        *,
        mask: Any = None,
        bias: Any = None,
        dropout_key: Any = None,
        deterministic: bool | None = None,
        kernel: str = "auto",
    ) -> Array:
        """query [B, L, embed_dim], key [B, S, kdim], value [B, S, vdim] -> [B, L, out_dim].

        Args:
            query, key, value: key defaults to query, value to key.
            mask: a Mask or a bool array that broadcasts to [B, H, L, S]; True = may attend.
            bias: a Bias or a float array that broadcasts to [B, H, L, S], added to the logits.
            dropout_key: a seed in [0, 2**31) or two uint32 words, needed where dropout is on. Weights and output are
                dropped by the two keys that `dropout.module_keys` makes of it, each number by itself.
            deterministic: True applies no dropout; None means `not self.training`.
            kernel: as in `attention`; "exact" computes the projections exactly too.

        Raises:
            TypeError, ValueError: names the argument at fault.
        """
        config, where = self.config, type(self).__name__
        deterministic = not self.training if deterministic is None else deterministic
        given = module_inputs(where, config, (query, key, value), self._check, dropout_key, deterministic)
        inputs = self._project_in(*given, kernel)
        rate, out_rate = dropout_rates(config, deterministic)
        keys = module_keys(rng.words(dropout_key, inputs[0].device)) if rate or out_rate else (None, None)
        out = attend_heads(config, FRAMEWORK, inputs, mask, bias, self.sinks, rate, keys[0], kernel).flatten(2)
        if config.project:
            out = _linear(out, self.proj.weight, self.proj.bias, kernel)
        return drop(out, out_rate, keys[1], of_kernel(FRAMEWORK, kernel, "drop")) if out_rate else out

    def extra_repr(self) -> str:
        """The configuration, for `repr`."""
        return repr(self.config)

    def _check(self, where: str, name: str, x: Any) -> None:
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{where}: {name} must be a torch.Tensor, got {type(x).__name__}")
        if not self.config.project or torch.is_autocast_enabled(x.device.type):
            return
        if x.dtype != self.proj.weight.dtype:
            raise TypeError(f"{where}: {name} is {x.dtype}, but the parameters are {self.proj.weight.dtype}")

    def _project_in(self, query: Array, key: Array, value: Array, kernel: str) -> Any:
        if not self.config.project:
            return query, key, value
        if not self.fused:
            layers = (self.q_proj, self.k_proj, self.v_proj)
            weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        elif query is key and key is value:
            return _linear(query, self.qkv.weight, self.qkv.bias, kernel).split(self.rows, dim=-1)
        else:
            weights = self.qkv.weight.split(self.rows)
            biases = [None] * 3 if self.qkv.bias is None else self.qkv.bias.split(self.rows)
        return [_linear(x, w, b, kernel) for x, w, b in zip((query, key, value), weights, biases, strict=True)]


def _linear(x: Array, weight: Array, bias: Array | None, kernel: str) -> Array:
    """x [..., in] times weight [out, in], plus bias [out]; by the kernel's own `linear` where it brings one."""
    own = of_kernel(FRAMEWORK, kernel, "linear")
    return F.linear(x, weight, bias) if own is None else own(x, weight.T, bias)
