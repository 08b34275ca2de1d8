"""What a row says of a field: the value itself, or one of these, which read it from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maskattn._hf_config import Reading
from maskattn.layer.rotary import DynamicNTK, LinearScaling, Llama3, LongRope, Rotary, Scaling, Yarn

#: A field of `AttentionConfig` -> what it is.
Row = Mapping[str, Any]

_NEEDED: Any = object()


class Spec:
    """Something that is read from a configuration."""

    def read(self, reading: Reading, part: str) -> Any:
        """What it is for a layer; part is "encoder", "decoder", "cross" or ""."""
        raise NotImplementedError


def settled(spec: Any, reading: Reading, part: str) -> Any:
    """A spec read, or the value itself."""
    return spec.read(reading, part) if isinstance(spec, Spec) else spec


class Key(Spec):
    """The value of the first of these keys that is given; of a list, the layer's own. {stack} in a key is "encoder" or
    "decoder"."""

    def __init__(self, *names: str, default: Any = _NEEDED) -> None:
        self.names, self.default = names, default

    def read(self, reading: Reading, part: str) -> Any:
        stack = "encoder" if part == "encoder" else "decoder"
        names = [name.format(stack=stack) for name in self.names]
        return reading.each(*names) if self.default is _NEEDED else reading.each(*names, default=self.default)


@dataclass(frozen=True)
class Named(Spec):
    """Whether `layer_types` calls the layer so."""

    kind: str

    def read(self, reading: Reading, part: str) -> bool:
        return reading.kind == self.kind


@dataclass(frozen=True)
class When(Spec):
    """One or the other, by what a key says."""

    condition: Any
    then: Any
    otherwise: Any = None

    def read(self, reading: Reading, part: str) -> Any:
        chosen = self.then if settled(self.condition, reading, part) else self.otherwise
        return settled(chosen, reading, part)


@dataclass(frozen=True)
class Every(Spec):
    """By which attention of a model with two stacks it is."""

    encoder: Any = None
    decoder: Any = None
    cross: Any = None

    def read(self, reading: Reading, part: str) -> Any:
        return settled(getattr(self, part), reading, part)


@dataclass(frozen=True)
class Root(Spec):
    """1 / sqrt(of)."""

    of: Any

    def read(self, reading: Reading, part: str) -> float:
        return float(settled(self.of, reading, part) ** -0.5)


@dataclass(frozen=True)
class Half(Spec):
    """of / 2, rounded down."""

    of: Any

    def read(self, reading: Reading, part: str) -> int:
        return int(settled(self.of, reading, part) // 2)


@dataclass(frozen=True)
class Merged(Spec):
    """A function of a reading, for what is no key."""

    of: Callable[[Reading], Any]

    def read(self, reading: Reading, part: str) -> Any:
        return self.of(reading)


class Made(Spec):
    """A part, its fields as they are said here."""

    def __init__(self, part: type, **fields: Any) -> None:
        self.part, self.fields = part, fields

    def read(self, reading: Reading, part: str) -> Any:
        return self.part(**{name: settled(spec, reading, part) for name, spec in self.fields.items()})


@dataclass(frozen=True)
class Rope(Spec):
    """The rotary embedding that `rope_parameters`, or what was before it, says.

    Args:
        pairs: as in `Rotary`.
        fraction, theta: how much of a head is turned, and the base, where the configuration does not say.
        width: a key that says how much of a head is turned; then no fraction counts.
        head_dim: what a head's width is read from.
    """

    pairs: str = "half"
    fraction: float = 1.0
    theta: float = 10000.0
    width: Any = None
    head_dim: Any = field(default_factory=lambda: Key("head_dim", default=None))

    def read(self, reading: Reading, part: str) -> Rotary:
        found = reading.rope()
        theta = float(found.get("rope_theta", self.theta))
        width = settled(self.width, reading, part)
        if width is None:
            fraction = float(found.get("partial_rotary_factor", self.fraction))
            head_dim = settled(self.head_dim, reading, part)
            if head_dim is None:
                heads = reading.get("num_attention_heads", "n_head", "n_heads")
                head_dim = reading.get("hidden_size", "n_embd", "d_model") // heads
            width = None if fraction == 1.0 else int(head_dim * fraction)
        return Rotary(theta, width=width, pairs=self.pairs, scaling=scaling_of(found, reading))


def scaling_of(found: Mapping[str, Any], reading: Reading) -> Scaling | None:
    """The scaling that rotary parameters name.

    Raises:
        ValueError: one that there is no part for.
    """
    kind = found.get("rope_type", "default")
    if kind in ("default", "mrope"):
        return None
    if kind not in _SCALINGS:
        raise ValueError(f"{reading.where}: no rotary scaling {kind!r} is known, only {', '.join(_SCALINGS)}")
    longest = reading.get("max_position_embeddings", "n_positions", default=None)
    trained = found.get("original_max_position_embeddings") or longest
    factor = found.get("factor")
    if factor is None and kind != "longrope":
        factor = longest / trained if longest and trained else 1.0
    try:
        return _SCALINGS[kind](found, factor, trained, longest)
    except KeyError as error:
        raise ValueError(f"{reading.where}: rotary scaling {kind!r} needs {error.args[0]}") from None


def _yarn(found: Mapping[str, Any], factor: float, trained: int, longest: int) -> Scaling:
    attention, both = found.get("attention_factor"), (found.get("mscale"), found.get("mscale_all_dim"))
    if attention is None and all(both):
        one, other = (Yarn(factor, trained).factor() - 1 for _ in both)
        attention = (1 + both[0] * one) / (1 + both[1] * other)
    return Yarn(
        factor,
        trained,
        float(found.get("beta_fast") or 32),
        float(found.get("beta_slow") or 1),
        bool(found.get("truncate", True)),
        attention,
    )


def _longrope(found: Mapping[str, Any], factor: float | None, trained: int, longest: int) -> Scaling:
    by = longest / trained if factor is None else factor
    lists = (tuple(map(float, found[name])) for name in ("short_factor", "long_factor"))
    return LongRope(*lists, trained, float(by), found.get("attention_factor"))


_SCALINGS: dict[str, Callable[[Mapping[str, Any], Any, Any, Any], Scaling]] = {
    "linear": lambda found, factor, trained, longest: LinearScaling(factor),
    # transformers grows theta from the length that the model is said to read, not from an original one
    "dynamic": lambda found, factor, trained, longest: DynamicNTK(factor, longest),
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
    "llama3": lambda found, factor, trained, longest: Llama3(
        factor, float(found["low_freq_factor"]), float(found["high_freq_factor"]), trained
    ),
}
