"""What a row says of a field: the value itself, or one of these, which read it from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from maskattn._hf_config import Reading, Value
from maskattn.layer.rotary import DynamicNTK, LinearScaling, Llama3, LongRope, Rotary, Scaling, Yarn

#: A field of `AttentionConfig` -> what it is.
Row = Mapping[str, object]

_NEEDED: Value = object()


class Spec:
    """Something that is read from a configuration."""

    def read(self, reading: Reading, part: str) -> Value:
        """What it is for a layer; part is "encoder", "decoder", "cross" or ""."""
        raise NotImplementedError


def settled(spec: object, reading: Reading, part: str) -> Value:
    """A spec read, or the value itself."""
    return spec.read(reading, part) if isinstance(spec, Spec) else spec


class Key(Spec):
    """The value of the first of these keys that is given; of a list, the layer's own. {stack} in a key is "encoder" or
    "decoder"."""

    def __init__(self, *names: str, default: Value = _NEEDED) -> None:
        self.names, self.default = names, default

    def read(self, reading: Reading, part: str) -> Value:
        stack = "encoder" if part == "encoder" else "decoder"
        names = [name.format(stack=stack) for name in self.names]
        return reading.each(*names) if self.default is _NEEDED else reading.each(*names, default=self.default)


@dataclass(frozen=True)
class Named(Spec):
    """Whether `layer_types` calls the layer so."""

    kind: str

    def read(self, reading: Reading, part: str) -> bool:
        return reading.named_kind == self.kind


@dataclass(frozen=True)
class When(Spec):
    """One or the other, by what a key says."""

    condition: object
    then: object
    otherwise: object = None

    def read(self, reading: Reading, part: str) -> Value:
        chosen = self.then if settled(self.condition, reading, part) else self.otherwise
        return settled(chosen, reading, part)


@dataclass(frozen=True)
class Every(Spec):
    """By which attention of a model with two stacks it is."""

    encoder: object = None
    decoder: object = None
    cross: object = None

    def read(self, reading: Reading, part: str) -> Value:
        return settled(getattr(self, part), reading, part)


@dataclass(frozen=True)
class Root(Spec):
    """1 / sqrt(of)."""

    of: object

    def read(self, reading: Reading, part: str) -> float:
        return float(settled(self.of, reading, part) ** -0.5)


@dataclass(frozen=True)
class Half(Spec):
    """of / 2, rounded down."""

    of: object

    def read(self, reading: Reading, part: str) -> int:
        return int(settled(self.of, reading, part) // 2)


@dataclass(frozen=True)
class Merged(Spec):
    """A function of a reading, for what is no key."""

    of: Callable[[Reading], Value]

    def read(self, reading: Reading, part: str) -> Value:
        return self.of(reading)


class Made(Spec):
    """A part, its fields as they are said here."""

    def __init__(self, part: type, **fields: object) -> None:
        self.part, self.fields = part, fields

    def read(self, reading: Reading, part: str) -> Value:
        return self.part(**{name: settled(spec, reading, part) for name, spec in self.fields.items()})


@dataclass(frozen=True)
class Rope(Spec):
    """The rotary embedding that `rope_parameters`, or what was before it, says.

    Args:
        pairs: as in `Rotary`.
        fraction, theta: how much of a head is turned, and the base, where the configuration does not say.
        width: a key that says how much of a head is turned; then no fraction counts.
        head_dim: what a head's width is read from.
        partial: whether models of the type read `partial_rotary_factor`; None: where fraction is not 1. The others turn
            whole heads whatever it says.
        local: theta of layers called sliding, where the configuration has one set of parameters: they have no scaling.
            None: layers are alike.
    """

    pairs: str = "half"
    fraction: float = 1.0
    theta: object = 10000.0
    width: object = None
    head_dim: object = field(default_factory=lambda: Key("head_dim", default=None))
    local: object = None
    partial: bool | None = None

    def read(self, reading: Reading, part: str) -> Rotary:
        found = reading.rope()
        theta: Value = found["rope_theta"] if "rope_theta" in found else settled(self.theta, reading, part)
        several = any(isinstance(value, Mapping) for value in reading.table("rope_parameters").values())
        if self.local is not None and not several and reading.named_kind == "sliding_attention":
            theta, found = settled(self.local, reading, part), {}
        width = settled(self.width, reading, part)
        if width is None:
            fraction = self.fraction
            if self.partial or (self.partial is None and fraction != 1.0):
                fraction = float(found.get("partial_rotary_factor", fraction))
            elif found.get("partial_rotary_factor", 1.0) != 1.0 and found.get("rope_type", "default") != "default":
                raise ValueError(
                    f"{reading.where}: {reading.model_type!r} turns whole heads: partial_rotary_factor must be 1 where "
                    f"rope_type is {found['rope_type']!r}, got {found['partial_rotary_factor']!r}"
                )
            head_dim = settled(self.head_dim, reading, part)
            if head_dim is None:
                heads = reading.get("num_attention_heads", "n_head", "n_heads")
                head_dim = reading.get("hidden_size", "n_embd", "d_model") // heads
            width = None if fraction == 1.0 else int(head_dim * fraction)
        return Rotary(float(theta), width=width, pairs=self.pairs, scaling=scaling_of(found, reading))


def scaling_of(found: Mapping[str, Value], reading: Reading) -> Scaling | None:
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


def _yarn(found: Mapping[str, Value], factor: float, trained: int, longest: int) -> Scaling:
    attention, one, all_of_it = (found.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if attention is None and one and all_of_it:
        grown = Yarn(factor, trained).factor() - 1
        attention = (1 + one * grown) / (1 + all_of_it * grown)
    return Yarn(
        factor,
        trained,
        float(found.get("beta_fast") or 32),
        float(found.get("beta_slow") or 1),
        bool(found.get("truncate", True)),
        attention,
    )


def _longrope(found: Mapping[str, Value], factor: float | None, trained: int, longest: int) -> Scaling:
    by = longest / trained if factor is None else factor
    short, long = (tuple(map(float, found[name])) for name in ("short_factor", "long_factor"))
    return LongRope(short, long, trained, float(by), found.get("attention_factor"))


_SCALINGS: dict[str, Callable[[Mapping[str, Value], Value, Value, Value], Scaling]] = {
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
