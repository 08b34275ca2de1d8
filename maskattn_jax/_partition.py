"""Functions that XLA divides between devices by the names of their arrays' axes: over automatic mesh axes.

How an array lies on automatic axes (`jax.sharding.AxisType.Auto`) is not known while a function is traced, only when
XLA partitions it. What XLA cannot divide itself, a loop over slices, it computes on every device, of gathered arrays.
Here it is told by a rule of its partitioner Shardy which axes of which arrays go together, and asks back, once the
shardings are known, for the program of one device's part (`jax.experimental.custom_partitioning`).

Where a program is for one device, or is exported, or all its mesh axes are manual (`jax.shard_map`), the function is
computed as it is.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

import maskattn
from maskattn.typing import NumPyArray
from maskattn_jax._mesh import axis_types
from maskattn_jax._scope import own_modes

__all__ = ["Axes", "Divisible", "Made", "Origin", "divide", "is_automatic"]

#: The names of an array's axes: "b" batch, "l" queries, "h" heads, "c" key/value heads, "s" keys; others are whole on
#: every device.
Axes: TypeAlias = tuple[str, ...]
Digits: TypeAlias = tuple[str, ...]  # mesh axes of `_digits`, that divide an axis
_WHOLE = "-"  # an axis that no rule ties to another


class Origin(NamedTuple):
    """Where a device's part begins: its first batch row, query head and query, int32 []."""

    row: Array
    head: Array
    query: Array


class Made(NamedTuple):
    """An array that a function returns."""

    axes: Axes
    shape: tuple[int, ...]
    dtype: Any


class Divisible(Protocol):
    """A function of a part of a call, hashable: it is part of what is compiled.

    Attributes:
        given: the axes of each array it takes; the first is the query, [B, L, H, D], the second the key, [B, S, K, D].
        made: what it returns. What lacks an axis along which devices divide the work is the sum over their parts.
    """

    @property
    def given(self) -> tuple[Axes, ...]:
        """See the class."""

    @property
    def made(self) -> tuple[Made, ...]:
        """See the class."""

    def compute(self, origin: Origin, arrays: Sequence[Array]) -> Sequence[Array]:
        """What it returns, for the part of a call that these arrays are."""


def is_automatic(*trees: object) -> bool:
    """Whether XLA may divide what is computed from these arrays between devices, in a way that is not known here."""
    operands = jax.tree.leaves(trees)
    if any(not jax.typeof(x).sharding.mesh.empty for x in operands):
        return axis_types(operands) == {AxisType.Auto}
    # a function that is being traced may be given its shardings later, by `in_shardings` say
    return any(isinstance(x, jax.core.Tracer) for x in operands) and jax.device_count() > 1


def divide(function: Divisible, arrays: Sequence[Array]) -> list[Array]:
    """`function` of arrays, each device computing its part of them."""
    results: list[Array] = divided_p.bind(*arrays, function=function, mapped=(), sizes=(), needs=_needs_devices())
    return results


divided_p = Primitive("maskattn_divided")
divided_p.multiple_results = True


@functools.cache
def _needs_devices() -> ClosedJaxpr:
    """A program that JAX finds in the parameters of an operation whose lowering must be told the devices."""
    nothing = custom_partitioning(lambda x: x)
    nothing.def_partition(lambda mesh, args, result: (mesh, lambda x: x, result, args), sharding_rule="i -> i")
    return jax.make_jaxpr(nothing)(jax.ShapeDtypeStruct((1,), jnp.float32))


@divided_p.def_abstract_eval
def _(*arrays: Any, function: Divisible, mapped: Any, sizes: tuple[int, ...], needs: Any) -> list[Any]:
    like = next((x for x in arrays if not x.sharding.mesh.empty), arrays[0])
    made = []
    for axes, shape, dtype in function.made:
        sharding = like.sharding.update(spec=PartitionSpec(*[None] * (len(sizes) + len(axes))))
        made.append(like.update(shape=(*sizes, *shape), dtype=jnp.dtype(dtype), sharding=sharding, weak_type=False))
    return made


_STATIC = ("function", "mapped", "sizes", "needs")
divided_p.def_impl(jax.jit(lambda *arrays, **static: divided_p.bind(*arrays, **static), static_argnames=_STATIC))


def _batch(
    arrays: Sequence[Array], dims: Sequence[int | None], *, mapped: Any, sizes: tuple[int, ...], **static: Any
) -> tuple[list[Array], list[int]]:
    size = next(x.shape[dim] for x, dim in zip(arrays, dims, strict=True) if dim is not None)
    moved = [x if dim is None else jnp.moveaxis(x, dim, 0) for x, dim in zip(arrays, dims, strict=True)]
    mapped = (tuple(dim is not None for dim in dims), *mapped)
    results = divided_p.bind(*moved, mapped=mapped, sizes=(size, *sizes), **static)
    return results, [0] * len(results)


batching.primitive_batchers[divided_p] = _batch


def _lower(ctx: Any, *values: Any, function: Divisible, mapped: Any, sizes: tuple[int, ...], needs: Any) -> Any:
    context = ctx.module_context
    # of the kinds of contexts only that of XLA's own partitioning counts devices so
    devices = getattr(context.axis_context, "num_devices", 1)
    if devices == 1 or context.lowering_parameters.for_export:
        run: Any = functools.partial(_whole, function, mapped)
    else:
        run = _Partitioned(function, mapped, sizes)
    return mlir.lower_fun(run, multiple_results=True)(ctx, *values)


mlir.register_lowering(divided_p, _lower)


def _whole(function: Divisible, mapped: Any, *arrays: Array) -> list[Array]:
    zero = jnp.zeros((), jnp.int32)
    return _over(function, mapped, Origin(zero, zero, zero), arrays)


@own_modes
def _over(function: Divisible, mapped: Any, origin: Origin, arrays: Sequence[Array]) -> list[Array]:
    """`function` under the `jax.vmap`s of its caller."""

    def run(arrays: Sequence[Array]) -> list[Array]:
        return list(function.compute(origin, arrays))

    for level in reversed(mapped):
        run = jax.vmap(run, ([0 if there else None for there in level],))
    return run(list(arrays))


@dataclass(frozen=True)
class _Partitioned:
    """A function as XLA is given it: with the rule of its axes, and its part for one device when it is asked for.

    Attributes:
        function, sizes: what it computes, and the sizes of the axes that `jax.vmap` added before all others.
        mapped: for each of them, which arrays have it.
    """

    function: Divisible
    mapped: tuple[tuple[bool, ...], ...]
    sizes: tuple[int, ...]

    def __call__(self, *arrays: Array) -> list[Array]:
        program = jax.make_jaxpr(functools.partial(_whole, self.function, self.mapped))(*arrays)
        run = jax.jit(jaxpr_as_fun(program))  # its constants must not be those of what is partitioned

        def whole(key: Array, *arrays: Array) -> list[Array]:
            return list(run(*arrays))

        partitioned = custom_partitioning(whole)
        partitioned.def_partition(self.partition, decode_shardings=False, sharding_rule=self.rule)
        found: list[Array] = partitioned(jnp.asarray(_fingerprint(program)), *arrays)
        return found

    def names(self) -> tuple[list[Axes], list[Axes]]:
        """The axes of what is given and of what is made, those of `jax.vmap` included."""
        levels = [f"n{n}" for n in range(len(self.sizes))]
        given = [
            (*(name for name, level in zip(levels, self.mapped, strict=True) if level[n]), *axes)
            for n, axes in enumerate(self.function.given)
        ]
        return given, [(*levels, *one.axes) for one in self.function.made]

    def rule(self, mesh: Mesh, given: Sequence[Any], made: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        """Shardy's rule: axes of one name are divided alike."""
        alike = given[1].shape[-2] == given[2].shape[-2]  # else the two heads are tied by `_division` alone:
        # where a mesh axis is larger than the number of key/value heads, Shardy would divide the mesh axis
        number, whole = iter(range(1 << 30)), []

        def factors(axes: Axes) -> str:
            words = []
            for name in axes:
                if name == _WHOLE:
                    name = f"w{next(number)}"
                    whole.append(name)
                words.append("h" if alike and name == "c" else name)
            return " ".join(words)

        ins, outs = self.names()
        text = ", ".join(map(factors, [(_WHOLE,), *ins])) + " -> " + ", ".join(map(factors, outs))
        return text, {"need_replication_factors": tuple(whole)}

    def partition(self, mesh: Mesh, given: Sequence[Any], made: Sequence[Any]) -> tuple[Any, ...]:
        """(mesh, the function of one device's part, the shardings of what is made and of what is given)."""
        given = list(given)
        ins, outs = self.names()
        count = max(math.prod(_tiles(x)) for x in (*given, *made))
        mesh = _digits(mesh, given[0].sharding, count)
        held = [(axes, x.shape, _entries(x, mesh)) for axes, x in zip((*ins, *outs), (*given[1:], *made), strict=True)]
        of = _division(held, mesh)

        def spec(axes: Axes) -> list[Digits]:
            return [of.get(name, ()) for name in axes]

        # keys that lie along the mesh axes that divide the queries: so do their gradients
        lengths = [entries[axes.index("s")] for axes, _, entries in held[1:2] if "s" in axes]
        scattered = lengths[0] if lengths and set(lengths[0]) <= set(of.get("l", ())) else ()
        used = {digit for digits in of.values() for digit in digits}
        over = [tuple(d for d in mesh.axis_names if d in used - set(sum(spec(axes), ()))) for axes in outs]
        along = [axes.index("s") if "s" in axes and scattered else None for axes in outs]

        def local(key: Array, *arrays: Array) -> list[Array]:
            sizes = dict(zip(ins[0], arrays[0].shape, strict=True))
            with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):  # the caller's mesh has no part in this
                origin = Origin(*(_index(of.get(name, ())) * sizes[name] for name in ("b", "h", "l")))
                results = _over(self.function, self.mapped, origin, arrays)
                each = zip(results, over, along, strict=True)
                return [_sum(x, digits, axis, scattered) for x, digits, axis in each]

        def placed(axes: Axes, result: bool = False) -> NamedSharding:
            digits = [scattered if result and name == "s" else of.get(name, ()) for name in axes]
            return NamedSharding(mesh, PartitionSpec(*(one or None for one in digits)))

        return mesh, local, [placed(axes, True) for axes in outs], (placed((_WHOLE,)), *map(placed, ins))


def _index(digits: Digits) -> Array:
    return lax.axis_index(digits) if digits else jnp.zeros((), jnp.int32)


def _sum(x: Array, over: Digits, along: int | None, scattered: Digits) -> Array:
    """The sum of the devices' parts over mesh axes; each keeps its own part of the axis `along`."""
    if along is not None:
        x = lax.psum_scatter(x, scattered, scatter_dimension=along, tiled=True)
        over = tuple(digit for digit in over if digit not in scattered)
    return lax.psum(x, over) if over else x


def _division(held: Sequence[tuple[Axes, tuple[int, ...], list[Digits]]], mesh: Mesh) -> dict[str, Digits]:
    """The mesh axes that divide each axis, from how the arrays lie: the first that is divided decides, the query before
    all others. None divides two axes.
    """
    sizes = {name: size for axes, shape, _ in held for name, size in zip(axes, shape, strict=True)}
    of: dict[str, Digits] = {}
    used: set[str] = set()
    names = [*dict.fromkeys(name for axes, _, _ in held for name in axes if name[0] == "n"), "b", "h", "l"]
    kv_heads = sizes["c"]
    for name in names:
        wanted = (name, "c") if name == "h" else (name,)
        for axes, _, entries in held:
            found = [digits for other, digits in zip(axes, entries, strict=True) if other in wanted]
            digits = tuple(digit for digit in (found[0] if found else ()) if digit not in used)
            digits = _dividing(digits, sizes[name], mesh)
            if name == "h":
                digits = _in_whole_heads(digits, kv_heads, mesh)
            if digits:
                of[name] = digits
                used.update(digits)
                break
    digits, count = of.get("h", ()), _count(of.get("h", ()), mesh)
    # devices that share a key/value head each have it
    shared = kv_heads and count > kv_heads
    of["c"] = (
        next((digits[:n] for n in range(len(digits)) if _count(digits[:n], mesh) == kv_heads), ()) if shared else digits
    )
    return of


def _dividing(digits: Digits, size: int, mesh: Mesh) -> Digits:
    """The first of these mesh axes, as many as divide the size."""
    while digits and size % _count(digits, mesh):
        digits = digits[:-1]
    return digits


def _in_whole_heads(digits: Digits, kv_heads: int, mesh: Mesh) -> Digits:
    """The first of these mesh axes, as many as give each device whole key/value heads, or a part of one."""

    def fits(n: int) -> bool:
        counts = [_count(digits[:m], mesh) for m in range(n + 1)]
        return kv_heads % counts[n] == 0 or kv_heads in counts

    return digits[: next(n for n in range(len(digits), -1, -1) if fits(n))]


def _count(digits: Digits, mesh: Mesh) -> int:
    return math.prod(mesh.shape[digit] for digit in digits)


def _digits(mesh: Mesh, sharding: Any, count: int) -> Mesh:
    """The mesh with each axis as several of prime sizes: XLA may divide an array's axis by a part of a mesh axis."""
    devices = mesh.devices if not mesh.empty else np.array(sorted(sharding.device_set, key=lambda device: device.id))
    primes = [prime for size in devices.shape for prime in _primes(size)]
    return Mesh(devices.reshape(primes), tuple(f"digit{n}" for n in range(len(primes))))


def _primes(size: int) -> Iterator[int]:
    factor = 2
    while size > 1:
        while size % factor == 0:
            yield factor
            size //= factor
        factor += 1


def _tiles(x: Any) -> list[int]:
    """Into how many parts each axis of an array is divided; then, over how many devices these are the same."""
    sharding = x.sharding._to_xla_hlo_sharding(len(x.shape))
    return [1] * len(x.shape) if sharding.is_replicated() else list(sharding.tile_assignment_dimensions())


def _entries(x: Any, mesh: Mesh) -> list[Digits]:
    """The axes of `mesh` that each axis of an array is divided by, major first; none where they are not such."""
    rank = len(x.shape)
    sharding = x.sharding._to_xla_hlo_sharding(rank)
    if sharding.is_replicated():
        return [()] * rank
    shape = sharding.tile_assignment_dimensions()
    if math.prod(shape) != mesh.size:
        return [()] * rank
    places = np.empty((mesh.size, len(shape)), int)  # of each device, by its number
    places[np.asarray(sharding.tile_assignment_devices())] = np.argwhere(np.ones(shape, bool))
    strides = {name: math.prod(mesh.devices.shape[n + 1 :]) for n, name in enumerate(mesh.axis_names)}
    entries = []
    for axis in range(rank):
        weights = {name: int(places[stride, axis] - places[0, axis]) for name, stride in strides.items()}
        digits = tuple(sorted((name for name in weights if weights[name]), key=lambda name: -weights[name]))
        numbers = np.zeros(mesh.size, int)
        for name in digits:
            numbers = numbers * mesh.shape[name] + np.arange(mesh.size) // strides[name] % mesh.shape[name]
        entries.append(digits if (numbers == places[:, axis]).all() else ())
    return entries


def _fingerprint(program: Any) -> NumPyArray:
    """A hash of a program and its constants, uint32 [8].

    XLA's compilation caches know a function that is partitioned by its address alone, where another may be in another
    process: so what it computes goes with its arguments.
    """
    text = re.sub("0x[0-9a-f]+", "", str(program))  # addresses, too
    digest = hashlib.sha256(f"{maskattn.__version__} {text}".encode())
    for constant in _constants(program):
        array = np.asarray(constant)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return np.frombuffer(digest.digest(), np.uint32)


def _constants(program: Any) -> Iterator[Any]:
    """The constants of a program and of those that it calls."""
    yield from getattr(program, "consts", ())
    for equation in program.eqns:
        yield from (x.val for x in equation.invars if isinstance(x, Literal) and np.ndim(x.val))
        for value in jax.tree.leaves(list(equation.params.values())):
            if isinstance(value, (ClosedJaxpr, Jaxpr)):
                yield from _constants(value)
