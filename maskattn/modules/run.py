"""The order in which the parts of a layer come: once, for all modules of both twins.

project -> norm -> clip -> rotary -> (norm) -> temperature -> cosine -> cache -> extra keys -> attend -> gate -> project

The projections are the module's own; what lies between them is here. The arithmetic of each part is the twin's, or the
kernel's where that brings its own (`exact`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import numpy as np

from maskattn import biases
from maskattn._fields import peek
from maskattn.attention import Call, Framework, attend
from maskattn.biases import ALiBi, Bias, DenseBias, RelativeTable, T5Buckets
from maskattn.config import AttentionConfig
from maskattn.layer.norm import Norm
from maskattn.layer.parts import Temperature
from maskattn.layer.position_bias import ContinuousTable, Disentangled, Slopes, T5Table, WindowTable
from maskattn.layer.rotary import Rotary
from maskattn.masks import Dense, Full, KeyPadding, Mask, QueryMask
from maskattn.typing import Array, KernelName

B = TypeVar("B", bound=Array)
#: Query, key and value.
Three = tuple[B, B, B]


class Arithmetic(Protocol[B]):
    """The formulas of the parts on a framework's arrays. Each rounds to the dtype of `x` once, at its end."""

    def norm(self, x: B, scale: B | None, bias: B | None, norm: Norm) -> B:
        """x [B, L, heads, width]; scale and bias None, [width] or [heads, width]."""

    def frequencies(self, rotary: Rotary, head_dim: int, length: int | None, positions: B) -> B:
        """`rotary.frequencies`; where the length is None it is the largest position plus one."""

    def turns(self, rotary: Rotary, positions: B, frequencies: B, x: B) -> Any:
        """What `rotate` needs: positions [B or 1, L] or [B or 1, L, axes], frequencies float32 [width / 2]; x is what
        will be turned."""

    def counted(self, rotary: Rotary, head_dim: int, first: int, count: int, x: B) -> Any:
        """`turns` of the positions first, first + 1, ..., where they are kept from call to call; else None."""

    def rotate(self, x: B, turns: Any, rotary: Rotary) -> B:
        """x [B, L, heads, D] with its first numbers turned."""

    def temperature(self, x: B, positions: B, part: Temperature) -> B:
        """x [B, L, heads, D] scaled by its positions [B or 1, L]."""

    def cosine(self, x: B, logit_scale: B | None, most: float) -> B:
        """x [B, L, heads, D] as unit vectors, those of head h times exp(min(logit_scale[h], ln(most)))."""

    def clip(self, x: B, limit: float) -> B: ...
    def gate(self, x: B, gate: B, activation: str) -> B:
        """x [B, L, H, Dv] times the activation of gate [B, L, H, Dv or 1]."""

    def continuous(self, part: ContinuousTable, hidden: B, bias: B, out: B) -> B:
        """The table [offsets, H] of the network's kernels [2, hidden] and [hidden, H] and its bias [hidden]."""

    def products(self, x: B, y: B, heads: int, scale: float) -> B:
        """scale * x.y over the last axes: x [B, L, H or K, D], y [R, H or K, D] -> [B, H, L, R]."""

    def arange(self, length: int, like: B) -> B:
        """int [1, length], where `like` is."""

    def as_array(self, x: Any, like: B | None) -> B:
        """An array of NumPy, or of the framework, where `like` is."""

    def concatenate(self, arrays: Sequence[B], axis: int) -> B: ...
    def where(self, condition: B, x: B, y: B) -> B: ...
    def broadcast(self, x: B, shape: Sequence[int], like: B) -> B:
        """x in the dtype of `like`, of a larger shape."""

    def zeros(self, shape: Sequence[int], like: B) -> B:
        """Of the dtype of `like`, where it is."""

    def identity(self, size: int, like: B) -> B:
        """The unit matrix, of the dtype of `like`."""

    def held(self, x: B) -> B:
        """Keys or values [B, L, K, D] as a cache takes them."""

    def of_cache(self, x: B, like: B) -> B:
        """What a cache holds [B, S, K, D], divided over devices as `like` is."""


@dataclass(eq=False)
class Asked(Generic[B]):
    """What a call of a module asks of the layer, beside its three inputs.

    Attributes:
        sources: the inputs before their projections, which further projections read.
        mask, bias: as in `attention`.
        positions: int [L] or [B, L], for rotary with axes [.., L, axes]; or a pair, those of queries and of keys; None
            counts from 0, behind what a cache holds.
        cache: the keys and values of the tokens before.
        valid: bool [B, L], False = padding, which takes no slot of the cache.
        global_tokens: bool [B, S] or [1, S], True = global.
        relative: the table of relative positions, [2 * span, E].
        rate, dropout_key: of the dropout of the weights.
        kernel: as in `attention`.
        weights, lse: whether they are returned too.
    """

    sources: Three[B]
    mask: Mask | Array | None
    bias: Bias | Array | None
    positions: Array | tuple[Array, Array] | None
    cache: Any
    valid: Any
    global_tokens: Array | None
    relative: Any
    rate: float
    dropout_key: Array | None
    kernel: KernelName
    weights: bool = False
    lse: bool = False

    @property
    def is_more(self) -> bool:
        """Whether anything is asked for that plain attention has no part in."""
        if self.cache is not None or self.positions is not None or self.valid is not None:
            return True
        return self.global_tokens is not None or self.relative is not None

    def but(self, **changes: object) -> Asked[B]:
        """The same with other fields: `dataclasses.replace` in a tenth of the time."""
        made: Asked[B] = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.__dict__.update(changes)
        return made


class Places(NamedTuple, Generic[B]):
    """Where queries and keys stand, as the parts read it: what turns them, and the positions [B or 1, L] of queries.

    None of what no part reads.
    """

    turns: Sequence[Any] | None
    queries: B | None


@dataclass(eq=False)
class Attended(Generic[B]):
    """output [B, L, H, Dv]; and where asked for weights [B, H, L, S], lse [B, L, H], and the cache."""

    output: B
    weights: B | None = None
    lse: B | None = None
    cache: Any = None


@dataclass(eq=False)
class Layer(Generic[B]):
    """A layer between its projections.

    Attributes:
        where: what errors begin with.
        held: its parameters, by canonical names, but for those of further projections.
        project: a further projection applied: (its name, what it reads [B, L, E]) -> [B, L, width].
        options: of `attention`, beside those of the configuration and of the call.
    """

    where: str
    config: AttentionConfig
    framework: Framework[B]
    arithmetic: Arithmetic[Any]
    held: Mapping[str, B]
    project: Callable[[str, B], B]
    options: Mapping[str, object] = field(default_factory=dict)

    def run(self, inputs: Sequence[B], asked: Asked[B]) -> Attended[B]:
        """What attention gives for query [B, L, H, D], key [B, S, K, D] and value [B, S, K, Dv], just projected."""
        config = self.config
        query, key, value = inputs
        at = self._places(asked, query, key)
        query, key, value = self._placed((query, key, value), at)
        if config.position_bias is not None:
            asked = asked.but(bias=self._bias(query, key, asked.relative))
        cache = asked.cache
        if cache is not None:
            key, value, asked = self._stored(query.shape[1], key, value, asked)
            cache = asked.cache
        if config.extra_keys is not None:
            key, value, asked = self._with_extra_keys(key, value, asked)
        if config.global_tokens is None:
            attended = self._attended((query, key, value), asked)
        else:
            attended = self._with_globals((query, key, value), at, asked)
        output = attended.output
        if config.gate is not None:
            gate: Any = self.project("gate", asked.sources[0])
            gate = gate.reshape((*output.shape[:3], -1))
            output = self.arithmetic.gate(output, gate, config.gate.activation)
        attended.output, attended.cache = output, cache
        return attended

    def _places(self, asked: Asked[B], query: B, key: B) -> Places[B] | None:
        """Where queries and keys stand; None where no part reads it."""
        rotary, use, width = self.config.rotary, self.arithmetic, self.config.head_dim
        if rotary is None and self.config.temperature is None:
            return None
        if rotary is not None and self.config.temperature is None and asked.positions is asked.valid is None:
            first = 0 if asked.cache is None else asked.cache.first_position
            if first is not None and query.shape[1] == key.shape[1]:
                turns = use.counted(rotary, width, first, query.shape[1], query)
                if turns is not None:
                    return Places((turns, turns), None)
        queries, keys, length = self._positions(asked, query, key)
        if rotary is None:
            return Places(None, queries)
        frequencies = use.frequencies(rotary, width, length, keys)
        turns = use.turns(rotary, queries, frequencies, query)
        others = turns if keys is queries else use.turns(rotary, keys, frequencies, key)
        return Places((turns, others), queries)

    def _positions(self, asked: Asked[B], query: B, key: B) -> tuple[B, B, int | None]:
        """Positions of queries and of keys, [B or 1, L] and [B or 1, S]; the largest plus one, None where it is not
        known before the call runs."""
        given, use = asked.positions, self.arithmetic
        if given is None and asked.cache is not None:
            following: B = asked.cache.next_positions(query.shape[1], valid=asked.valid)
            return following, following, None
        if given is None:
            lengths = query.shape[1], key.shape[1]
            queries = use.arange(lengths[0], query)
            keys = queries if lengths[0] == lengths[1] else use.arange(lengths[1], query)
            return queries, keys, max(lengths)
        # one array is that of both where they are one sequence
        pair = given if isinstance(given, tuple) else (given, given)
        rank = 3 if self.config.rotary is not None and self.config.rotary.axes else 2
        arrays = [use.as_array(x, query) for x in pair]
        one, other = (x[None] if len(x.shape) < rank else x for x in arrays)
        follows = self.config.rotary is not None and self.config.rotary.follows_length
        known = [peek(x) for x in pair] if follows else []
        ends = [int(x.max(initial=-1)) + 1 for x in known if x is not None]
        most = max(ends) if len(ends) == 2 else None
        return one, one if pair[1] is pair[0] else other, most

    def _placed(self, inputs: Three[B], at: Places[B] | None) -> Three[B]:
        """Query, key and value as they attend: normed, clipped, turned."""
        config, use = self.config, self.arithmetic
        query, key, value = inputs
        late = config.qk_norm is not None and config.qk_norm.after_rotary
        if config.qk_norm is not None and not late:
            query, key = self._normed(query, key, config.qk_norm)
        if config.clip is not None:
            query, key, value = (use.clip(x, config.clip.limit) for x in (query, key, value))
        if config.rotary is not None and at is not None and at.turns is not None:
            query = use.rotate(query, at.turns[0], config.rotary)
            key = use.rotate(key, at.turns[1], config.rotary)
        if config.qk_norm is not None and late:
            query, key = self._normed(query, key, config.qk_norm)
        if config.temperature is not None and at is not None and at.queries is not None:
            query = use.temperature(query, at.queries, config.temperature)
        if config.cosine is not None:
            query = use.cosine(query, self.held["logit_scale"], config.cosine.most)
            key = use.cosine(key, None, config.cosine.most)
        return query, key, value

    def _normed(self, query: B, key: B, norm: Norm) -> tuple[B, B]:
        def applied(x: B, role: str) -> B:
            return self.arithmetic.norm(
                x, self.held.get(f"{role}_norm.scale"), self.held.get(f"{role}_norm.bias"), norm
            )

        return applied(query, "query"), applied(key, "key")

    def _stored(self, q_len: int, key: B, value: B, asked: Asked[B]) -> tuple[B, B, Asked[B]]:
        """Keys and values of all slots, with mask and bias of this step's queries; and the cache that has them."""
        size = asked.cache.size
        # the first queries of a long step attend to what its last tokens replace in a rolling cache
        wide = asked.cache.resize(size + q_len) if asked.cache.rolling and q_len > 1 else asked.cache
        use = self.arithmetic
        cache = wide.update(use.held(key), use.held(value), valid=asked.valid)
        bias: Any = asked.bias if asked.bias is None or isinstance(asked.bias, Bias) else DenseBias(asked.bias)
        step = asked.but(
            cache=cache if wide is asked.cache else cache.resize(size),
            mask=cache.mask(asked.mask, q_len, valid=asked.valid),
            bias=cache.bias(bias, q_len, valid=asked.valid),
        )
        return use.of_cache(cache.key, key), use.of_cache(cache.value, value), step

    def _bias(self, query: B, key: B, relative: Any) -> Bias | None:
        part, held = self.config.position_bias, self.held
        if isinstance(part, WindowTable):
            return RelativeTable(held["relative_position_bias.table"], part.window, part.first)
        if isinstance(part, ContinuousTable):
            kernels = (held["cpb_mlp.0.kernel"], held["cpb_mlp.0.bias"], held["cpb_mlp.2.kernel"])
            return RelativeTable(self.arithmetic.continuous(part, *kernels), part.window)
        if isinstance(part, T5Table):
            table = held["relative_attention_bias.table"]
            return T5Buckets(table, part.max_distance, part.bidirectional)
        if isinstance(part, Slopes):
            slopes = None if part.slopes is None else np.array(part.slopes, np.float32)
            return ALiBi(self.config.num_heads, slopes, part.form)
        assert isinstance(part, Disentangled)
        return self._disentangled(part, query, key, relative)

    def _disentangled(self, part: Disentangled, query: B, key: B, relative: B) -> Bias:
        """Products of queries with the keys of relative positions, and of keys with their queries, scaled."""
        config, use = self.config, self.arithmetic

        def products(x: B, named: str, other: str, wanted: bool) -> B:
            if not wanted:
                return use.zeros((1, config.num_heads, x.shape[1], 2 * part.span), x)
            projected: Any = self.project(other if part.shared else named, relative)
            positions = projected.reshape((2 * part.span, -1, config.head_dim))
            return use.products(x, positions, config.num_heads, config.scale)

        of_queries = products(query, "pos_key", "key", part.to_position)
        of_keys = products(key, "pos_query", "query", part.from_position)
        sizes = part.span, part.buckets, part.max_distance
        return biases.Disentangled(of_queries, of_keys, *sizes)

    def _with_extra_keys(self, key: B, value: B, asked: Asked[B]) -> tuple[B, B, Asked[B]]:
        """Keys and values with the extra ones before them: a sum has no order, and no data have slots before 0."""
        extra, use, mask, bias = self.config.extra_keys, self.arithmetic, asked.mask, asked.bias
        assert extra is not None
        grown = []
        for x, name in ((key, "bias_k"), (value, "bias_v")):
            one = (x.shape[0], 1, *x.shape[2:])
            learned = [use.broadcast(self.held[name], one, x)] if extra.learned else []
            zeros = [use.zeros(one, x)] if extra.zero else []
            grown.append(use.concatenate([*learned, *zeros, x], 1))
        if mask is not None:
            mask = mask if isinstance(mask, Mask) else Dense(mask)
            mask = KeyPadding(np.array([extra.count])) | mask.at(k_offset=-extra.count)
        if bias is not None:
            bias = use.as_array(cast(Array, bias), key)
            bias = use.concatenate([use.zeros((*bias.shape[:-1], extra.count), bias), bias], -1)
        return grown[0], grown[1], asked.but(mask=mask, bias=bias)

    def _with_globals(self, inputs: Three[B], at: Places[B] | None, asked: Asked[B]) -> Attended[B]:
        """Queries of global tokens by projections of their own, all others by those that every layer has."""
        tokens = self.arithmetic.as_array(cast(Array, asked.global_tokens), inputs[0])
        mask = Full() if asked.mask is None else asked.mask if isinstance(asked.mask, Mask) else Dense(asked.mask)
        projected = [self.project(name, x) for name, x in zip(_GLOBAL, asked.sources, strict=True)]
        heads: list[Any] = [x.reshape(like.shape) for x, like in zip(projected, inputs, strict=True)]
        own = self._placed((heads[0], heads[1], heads[2]), at)
        local = self._attended(inputs, asked.but(mask=mask & QueryMask(~tokens)))
        other = self._attended(own, asked.but(mask=mask & QueryMask(tokens)))
        chosen = [
            None if x is None or y is None else self.arithmetic.where(tokens.reshape(shape), y, x)
            for x, y, shape in (
                (local.output, other.output, (*tokens.shape, 1, 1)),
                (local.weights, other.weights, (tokens.shape[0], 1, -1, 1)),
                (local.lse, other.lse, (*tokens.shape, 1)),
            )
        ]
        return Attended(cast(B, chosen[0]), chosen[1], chosen[2])

    def _attended(self, inputs: Three[B], asked: Asked[B]) -> Attended[B]:
        query, key, value = inputs
        options = {
            **self.config.attention_options(),
            **self.options,
            "mask": asked.mask,
            "bias": asked.bias,
            "dropout_rate": asked.rate,
            "dropout_key": asked.dropout_key,
            "kernel": asked.kernel,
            "sinks": self.held.get("sinks"),
        }
        found: Any = attend(Call.of(query=query, key=key, value=value, return_lse=asked.lse, **options), self.framework)
        output, lse = found if asked.lse else (found, None)
        weights = None
        if asked.weights:
            # the output for values that are unit vectors: each weight by itself, whatever the kernel
            batch, length, heads, _ = key.shape
            unit = self.arithmetic.identity(length, value)[None, :, None, :]
            units = self.arithmetic.broadcast(unit, (batch, length, heads, length), value)
            weights = cast(Any, attend(Call.of(query=query, key=key, value=units, **options), self.framework))
            weights = weights.swapaxes(1, 2)
        return Attended(output, weights, lse)


_GLOBAL = ("query_global", "key_global", "value_global")
