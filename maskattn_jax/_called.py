"""How modules are called, to type checkers: the output, or a tuple of it and what was asked for."""

from __future__ import annotations

from typing import Generic, Literal, Protocol, TypeAlias, TypedDict, TypeVar, Unpack, overload

from jaxtyping import Bool, Float

from maskattn.biases import Bias
from maskattn.masks import Mask
from maskattn.typing import KernelName
from maskattn_jax.cache import Cache
from maskattn_jax.types import Answer, Array, Given, Operand, Positions, Sharding

__all__ = ["CallOptions", "Called"]

Query: TypeAlias = Float[Operand, "*B L E"]
Key: TypeAlias = Float[Operand, "*B S kdim"]
Value: TypeAlias = Float[Operand, "*B S vdim"]
Output: TypeAlias = Float[Array, "*B L out_dim"]
Weights: TypeAlias = Float[Array, "*B H L S"]
Lse: TypeAlias = Float[Array, "*B L H"]

#: What may be given as a key of dropout.
KeyT = TypeVar("KeyT", contravariant=True)


class CallOptions(TypedDict, Generic[KeyT], total=False):
    """The keywords of a call, but for those that make it return more: what they mean is said at the modules."""

    mask: Mask | Bool[Given, "#B #H #L #S"] | None
    bias: Bias | Float[Given, "#B #H #L #S"] | None
    is_causal: bool
    positions: Positions | None
    valid: Bool[Given, "B L"] | None
    global_tokens: Bool[Given, "#B L"] | None
    relative: Float[Operand, "R E"] | None
    dropout_key: KeyT | None
    deterministic: bool | None
    kernel: KernelName
    sow_weights: bool
    qkv_sharding: Sharding | None
    out_sharding: Sharding | None


class Called(Protocol[KeyT]):
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
        **options: Unpack[CallOptions[KeyT]],
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
        **options: Unpack[CallOptions[KeyT]],
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
        **options: Unpack[CallOptions[KeyT]],
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
        **options: Unpack[CallOptions[KeyT]],
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
        **options: Unpack[CallOptions[KeyT]],
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
        **options: Unpack[CallOptions[KeyT]],
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
        **options: Unpack[CallOptions[KeyT]],
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
        **options: Unpack[CallOptions[KeyT]],
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
        **options: Unpack[CallOptions[KeyT]],
    ) -> Answer: ...
