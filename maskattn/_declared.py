"""Fields that say their kind, bounds and meaning once: checks, documentation, pytrees and files are made from that.

A class derives from `Declared` (masks, biases, corruption schemes and configurations do), is decorated with `declared`,
and its fields are made by the functions here. `_check` is left with what holds between fields.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar, dataclass_transform

import numpy as np

from maskattn._problems import Problems, describe, power, ranks_of, show
from maskattn._text import wrapped

T = TypeVar("T")
#: (problems, name, value, all fields) -> the value as it should be, or as it came with its fault noted.
Fields = Mapping[str, Any]
Check = Callable[[Problems, str, object, Fields], object]
Role = Literal["static", "data", "part"]

_WIDTH = 112  # of lines in documentation
_FLOAT32_MOST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a field holds, in words with its bounds, and how a value is checked and converted.

    Attributes:
        says: what a value must be.
        none: what None means, where it is allowed.
        bounded: whether a value of the right type can be wrong.
        role: data are arrays, parts are masks, and both are found in pytrees; everything else is static.
        many: whether a part is a tuple of masks; None where that was not said.
        consumed: whether the field only decides what is made with the object, and nothing is computed from it later.
    """

    says: str = ""
    meaning: str = ""
    check: Check | None = None
    none: str = ""
    bounded: bool = True
    role: Role = "static"
    many: bool | None = None
    consumed: bool = False

    def field(self, options: dict[str, Any]) -> Any:
        """A field of this kind."""
        return dataclasses.field(metadata={"kind": self}, **options)

    def described(self, default: object) -> str:
        """What it says, with what None means and the default."""
        words = self.says
        if self.none and default is not None:
            words += f", or None: {self.none}"
        elif self.none:
            words += f"; default None: {self.none}"
        return words if default in (None, dataclasses.MISSING) else f"{words}; default {default!r}"


# In what follows `meaning` is what a field is for, `none` what None means where it is allowed, and `options` are those
# of `dataclasses.field`: `default`, `init`.


def integer(
    *,
    minimum: int | None = None,
    below: int | None = None,
    none: str = "",
    consumed: bool = False,
    meaning: str = "",
    **options: object,
) -> Any:
    """A field that holds an int, minimum <= int < below."""

    def check(problems: Problems, name: str, value: object, fields: Fields) -> object:
        return problems.integer(name, value, minimum, below)

    bounded = minimum is not None or below is not None
    says = f"int{_whole(minimum, below)}"
    return Kind(says, meaning, _optional(check, none), none, bounded, consumed=consumed).field(options)


def integers(
    *,
    minimum: int | None = None,
    per: int | str | None = None,
    least: int = 0,
    most: int | None = None,
    alone: bool = False,
    meaning: str = "",
    **options: object,
) -> Any:
    """A field that holds a tuple of ints, each at least `minimum`.

    Args:
        per: how many, or the name of the field before it that has as many; an int then stands for itself in each place.
        least, most: how many, where `per` does not say it.
        alone: an int may be given for a tuple of one.
    """

    named = isinstance(per, str)

    def check(problems: Problems, name: str, value: object, fields: Fields) -> object:
        length: Any = 1 if alone and not hasattr(value, "__len__") else per
        if named:
            if not isinstance(fields[length], tuple):
                return value  # that field is at fault
            length = len(fields[length])
        numbers = problems.integers(name, value, minimum, length)
        if length is None and isinstance(numbers, tuple) and not least <= len(numbers) <= (most or len(numbers)):
            problems.value(f"{name} must have {_axes(least, most)}, got {numbers}")
        return numbers

    each = f"int{_whole(minimum)}"
    if per:
        says = f"{each}, or one per axis of {per}" if named else f"{each}, or {per} of them"
    else:
        says = f"{_axes(least, most)}, each an {each}" + (", or one int" if alone else "")
    return Kind(says, meaning, check).field(options)


def number(
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    float32: bool = False,
    none: str = "",
    meaning: str = "",
    **options: object,
) -> Any:
    """A field that holds a finite float, minimum <= float <= maximum, above < float < below, rounded if `float32`."""
    span = _Span(minimum, above, maximum, below)

    def check(problems: Problems, name: str, value: object, fields: Fields) -> object:
        read = problems.number(name, value)
        if read is None:
            return value
        if not span.holds(read) or (float32 and abs(read) > _FLOAT32_MOST):
            problems.value(f"{name} must be {'finite in float32' if float32 else span.must}, got {read}")
            return read
        return float(np.float32(read)) if float32 else read

    says = f"number{span.short}{', finite in float32' if float32 else ''}"
    return Kind(says, meaning, _optional(check, none), none).field(options)


def interval(
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    meaning: str = "",
    **options: Any,
) -> Any:
    """A field that holds (low, high), two floats in order within the bounds, as `number` has them."""
    span = _Span(minimum, above, maximum, below)

    def check(problems: Problems, name: str, value: Any, fields: Fields) -> object:
        try:
            low, high = value
        except (TypeError, ValueError):
            problems.type(f"{name} must be (low, high), got {show(value)}")
            return value
        bounds = problems.number(f"{name}[0]", low), problems.number(f"{name}[1]", high)
        if bounds[0] is not None and bounds[1] is not None:
            if not (bounds[0] <= bounds[1] and span.holds(bounds[0]) and span.holds(bounds[1])):
                problems.value(f"{name} must be (low, high), low <= high, {span.must}, got {bounds}")
        return bounds

    return Kind(f"(low, high), numbers{span.short}, low <= high", meaning, check).field(options)


def flag(*, meaning: str = "", **options: object) -> Any:
    """A field that holds True or False."""

    def check(problems: Problems, name: str, value: object, fields: Fields) -> object:
        if not isinstance(value, bool):
            problems.type(f"{name} must be True or False, got {describe(value)}")
        return value

    return Kind("bool", meaning, check, bounded=False).field(options)


def choice(*known: str, meaning: str = "", **options: object) -> Any:
    """A field that holds one of these names."""

    def check(problems: Problems, name: str, value: object, fields: Fields) -> object:
        problems.choice(name, value, known)
        return value

    return Kind(" or ".join(map(repr, known)), meaning, check).field(options)


def data(
    dtype: str = "",
    axes: str = "",
    *,
    minimum: int | None = None,
    or_int: bool = False,
    none: str = "",
    meaning: str = "",
    **options: object,
) -> Any:
    """A field that holds an array of NumPy, JAX or PyTorch.

    Args:
        dtype: "bool", "int", "float" (of any width), "float32". Without it whatever is given is taken as it is.
        axes: "[B, S]", "[] or [B]", "broadcastable to [H, L, S]".
        minimum: of the entries, checked where they can be read at once.
        or_int: an int may stand for the array. It is then static, as None is.
        none: what None stands for, in words; empty: None is refused.
        meaning: of the field, for the docstring of the class.
    """
    ranks = ranks_of(axes)

    def check(problems: Problems, name: str, value: object, fields: Fields) -> object:
        if none and value is None:
            return value
        if or_int:
            return problems.integer_or_array(name, value, axes, minimum, ranks)
        return problems.array(name, value, dtype, axes, minimum, ranks)

    says = f"{'int, or ' if or_int else ''}{dtype} array {axes}{'' if minimum is None else ','}{_whole(minimum)}"
    kind = Kind(says, meaning, check, none, role="data") if dtype else Kind(meaning=meaning, role="data")
    return kind.field(options)


def part(of: type | None = None, *, many: bool | None = None, meaning: str = "", **options: object) -> Any:
    """A field that holds an object of class `of` that has declared fields too, or with `many` a tuple of such.

    `meaning` is what the docstring of the class says of it.
    """

    def check(problems: Problems, name: str, value: object, fields: Fields) -> object:
        if of is None:
            return value
        if not many:
            if not isinstance(value, of):
                problems.type(f"{name} must be a {of.__name__}, got {describe(value)}")
            return value
        noun = of.__name__.lower()
        if not isinstance(value, (list, tuple)):
            problems.type(f"{name} must be a list of {noun}s, got {describe(value)}")
            return value
        for i, entry in enumerate(value):
            if not isinstance(entry, of):
                problems.type(f"{name}[{i}] must be a {noun}, got {describe(entry)}")
        return tuple(value)

    if of is None:
        return Kind(meaning=meaning, role="part", many=many).field(options)
    says = f"tuple of {of.__name__}s" if many else of.__name__
    return Kind(says, meaning, check, bounded=False, role="part", many=bool(many)).field(options)


def member(*of: type, none: str = "", meaning: str = "", **options: object) -> Any:
    """A field that holds an object of one of the classes `of`, which have declared fields too, and which is static."""
    says = " or ".join(cls.__name__ for cls in of)

    def check(problems: Problems, name: str, value: object, fields: Fields) -> object:
        if not isinstance(value, of):
            problems.type(f"{name} must be a {says}, got {describe(value)}")
        return value

    return Kind(says, meaning, _optional(check, none), none, bounded=False).field(options)


def numbers(*, above: float | None = None, none: str = "", meaning: str = "", **options: object) -> Any:
    """A field that holds a tuple of at least one finite float, above < float."""
    span = _Span(None, above, None, None)

    def check(problems: Problems, name: str, value: object, fields: Fields) -> object:
        if not isinstance(value, (list, tuple)) or not value:
            problems.type(f"{name} must be a list of numbers, got {describe(value)}")
            return value
        read = tuple(problems.number(f"{name}[{i}]", x) for i, x in enumerate(value))
        for i, x in enumerate(read):
            if x is not None and not span.holds(x):
                problems.value(f"{name}[{i}] must be {span.must}, got {x}")
        return read

    return Kind(f"tuple of numbers{span.short}", meaning, _optional(check, none), none).field(options)


class Declared:
    """Base of classes with declared fields: frozen dataclasses, checked when made, one error for all reasons."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    #: the fields that are declared; what a plain dataclass has beside them is static and not checked
    _kinds: ClassVar[dict[str, Kind]] = {}
    _checks: ClassVar[tuple[tuple[str, Check], ...]] = ()
    #: what its errors begin with; empty: the name of the class
    _called: ClassVar[str] = ""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        for name in vars(cls).get("__slots__", ()):  # of dataclass(slots=True): fields stay in the dictionary
            delattr(cls, name)
        own = {name: field for name, field in vars(cls).items() if isinstance(field, dataclasses.Field)}
        declared = {name: field.metadata["kind"] for name, field in own.items() if "kind" in field.metadata}
        if declared:
            cls._kinds = cls._kinds | declared
            made = [check for check in cls._checks if check[0] not in own]
            made += [(name, kind.check) for name, kind in declared.items() if kind.check and own[name].init]
            cls._checks = tuple(made)

    def __post_init__(self) -> None:
        fields = vars(self)
        problems = Problems(self._called or type(self).__name__)
        for name, check in self._checks:
            fields[name] = check(problems, name, fields[name], fields)
        if not problems.reasons:
            self._check(problems)
        problems.raise_if_any()

    def _check(self, problems: Problems) -> None:
        """Note what is wrong between fields that are right by themselves, and `_set` those that follow from others."""

    def _set(self, **values: object) -> None:
        """Set fields while the object is made: later it is frozen."""
        vars(self).update(values)

    def __repr__(self) -> str:
        """As it may be written: without what is as it is by default."""
        fields = [(field, getattr(self, field.name)) for field in dataclasses.fields(self) if field.init]
        given = [f"{field.name}={value!r}" for field, value in fields if field.default != value]
        return f"{type(self).__name__}({', '.join(given)})"


@dataclass_transform(
    frozen_default=True,
    field_specifiers=(integer, integers, number, numbers, interval, flag, choice, data, part, member),
)
def declared(cls: type[T]) -> type[T]:
    """Make a subclass of `Declared` a frozen dataclass, and write its fields and its errors into its documentation."""
    made = dataclasses.dataclass(frozen=True, repr=False)(cls)
    made.__doc__ = _documented(made)
    return made


def _documented(cls: type[Any]) -> str:
    """The docstring, with the fields before the first example and the errors at the end."""
    text = inspect.cleandoc(cls.__doc__ or "")
    kinds = [(field, cls._kinds.get(field.name, Kind())) for field in dataclasses.fields(cls)]
    for title, init in (("Args:", True), ("Attributes:", False)):
        said = [_line(field, kind) for field, kind in kinds if field.init is init]
        before, example, after = text.partition("\n\n>>>")
        text = "\n".join([f"{before}\n\n{title}", *said]) + example + after if said else text
    bounds = ["its shape or value is out of bounds"] if any(kind.bounded for _, kind in kinds if kind.check) else []
    rules = bounds if cls._check is Declared._check else [*bounds, inspect.cleandoc(cls._check.__doc__ or "")]
    if cls._checks:
        raises = ["    TypeError: a field is of another type."]
        raises += [f"ValueError: {', or '.join(rules)}."] if rules else []
        raises += ["One error names every fault."] if len(cls._checks) > 1 else []
        text += f"\n\nRaises:\n{wrapped(' '.join(raises), _WIDTH, 4)}"
    return text


def _line(field: dataclasses.Field[Any], kind: Kind) -> str:
    words = kind.described(field.default)
    return wrapped(f"    {field.name}{f' ({words})' if words else ''}: {kind.meaning}.", _WIDTH, 4)


def _optional(check: Check, none: str) -> Check:
    """The check, for values that are not None."""

    def optional(problems: Problems, name: str, value: object, fields: Fields) -> object:
        return None if value is None else check(problems, f"{name} (None = {none})", value, fields)

    return optional if none else check


def _axes(least: int, most: int | None) -> str:
    return f"{least} to {most} axes" if most else "at least one axis"


def _whole(minimum: int | None, below: int | None = None) -> str:
    """The bounds of an int in short."""
    if below is None:
        return "" if minimum is None else f" >= {minimum}"
    return f" < {power(below)}" if minimum is None else f" in [{minimum}, {power(below)})"


class _Span:
    """Bounds of a finite number: `below` and `above` may not be reached."""

    def __init__(self, minimum: float | None, above: float | None, maximum: float | None, below: float | None) -> None:
        self.low = minimum if above is None else above
        self.high = maximum if below is None else below
        self.open = above is not None, below is not None
        sides = f"{'[('[self.open[0]]}{self.low:g}" if self.low is not None else "(-inf"
        #: what it must be, and the same in short
        self.must, self.short = "finite", ""
        if self.high is not None:
            self.must = f"in {sides}, {self.high:g}{'])'[self.open[1]]}"
            self.short = f" {self.must}"
        elif self.low is not None:
            least = f"at least {self.low:g}" if not self.open[0] else "above {self.low:g}" if self.low else "positive"
            self.must, self.short = f"{least} and finite", f" {'>' if self.open[0] else '>='} {self.low:g}"

    def holds(self, x: float) -> bool:
        above = self.low is None or (x > self.low if self.open[0] else x >= self.low)
        under = self.high is None or (x < self.high if self.open[1] else x <= self.high)
        return above and under and math.isfinite(x)
