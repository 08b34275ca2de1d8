"""What the modules of both twins share: their checks, how they call attention, and the arguments of the seed module."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from maskattn._fields import broadcasts, dtype_name
from maskattn._problems import Problems, describe, show
from maskattn.attention import A, Framework
from maskattn.biases import Bias
from maskattn.cache import CacheBase
from maskattn.config import AttentionConfig
from maskattn.layer import ContinuousTable, Disentangled, GlobalTokens, WindowTable
from maskattn.masks import Causal, Dense, Mask
from maskattn.modules.run import Arithmetic, Asked, Attended, Layer
from maskattn.numerics.rng_arguments import check_key
from maskattn.typing import Array, KernelName

#: An array that is given as a mask.
M = TypeVar("M", bound=Array)
#: For who comes with Flax's arguments.
_OF_FLAX = "modules with Flax's arguments are in maskattn_jax.flax_nnx and maskattn_jax.flax_linen"


def given_config(
    where: str, config: AttentionConfig | int | None, num_heads: int | None, options: Mapping[str, Any]
) -> AttentionConfig:
    """A module's configuration: the one that it was given, or the one that embed_dim, num_heads and the rest make.

    Raises:
        TypeError, ValueError: neither of the two, both, or a field is at fault.
    """
    sizes = {name: size for name, size in (("embed_dim", config), ("num_heads", num_heads)) if size is not None}
    if isinstance(config, AttentionConfig):
        beside = ", ".join([*sizes, *options][1:])
        if beside:
            raise TypeError(f"{where}: {beside} must not be given beside a config: use config.replace")
        return config
    given = {**options, **sizes}
    if "embed_dim" in options and config is not None or not {"embed_dim", "num_heads"} <= given.keys():
        listed = ", ".join(f"{name} {show(value)}" for name, value in given.items()) or "neither"
        told = f"; {_OF_FLAX}" if given.keys() & {"in_features", "qkv_features"} else ""
        raise TypeError(f"{where}: config must be an AttentionConfig, or embed_dim and num_heads, got {listed}{told}")
    width, heads = given["embed_dim"], given["num_heads"]
    if isinstance(width, int) and isinstance(heads, int) and 0 < width < heads and "head_dim" not in given:
        raise ValueError(
            f"{where}: embed_dim must be at least num_heads, got {width} and {heads}: embed_dim is the first; "
            f"{_OF_FLAX}"
        )
    return AttentionConfig(**given)


def module_inputs(
    where: str,
    config: AttentionConfig,
    given: tuple[A, A | None, A | None],
    check: Callable[[str, str, object], None],
    dropout_key: object,
    deterministic: bool,
) -> tuple[A, A, A]:
    """A module's query [..., L, embed_dim], key [..., S, kdim] and value [..., S, vdim], the latter two given or not.

    Args:
        given: the three as the call has them; key defaults to query, value to key. The axes before the last two are one
            batch.
        check: raises where an input is nothing that the module can take: (where, its name, the input).

    Raises:
        TypeError, ValueError: lists every wrong shape, a bad key, and a key that is missing where dropout is on.
    """
    query, key, value = given
    if key is None and value is not None:
        raise ValueError(f"{where}: value is given without key: give both, or only key")
    key = query if key is None else key
    value = key if value is None else value
    widths = {"query": config.embed_dim, "key": config.kdim, "value": config.vdim}
    inputs = {"query": query, "key": key, "value": value}
    if key is query and value is query and widths["key"] == widths["query"] == widths["value"]:
        inputs = {"query": query}  # one array is looked at once
    problems = Problems(where)
    for name, x in inputs.items():
        if isinstance(x, Mask):
            raise TypeError(f"{where}: {name} must be an array, got {type(x).__name__}; a mask is given by name: mask=")
        check(where, name, x)
        if len(x.shape) < 2 or x.shape[-1] != widths[name]:
            problems.value(f"{name} must be [..., length, {widths[name]}], got shape {tuple(x.shape)}")
    if len(inputs) == 3 and not problems:
        leading = [tuple(x.shape[:-2]) for x in inputs.values()]
        if not leading[0] == leading[1] == leading[2]:
            listed = f"{leading[0]}, {leading[1]} and {leading[2]}"
            problems.value(f"query, key and value must agree in the axes before their length, got {listed}")
    if dropout_key is not None:
        check_key(problems, "dropout_key", dropout_key)
    elif not deterministic:
        rates = [f"{name} {rate}" for name in ("dropout_rate", "out_dropout_rate") if (rate := getattr(config, name))]
        if rates:
            problems.value(
                f"dropout_key must be given where dropout is on, got None and {', '.join(rates)}; in eval mode, or "
                "with deterministic=True, it is off"
            )
    problems.raise_if_any()
    return query, key, value


def head_shapes(config: AttentionConfig) -> tuple[tuple[int, int], ...]:
    """(heads, width of one) of query, key and value: (H, D), (K, D), (K, Dv)."""
    kv_heads, width = config.num_kv_heads, config.head_dim
    return (config.num_heads, width), (kv_heads, width), (kv_heads, config.v_head_dim)


def dropout_rates(config: AttentionConfig, deterministic: bool) -> tuple[float, float]:
    """The rates of weights and output in a call of a module."""
    return (0.0, 0.0) if deterministic else (config.dropout_rate, config.out_dropout_rate)


@dataclass
class Leading:
    """The axes before the last two of a module's inputs, which are one batch, in row-major order.

    Attributes:
        axes: their lengths; one is how `attention` has it, and nothing is done.
        use: the framework's arithmetic.
    """

    axes: tuple[int, ...]
    use: Arithmetic[Any]

    def flat(self, x: A, trailing: int) -> A:
        """x [..., *trailing axes] with one axis before its last `trailing` ones."""
        return cast(A, x.reshape((math.prod(self.axes), *x.shape[len(x.shape) - trailing :])))

    def unflat(self, x: A) -> A:
        """x [B, ...] with the axes that the batch stands for."""
        return cast(A, x.reshape((*self.axes, *x.shape[1:])))

    def aligned(self, x: Any, trailing: int) -> Any:
        """What broadcasts to [..., *trailing axes] as what broadcasts to [B, *trailing axes]; masks and biases, which
        know the batch alone, as they are."""
        if x is None or isinstance(x, (Mask, Bias)) or len(self.axes) == 1 or len(x.shape) <= trailing:
            return x
        if not broadcasts(tuple(x.shape[: len(x.shape) - trailing]), self.axes):
            return x  # refused where its shape is looked at
        x = self.use.as_array(x, None)
        rest = tuple(x.shape[len(x.shape) - trailing :])
        return self.flat(self.use.broadcast(x, (*self.axes, *rest), x), trailing)

    def of_tokens(self, config: AttentionConfig, positions: Any, *others: Any) -> tuple[Any, ...]:
        """Positions, an array or a pair, and what else is [..., L], for [B, L]."""
        if len(self.axes) == 1:
            return positions, *others
        trailing = 2 if config.rotary is not None and config.rotary.axes else 1
        if isinstance(positions, tuple):
            positions = tuple(self.aligned(x, trailing) for x in positions)
        else:
            positions = self.aligned(positions, trailing)
        return positions, *(self.aligned(x, 1) for x in others)


def with_causal(mask: Mask | M | None, is_causal: bool) -> Mask | M | None:
    """The mask; where asked for, without keys after the query, counted from the start of both."""
    if not is_causal:
        return mask
    if mask is None:
        return Causal()
    return (mask if isinstance(mask, Mask) else Dense(mask)) & Causal()


def check_asked(where: str, config: AttentionConfig, sizes: tuple[int, int, int], asked: Asked[Any]) -> None:
    """Raise one error for all that is wrong with what the parts of a layer read, for sizes (B, L, S).

    Raises:
        TypeError, ValueError: names each argument at fault: it is missing, of another shape or dtype, or nothing reads
            it.
    """
    problems = Problems(where)
    if asked.bias is not None and config.position_bias is not None:
        problems.value("bias must be None where the layer has a position_bias")
    if isinstance(asked.bias, Bias) and config.extra_keys is not None:
        problems.type(f"bias must be an array where the layer has extra_keys, got {type(asked.bias).__name__}")
    _check_cache(problems, config, sizes, asked)
    for name, part in (("global_tokens", "global_tokens"), ("relative", "position_bias")):
        _check_read(problems, name, getattr(asked, name), _reads(config, name), part)
    if asked.positions is not None and config.rotary is None and config.temperature is None:
        problems.value("positions are given, but the layer has neither rotary nor temperature, which read them")
    batch, q_len, kv_len = sizes
    if asked.global_tokens is not None and _reads(config, "global_tokens"):
        shape = tuple(asked.global_tokens.shape)
        if dtype_name(asked.global_tokens) != "bool":
            problems.type(f"global_tokens must be bool, got {dtype_name(asked.global_tokens)}")
        if shape not in ((batch, q_len), (1, q_len)) or q_len != kv_len:
            problems.value(f"global_tokens must be [B, L] = {(batch, q_len)}, of self-attention, got shape {shape}")
    _check_positions(problems, config, sizes, asked)
    problems.raise_if_any()


def _check_cache(problems: Problems, config: AttentionConfig, sizes: tuple[int, int, int], asked: Asked[Any]) -> None:
    """What a step of decoding needs: keys that are those of the queries' tokens, and parts that know no later ones."""
    if asked.cache is None:
        if asked.valid is not None:
            problems.value("valid is given, but no cache, which reads it")
        return
    if not isinstance(asked.cache, CacheBase):
        problems.type(f"cache must be a Cache, got {describe(asked.cache)}")
        return
    if asked.cache.batch != sizes[0]:
        problems.value(f"cache must have a row for each of the batch, {sizes[0]}, got {asked.cache.batch}")
    if sizes[1] != sizes[2]:
        problems.value(f"query and key must be of one length where there is a cache, got {sizes[1]} and {sizes[2]}")
    if asked.mask is not None and not isinstance(asked.mask, Mask):
        problems.type(f"mask must be a Mask, of whole sequences, where there is a cache, got {describe(asked.mask)}")
    whole = [name for name in ("position_bias", "global_tokens") if _is_whole(getattr(config, name))]
    if whole:
        problems.value(f"cache must be None: the layer's {' and '.join(whole)} read whole sequences")


def _is_whole(part: object) -> bool:
    """Whether a part reads all of a sequence at once."""
    return isinstance(part, (Disentangled, WindowTable, ContinuousTable, GlobalTokens))


def _reads(config: AttentionConfig, name: str) -> bool:
    if name == "relative":
        return isinstance(config.position_bias, Disentangled)
    return config.global_tokens is not None


def _check_read(problems: Problems, name: str, given: Array | None, reads: bool, part: str) -> None:
    if (given is not None) == reads:
        return
    problems.value(
        f"{name} must be given, the layer's {part} reads it" if reads else f"{name} is given, but no part reads it"
    )


def _check_positions(
    problems: Problems, config: AttentionConfig, sizes: tuple[int, int, int], asked: Asked[Any]
) -> None:
    if asked.positions is None:
        return
    batch, q_len, kv_len = sizes
    axes = 0 if config.rotary is None else len(config.rotary.axes)
    given: Any = asked.positions
    pair = isinstance(given, tuple)
    if pair and len(given) != 2:
        problems.value(f"positions must be an array, or those of queries and of keys, got {len(given)}")
        return
    for x, length in zip(given if pair else (given,), (q_len, kv_len), strict=False):
        shape = tuple(getattr(x, "shape", ()))
        ends = (length, axes) if axes else (length,)
        if shape not in (ends, (1, *ends), (batch, *ends)):
            problems.value(f"positions must be {list(ends)} or {[batch, *ends]}, got shape {list(shape)}")
        elif not axes and not dtype_name(x).startswith(("int", "uint")):
            problems.type(f"positions must be integers, got {dtype_name(x)}")
    if not pair and q_len != kv_len:
        problems.value(f"positions must be those of queries and of keys, a pair, where {q_len} meet {kv_len}")


def answered(leading: Leading, output: A, asked: Asked[A], attended: Attended[A]) -> Any:
    """What a module returns: its output, or a tuple of it and what was asked for: weights, lse, cache."""
    found = [output]
    found += [attended.weights] if attended.weights is not None else []
    found += [attended.lse] if attended.lse is not None else []
    if len(leading.axes) != 1:
        found = [leading.unflat(x) for x in found]
    more = [] if asked.cache is None else [attended.cache]
    return found[0] if len(found) + len(more) == 1 else (*found, *more)


def one_batch(leading: Leading, given: tuple[A, A, A]) -> tuple[A, A, A]:
    """Query, key and value [..., length, width] as [B, length, width]; those that are one stay one."""
    query, key, value = given
    flat = leading.flat(query, 2)
    flat_key = flat if key is query else leading.flat(key, 2)
    return flat, flat_key, flat_key if value is key else leading.flat(value, 2)


def attend_heads(layer: Layer[A], inputs: Sequence[A], asked: Asked[A]) -> Attended[A]:
    """Attention of query, key and value [B, length, heads * width], or split already, by a layer's configuration."""
    config = layer.config
    shapes = zip(inputs, head_shapes(config), strict=True)
    split: list[Any] = [x.reshape((*x.shape[:2], *shape)) for x, shape in shapes]
    query, key, value = split
    if config.has_parts or asked.is_more:
        check_asked(layer.where, config, (query.shape[0], query.shape[1], key.shape[1]), asked)
    return layer.run((query, key, value), asked)


def of_kernel(framework: Framework[A], kernel: KernelName, name: str) -> Callable[..., A] | None:
    """The `linear` or `drop` that a kernel brings, or None: what is around its attention is then as exact as that."""
    return getattr(framework.kernels.get(kernel), name, None)


def seed_config(
    dim: int,
    num_heads: int,
    qkv_bias: bool,
    qk_scale: float | None,
    attn_drop: float,
    proj_drop: float,
    with_qkv: bool,
) -> AttentionConfig:
    """The seed module's arguments as an AttentionConfig."""
    return AttentionConfig(
        embed_dim=dim,
        num_heads=num_heads,
        qkv_bias=qkv_bias,
        scale=qk_scale,
        dropout_rate=attn_drop,
        out_dropout_rate=proj_drop if with_qkv else 0.0,  # it stands behind the output projection
        project=with_qkv,
    )


def seed_mask(mask: Any, x: Array, heads: int, framework: Framework[A]) -> A:
    """The mask of the seed module for x [B, N, dim], with the axes of [B, H, N, N]; 1 = keep.

    Args:
        mask: [B, N], or broadcastable to [B, H, N, N].

    Raises:
        TypeError: no array. ValueError: any other shape.
    """
    if not isinstance(mask, framework.operands):
        raise TypeError(f"Attention: attention_mask must be {framework.operand}, got {type(mask).__name__}")
    shape, inputs = tuple(mask.shape), tuple(x.shape)
    if len(inputs) != 3:
        raise ValueError(f"Attention: x must be [batch, length, dim], got shape {inputs}")
    batch, length, _ = inputs
    expanded = mask[:, None, None, :] if len(shape) == 2 else mask
    if not broadcasts(tuple(expanded.shape), (batch, heads, length, length)):
        raise ValueError(
            f"Attention: attention_mask must be [B, N] = {(batch, length)} or broadcast to [B, H, N, N] = "
            f"{(batch, heads, length, length)}, got shape {shape}"
        )
    return expanded
