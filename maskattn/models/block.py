"""A block: attention and an MLP, their norms in six slots; and a stack of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from maskattn.models.attention import Attention, Given
from maskattn.models.disentangled import Local, Relative
from maskattn.models.leaves import Array, Leaf, Linear, Norm
from maskattn.models.part import B, Change, Part, Run, find
from maskattn.typing import Traced


class Inner(Protocol):
    """An MLP."""

    def apply(self, at: object, x: B, run: Run[B]) -> B:
        """x [B, L, E] -> [B, L, E]."""


@dataclass(frozen=True)
class Slots(Part):
    """Norms of a block: before attention, behind it, and behind its sum; the same of cross-attention and of the MLP."""

    attention_in: Norm | None = None
    attention_out: Norm | None = None
    attention_sum: Norm | None = None
    cross_in: Norm | None = None
    cross_sum: Norm | None = None
    mlp_in: Norm | None = None
    mlp_out: Norm | None = None
    mlp_sum: Norm | None = None


@dataclass(frozen=True)
class Block(Part):
    """One layer of a model.

    Attributes:
        parallel: whether the MLP reads what attention reads, normed by itself where it has a norm, and both are added
            at once.
        residual: what multiplies each branch before it is added.
        scales: learned factors of each channel, for the two branches; () has none.
        normed_sum: whether branches are added to what their first norm gave (BLOOM's option).
        dropout_rates: of attention's branches, and of the MLP's, before their last norm.
        depth_rates: how often such a whole branch of a sequence is dropped (stochastic depth).
        layer_rate: how often the whole block is, for all sequences (Fan et al. 2019, LayerDrop).
    """

    attention: Attention
    mlp: Inner
    norms: Slots
    cross: Attention | None = None
    parallel: bool = False
    residual: float = 1.0
    scales: tuple[Array, ...] = ()
    normed_sum: bool = False
    dropout_rates: tuple[float, float] = (0.0, 0.0)
    depth_rates: tuple[float, float] = (0.0, 0.0)
    layer_rate: float = 0.0

    def apply(self, at: object, h: B, run: Run[B], given: Given[B], cache: Traced = None) -> tuple[B, Traced]:
        """h [B, L, E] -> [B, L, E], and the new cache where there is one.

        Args:
            cache: of a block with cross-attention a pair: its own, and key and value of the memory, [B, S, heads *
                width], which the first step makes: it may be given its own alone.
        """
        made, cache = self._computed(at, h, run, given, cache)
        key = run.next_key() if self.layer_rate else None
        if key is None:
            return made, cache
        drawn: Traced = run.use.uniform(key, (1, 1, 1))
        return run.use.where(drawn >= self.layer_rate, made, h), cache

    def _computed(self, at: object, h: B, run: Run[B], given: Given[B], cache: Traced) -> tuple[B, Traced]:
        use, norms = run.use, self.norms
        given.note(h)
        own, held = cache if isinstance(cache, tuple) else (cache, None)
        x = run.norm(norms.attention_in, at, h)
        attended, own = self.attention.apply(at, x, run, given, own)
        attended = self._branch(0, at, attended, norms.attention_out, run)
        if self.parallel:
            read = x if norms.mlp_in is None else run.norm(norms.mlp_in, at, h)
            more = self._branch(1, at, self.mlp.apply(at, read, run), norms.mlp_out, run)
            return use.add(use.add(h, attended, self.residual), more, self.residual), own
        h = use.add(x if self.normed_sum else h, attended, self.residual)
        h = run.norm(norms.attention_sum, at, h)
        if self.cross is not None and (given.memory is not None or held is not None):
            read = run.norm(norms.cross_in, at, h)
            found, held = self.cross.across(at, read, run, given, held)
            h = run.norm(norms.cross_sum, at, use.add(h, run.drop(found, self.dropout_rates[0])))
        x = run.norm(norms.mlp_in, at, h)
        more = self._branch(1, at, self.mlp.apply(at, x, run), norms.mlp_out, run)
        h = use.add(x if self.normed_sum else h, more, self.residual)
        return run.norm(norms.mlp_sum, at, h), own if self.cross is None or cache is None else (own, held)

    def _branch(self, place: int, at: object, x: B, norm: Norm | None, run: Run[B]) -> B:
        x = run.norm(norm, at, run.drop(x, self.dropout_rates[place]))
        if self.scales:
            x = run.use.product(x, run.array(self.scales[place], at))
        if not self.depth_rates[place] or run.key is None:
            return x
        first: Traced = x
        ones = run.use.arithmetic.zeros((first.shape[0], 1, 1), x) + 1
        return run.use.product(x, run.drop(ones, self.depth_rates[place]))


@dataclass(frozen=True)
class Stack(Part):
    """Blocks one after the other.

    Attributes:
        places: the path of the module of each block; blocks at one path share their parameters.
        shared: parameters that blocks share, by their canonical names.
        final: the norm behind the last block. project: behind that, to the width of the head.
        relative: the table of positions that all blocks read. local: what stands behind the first block.
        frequencies: those of the rotary embedding, float32, where the model holds them; they count, whatever the
            configuration says.
        dropout_rate: behind the last norm.
        bare: whether the last of the hidden states that are kept is what the last block gave, without the norm.
    """

    blocks: tuple[Block, ...]
    places: tuple[str, ...]
    shared: tuple[tuple[str, Leaf], ...] = ()
    final: Norm | None = None
    project: Linear | None = None
    dropout_rate: float = 0.0
    bare: bool = False
    relative: Relative | None = None
    local: Local | None = None
    frequencies: Array | None = None

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Leaf]]:
        seen: set[str] = set()
        for block, place in zip(self.blocks, self.places, strict=True):
            if place not in seen:
                seen.add(place)
                yield from block.leaves(f"{prefix}{place}.")
        yield from Part.leaves(replace(self, blocks=()), prefix)

    def changed(self, change: Change, prefix: str = "") -> Stack:
        each = zip(self.blocks, self.places, strict=True)
        blocks = tuple(block.changed(change, f"{prefix}{place}.") for block, place in each)
        return replace(Part.changed(replace(self, blocks=()), change, prefix), blocks=blocks)

    def each(self) -> Iterator[tuple[str, Block]]:
        """(path, block) of all, each path once."""
        yield from dict(zip(self.places, self.blocks, strict=True)).items()

    def period(self) -> tuple[int, int, int]:
        """(first, period, times): from `first` on blocks are alike, each to the one `period` before it, so that they
        can be one loop of `times` steps. `times` is 0 where no two are."""
        count = len(self.blocks) if len(set(self.places)) == len(self.places) else 0
        best = (0, 1, 0)
        for period in range(1, count // 2 + 1):
            apart = -1 if self.local is None else 0
            alike = [self.blocks[n] == self.blocks[n - period] and n - period > apart for n in range(period, count)]
            first = count - period - (alike[::-1] + [False]).index(False)
            times = (count - first) // period
            if times > 1 and times * period > best[1] * best[2]:
                best = (first, period, times)
        return best

    def apply(
        self, at: object, h: B, run: Run[B], given: Given[B], caches: tuple[Traced, ...] | None = None
    ) -> tuple[B, tuple[Traced, ...] | None]:
        """h [B, L, E] -> what the stack gives, and the new caches."""
        given.shared = {name: run.array(leaf, at) for name, leaf in self.shared}
        if self.relative is not None:
            given.relative = self.relative.apply(at, h, run)
        if self.frequencies is not None:
            given.frequencies = run.array(self.frequencies, at)
        read, number = h, 0
        grown: list[Traced] = []
        while number < len(self.places):
            if number == 0:
                run.note(f"before {self.places[0]}", h)
            block: Traced = find(at, self.places[number])
            h, cache = block(h, run, number, given, None if caches is None else caches[len(grown)])
            if number == 0 and self.local is not None:
                h = self.local.apply(at, read, h, run, given.keep)
            run.note(self.places[number], h)
            grown.append(cache)
            number += block.spans
        last = h
        h = run.drop(run.norm(self.final, at, h), self.dropout_rate)
        h = h if self.project is None else run.linear(self.project, at, h)
        behind = self.project or self.final
        if behind is not None:
            run.note(behind.name, h)
        given.note(last if self.bare else h)
        return h, None if caches is None else tuple(grown)
