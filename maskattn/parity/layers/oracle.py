"""A layer with parts in float64, written from the formulas of the parts and not from either twin.

It carries how far a module of a dtype may be off, and its gradients with their limits (`numerics/running.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maskattn import biases, standards
from maskattn.arrays import dtype_named
from maskattn.config import AttentionConfig
from maskattn.layer import ContinuousTable, Disentangled, Norm, Rotary, Slopes, T5Table, WindowTable
from maskattn.numerics import running
from maskattn.numerics.running import Rounding, Running, given
from maskattn.typing import NumPyArray as Array

_ROLES = ("query", "key", "value")


@dataclass(frozen=True)
class Call:
    """What a layer is called with.

    Attributes:
        query: [B, L, E]; key [B, S, kdim] and value [B, S, vdim] default to it.
        allowed: bool, broadcasts to [B, H, L, S]; True = may attend.
        positions: of queries and of keys, as one array or two; None: 0, 1, ...
        bias: a float array that broadcasts to [B, H, L, S].
    """

    query: Array
    key: Array | None = None
    value: Array | None = None
    allowed: Array | None = None
    bias: Array | None = None
    positions: Array | tuple[Array, Array] | None = None
    global_tokens: Array | None = None
    relative: Array | None = None


@dataclass
class Verdict:
    """What is right, and how far off one may be: the output, and each gradient that was asked for."""

    output: Array
    limit: Array
    gradients: dict[str, Array] = field(default_factory=dict)
    gradient_limits: dict[str, float] = field(default_factory=dict)


def judge(
    config: AttentionConfig,
    weights: Mapping[str, Array],
    call: Call,
    dtype: str,
    *,
    cotangent: Array | None = None,
    frequency_ulps: float = 0.0,
) -> Verdict:
    """The output [B, L, out] of a layer of canonical `weights`, how far a module of `dtype` may be from it, and with a
    cotangent the gradients of query, key, value (of one input, "query" is its own) and of every weight.

    Args:
        frequency_ulps: how many units in the last place a library's rotary frequencies may be off; ours are not.
    """
    narrow = standards.is_narrow(dtype)
    eps = standards.eps("float32" if narrow else dtype)
    rounding = Rounding(
        standards.value("tier2.base") * eps,
        standards.value("layer.each") * eps,
        standards.value("module.narrow") * standards.eps(dtype) if narrow else 0.0,
        dtype_named(dtype),
    )
    layer = _Layer(config, rounding, {n: given(x) for n, x in weights.items()}, call, dtype, frequency_ulps)
    output = layer.run()
    verdict = Verdict(output.value, output.error)
    if cotangent is None:
        return verdict
    wanted = {**layer.inputs, **layer.held}
    verdict.gradients = running.gradients(output, cotangent, wanted)
    sizes = running.gradients(output, cotangent, wanted, size=True)
    # First order in each rounding between input and gradient: those of a plain module, and one for each part.
    unit = standards.tier2_limit(dtype, 1.0, 1.0, 1) + rounding.narrow
    unit *= standards.value("module.gradient") + layer.parts
    unit += standards.value("module.gradient") * layer.turned_off
    verdict.gradient_limits = {name: unit * float(size.max(initial=0)) for name, size in sizes.items()}
    return verdict


@dataclass
class _Layer:
    config: AttentionConfig
    use: Rounding
    held: dict[str, Running]
    call: Call
    dtype: str
    frequency_ulps: float
    turned_off: float = 0.0  # how far an angle may be off

    def __post_init__(self) -> None:
        call = self.call
        query = given(call.query)
        key = query if call.key is None else given(call.key)
        self.sources = query, key, key if call.value is None else given(call.value)
        self.inputs: dict[str, Running] = {}
        for name, x in zip(_ROLES, self.sources, strict=True):
            if not any(x is other for other in self.inputs.values()):
                self.inputs[name] = x

    @property
    def parts(self) -> int:
        """How many parts the layer has."""
        config = self.config
        named = (config.rotary, config.qk_norm, config.clip, config.cosine, config.temperature, config.position_bias)
        return sum(part is not None for part in (*named, config.extra_keys, config.global_tokens, config.gate))

    def run(self) -> Running:
        """[B, L, out]."""
        config, use = self.config, self.use
        output = self._attended("", self.call.allowed)
        if config.global_tokens is not None:
            tokens = np.asarray(self.call.global_tokens)[:, :, None, None]
            other = self._attended("_global", self.call.allowed)
            output = use.add(use.times(output, given(~tokens)), use.times(other, given(tokens)))
        if config.gate is not None:
            gate = self._projected("gate", self.sources[0]).reshape(*output.shape[:3], -1)
            output = use.rounded(use.times(output, self._activated(gate, config.gate.activation)))
        if not config.project:
            return output.reshape(*output.shape[:2], -1)
        made = use.product("blhd,hdo->blo", output, self.held["out.kernel"])
        if "out.bias" in self.held:
            made = use.add(made, self.held["out.bias"])
        return use.rounded(made)

    def _attended(self, kind: str, allowed: Array | None) -> Running:
        config, use, call = self.config, self.use, self.call
        inputs = [self._heads(role, kind, x) for role, x in zip(_ROLES, self.sources, strict=True)]
        query, key, value = self._placed(*inputs)
        bias = None if call.bias is None else given(call.bias)
        if config.position_bias is not None:
            bias = self._bias(query, key)
        if config.extra_keys is not None:
            key, value, allowed, bias = self._grown(key, value, allowed, bias)

        def own(size: float, logit: float, length: int) -> float:
            return standards.tier2_limit(self.dtype, size, logit, length)

        options = config.attention_options()
        attended = use.attention((query, key, value), allowed, bias, self.held.get("sinks"), own, options)
        return use.rounded(attended)

    def _heads(self, role: str, kind: str, x: Running) -> Running:
        config = self.config
        heads = config.num_heads if role == "query" else config.num_kv_heads
        width = config.v_head_dim if role == "value" else config.head_dim
        made = self._projected(role + kind, x) if config.project else x
        return made.reshape(*made.shape[:2], heads, width)

    def _projected(self, name: str, x: Running) -> Running:
        kernel, bias = self.held[f"{name}.kernel"], self.held.get(f"{name}.bias")
        spec = "ble,eo->blo" if len(kernel.shape) == 2 else "ble,ehd->blhd"
        made = self.use.product(spec, x, kernel)
        return self.use.rounded(made if bias is None else self.use.add(made, bias))

    def _placed(self, query: Running, key: Running, value: Running) -> tuple[Running, Running, Running]:
        config, use = self.config, self.use
        late = config.qk_norm is not None and config.qk_norm.after_rotary
        if config.qk_norm is not None and not late:
            query, key = (self._normed(x, n, config.qk_norm) for x, n in ((query, "query"), (key, "key")))
        if config.clip is not None:
            most = config.clip.limit
            query, key, value = (
                use.each_one(x, lambda a: a.clip(-most, most), lambda a: (np.abs(a) <= most) * 1.0)
                for x in (query, key, value)
            )
        at = self._positions(query.shape[1], key.shape[1])
        if config.rotary is not None:
            length = int(max(x.max(initial=0) for x in at)) + 1
            query, key = (self._turned(x, p, config.rotary, length) for x, p in zip((query, key), at, strict=True))
        if config.qk_norm is not None and late:
            query, key = (self._normed(x, n, config.qk_norm) for x, n in ((query, "query"), (key, "key")))
        if config.temperature is not None:
            steps = np.floor((at[0] + 1.0) / config.temperature.floor)
            factor = 1 + config.temperature.scale * np.log1p(steps)
            query = use.rounded(use.times(query, given(factor[..., None, None], use.each * factor[..., None, None])))
        if config.cosine is not None:
            most = math.log(config.cosine.most)
            scale = use.each_one(
                self.held["logit_scale"], lambda a: np.exp(np.minimum(a, most)), lambda a: np.exp(a) * (a < most)
            )
            query = use.rounded(use.times(self._unit(query), scale.reshape(-1, 1)))
            key = use.rounded(self._unit(key))
        return query, key, value

    def _positions(self, q_len: int, kv_len: int) -> tuple[Array, Array]:
        """[B or 1, length] or [B or 1, length, axes]."""
        at = self.call.positions
        if at is None:
            return np.arange(q_len)[None], np.arange(kv_len)[None]
        rank = 3 if self.config.rotary is not None and self.config.rotary.axes else 2
        pair = at if isinstance(at, tuple) else (at, at)
        one, other = (x[None] if x.ndim < rank else x for x in map(np.asarray, pair))
        return one, other

    def _normed(self, x: Running, role: str, norm: Norm) -> Running:
        use, axes = self.use, (-2, -1) if norm.over == "all" else (-1,)
        if norm.kind == "layer":
            x = use.add(x, use.times(use.mean(x, axes), -1.0))
        square = use.add(use.mean(use.times(x, x), axes), given(norm.eps))
        made = use.times(x, use.each_one(square, lambda a: a**-0.5, lambda a: -0.5 * a**-1.5))
        scale, bias = self.held.get(f"{role}_norm.scale"), self.held.get(f"{role}_norm.bias")
        if scale is not None:
            made = use.times(made, use.add(scale, given(1.0)) if norm.plus_one else scale)
        return use.rounded(made if bias is None else use.add(made, bias))

    def _unit(self, x: Running) -> Running:
        """x / |x|."""
        use, width = self.use, float(x.shape[-1])
        square = use.times(use.mean(use.times(x, x), (-1,)), width)
        return use.times(x, use.each_one(square, lambda a: a**-0.5, lambda a: -0.5 * a**-1.5))

    def _turned(self, x: Running, at: Array, rotary: Rotary, length: int) -> Running:
        """Pairs turned by the float32 product of position and float32 frequency."""
        use = self.use
        frequencies = rotary.frequencies(self.config.head_dim, length)
        where = at.astype(np.float32)
        if rotary.axes:
            where = np.repeat(where, rotary.axes, axis=-1)
        else:
            where = where[..., None]
        angles = (where * frequencies).astype(np.float32)
        off = np.zeros(angles.shape)
        if self.frequency_ulps:
            off = np.abs(where) * self.frequency_ulps * np.spacing(frequencies) + np.spacing(np.abs(angles))
        self.turned_off = max(self.turned_off, float(off.max(initial=0)))
        exact = angles.astype(np.float64)[:, :, None]
        off = off[:, :, None] + use.each
        cos, sin = (given(f(exact) * rotary.factor, off * rotary.factor) for f in (np.cos, np.sin))
        width = 2 * angles.shape[-1]
        places = np.arange(width)
        if rotary.pairs == "half":
            first, second = places[: width // 2], places[width // 2 :]
        else:
            first, second = places[::2], places[1::2]
        a, b = _taken(x, first), _taken(x, second)
        minus = use.times(sin, -1.0)
        turned = (
            use.add(use.times(a, cos), use.times(b, minus)),
            use.add(use.times(b, cos), use.times(a, sin)),
            _taken(x, np.arange(width, x.shape[-1])),
        )
        joined = _joined(turned, -1)
        order = np.argsort(np.concatenate([first, second, np.arange(width, x.shape[-1])]))
        return use.rounded(_taken(joined, order))

    def _activated(self, x: Running, activation: str) -> Running:
        def sigmoid(a: Array) -> Array:
            return np.asarray(1 / (1 + np.exp(-a)))

        if activation == "tanh":
            return self.use.each_one(x, np.tanh, lambda a: 1 - np.tanh(a) ** 2)
        made = self.use.each_one(x, sigmoid, lambda a: sigmoid(a) * (1 - sigmoid(a)))
        return made if activation == "sigmoid" else self.use.times(x, made)

    def _bias(self, query: Running, key: Running) -> Running:
        """[B or 1, H, L, S]."""
        part, held, heads = self.config.position_bias, self.held, self.config.num_heads
        q, k = np.arange(query.shape[1])[:, None], np.arange(key.shape[1])
        if isinstance(part, Slopes):
            slopes = None if part.slopes is None else np.array(part.slopes, np.float32)
            values = biases.ALiBi(heads, slopes, part.form).values(0, np.arange(heads)[:, None, None], q, k)
            return given(np.asarray(values)[None], self.use.each * np.abs(np.asarray(values))[None])
        if isinstance(part, Disentangled):
            return self._disentangled(part, query, key, q, k)
        if isinstance(part, T5Table):
            table = held["relative_attention_bias.table"]
            rows = biases.T5Buckets(table.value, part.max_distance, part.bidirectional).rows(0, q, k)
        elif isinstance(part, WindowTable):
            table = held["relative_position_bias.table"]
            rows = biases.RelativeTable(table.value, part.window, part.first).rows(0, q, k)
        else:
            assert isinstance(part, ContinuousTable)
            table = self._continuous(part)
            rows = biases.RelativeTable(table.value, part.window).rows(0, q, k)
        index = np.broadcast_to(np.asarray(rows), (q.shape[0], k.shape[0]))

        def again(g: Array) -> Array:
            out = np.zeros(table.shape)
            np.add.at(out, index, g[0].transpose(1, 2, 0))
            return out

        return table.moved(lambda x: x[index].transpose(2, 0, 1)[None], again)

    def _continuous(self, part: ContinuousTable) -> Running:
        """16 * sigmoid(relu(offsets W + b) V): [offsets, H]."""
        use, held = self.use, self.held
        offsets = part.offsets()
        hidden = use.product("of,fn->on", given(offsets, use.each * np.abs(offsets)), held["cpb_mlp.0.kernel"])
        hidden = use.add(hidden, held["cpb_mlp.0.bias"])
        hidden = use.each_one(hidden, lambda a: np.maximum(a, 0), lambda a: (a > 0) * 1.0)
        table = use.product("on,nh->oh", hidden, held["cpb_mlp.2.kernel"])
        # a module of a narrow dtype computes this network in it
        table = use.rounded(use.times(self._activated(use.rounded(table), "sigmoid"), 16.0))
        if use.narrow:
            table = Running(table.value, table.error + 16 * use.narrow * (1 + len(offsets)), table.parents, table.back)
        return table

    def _disentangled(self, part: Disentangled, query: Running, key: Running, q: Array, k: Array) -> Running:
        config, use = self.config, self.use
        assert self.call.relative is not None
        relative = given(self.call.relative)
        sizes: dict[str, Any] = {"span": part.span, "buckets": part.buckets, "max_distance": part.max_distance}
        empty = np.zeros((1, 1, 1, 2 * part.span))
        index = np.asarray(biases.Disentangled(empty, empty, **sizes).rows(q, k))
        terms = []
        for wanted, x, other, own, of_key in (
            (part.to_position, query, "key", "pos_key", False),
            (part.from_position, key, "query", "pos_query", True),
        ):
            if not wanted:
                continue
            table = self._relative(relative, other if part.shared else own)
            groups = config.num_heads // table.shape[1]
            table = _taken(table, np.repeat(np.arange(table.shape[1]), groups), 1)
            x = _taken(x, np.repeat(np.arange(x.shape[2]), config.num_heads // x.shape[2]), 2)
            found = use.rounded(use.times(use.product("blhd,rhd->bhlr", x, table), config.scale))
            terms.append(_looked_up(found, index, of_key))
        bias = terms[0]
        for term in terms[1:]:
            bias = use.add(bias, term)
        return bias

    def _relative(self, relative: Running, name: str) -> Running:
        """The table through a projection: [R, heads, D]."""
        kernel, bias = self.held[f"{name}.kernel"], self.held.get(f"{name}.bias")
        spec = "re,eo->ro" if len(kernel.shape) == 2 else "re,ehd->rhd"
        made = self.use.product(spec, relative, kernel)
        made = self.use.rounded(made if bias is None else self.use.add(made, bias))
        return made.reshape(made.shape[0], -1, self.config.head_dim)

    def _grown(
        self, key: Running, value: Running, allowed: Array | None, bias: Running | None
    ) -> tuple[Running, Running, Array | None, Running | None]:
        """Extra keys before the others, which every query may attend to."""
        extra, batch = self.config.extra_keys, key.shape[0]
        assert extra is not None
        grown = []
        for x, name in ((key, "bias_k"), (value, "bias_v")):
            shape = (batch, 1, *x.shape[2:])
            more = []
            if extra.learned:
                more.append(_repeated(self.held[name], shape))
            more += [given(np.zeros(shape))] if extra.zero else []
            grown.append(_joined((*more, x), 1))
        if allowed is not None:
            allowed = np.concatenate([np.ones((*allowed.shape[:-1], extra.count), bool), allowed], -1)
        if bias is not None:
            bias = _joined((given(np.zeros((*bias.shape[:-1], extra.count))), bias), -1)
        return grown[0], grown[1], allowed, bias


def _taken(x: Running, index: Array, axis: int = -1) -> Running:
    """x at these places of an axis."""

    def again(g: Array) -> Array:
        out = np.zeros(x.shape)
        np.add.at(np.moveaxis(out, axis, 0), index, np.moveaxis(g, axis, 0))
        return out

    return x.moved(lambda a: np.take(a, index, axis), again)


def _looked_up(x: Running, index: Array, of_key: bool) -> Running:
    """x [B, H, L or S, R] at index [L, S]: [B, H, L, S]."""
    rows = np.arange(index.shape[0])[:, None], np.arange(index.shape[1])[None, :]
    row = np.broadcast_to(rows[1] if of_key else rows[0], index.shape)

    def again(g: Array) -> Array:
        out = np.zeros(x.shape)
        np.add.at(out.transpose(2, 3, 0, 1), (row, index), g.transpose(2, 3, 0, 1))
        return out

    return x.moved(lambda a: a[:, :, row, index], again)


def _joined(parts: tuple[Running, ...], axis: int) -> Running:
    """Concatenated."""
    ends = np.cumsum([x.shape[axis] for x in parts])[:-1]
    whole = [np.concatenate(arrays, axis) for arrays in zip(*((x.value, x.error) for x in parts), strict=True)]
    return Running(whole[0], whole[1], parts, lambda g, size: np.split(g, ends, axis))


def _repeated(x: Running, shape: tuple[int, ...]) -> Running:
    """x with more axes before its own."""
    axes = tuple(range(len(shape) - len(x.shape)))
    return x.moved(lambda a: np.broadcast_to(a, shape), lambda g: g.sum(axes))
