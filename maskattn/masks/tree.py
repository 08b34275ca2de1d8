from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from maskattn._arithmetic import choose, zero
from maskattn._declared import data, declared
from maskattn._examples import Draws, Sizes
from maskattn._fields import Array, peek
from maskattn._lookup import extent, gather, wide
from maskattn._pairs import fixed
from maskattn._problems import Problems
from maskattn.masks._core import Mask

if TYPE_CHECKING:
    from jaxtyping import Int


@declared
class Tree(Mask):
    """k is q or an ancestor of q in the tree that `parents` describes. True = may attend.

    Speculative decoding over a tree of drafts (SpecInfer, Medusa, EAGLE), where the tokens of a call are the nodes
    (L = S). Several roots, and nodes in any order, are allowed.

    `first` and `last` are found in O(N) from parents in NumPy; from an array of a framework, which may be traced, by
    arithmetic that takes O(N^2) memory. What is wrong with the values of a traced array is not told.

    >>> from maskattn import masks
    >>> print(masks.draw(masks.Tree([-1, 0, 0, 1, 2]), 5, 5))
    #----
    ##---
    #-#--
    ##-#-
    #-#-#
    >>> print(masks.draw(masks.Tree([-1, 0, 0, 1, 2]).at(q_offset=3), 2, 5))
    ##-#-
    #-#-#
    """

    parents: Int[Array, "*B N"] = data("int", "[N] or [B, N]", meaning="the node before each, -1 for a root")
    first: Int[Array, "B N"] = data(init=False, meaning="the number of each node in depth-first order, int [B, N]")
    last: Int[Array, "B N"] = data(
        init=False, meaning="the largest number among its descendants and itself, int [B, N]"
    )

    rule: ClassVar[str] = "key is the query or one of its ancestors"

    def _check(self, problems: Problems) -> None:
        """a parent is neither -1 nor a node, or there is a cycle"""
        rows = self.parents if len(self.parents.shape) == 2 else self.parents[None]
        values = peek(rows)
        numbers = None if values is None else _number(problems, values)
        if not problems and not isinstance(rows, np.ndarray):
            numbers = _number_by_arithmetic(wide(rows))
        if numbers is not None:
            self._set(first=numbers[0], last=numbers[1])

    def allowed(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        number, q_inside = gather(self.first, b, q)
        first, k_inside = gather(self.first, b, k)
        last, _ = gather(self.last, b, k)
        return (first <= number) & (number <= last) & q_inside & k_inside

    def tile(self, b: Array, h: Array, q_lo: Array, q_hi: Array, k_lo: Array, k_hi: Array) -> tuple[Array, Array]:
        q_least, q_most, q_some, q_every = extent(self.first, b, q_lo, q_hi)
        k_least, k_most, k_some, k_every = extent(self.first, b, k_lo, k_hi)
        end_least, end_most, _, _ = extent(self.last, b, k_lo, k_hi)
        some = (k_least <= q_most) & (q_least <= end_most) & q_some & k_some
        return some, (k_most <= q_least) & (q_most <= end_least) & q_every & k_every

    @property
    def depends(self) -> frozenset[str]:
        return frozenset("qk") if self.first.shape[0] == 1 else frozenset("bqk")

    def sizes(self) -> dict[str, int]:
        batch, nodes = self.first.shape
        return fixed(batch, q_len=nodes, kv_len=nodes)

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Mask]:
        nodes = shape.kv_len
        if shape.q_len != nodes or nodes < 1:
            return []
        trees = [[draws.integer(-1, node) for node in range(nodes)] for _ in range(shape.batch)]
        # the same trees with their nodes in the opposite order, so that parents come after their children
        opposite = [[nodes - 1 - parent if parent >= 0 else -1 for parent in reversed(tree)] for tree in trees]
        return [cls(trees[0]), cls(opposite)]


def _number(problems: Problems, parents: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(first, last) of every node, int64 [B, N]; None where a fault was noted."""
    nodes = parents.shape[1]
    if parents.size and not (-1 <= int(parents.min()) and int(parents.max()) < nodes):
        problems.value(f"parents must be -1 or one of {nodes} nodes, got {int(parents.min())} to {int(parents.max())}")
        return None
    first = np.full(parents.shape, -1, np.int64)
    last = np.zeros(parents.shape, np.int64)
    for row, tree in enumerate(parents.tolist()):
        children: list[list[int]] = [[] for _ in range(nodes + 1)]  # of -1, the last: the roots
        for node in range(nodes - 1, -1, -1):
            children[tree[node]].append(node)  # the least on top of the stack
        order: list[int] = []
        stack = list(children[-1])
        while stack:
            node = stack.pop()
            first[row, node] = len(order)
            order.append(node)
            stack.extend(children[node])
        if len(order) < nodes:
            problems.value(f"parents must have no cycle, got one that node {int(first[row].argmin())} leads to")
            return None
        last[row] = first[row]
        for node in reversed(order):
            if tree[node] >= 0:
                last[row, tree[node]] = max(last[row, tree[node]], last[row, node])
    return first, last


def _number_by_arithmetic(parents: Array) -> tuple[Array, Array]:
    """The same in any framework, traced or not, for parents [B, N] that are trees."""
    ones = zero(parents) + 1
    row, node = ones.cumsum(0) - 1, ones.cumsum(1) - 1
    above = node[:, :, None] == node[:, None, :]  # [b, i, a]: whether a is i, or an ancestor at most 2^s - 1 before it
    jump = parents  # the ancestor 2^s before
    for _ in range(max(int(parents.shape[1]) - 1, 0).bit_length()):
        known, some = jump * (jump >= 0), jump >= 0
        above = above | (above[row, known] & some[:, :, None])
        jump = choose(some, jump[row, known], -1)
    size = above.sum(1)
    sibling = (parents[:, :, None] == parents[:, None, :]) & (node[:, :, None] > node[:, None, :])
    before = (sibling * size[:, None, :]).sum(2)  # nodes in the trees of the siblings that come first
    first = (above * (before[:, None, :] + 1)).sum(2) - 1
    return first, first + size - 1
