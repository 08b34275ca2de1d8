"""MultiHeadAttention: projections around attention(...), its parameters named as timm names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack, overload

import torch
from jaxtyping import Bool, Float
from torch import nn
from torch.nn import functional as F

from maskattn.biases import Bias
from maskattn.config import AttentionConfig, ConfigOptions
from maskattn.masks import Mask
from maskattn.modules import attend_heads, dropout_rates, given_config, head_shapes, module_inputs, of_kernel
from maskattn.typing import KernelName
from maskattn_torch import rng
from maskattn_torch.dropout import drop, module_keys
from maskattn_torch.functional import FRAMEWORK
from maskattn_torch.types import Array, Device, DType, Given, Operand, RandomKey

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

    sinks: nn.Parameter | None

    @overload
    def __init__(self, config: AttentionConfig, *, device: Device = None, dtype: DType | None = None) -> None: ...
    @overload
    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        device: Device = None,
        dtype: DType | None = None,
        **options: Unpack[ConfigOptions],
    ) -> None: ...
    def __init__(  # type: ignore[misc]
        self,
        config: AttentionConfig | int | None = None,
        num_heads: int | None = None,
        *,
        device: Device = None,
        dtype: DType | None = None,
        **options: object,
    ) -> None:
        super().__init__()
        self.config = config = given_config(type(self).__name__, config, num_heads, options)
        self.rows = tuple(heads * width for heads, width in head_shapes(config))
        self.fused = config.embed_dim == config.kdim == config.vdim
        zeros = torch.zeros(config.num_heads, device=device, dtype=dtype) if config.sinks else None
        self.register_parameter("sinks", None if zeros is None else nn.Parameter(zeros))
        if not config.project:
            return
        given: dict[str, Any] = {"bias": config.qkv_bias, "device": device, "dtype": dtype}
        if self.fused:
            self.qkv = nn.Linear(config.embed_dim, sum(self.rows), **given)
        else:
            self.q_proj = nn.Linear(config.embed_dim, self.rows[0], **given)
            self.k_proj = nn.Linear(config.kdim, self.rows[1], **given)
            self.v_proj = nn.Linear(config.vdim, self.rows[2], **given)
        given["bias"] = config.out_bias
        self.proj = nn.Linear(config.num_heads * config.v_head_dim, config.out_dim, **given)

    def forward(
        self,
        query: Float[Operand, "B L E"],
        key: Float[Operand, "B S kdim"] | None = None,
        value: Float[Operand, "B S vdim"] | None = None,
        *,
        mask: Mask | Bool[Given, "#B #H #L #S"] | None = None,
        bias: Bias | Float[Given, "#B #H #L #S"] | None = None,
        dropout_key: RandomKey | None = None,
        deterministic: bool | None = None,
        kernel: KernelName = "auto",
    ) -> Float[Array, "B L out_dim"]:
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
        keys: tuple[Array | None, Array | None] = (None, None)
        if dropout_key is not None and (rate or out_rate):
            keys = module_keys(rng.words(dropout_key, inputs[0].device))
        out = attend_heads(config, FRAMEWORK, inputs, mask, bias, self.sinks, rate, keys[0], kernel).flatten(2)
        if config.project:
            out = _linear(out, self.proj.weight, self.proj.bias, kernel)
        if keys[1] is None or not out_rate:
            return out
        return drop(out, out_rate, keys[1], of_kernel(FRAMEWORK, kernel, "drop"))

    def extra_repr(self) -> str:
        """The configuration, for `repr`."""
        return repr(self.config)

    def _check(self, where: str, name: str, x: object) -> None:
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{where}: {name} must be a torch.Tensor, got {type(x).__name__}")
        if not self.config.project or torch.is_autocast_enabled(x.device.type):
            return
        if x.dtype != self.proj.weight.dtype:
            raise TypeError(f"{where}: {name} is {x.dtype}, but the parameters are {self.proj.weight.dtype}")

    def _project_in(self, query: Array, key: Array, value: Array, kernel: KernelName) -> Sequence[Array]:
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


def _linear(x: Array, weight: Array, bias: Array | None, kernel: KernelName) -> Array:
    """x [..., in] times weight [out, in], plus bias [out]; by the kernel's own `linear` where it brings one."""
    own = of_kernel(FRAMEWORK, kernel, "linear")
    return F.linear(x, weight, bias) if own is None else own(x, weight.T, bias)
