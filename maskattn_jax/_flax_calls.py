"""What the modules of NNX and Linen take as Flax's modules take it: names of arguments, `deterministic`, shardings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from maskattn._fields import dtype_name, peek
from maskattn._problems import Problems, describe
from maskattn.config import AttentionConfig
from maskattn.modules import Leading, of_kernel
from maskattn.typing import KernelName
from maskattn_jax._called import Called
from maskattn_jax.functional import FRAMEWORK
from maskattn_jax.types import Answer, Array, RandomKey, Sharding

__all__ = ["flat_sharding", "flax_names", "flax_sizes", "refuse", "resolved", "zero_one"]

_NAMES = {"inputs_q": "query", "inputs_k": "key", "inputs_kv": "key", "inputs_v": "value"}


def flax_names(key: str) -> Callable[[Callable[..., Answer]], Called[RandomKey]]:
    """A call that takes its arguments by Flax's names too.

    Args:
        key: how Flax calls the key of dropout.
    """
    names = {**_NAMES, key: "dropout_key"}

    def decorate(call: Callable[..., Answer]) -> Called[RandomKey]:
        @functools.wraps(call)
        def named(self: object, *arguments: object, **options: object) -> Answer:
            if names.keys().isdisjoint(options):
                return call(self, *arguments, **options)
            return call(self, *arguments, **_renamed(type(self).__name__, names, arguments, options))

        return cast(Any, named)

    return decorate


def _renamed(
    where: str, names: dict[str, str], given: tuple[object, ...], options: dict[str, object]
) -> dict[str, object]:
    problems = Problems(where)
    positional = dict(zip(("query", "key", "value"), given, strict=False))
    renamed = {name: x for name, x in options.items() if name not in names}
    if options.get("inputs_kv") is not None and any(options.get(name) is not None for name in ("inputs_k", "inputs_v")):
        problems.type("inputs_kv is both inputs_k and inputs_v: give either it or them")
    for name, own in names.items():
        if options.get(name) is None:
            continue
        if own in renamed and not problems or own in positional:
            problems.type(f"{name} and {own} are one argument: give one of them")
        renamed[own] = options[name]
    problems.raise_if_any()
    return renamed


def zero_one(problems: Problems, mask: Any) -> Array | None:
    """A mask of Flax, bool or 0 and 1 of any dtype, as bool; its numbers are checked where they can be read."""
    if not hasattr(mask, "dtype"):
        problems.type(f"mask must be a Mask, or an array of bools or of 0 and 1, got {describe(mask)}")
        return None
    if dtype_name(mask) == "bool":
        return cast(Array, mask)
    values = peek(mask)
    other = None if values is None else values[(values != 0) & (values != 1)]
    if other is not None and other.size:
        problems.value(
            f"mask must hold bools, or 0 (may not attend) and 1 (may), got {other.flat[0]}: what is added to the "
            "logits is a bias"
        )
    return jnp.asarray(mask) != 0


def refuse(where: str, given: Mapping[str, object]) -> None:
    """Raise one error for all that Flax's modules can be given to replace parts of their arithmetic, and ours cannot.

    Raises:
        TypeError: names each that is not None.
    """
    problems = Problems(where)
    for name, thing in given.items():
        if thing is not None:
            problems.type(f"{name} must be left out: {_REPLACES.get(name, _REPLACES[''])}")
    problems.raise_if_any()


_REPLACES = {
    "attention_fn": "this module attends by the kernels of maskattn; `maskattn_jax.attention_fn` is for Flax's modules",
    "ln_promote_dtype": "the norms compute in float32 at least, and give the dtype of their input",
    "": "the kernels make no such product that it could replace",
}


def flax_sizes(
    where: str,
    num_heads: int,
    in_features: int,
    in_kv_features: int | None,
    qkv_features: int | None,
    out_features: int | None,
    **options: Any,
) -> AttentionConfig:
    """The configuration that the sizes of Flax's modules mean; `options` are further fields of it.

    Raises:
        TypeError, ValueError: a size is at fault.
    """
    width = in_features if qkv_features is None else qkv_features
    if isinstance(width, int) and isinstance(num_heads, int) and num_heads > 0 and width % num_heads:
        name = "in_features" if qkv_features is None else "qkv_features"
        raise ValueError(f"{where}: {name} {width} is not divisible by num_heads {num_heads}")
    return AttentionConfig(
        in_features,
        num_heads,
        head_dim=width // num_heads
        if isinstance(width, int) and isinstance(num_heads, int) and num_heads > 0
        else None,
        **{"kdim": in_kv_features, "vdim": in_kv_features, "out_dim": out_features, "empty_rows": "mean", **options},
    )


def resolved(where: str, config: AttentionConfig, own: bool | None, given: bool | None) -> bool:
    """The call's `deterministic`, or the module's: where a rate is above 0, one of them must be given.

    Raises:
        ValueError: neither is.
    """
    if not (config.dropout_rate or config.out_dropout_rate):
        return True
    found = own if given is None else given
    if found is None:
        raise ValueError(
            f"{where}: deterministic must be given, to the module or in the call: a dropout rate is above 0"
        )
    return found


def flat_sharding(
    where: str, given: dict[str, Any], leading: Leading, kernel: KernelName
) -> dict[str, dict[str, Sharding]]:
    """Shardings as options of a layer whose input has one axis in place of the leading ones.

    Raises:
        TypeError: no sharding. ValueError: an axis behind the first of the leading ones is divided, or the kernel
            computes the projections itself.
    """
    found: dict[str, dict[str, Sharding]] = {}
    problems = Problems(where)
    for name, sharding in given.items():
        found[name] = {}
        if sharding is None:
            continue
        if not isinstance(sharding, (NamedSharding, PartitionSpec)):
            problems.type(f"{name} must be a PartitionSpec or a NamedSharding, got {type(sharding).__name__}")
            continue
        if of_kernel(FRAMEWORK, kernel, "linear") is not None:
            problems.value(f"{name} must be None with kernel {kernel!r}, which computes the projections itself")
        spec = sharding if isinstance(sharding, PartitionSpec) else sharding.spec
        count = len(leading.axes)
        if count != 1:
            if any(entry is not None for entry in spec[1:count]):
                problems.value(f"{name} may divide the first of the {count} leading axes only, got {spec}")
            spec = PartitionSpec(spec[0] if count and len(spec) else None, *spec[count:])
        found[name]["out_sharding"] = (
            spec if isinstance(sharding, PartitionSpec) else NamedSharding(sharding.mesh, spec)
        )
    problems.raise_if_any()
    return found
