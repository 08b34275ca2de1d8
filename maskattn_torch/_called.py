"""How modules are called, to type checkers: the output, or a tuple of it and what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, Unpack, cast, overload

from jaxtyping import Bool, Float

from maskattn.biases import Bias
from maskattn.masks import Mask
from maskattn.typing import KernelName
from maskattn_torch.cache import Cache
from maskattn_torch.types import Answer, Array, Given, Operand, Positions, RandomKey

__all__ = ["CallOptions", "Called", "called"]

Query: TypeAlias = Float[Operand, "*B L E"]
Key: TypeAlias = Float[Operand, "*B S kdim"]
Value: TypeAlias = Float[Operand, "*B S vdim"]
Output: TypeAlias = Float[Array, "*B L out_dim"]
Weights: TypeAlias = Float[Array, "*B H L S"]
Lse: TypeAlias = Float[Array, "*B L H"]


class CallOptions(TypedDict, total=False):
    """The keywords of a call, but for those that make it return more: what they mean is said at the modules."""

    mask: Mask | Bool[Given, "#B #H #L #S"] | None
    bias: Bias | Float[Given, "#B #H #L #S"] | None
    is_causal: bool
    positions: Positions | None
    valid: Bool[Given, "B L"] | None
    global_tokens: Bool[Given, "#B L"] | None
    relative: Float[Operand, "R E"] | None
    dropout_key: RandomKey | None
    deterministic: bool | None
    kernel: KernelName


class Called(Protocol):
    """A call of a module."""

    @overload
    def __call__(
        self,
        query: Query,
        key: Key | None = None,
        value: Value | None = None,
        *,
        cache: None = None,
        return_weights: Literal[False] = False,
        return_lse: Literal[False] = False,
        **options: Unpack[CallOptions],
    ) -> Output: ...
    @overload
    def __call__(
        self,
        query: Query,
        key: Key | None = None,
        value: Value | None = None,
        *,
        cache: None = None,
        return_weights: Literal[False] = False,
        return_lse: Literal[True],
        **options: Unpack[CallOptions],
    ) -> tuple[Output, Lse]: ...
    @overload
    def __call__(
        self,
        query: Query,
        key: Key | None = None,
        value: Value | None = None,
        *,
        cache: None = None,
        return_weights: Literal[True],
        return_lse: Literal[False] = False,
        **options: Unpack[CallOptions],
    ) -> tuple[Output, Weights]: ...
    @overload
    def __call__(
        self,
        query: Query,
        key: Key | None = None,
        value: Value | None = None,
        *,
        cache: None = None,
        return_weights: Literal[True],
        return_lse: Literal[True],
        **options: Unpack[CallOptions],
    ) -> tuple[Output, Weights, Lse]: ...
    @overload
    def __call__(
        self,
        query: Query,
        key: Key | None = None,
        value: Value | None = None,
        *,
        cache: Cache,
        return_weights: Literal[False] = False,
        return_lse: Literal[False] = False,
        **options: Unpack[CallOptions],
    ) -> tuple[Output, Cache]: ...
    @overload
    def __call__(
        self,
        query: Query,
        key: Key | None = None,
        value: Value | None = None,
        *,
        cache: Cache,
        return_weights: Literal[False] = False,
        return_lse: Literal[True],
        **options: Unpack[CallOptions],
    ) -> tuple[Output, Lse, Cache]: ...
    @overload
    def __call__(
        self,
        query: Query,
        key: Key | None = None,
        value: Value | None = None,
        *,
        cache: Cache,
        return_weights: Literal[True],
        return_lse: Literal[False] = False,
        **options: Unpack[CallOptions],
    ) -> tuple[Output, Weights, Cache]: ...
    @overload
    def __call__(
        self,
        query: Query,
        key: Key | None = None,
        value: Value | None = None,
        *,
        cache: Cache,
        return_weights: Literal[True],
        return_lse: Literal[True],
        **options: Unpack[CallOptions],
    ) -> tuple[Output, Weights, Lse, Cache]: ...
    @overload
    def __call__(
        self,
        query: Query,
        key: Key | None = None,
        value: Value | None = None,
        *,
        cache: Cache | None = None,
        return_weights: bool = False,
        return_lse: bool = False,
        **options: Unpack[CallOptions],
    ) -> Answer: ...


def called(forward: Callable[..., Answer]) -> Called:
    """The function as it is, of the type that its calls have."""
    return cast(Any, forward)
