"""Attention of a model: where its projections come from, and its layer by `maskattn.modules`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Generic

import numpy as np

from maskattn import masks
from maskattn.biases import Additive, Bias
from maskattn.config import AttentionConfig
from maskattn.layer.position_bias import Disentangled
from maskattn.layer.rotary import Rotary
from maskattn.masks import Full, KeyMask, Mask, Not, QueryMask
from maskattn.models.leaves import Array, Leaf, Linear, Norm
from maskattn.models.part import B, Part, Run
from maskattn.modules import attend_heads, head_shapes
from maskattn.modules.parameters import parameters
from maskattn.modules.run import Arithmetic, Asked, Layer, Three
from maskattn.typing import Traced


@dataclass
class Given(Generic[B]):
    """What all blocks of a stack read beside their input.

    Attributes:
        masks: the mask of attention -> the same with what the batch brings, its padding.
        positions: as in `attention`, of queries; None counts from 0.
        valid: bool [B, L], which tokens enter the cache; None: all.
        global_tokens: bool [B, L]; None: there are none.
        memory: [B, S, E], what cross-attention reads; None where its keys are held already.
        memory_mask: of cross-attention.
        shared: what blocks read of parameters that their stack holds: canonical name -> array.
        relative: DeBERTa's table of positions, [2 * span, E].
        frequencies: of the rotary embedding, float32 [width / 2]; None: the configuration's.
        grid: of an image, how many rows and columns of patches the tokens are.
        states: where they are asked for, what each block read, and what the last one gave.
        keep: bool [B, L], True = no padding, as `masks` have it; None: there is none.
    """

    masks: dict[Mask, Mask | None] = field(default_factory=dict)
    positions: Traced = None
    valid: Traced = None
    global_tokens: Traced = None
    memory: B | None = None
    memory_mask: Mask | None = None
    shared: dict[str, B] = field(default_factory=dict)
    relative: B | None = None
    frequencies: B | None = None
    grid: tuple[int, int] = (0, 0)
    states: list[B] | None = None
    keep: Traced = None

    def note(self, h: B) -> None:
        """Keep hidden states, where they are asked for."""
        if self.states is not None:
            self.states.append(h)


@dataclass(frozen=True)
class Separate(Part):
    """Three projections."""

    query: Linear
    key: Linear
    value: Linear

    def apply(self, config: AttentionConfig, at: object, x: B, memory: B, run: Run[B]) -> Three[B]:
        """Query of x, key and value of memory, [B, length, heads * width]."""
        return run.linear(self.query, at, x), run.linear(self.key, at, memory), run.linear(self.value, at, memory)

    def project(self, name: str, at: object, x: B, run: Run[B]) -> B:
        """One of the three: "query" or "key"."""
        return run.linear(self.query if name == "query" else self.key, at, x)


@dataclass(frozen=True)
class Fused(Part):
    """One projection for all three.

    Attributes:
        order: of its columns: "blocks" are those of queries, of keys, of values; "groups" has for each key/value head
            its queries, its key and its value.
    """

    all: Linear
    order: str = "blocks"

    def apply(self, config: AttentionConfig, at: object, x: B, memory: B, run: Run[B]) -> Three[B]:
        """As of `Separate`."""
        made: Traced = run.linear(self.all, at, x)
        widths = [heads * width for heads, width in head_shapes(config)]
        if self.order == "blocks":
            query, key, value = run.use.split(made, widths, -1)
            return query, key, value
        groups = config.num_kv_heads
        made = made.reshape((*x.shape[:2], groups, -1, config.head_dim))
        parts: list[Traced] = list(run.use.split(made, (made.shape[3] - 2, 1, 1), -2))
        query, key, value = (part.reshape((*x.shape[:2], -1)) for part in parts)
        return query, key, value


@dataclass(frozen=True)
class Latent(Part):
    """Queries by one layer or by way of a few numbers; keys and values of a latent that all heads share (DeepSeek-AI
    2024, DeepSeek-V2, section 2.1).

    As published a head of queries or keys has first the numbers that are not turned by positions, and then those that
    are, which its keys share. Here those come first, so that the rotary embedding has a width. A cache then holds keys
    and values of all heads, and not the latent.

    Attributes:
        query: one layer; or one to fewer numbers, their norm, and one from there.
        both: to the latent, and behind it the keys' turned numbers. norm: of the latent.
        grown: from there to what is not turned of the keys, and the values, head by head.
    """

    query: tuple[Linear] | tuple[Linear, Norm, Linear]
    both: Linear
    norm: Norm
    grown: Linear

    def apply(self, config: AttentionConfig, at: object, x: B, memory: B, run: Run[B]) -> Three[B]:
        """As of `Separate`."""
        use, heads, value = run.use, config.num_heads, config.v_head_dim
        plain = self.grown.outputs // heads - value
        query: Traced = run.linear(self.query[0], at, x)
        if len(self.query) == 3:
            query = run.linear(self.query[2], at, run.norm(self.query[1], at, query))
        query = query.reshape((*x.shape[:2], heads, -1))
        query = use.concatenate([query[..., plain:], query[..., :plain]], -1)
        both: Traced = run.linear(self.both, at, memory)
        latent, turned = both[..., : self.norm.width], both[..., None, self.norm.width :]
        grown: Traced = run.linear(self.grown, at, run.norm(self.norm, at, latent))
        grown = grown.reshape((*memory.shape[:2], heads, -1))
        turned = use.broadcast(turned, (*memory.shape[:2], heads, turned.shape[-1]))
        key: Traced = use.concatenate([turned, grown[..., :plain]], -1)
        flat = (*memory.shape[:2], -1)
        return query.reshape((*x.shape[:2], -1)), key.reshape(flat), grown[..., plain:].reshape(flat)


@dataclass(frozen=True)
class Sparse:
    """BigBird's pattern: the first and the last block see all and are seen by all, others see the blocks beside them;
    of few tokens all see all. As the model does outside of training, its random blocks are all the first (Zaheer et al.
    2020): the first block counts so many times more.

    Attributes:
        size: tokens of a block. random: how many random blocks there are.
    """

    size: int
    random: int

    def mask(self, length: int) -> Mask:
        """Of a number of tokens."""
        said = {"model_type": "big_bird", "block_size": self.size, "num_random_blocks": self.random}
        return masks.for_hf(said, 0, length=length)

    def bias(self, length: int) -> Bias | None:
        """What is added to scores."""
        if isinstance(self.mask(length), Full) or not self.random:
            return None
        block = np.arange(length)[None] // self.size
        between = QueryMask((block > 0) & (block < block[:, -1:])) & KeyMask(block == 0)
        return Additive(Not(between), math.log(1 + self.random))


@dataclass(frozen=True)
class Packed(Part):
    """Three projections whose matrices are one parameter, and whose biases are another, as in
    `torch.nn.MultiheadAttention`: [query + key + value, E]."""

    weight: Array
    bias: Array

    def apply(self, config: AttentionConfig, at: object, x: B, memory: B, run: Run[B]) -> Three[B]:
        """As of `Separate`."""
        weight: Traced = run.array(self.weight, at)
        bias: Traced = run.array(self.bias, at)
        ends = 0, *accumulate(heads * width for heads, width in head_shapes(config))
        query, key, value = (
            run.use.add(run.use.products(source, weight[begin:end]), bias[begin:end])
            for source, begin, end in zip((x, memory, memory), ends, ends[1:], strict=False)
        )
        return query, key, value


@dataclass(frozen=True)
class Attention(Part):
    """One attention of a block, its projections and what its parts learn.

    Attributes:
        held: canonical names of parts' parameters -> where they are published, in one piece or in several; their
            numbers are in the same order.
        further: names of further projections -> the layers.
        shared: canonical names of parameters that the stack holds for all its blocks.
        mask: what may be attended to, without what a batch brings.
        sparse: what takes its place where it depends on the number of tokens.
        relative_dropout: of the table of relative positions.
    """

    config: AttentionConfig
    inputs: Separate | Fused | Latent | Packed
    out: Linear
    held: tuple[tuple[str, tuple[Leaf, ...]], ...] = ()
    further: tuple[tuple[str, Linear], ...] = ()
    shared: tuple[str, ...] = ()
    mask: Mask = Full()
    sparse: Sparse | None = None
    relative_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shapes", "without_globals"):
            getattr(self, name)  # kept from now on: in a call, a compiler does not see how

    def apply(self, at: object, x: B, run: Run[B], given: Given[B], cache: Traced = None) -> tuple[B, Traced]:
        """x [B, L, E] -> [B, L, E], of self-attention, and the new cache where there is one."""
        inputs = self.inputs.apply(self.config, at, x, x, run)
        asked = self.asked(x, run, given, given.masks.get(self.mask, self.mask), cache)
        attended = attend_heads(self.layer(at, run, given), inputs, asked)
        return self.ended(at, attended.output, run), attended.cache

    def across(
        self, at: object, x: B, run: Run[B], given: Given[B], held: tuple[B, B] | None = None
    ) -> tuple[B, tuple[B, B]]:
        """x [B, L, E] -> [B, L, E], of attention to `given.memory`; and its keys and values, which are made of it where
        they are not held."""
        if held is None:
            assert given.memory is not None
            query, *made = self.inputs.apply(self.config, at, x, given.memory, run)
            held = made[0], made[1]
        else:
            assert isinstance(self.inputs, Separate)
            query = run.linear(self.inputs.query, at, x)
        asked = self.asked(x, run, given, given.memory_mask)
        attended = attend_heads(self.layer(at, run, given), (query, *held), asked)
        return self.ended(at, attended.output, run), held

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what the parts of the layer learn, by canonical names."""
        return {name: parameter.shape for name, parameter in parameters(self.config).items()}

    @cached_property
    def without_globals(self) -> AttentionConfig:
        """The configuration where a batch has no global tokens."""
        return self.config if self.config.global_tokens is None else self.config.replace(global_tokens=None)

    def asked(
        self, x: B, run: Run[B], given: Given[B], mask: Mask | None, cache: Traced = None, lse: bool = False
    ) -> Asked[B]:
        """What is asked of the layer for x [B, L, E]."""
        config = self.config
        return Asked(
            (x, x, x),
            mask,
            None if self.sparse is None else self.sparse.bias(x.shape[1]),
            given.positions if config.rotary is not None or config.temperature is not None else None,
            cache,
            given.valid if cache is not None else None,
            given.global_tokens if config.global_tokens is not None else None,
            self._relative(run, given),
            config.dropout_rate if run.key is not None else 0.0,
            run.next_key() if config.dropout_rate else None,
            run.kernel,
            lse=lse,
        )

    def _relative(self, run: Run[B], given: Given[B]) -> B | None:
        if given.relative is None or not isinstance(self.config.position_bias, Disentangled):
            return None
        return run.drop(given.relative, self.relative_dropout)

    def ended(self, at: object, output: Traced, run: Run[B]) -> B:
        """[B, L, heads, width] through the layer of the output."""
        return run.linear(self.out, at, output.reshape((*output.shape[:2], -1)))

    def layer(self, at: object, run: Run[B], given: Given[B]) -> Layer[B]:
        """What lies between the projections, with its parameters."""
        plain = given.global_tokens is None and self.config.global_tokens is not None
        config = self.without_globals if plain else self.config
        held: dict[str, Traced] = {name: given.shared[name] for name in self.shared}
        for name, leaves in self.held:
            pieces: list[Traced] = [run.array(leaf, at) for leaf in leaves]
            whole: Traced = pieces[0] if len(pieces) == 1 else run.use.concatenate([x.reshape(-1) for x in pieces], 0)
            shape = self.shapes[name]
            # matrices are published as [out, in]
            held[name] = whole.reshape(shape[::-1]).T if name.endswith(".kernel") else whole.reshape(shape)
        further = dict(self.further)

        def project(name: str, x: B) -> B:
            if name in further:
                return run.linear(further[name], at, x)
            assert isinstance(self.inputs, Separate)
            return self.inputs.project(name, at, x, run)

        arithmetic: Traced = run.use.arithmetic
        if given.frequencies is not None and config.rotary is not None:
            arithmetic = _Held(arithmetic, given.frequencies)
        return Layer("model", config, run.use.framework, arithmetic, held, project)


class _Held:
    """An arithmetic, with frequencies of the rotary embedding that a model holds."""

    def __init__(self, use: Arithmetic[Traced], frequencies: Traced) -> None:
        self._use, self._frequencies = use, frequencies

    def frequencies(self, rotary: Rotary, head_dim: int, length: int | None, positions: Traced) -> Traced:
        return self._frequencies

    def counted(self, *given: object) -> None:
        """Nothing is kept from call to call: that would be of the configuration's frequencies."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._use, name)
