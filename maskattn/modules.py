"""What the modules of both twins share: their checks, how they call attention, and the arguments of the seed module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from maskattn._fields import broadcasts
from maskattn._problems import Problems, show
from maskattn.attention import A, Call, Framework, attend
from maskattn.biases import Bias
from maskattn.config import AttentionConfig
from maskattn.masks import Mask
from maskattn.numerics.rng_arguments import check_key
from maskattn.typing import Array, KernelName


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
        raise TypeError(f"{where}: config must be an AttentionConfig, or embed_dim and num_heads, got {listed}")
    return AttentionConfig(**given)


def module_inputs(
    where: str,
    config: AttentionConfig,
    given: tuple[A, A | None, A | None],
    check: Callable[[str, str, object], None],
    dropout_key: object,
    deterministic: bool,
) -> tuple[A, A, A]:
    """A module's query [B, L, embed_dim], key [B, S, kdim] and value [B, S, vdim]: key defaults to query, value to key.

    Args:
        given: the three as the call has them, key and value or None.
        check: raises where an input is nothing that the module can take: (where, its name, the input).

    Raises:
        TypeError, ValueError: lists every wrong shape, a bad key, and a key that is missing where dropout is on.
    """
    query, key, value = given
    if key is None and value is not None:
        raise ValueError(f"{where}: value is given without key: give both, or only key")
    key = query if key is None else key
    value = key if value is None else value
    inputs = {"query": query, "key": key, "value": value}
    for name, x in inputs.items():
        check(where, name, x)
    problems = Problems(where)
    for (name, x), width in zip(inputs.items(), (config.embed_dim, config.kdim, config.vdim), strict=True):
        if len(x.shape) != 3 or x.shape[2] != width:
            problems.value(f"{name} must be [batch, length, {width}], got shape {tuple(x.shape)}")
    rates = [f"{name} {rate}" for name in ("dropout_rate", "out_dropout_rate") if (rate := getattr(config, name))]
    if dropout_key is not None:
        check_key(problems, "dropout_key", dropout_key)
    elif rates and not deterministic:
        problems.value(
            f"dropout_key must be given where dropout is on, got None and {', '.join(rates)}; in eval mode, or with "
            "deterministic=True, it is off"
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


def attend_heads(
    config: AttentionConfig,
    framework: Framework[A],
    inputs: Sequence[Array],
    mask: Mask | Array | None,
    bias: Bias | Array | None,
    sinks: Array | None,
    rate: float,
    dropout_key: Array | None,
    kernel: KernelName,
) -> A:
    """Attention by a configuration, of query, key and value [B, length, heads * width], or split already.

    Args:
        mask, bias, sinks, kernel: as in `attention`.
        rate, dropout_key: of the dropout of the weights.

    Returns:
        [B, L, H, Dv].
    """
    shapes = zip(inputs, head_shapes(config), strict=True)
    query, key, value = (x.reshape((*x.shape[:2], *shape)) for x, shape in shapes)
    options: dict[str, Any] = config.attention_options() | {
        "dropout_rate": rate,
        "dropout_key": dropout_key,
        "kernel": kernel,
    }
    return cast(A, attend(Call(query, key, value, mask, bias, sinks=sinks, **options), framework))


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
