"""What layouts store of attention beside its projections: extras, which are kept, and buffers, which are recomputed.

Axes are written as tuples of integers and names. The names in ``sizes`` are settled by the configuration; any other
name is a size that the tensor itself brings (rows of a table), the same one throughout an extra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from maskattn.config import AttentionConfig
from maskattn.typing import NumPyArray as Array

Shape = tuple[int, ...]
Axes = tuple[int | str, ...]

EXTRAS: Mapping[str, tuple[Axes, ...]] = {
    "query_norm.scale": (("D",), ("H", "D")),
    "query_norm.bias": (("D",), ("H", "D")),
    "key_norm.scale": (("D",), ("K", "D")),
    "key_norm.bias": (("D",), ("K", "D")),
    "norm.scale": (("H*Dv",),),
    "norm.bias": (("H*Dv",),),
    "bias_k": (("K", "D"),),
    "bias_v": (("K", "Dv"),),
    "relative_position_bias.table": (("rows", "H"),),
    "relative_attention_bias.table": (("buckets", "H"),),
    "logit_scale": (("H",),),
    "sinks": (("H",),),
    "cpb_mlp.0.kernel": ((2, "hidden"),),
    "cpb_mlp.0.bias": (("hidden",),),
    "cpb_mlp.2.kernel": (("hidden", "H"),),
    "gate.kernel": (("E", "H*Dv"), ("E", "H")),
    "gate.bias": (("H*Dv",), ("H",)),
    "query_global.kernel": (("E", "H*D"),),
    "query_global.bias": (("H*D",),),
    "key_global.kernel": (("kdim", "K*D"),),
    "key_global.bias": (("K*D",),),
    "value_global.kernel": (("vdim", "K*Dv"),),
    "value_global.bias": (("K*Dv",),),
    "pos_key.kernel": (("E", "H*D"),),
    "pos_key.bias": (("H*D",),),
    "pos_query.kernel": (("E", "H*D"),),
    "pos_query.bias": (("H*D",),),
}
"""Every extra that the canonical form knows, with the shapes it may have."""


@dataclass(frozen=True)
class Extra:
    """A tensor beside the projections that a conversion keeps, or refuses by name where the target has no place for it.

    Args:
        canonical: its name in the canonical form.
        name: its name in this layout, without the layer's prefix.
        axes: its axes in this layout.
        to: its axes in the canonical form; None where they are the same.
        required: a layer of this layout cannot do without it.
    """

    canonical: str
    name: str
    axes: Axes
    to: Axes | None = None
    required: bool = False

    @property
    def operation(self) -> str:
        """ "raw", "transpose" or "reshape": what happens to the tensor on its way to the canonical form."""
        if self.to is None:
            return "raw"
        return "transpose" if len(self.to) > 1 and self.to == self.axes[::-1] else "reshape"

    def fits(self, shape: Shape, config: AttentionConfig) -> bool:
        """Whether this layout's tensor may have ``shape``."""
        return bind(self.axes, shape, config) is not None

    def takes(self, shape: Shape, config: AttentionConfig) -> bool:
        """Whether the canonical tensor may have ``shape``."""
        return bind(self.to or self.axes, shape, config) is not None

    def canonical_shape(self, shape: Shape, config: AttentionConfig) -> Shape:
        """The canonical shape of a tensor of ``shape`` (which ``fits``)."""
        return _resolve(self.to or self.axes, bind(self.axes, shape, config))

    def stored_shape(self, shape: Shape, config: AttentionConfig) -> Shape:
        """The shape here of a canonical tensor of ``shape`` (which this extra ``takes``)."""
        return _resolve(self.axes, bind(self.to or self.axes, shape, config))

    def to_canonical(self, array: Array, config: AttentionConfig) -> Array:
        """This layout's tensor -> the canonical one, a view."""
        if self.operation == "transpose":
            return array.T
        return array.reshape(self.canonical_shape(array.shape, config))

    def from_canonical(self, array: Array, config: AttentionConfig) -> Array:
        """The canonical tensor -> this layout's, a view."""
        if self.operation == "transpose":
            return array.T
        return array.reshape(self.stored_shape(array.shape, config))


@dataclass(frozen=True)
class Buffer:
    """A tensor that a model computes from its configuration when it is built, and that some checkpoints hold anyway.

    Args:
        name: without the layer's prefix.
        check: (array, canonical tensors, config) -> what is wrong with its values, None where they are as computed.
        build: (canonical tensors, config) -> the array under the buffer's name, nothing where what it follows from is
            not given. Set where this layout stores the buffer, which a layer then must hold. None: it is dropped when
            read, and never written.
    """

    name: str
    check: Callable[[Array, Mapping[str, Array], AttentionConfig], str | None]
    build: Callable[[Mapping[str, Array], AttentionConfig], dict[str, Array]] | None = None


@dataclass(frozen=True)
class Step:
    """Part of a conversion that is more than moving numbers.

    Attributes:
        name: short, for a plan. text: what happens. exact: converting back gives the same bytes.
    """

    name: str
    text: str
    exact: bool = True

    def __str__(self) -> str:
        return f"{self.name}: {self.text}" + ("" if self.exact else " (cannot be undone exactly)")


def own(separator: str, kernel: str) -> tuple[Extra, ...]:
    """What the parts of our modules hold, by the canonical names; norms of queries and keys have others in each layout.

    Args:
        separator: between the names of modules.
        kernel: what a matrix is called: "kernel" [in, out], or PyTorch's "weight" [out, in].
    """
    found = []
    for canonical, forms in EXTRAS.items():
        module, _, part = canonical.rpartition(".")
        if module in ("query_norm", "key_norm", "norm"):
            continue
        matrix = part == "kernel"
        name = ".".join([module, kernel]) if matrix else canonical
        for axes in forms:
            turned = matrix and kernel == "weight"
            found.append(
                Extra(canonical, name.replace(".", separator), axes[::-1] if turned else axes, axes if turned else None)
            )
    return tuple(found)


def sizes(config: AttentionConfig) -> dict[str, int]:
    """The axes whose length follows from the configuration."""
    heads, kv_heads, dim, v_dim = config.num_heads, config.num_kv_heads, config.head_dim, config.v_head_dim
    return {
        "E": config.embed_dim,
        "kdim": config.kdim,
        "vdim": config.vdim,
        "H": heads,
        "K": kv_heads,
        "D": dim,
        "Dv": v_dim,
        "H*D": heads * dim,
        "H*Dv": heads * v_dim,
        "K*D": kv_heads * dim,
        "K*Dv": kv_heads * v_dim,
    }


def bind(axes: Axes, shape: Shape, config: AttentionConfig) -> dict[str, int] | None:
    """Lengths for the names of ``axes`` that give ``shape``, None where there are none."""
    if len(axes) != len(shape):
        return None
    bound = sizes(config)
    for axis, length in zip(axes, shape, strict=True):
        if isinstance(axis, int) and axis != length:
            return None
        if isinstance(axis, str) and bound.setdefault(axis, int(length)) != length:
            return None
    return bound


def shown(axes: Axes, config: AttentionConfig) -> str:
    """Axes for a message: lengths where the configuration settles them, names elsewhere."""
    known = sizes(config)
    return "[" + ", ".join(str(known.get(axis, axis) if isinstance(axis, str) else axis) for axis in axes) + "]"


def _resolve(axes: Axes, bound: Mapping[str, int] | None) -> Shape:
    if bound is None:
        raise ValueError(f"a shape that does not fit the axes {axes}")
    return tuple(bound[axis] if isinstance(axis, str) else axis for axis in axes)
