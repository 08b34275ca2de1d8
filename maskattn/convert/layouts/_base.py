"""What a layout is.

A layout says under which names and in which order a framework stores the parameters of one attention layer: what is
stored of the projections (``_stored.py``), and what beside them (``_extras.py``). It permutes numbers; where a format
asks for more, that is a named step. All layouts meet in the canonical form (see ``canonical.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from maskattn.config import AttentionConfig
from maskattn.convert.layouts._extras import Buffer, Extra, Step
from maskattn.convert.layouts._infer import infer_rows
from maskattn.convert.layouts._stored import PROJECTIONS, Array, Shape, Stored, Tensors, half_split, interleave

Limit = Callable[[AttentionConfig], list[str]]
_ROTATED = ("query", "key")


class Layout:
    """One way of storing an attention layer.

    A subclass is a table:

    ``projections``: every tensor that may hold kernels or biases of the projections. ``extras``: what else a layer may
    hold. ``buffers``: what a model recomputes and a checkpoint may hold anyway. ``refused``: names of attention that
    has no canonical form, with the reason.
    ``separator`` joins the names of nested modules. A tensor named ``anchors[i]``, or ending in it after a separator,
    shows that a layer is stored there; what precedes it is the layer's prefix. ``without``: names that show that a
    layer is of another layout. ``outside``: names found beside a layer that are not attention.
    ``interleaved``: rotary pairs are (0, 1), (2, 3), ... within a head; the canonical form has (0, D/2), (1, D/2 + 1).
    ``key_bias``: where query and value have biases, so has the key.
    ``limits``: functions of a configuration that give the reasons why it cannot be held. ``scale``: what the modules
    always multiply query times key by, where that is not 1 / sqrt(D).
    ``stores_heads``: the shapes show the number of heads. ``detectable``: ``detect`` considers this layout.

    Methods take ``config``, the configuration of the layer, and ``tensors`` of one layer, by names without prefix.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    separator: ClassVar[str] = "."
    anchors: ClassVar[tuple[str, ...]]
    without: ClassVar[tuple[str, ...]] = ()
    outside: ClassVar[tuple[str, ...]] = ()
    projections: ClassVar[tuple[Stored, ...]] = ()
    extras: ClassVar[tuple[Extra, ...]] = ()
    buffers: ClassVar[tuple[Buffer, ...]] = ()
    refused: ClassVar[Mapping[str, str]] = {}
    interleaved: ClassVar[bool] = False
    key_bias: ClassVar[bool] = True
    limits: ClassVar[tuple[Limit, ...]] = ()
    one_head_size: ClassVar[bool] = True
    scale: ClassVar[float | None] = None
    detectable: ClassVar[bool] = True
    stores_heads: ClassVar[bool] = False

    def stored(self, config: AttentionConfig) -> tuple[Stored, ...]:
        """What a layer of ``config`` stores of its projections."""
        return tuple(entry for entry in self.projections if entry.wanted(config))

    def unsupported(self, config: AttentionConfig) -> list[str]:
        """Every reason this layout cannot hold a layer of ``config``; ``[]`` where it can."""
        reasons = [reason for limit in self.limits for reason in limit(config)]
        if self.interleaved and config.head_dim % 2:
            reasons.append(f"head_dim is {config.head_dim}, but rotary pairs need an even one")
        if self.scale is not None and config.scale != self.scale:
            reasons.append(f"scale is {config.scale}, but the module always takes {self.scale}")
        if config.sinks and not any(extra.canonical == "sinks" for extra in self.extras):
            reasons.append("sinks is True, but the module has none")
        return reasons

    def infer(self, tensors: Mapping[str, object], num_heads: int | None, num_kv_heads: int | None) -> AttentionConfig:
        """The configuration that the shapes of one layer's ``tensors`` (anything with a shape) admit.

        Layouts that fold heads into rows need ``num_heads``, and ``num_kv_heads`` where shapes leave it open.

        Raises:
            ValueError: they admit none.
        """
        sinks = any(extra.canonical == "sinks" and extra.name in tensors for extra in self.extras)
        options: dict[str, Any] = {"one_head_size": self.one_head_size, "scale": self.scale, "sinks": sinks}
        return infer_rows(self.name, self.projections, tensors, num_heads, num_kv_heads, **options)

    def shapes(self, config: AttentionConfig, extras: Mapping[str, Shape] | None = None) -> dict[str, Shape]:
        """Every tensor of one layer, by its name without prefix, and its shape.

        ``extras``: canonical names and shapes of the extras the layer has.

        Raises:
            ValueError: one of them has no ``place`` here.
        """
        shapes = {entry.name: entry.shape(config) for entry in self.stored(config)}
        sinks = {"sinks": (config.num_heads,)} if config.sinks else {}
        for name, shape in {**(extras or {}), **sinks}.items():
            extra = self.place(name, shape, config)
            if extra is None:
                raise ValueError(f"{name} {list(shape)}: layout {self.name} has no place for it")
            shapes[extra.name] = extra.stored_shape(shape, config)
        return shapes

    def extras_of(self, tensors: Mapping[str, Any], config: AttentionConfig) -> dict[str, Shape]:
        """The extras among one layer's ``tensors`` (anything with a shape): canonical names and shapes. Sinks are not
        among them: ``config`` says whether there are any.
        """
        shapes: dict[str, Shape] = {}
        for name, array in tensors.items():
            extra = self.extra(name, tuple(array.shape), config)
            if extra is not None and extra.canonical != "sinks":
                shapes[extra.canonical] = extra.canonical_shape(tuple(array.shape), config)
        return shapes

    def extra(self, name: str, shape: Shape, config: AttentionConfig) -> Extra | None:
        """What the tensor ``name`` of ``shape`` is, where it is one of the extras."""
        return next((e for e in self.extras if e.name == name and e.fits(shape, config)), None)

    def place(self, canonical: str, shape: Shape, config: AttentionConfig) -> Extra | None:
        """Where the canonical extra goes here; None where there is no place for one of this name and shape."""
        return next((e for e in self.extras if e.canonical == canonical and e.takes(shape, config)), None)

    def misfits(self, extras: Mapping[str, Shape], config: AttentionConfig) -> list[str]:
        """Every reason why a layer with these canonical extras cannot be written here; ``[]`` where it can."""
        reasons = []
        for name, shape in extras.items():
            if self.place(name, shape, config) is None:
                held = [e for e in self.extras if e.canonical == name]
                why = "has no place for it" if not held else "has a place for it in another shape"
                reasons.append(f"{name} {list(shape)}: layout {self.name} {why}")
        for extra in self.extras:
            if extra.required and extra.canonical not in extras:
                reasons.append(f"{extra.canonical}: layout {self.name} cannot do without it, and the source has none")
        return reasons

    def reading(self, config: AttentionConfig, names: Iterable[str] = ()) -> tuple[Step, ...]:
        """The steps to the canonical form that are more than moving numbers, for a layer of tensors ``names``."""
        steps = []
        if not self.key_bias and config.project and config.qkv_bias:
            steps.append(Step("zero key bias", f"{self.name} stores no key bias: zeros are taken for it"))
        names = set(names)
        for buffer in self.buffers:
            if buffer.name in names:
                text = "checked to be what a model computes when it is built, and left out"
                steps.append(Step(f"drop {buffer.name}", text, exact=buffer.build is not None))
        return tuple(steps)

    def writing(self, config: AttentionConfig) -> tuple[Step, ...]:
        """The steps from the canonical form that are more than moving numbers."""
        steps = []
        if not self.key_bias and config.project and config.qkv_bias:
            steps.append(Step("zero key bias", f"{self.name} stores no key bias: it must be zero, and is left out"))
        for buffer in self.buffers:
            if buffer.build is not None:
                steps.append(Step(f"build {buffer.name}", "computed as a model does when it is built"))
        return tuple(steps)

    def to_canonical(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Tensors:
        """One layer's tensors (free of ``mismatches``) -> canonical tensors, as views or copies.

        Part of a layer may be given: what each tensor holds is converted by itself. Buffers are compared with the
        canonical tensors given beside them.

        Raises:
            ValueError: a step finds values that it cannot take.
        """
        out: Tensors = {}
        for entry in self.stored(config):
            if entry.name in tensors:
                out.update(entry.split(tensors[entry.name], config))
        if not self.key_bias and "query.bias" in out:
            out["key.bias"] = np.zeros((config.num_kv_heads, config.head_dim), out["query.bias"].dtype)
        for name, array in tensors.items():
            extra = self.extra(name, tuple(array.shape), config)
            if extra is not None:
                out[extra.canonical] = extra.to_canonical(array, config)
        if self.interleaved:
            out = {name: half_split(x) if _rotated(name) else x for name, x in out.items()}
        wrong = [
            f"{buffer.name}: {reason}"
            for buffer in self.buffers
            if buffer.name in tensors
            for reason in [buffer.check(tensors[buffer.name], out, config)]
            if reason is not None
        ]
        if wrong:
            raise ValueError("\n  ".join(wrong))
        return out

    def from_canonical(self, tensors: Mapping[str, Array], config: AttentionConfig) -> Tensors:
        """Canonical tensors of one layer (free of ``misfits``) -> this layout's, as views or copies.

        Part of a layer may be given: what is complete is converted.

        Raises:
            ValueError: a step finds values that it cannot take.
        """
        given = dict(tensors)
        if not self.key_bias and "key.bias" in given:
            bias = np.ascontiguousarray(given["key.bias"])
            if bias.view(np.uint8).any():
                raise ValueError(f"key.bias: layout {self.name} stores none, and this one is not +0 everywhere")
        if self.interleaved:
            given = {name: interleave(x) if _rotated(name) else x for name, x in given.items()}
        out: Tensors = {}
        for entry in self.stored(config):
            if given.keys() >= set(entry.canonical):
                out[entry.name] = entry.join(given, config)
        for name, array in given.items():
            extra = self.place(name, tuple(array.shape), config)
            if extra is not None:
                out[extra.name] = extra.from_canonical(array, config)
        for buffer in self.buffers:
            if buffer.build is not None:
                out.update(buffer.build(given, config))
        return out

    def sources(self, config: AttentionConfig) -> dict[str, tuple[str, ...]]:
        """For each tensor of the projections, the canonical tensors it holds: what must be read to write what."""
        return {entry.name: entry.canonical for entry in self.stored(config)}

    def lives_at(self, prefix: str) -> bool:
        """Whether ``detect`` takes what lies at this prefix for this layout, where others have the same names."""
        return True

    def match(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """The layers found among ``names``: ``{prefix: {name without prefix: full name}}``, in order of appearance.

        A layer owns every name under its prefix that no longer prefix claims, ``outside`` names excepted.
        """
        names = list(names)
        layers: dict[str, dict[str, str]] = {}
        for name in names:
            for anchor in self.anchors:
                if name == anchor or name.endswith(self.separator + anchor):
                    layers.setdefault(name[: len(name) - len(anchor)], {})
        for name in names:
            prefix = self._owner(name, layers)
            if prefix is not None and name[len(prefix) :] not in self.outside:
                layers[prefix][name[len(prefix) :]] = name
        return {prefix: owned for prefix, owned in layers.items() if not owned.keys() & set(self.without)}

    def _owner(self, name: str, prefixes: Mapping[str, object]) -> str | None:
        end = len(name)
        while end >= 0:  # from the longest prefix to the empty one
            end = name.rfind(self.separator, 0, end)
            prefix = name[: end + len(self.separator)] if end >= 0 else ""
            if prefix in prefixes:
                return prefix
        return None


def _rotated(name: str) -> bool:
    role = name.partition(".")[0].removesuffix("_norm")
    return role in _ROTATED


__all__ = ["PROJECTIONS", "Array", "Buffer", "Extra", "Layout", "Shape", "Step", "Stored", "Tensors"]
