"""MultiHeadAttention: projections around attention(...), its parameters named as timm names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack, overload

import torch
from jaxtyping import Bool, Float
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from maskattn._problems import Problems
from maskattn.attention import KernelCannot
from maskattn.biases import Bias
from maskattn.config import AttentionConfig, ConfigOptions
from maskattn.masks import Mask
from maskattn.modules import (
    Leading,
    answered,
    attend_heads,
    dropout_rates,
    given_config,
    head_shapes,
    module_inputs,
    of_kernel,
    one_batch,
    with_causal,
)
from maskattn.modules.run import Asked, Layer
from maskattn.numerics.dropout import check_dropout
from maskattn.typing import KernelName, SharedAxis
from maskattn_torch import _autocast, rng
from maskattn_torch._additions import has_additions
from maskattn_torch._apart import Apart
from maskattn_torch._called import Called, called
from maskattn_torch._devices import owned
from maskattn_torch._held import begin, hold
from maskattn_torch.cache import Cache
from maskattn_torch.dropout import drop, module_keys
from maskattn_torch.functional import FRAMEWORK
from maskattn_torch.layer import LAYER
from maskattn_torch.types import Answer, Array, Device, DType, Given, Operand, Positions, RandomKey

__all__ = ["MultiHeadAttention"]

#: x [..., in], weight [in, out], bias [out] or None -> [..., out].
Linear: TypeAlias = Callable[[Array, Array, Array | None], Array]


class Options(TypedDict, total=False):
    """How a module is made, beside its configuration: see `MultiHeadAttention`."""

    device: Device
    dtype: DType | None
    dropout_broadcast: tuple[SharedAxis, ...]


class SizedOptions(Options, ConfigOptions, total=False):
    """The same, and the fields of the configuration."""


class MultiHeadAttention(nn.Module):
    """Multi-head attention: `MultiHeadAttention(config)`, or `MultiHeadAttention(embed_dim, num_heads, ...)`.

    Parameters, initialised as `nn.Linear` initialises: where query, key and value have one width, `qkv.weight`
    [H * D + K * D + K * Dv, E] (rows in blocks q, k, v, head-major) and `qkv.bias`; otherwise `q_proj`, `k_proj`,
    `v_proj`. The output is `proj` [out, H * Dv]. With `project=False` there are none of these. With `sinks=True` there
    is `sinks` [H], zeros. What the parts of the configuration learn has the names of layout "maskattn-torch": `q_norm`,
    `k_norm`, `gate`, `relative_position_bias.table`, ...

    The layers are called, so adapters, hooks, parametrizations and sharding of them work. Inputs that differ read their
    rows of a plain `qkv`; one that is not plain is called once for each of them.

    Args:
        config: an `AttentionConfig`; or embed_dim, with num_heads and its other fields by their names.
        num_heads: H, where no configuration is given.
        device, dtype: of the parameters. `reset_parameters()` gives them their first numbers anew, as after
            `to_empty` of a module made on the meta device.
        dropout_broadcast: the axes, of "batch" and "heads", that share one draw of the weights' dropout; () draws for
            every weight, as PyTorch does.

    Raises:
        TypeError, ValueError: neither a configuration nor sizes, both, or one error that lists every field at fault.
    """

    sinks: nn.Parameter | None

    @overload
    def __init__(self, config: AttentionConfig, **options: Unpack[Options]) -> None: ...
    @overload
    def __init__(self, embed_dim: int, num_heads: int, **options: Unpack[SizedOptions]) -> None: ...
    def __init__(  # type: ignore[misc]
        self,
        config: AttentionConfig | int | None = None,
        num_heads: int | None = None,
        *,
        device: Device = None,
        dtype: DType | None = None,
        dropout_broadcast: tuple[SharedAxis, ...] = (),
        **options: object,
    ) -> None:
        super().__init__()
        self.config = config = given_config(type(self).__name__, config, num_heads, options)
        problems = Problems(type(self).__name__)
        check_dropout(problems, 0.0, None, dropout_broadcast)
        problems.raise_if_any()
        self._shared = {"dropout_broadcast": dropout_broadcast} if dropout_broadcast else {}
        self.rows = tuple(heads * width for heads, width in head_shapes(config))
        self.fused = config.embed_dim == config.kdim == config.vdim
        self.register_parameter("sinks", None)
        self._held = hold(self, config, device, dtype) if config.has_parts or config.sinks else {}
        if config.project:
            self._make_layers(config, device, dtype)
        begin(self, self._held, config)

    def _make_layers(self, config: AttentionConfig, device: Device, dtype: DType | None) -> None:
        given: dict[str, Any] = {"bias": config.qkv_bias, "device": device, "dtype": dtype}
        if self.fused:
            self.qkv = nn.Linear(config.embed_dim, sum(self.rows), **given)
        else:
            self.q_proj = nn.Linear(config.embed_dim, self.rows[0], **given)
            self.k_proj = nn.Linear(config.kdim, self.rows[1], **given)
            self.v_proj = nn.Linear(config.vdim, self.rows[2], **given)
        given["bias"] = config.out_bias
        self.proj = nn.Linear(config.num_heads * config.v_head_dim, config.out_dim, **given)

    def reset_parameters(self) -> None:
        """Give every parameter its first number anew, as a new module has it; adapters and other additions too, that
        have a `reset_parameters` of their own."""
        for each in self.modules():
            if each is not self and callable(reset := getattr(each, "reset_parameters", None)):
                reset()
        begin(self, self._held, self.config)

    if TYPE_CHECKING:
        __call__: Called

    @called
    def forward(
        self,
        query: Float[Operand, "B L E"],
        key: Float[Operand, "B S kdim"] | None = None,
        value: Float[Operand, "B S vdim"] | None = None,
        *,
        mask: Mask | Bool[Given, "#B #H #L #S"] | None = None,
        bias: Bias | Float[Given, "#B #H #L #S"] | None = None,
        is_causal: bool = False,
        positions: Positions | None = None,
        cache: Cache | None = None,
        valid: Bool[Given, "B L"] | None = None,
        global_tokens: Bool[Given, "#B L"] | None = None,
        relative: Float[Operand, "R E"] | None = None,
        dropout_key: RandomKey | None = None,
        deterministic: bool | None = None,
        kernel: KernelName = "auto",
        return_weights: bool = False,
        return_lse: bool = False,
    ) -> Answer:
        """query [..., L, embed_dim], key [..., S, kdim], value [..., S, vdim] -> [..., L, out_dim].

        Args:
            query, key, value: key defaults to query, value to key. The axes before the last two are one batch, B, in
                row-major order, for masks too.
            mask: a Mask or a bool array that broadcasts to [B, H, L, S]; True = may attend.
            bias: a Bias or a float array that broadcasts to [B, H, L, S], added to the logits.
            is_causal: no query attends to a later key, counted from the start of both: the mask `& Causal()`.
            positions: int [L] or [B, L], read by `rotary` and `temperature`; [.., L, axes] of a rotary embedding with
                axes; a pair where queries and keys are not one sequence. None counts from 0, behind what `cache` holds.
                Masks count slots, whatever the positions.
            cache: the keys and values of the tokens before, which those of `key` are added to (`Cache.for_config`); the
                new cache is returned too. `mask` and `bias` are then those of whole sequences.
            valid: bool [B, L], which tokens are added to the cache; the others are padding, which takes no slot and no
                position, and attends to nothing.
            global_tokens: bool [B, L], True = global, where the configuration has `global_tokens`.
            relative: the table of relative positions [2 * span, embed_dim], for `Disentangled`.
            dropout_key: a seed in [0, 2**31) or two uint32 words, needed where dropout is on. Weights and output are
                dropped by the two keys that `dropout.module_keys` makes of it, each number by itself.
            deterministic: True applies no dropout; None means `not self.training`.
            kernel: as in `attention`; "exact" computes the projections exactly too, from their weights: it refuses
                layers that are no plain `nn.Linear`.
            return_weights: also return the attention weights [B, H, L, S], after dropout, which takes as much memory;
                the extra keys of `ExtraKeys` come first.
            return_lse: also return the log-sum-exp of each row, [B, L, H].

        Returns:
            The output, or a tuple of it and what was asked for, in the order weights, lse, cache.

        Raises:
            TypeError, ValueError: names the argument at fault.
        """
        config, where = self.config, type(self).__name__
        deterministic = not self.training if deterministic is None else deterministic
        given = module_inputs(where, config, (query, key, value), self._check, dropout_key, deterministic)
        leading = Leading(tuple(query.shape[:-2]), LAYER)
        if len(leading.axes) != 1:
            given, mask, bias = one_batch(leading, given), leading.aligned(mask, 3), leading.aligned(bias, 3)
        positions, valid, global_tokens = leading.of_tokens(config, positions, valid, global_tokens)
        linear = self._own_linear(kernel)
        inputs = self._project_in(*given, linear)
        rate, out_rate = dropout_rates(config, deterministic)
        keys: tuple[Array | None, Array | None] = (None, None)
        if dropout_key is not None and (rate or out_rate):
            keys = module_keys(rng.words(dropout_key, inputs[0].device))
        asked = Asked(
            given,
            with_causal(mask, is_causal),
            bias,
            positions,
            cache,
            valid,
            global_tokens,
            relative,
            rate,
            keys[0],
            kernel,
            return_weights,
            return_lse,
        )
        attended = attend_heads(self._layer(kernel, linear), inputs, asked)
        out = attended.output.flatten(2)
        if config.project:
            out = _through(self.proj, out, linear)
        if keys[1] is not None and out_rate:
            out = drop(out, out_rate, keys[1], of_kernel(FRAMEWORK, kernel, "drop"))
        return answered(leading, owned(self, out), asked, attended)

    def _layer(self, kernel: KernelName, linear: Linear | None) -> Layer[Array]:
        """What lies between the projections; by the kernel's own arithmetic where it brings one."""
        config = self.config
        held = {name: each.read(self, config) for name, each in self._held.items()}

        def project(name: str, x: Array) -> Array:
            if name in ("query", "key"):
                return self._project_one(("query", "key").index(name), x, linear)
            layer: Any = self.get_submodule(self._held[f"{name}.kernel"].path)
            return _through(layer, x, linear)

        arithmetic: Any = of_kernel(FRAMEWORK, kernel, "LAYER") or LAYER
        return Layer(type(self).__name__, config, FRAMEWORK, arithmetic, held, project, self._shared)

    def _project_one(self, place: int, x: Array, linear: Linear | None) -> Array:
        """x through the projection of queries (0) or of keys (1) alone."""
        if not self.fused:
            return _through((self.q_proj, self.k_proj)[place], x, linear)
        qkv: Any = self.qkv
        if isinstance(qkv, Apart):
            return _through(qkv.layers[place], x, linear)
        if linear is not None or type(qkv) is not nn.Linear:
            return self._project_in(x, x, x, linear)[place]
        weight, bias = (
            qkv.weight.split(self.rows)[place],
            None if qkv.bias is None else qkv.bias.split(self.rows)[place],
        )
        return F.linear(x, weight, bias)

    def extra_repr(self) -> str:
        """The configuration, for `repr`."""
        return repr(self.config)

    def _check(self, where: str, name: str, x: object) -> None:
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{where}: {name} must be a torch.Tensor, got {type(x).__name__}")
        if not self.config.project:
            return
        layer = self.qkv if self.fused else getattr(self, f"{name[0]}_proj")
        if type(layer) is not nn.Linear or x.dtype == layer.weight.dtype:
            return
        if not _autocast.is_on(x.device) and not has_additions(layer):
            raise TypeError(f"{where}: {name} is {x.dtype}, but the parameters are {layer.weight.dtype}")

    def _project_in(self, query: Array, key: Array, value: Array, linear: Linear | None) -> Sequence[Array]:
        if not self.config.project:
            return query, key, value
        if not self.fused:
            layers = zip((self.q_proj, self.k_proj, self.v_proj), (query, key, value), strict=True)
            return [_through(layer, x, linear) for layer, x in layers]
        qkv: Any = self.qkv
        if isinstance(qkv, Apart):
            return qkv(query, key, value)
        if query is key and key is value:
            return self._split(_through(qkv, query, linear))
        if linear is None and (has_additions(qkv) or _has_any_global_hook()):
            q = qkv(query)
            k = q if key is query else qkv(key)
            v = q if value is query else k if value is key else qkv(value)
            return [self._split(x)[i] for i, x in enumerate((q, k, v))]
        weights = qkv.weight.split(self.rows)
        biases = [None] * 3 if qkv.bias is None else qkv.bias.split(self.rows)
        given = zip((query, key, value), weights, biases, strict=True)
        return [F.linear(x, w, b) if linear is None else linear(x, w.T, b) for x, w, b in given]

    def _split(self, x: Array) -> Sequence[Array]:
        """Query, key and value [..., their rows] of what `qkv` gives."""
        if x.shape[-1] != sum(self.rows):
            raise ValueError(
                f"{type(self).__name__}: qkv gave {x.shape[-1]} of {sum(self.rows)} columns; a plan that divides its "
                "rows cuts through q, k and v: maskattn_torch.parallel.HeadParallel divides each by heads"
            )
        return x.split(self.rows, dim=-1)

    def _own_linear(self, kernel: KernelName) -> Linear | None:
        """The kernel's `linear`, which takes the place of the layers where there is one, since it reads weights."""
        linear = of_kernel(FRAMEWORK, kernel, "linear") if self.config.project else None
        if linear is not None:
            names = ["qkv", "proj"] if self.fused else ["q_proj", "k_proj", "v_proj", "proj"]
            names += [held.path for held in self._held.values() if held.name == "weight" and held.is_layer]
            found = ((name, has_additions(self.get_submodule(name))) for name in names)
            says = "it computes from the layer's weight, so use another kernel, or merge or remove what was added"
            reasons = [f"{name} must be a plain nn.Linear, got {what}: {says}" for name, what in found if what]
            if reasons:
                raise KernelCannot(kernel, reasons)
        return linear


def _through(layer: nn.Linear, x: Array, linear: Linear | None) -> Array:
    """x [..., in] through a layer, or through `linear` with the layer's weight and bias."""
    return layer(x) if linear is None else linear(x, layer.weight.T, layer.bias)
