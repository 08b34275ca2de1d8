"""What models are made of: parts, which name their parameters, and say once for both twins what is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Generic, Protocol, Self, TypeAlias, TypeVar

from maskattn.attention import Framework
from maskattn.config import AttentionConfig
from maskattn.models.leaves import Conv, Embedding, Leaf, Linear, LoRA, Norm
from maskattn.modules.run import Arithmetic
from maskattn.typing import Array as AnyArray, KernelName, Traced

B = TypeVar("B", bound=AnyArray)


class Ops(Protocol[B]):
    """A twin's arithmetic: its modules applied, and what is computed between them."""

    @property
    def framework(self) -> Framework[B]: ...
    @property
    def arithmetic(self) -> Arithmetic[Traced]: ...

    def linear(self, leaf: Linear, module: object, x: B) -> B:
        """x [..., inputs] -> [..., outputs]."""

    def norm(self, leaf: Norm, module: object, x: B) -> B:
        """x [..., width] normed; rounded to its dtype once."""

    def embed(self, leaf: Embedding, module: object, ids: B) -> B:
        """Rows of the table, [..., width]."""

    def logits(self, leaf: Embedding, module: object, x: B, bias: B | None) -> B:
        """x [..., width] by all rows of the table: [..., rows]."""

    def conv(self, leaf: Conv, module: object, x: B) -> B:
        """x [B, *places, inputs] -> [B, *places, outputs]."""

    def convolve(self, leaf: Conv, weight: B, bias: B | None, x: B) -> B:
        """As `conv`, with these numbers as published: weight [outputs, inputs / groups, *size]."""

    def array(self, held: object) -> B:
        """The numbers of a parameter that stands by itself, or of any module's parameter."""

    def activate(self, x: B, name: str) -> B:
        """One of `ACTIVATIONS` of each number."""

    def product(self, x: B, y: B) -> B:
        """x times y, which broadcast."""

    def scaled(self, x: B, factor: float) -> B:
        """x times a number."""

    def add(self, x: B, y: B, factor: float = 1.0) -> B:
        """x plus factor times y, which broadcast."""

    def drop(self, x: B, rate: float, key: B) -> B:
        """Dropout of each number by itself."""

    def fold(self, key: B, number: Traced) -> B:
        """The key of a place, from the key of what it is within; the number is an int, or an array of one."""

    def first_of(self, cache: Traced) -> Traced:
        """The first layer's own cache, of what a model's stack has."""

    def products(self, x: B, y: B) -> B:
        """x [..., width] by all rows of y [rows, width]: [..., rows]; of the dtype of x."""

    def mean(self, x: B, keep: B | None = None) -> B:
        """The mean of x [B, L, E] over L, or over what is kept of it, bool [B, L]: [B, E]."""

    def order(self, x: B) -> B:
        """Which place of each row of x [B, L] is the smallest, the next, ...; the first of equal ones first."""

    def take(self, x: B, places: B) -> B:
        """The tokens of x [B, L, E] at places [B, N]: [B, N, E]."""

    def uniform(self, key: B, shape: Sequence[int]) -> B:
        """Numbers in [0, 1), float32."""

    def arange(self, length: int, like: B) -> B:
        """0, 1, ..., int32 [length], where `like` is."""

    def as_array(self, x: object, like: B | None) -> B:
        """An array of NumPy, or of the framework, where `like` is."""

    def wide_linear(self, leaf: Linear, module: object, x: B) -> B:
        """As `linear`, computed and given in float32 at least."""

    def softmax(self, x: B) -> B:
        """Over the last axis, float32 at least."""

    def divide(self, x: B, y: B) -> B:
        """x by y, which broadcast."""

    def cast(self, x: B, like: B) -> B:
        """x rounded to the dtype of `like`."""

    def top(self, x: B, count: int) -> B:
        """int [..., count]: where the largest numbers of the last axis are, from the largest on; of equal ones the
        first."""

    def pick(self, x: B, places: B) -> B:
        """The numbers of x [..., n] at places [..., count]."""

    def groups(self, numbers: B, count: int) -> tuple[B, B, Traced]:
        """Of numbers in [0, count), any shape: places that bring equal ones together, in the order of numbers and then
        of places; places that undo it; how many of each there are, for `grouped`."""

    def grouped(self, x: B, weights: B, counts: Traced, turned: bool) -> B:
        """x [N, in], its rows sorted by group, each by the matrix of its group: weights [groups, in, out], or
        [groups, out, in] where `turned`. -> [N, out]. Matrices of groups without rows are not read."""

    def rows(self, table: B, ids: B) -> B:
        """Rows of an array [rows, width]: [..., width]."""

    def sums(self, x: B, ids: B, count: int) -> B:
        """Of x [B, L, E] those of each id of [B, L] summed: [B, count, E]; other ids are left out."""

    def merge(self, out: B, lse: B, out2: B, lse2: B) -> B:
        """`merge` of the twins: attention [B, L, H, D] over two sets of keys, with its log-sum-exp [B, L, H]."""

    def concatenate(self, arrays: Sequence[B], axis: int) -> B: ...
    def split(self, x: B, sizes: Sequence[int], axis: int) -> Sequence[B]:
        """x cut along an axis."""

    def once(self, x: B) -> B:
        """x, for reading a part of it where the rest is read too: see `maskattn.models.exact`."""

    def where(self, condition: B, x: B, y: B) -> B: ...
    def broadcast(self, x: B, shape: Sequence[int]) -> B: ...


#: More than the places of a run that draw something: the keys of blocks are folded with numbers behind theirs.
_PLACES = 2**16
#: (path from the model, leaf) -> what stands in its place.
Change: TypeAlias = Callable[[str, Leaf], Leaf]

#: Names of activations as configurations have them -> the function that each is.
ACTIVATIONS: Mapping[str, str] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "linear": "linear",
}


@dataclass
class Run(Generic[B]):
    """One call of a model, or of one of its blocks.

    Attributes:
        use: the twin's arithmetic, fast or exact.
        kernel: of attention.
        key: of dropout; None where it is off.
        seen: where it is asked for, (path, what the block, or the norm behind the last, gave) of every stack, in order;
            and ("before " and the path of a stack's first block, what that read).
    """

    use: Ops[B]
    kernel: KernelName = "auto"
    key: B | None = None
    seen: list[tuple[str, B]] | None = None
    drawn: int = field(default=0, init=False)

    def linear(self, leaf: Linear, at: object, x: B) -> B:
        """A linear layer of the module `at`."""
        made = self.use.linear(leaf, find(at, leaf.name), x)
        return made if leaf.lora is None else self._adapted(leaf.lora, at, x, made)

    def _adapted(self, lora: LoRA, at: object, x: B, made: B) -> B:
        low = self.linear(lora.down, at, self.drop(x, lora.dropout_rate))
        more = self.use.scaled(self.linear(lora.up, at, low), lora.scale)
        return self.use.cast(self.use.add(made, more), made)

    def norm(self, leaf: Norm | None, at: object, x: B) -> B:
        """A norm of the module `at`; x itself where there is none."""
        return x if leaf is None else self.use.norm(leaf, find(at, leaf.name), x)

    def embed(self, leaf: Embedding, at: object, ids: B) -> B:
        """A table of the module `at`."""
        return self.use.embed(leaf, find(at, leaf.name), ids)

    def array(self, leaf: Leaf, at: object) -> B:
        """A parameter that stands by itself; of a layer, its only one."""
        return self.use.array(find(at, leaf.name))

    def find(self, at: object, leaf: Leaf) -> Traced:
        """The module, or the parameter, of a leaf."""
        return find(at, leaf.name)

    def next_key(self) -> B | None:
        """A key of its own for each place that draws something, in the order in which they come."""
        if self.key is None:
            return None
        self.drawn += 1
        return self.use.fold(self.key, self.drawn - 1)

    def drop(self, x: B, rate: float) -> B:
        """Dropout, where it is on."""
        if not rate or self.key is None:
            return x
        key = self.next_key()
        assert key is not None
        return self.use.drop(x, rate, key)

    def within(self, number: Traced) -> Run[B]:
        """The run of a block, whose draws depend on its number alone."""
        key = None if self.key is None else self.use.fold(self.key, _PLACES + number)
        return Run(self.use, self.kernel, key, self.seen)

    def note(self, path: str, h: B) -> None:
        """Keep what a block gave, or read, where that is asked for."""
        if self.seen is not None:
            self.seen.append((path, h))


def tokens_of(h: B, places: int | slice, run: Run[B]) -> B:
    """h[:, places], of hidden states [B, L, E] whose other tokens are read too: see `Ops.once`."""
    whole: Traced = run.use.once(h)
    found: B = whole[:, places]
    return found


def tokens_at(h: B, places: B, run: Run[B]) -> B:
    """The tokens of h [B, L, E] at places int [B], one of each sequence: [B, E]. As `tokens_of`."""
    whole: Traced = run.use.once(h)
    found: B = whole[run.use.arange(h.shape[0], h), places]
    return found


@dataclass(frozen=True)
class Part:
    """A part of a model: fields that are leaves or parts are what it holds; `apply` is what it computes.

    Attributes:
        inexact: why the exact arithmetic cannot compute it; "" where it can.
    """

    inexact: ClassVar[str] = ""

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Leaf]]:
        """(path from the model, leaf) of all that the part holds."""
        for each in fields(self):
            yield from _leaves(getattr(self, each.name), prefix)

    def changed(self, change: Change, prefix: str = "") -> Self:
        """The part with other leaves.

        Args:
            change: (path from the model, leaf) -> what stands in its place. prefix: of what the part holds.
        """
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        made = {name: _changed(value, change, prefix) for name, value in held.items()}
        return replace(self, **{name: value for name, value in made.items() if value is not held[name]})

    def rates(self) -> Iterator[float]:
        """How often it drops what, in training; not of the parts that it holds."""
        for each in fields(self):
            held = getattr(self, each.name)
            if each.name.endswith(("_rate", "_rates", "_dropout")):
                yield from held if isinstance(held, tuple) else (held,)
            elif isinstance(held, Linear) and held.lora is not None:
                yield held.lora.dropout_rate
            elif isinstance(held, AttentionConfig):
                yield held.dropout_rate

    def parts(self) -> Iterator[Part]:
        """Itself, and all parts that it holds."""
        yield self
        for each in fields(self):
            held = getattr(self, each.name)
            for one in held if isinstance(held, tuple) else (held,):
                if isinstance(one, Part):
                    yield from one.parts()


def _leaves(held: object, prefix: str) -> Iterator[tuple[str, Leaf]]:
    if isinstance(held, Leaf):
        yield prefix + held.name, held
        yield from _leaves(held.within(), prefix)
    elif isinstance(held, Part):
        yield from held.leaves(prefix)
    elif isinstance(held, tuple):
        for each in held:
            yield from _leaves(each, prefix)


def _changed(held: Traced, change: Change, prefix: str) -> Traced:
    if isinstance(held, Leaf):
        return change(prefix + held.name, held)
    if isinstance(held, Part):
        return held.changed(change, prefix)
    if type(held) is tuple:
        return tuple(_changed(each, change, prefix) for each in held)
    return held


def find(at: object, path: str) -> Traced:
    """What stands at a path from a module."""
    for name in path.split(".") if path else ():
        at = getattr(at, name)
    return at
