"""A checkpoint as the model it holds, free of any library's names: what every conversion passes through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from maskattn.config import AttentionConfig
from maskattn.convert.families import Form, Rule
from maskattn.convert.layouts import Layout, Step
from maskattn.convert.lazy import Lazy, Read

Heads = tuple[int | None, int | None]
"""Query heads and key/value heads."""


class Layer(NamedTuple):
    """One attention layer in one layout.

    Attributes:
      rule, indices: its place in the family's table. where: what messages about it begin with.
      layout: the one its tensors are in. tensors: by their names there. config: its sizes, once it was read.
      steps: what bringing it into this layout is more than moving numbers. checks: read numbers, and raise ValueError
        where they are not what the steps take them to be. dropped: tensors of the checkpoint that are left out.
      tables: those among them that no layout makes again.
    """

    rule: Rule
    indices: tuple[int, ...]
    where: str
    layout: Layout
    tensors: dict[str, Lazy]
    config: AttentionConfig = None  # type: ignore[assignment]  # nobody asks before it is read
    steps: tuple[Step, ...] = ()
    checks: tuple[Callable[[Read], None], ...] = ()
    dropped: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()

    @property
    def own_name(self) -> str:
        """What the file calls it."""
        return self.where.rpartition(" (")[0] or self.where.rstrip(".:/ ") or "the layer"

    @property
    def all_of_it(self) -> str:
        """What messages begin with that are about no single tensor."""
        return (self.where.rstrip(".:/ ") or "the layer") + ": "


@dataclass
class Model:
    """What a checkpoint holds, under the names that all families of the model share: `blocks.3.norm1.scale`.

    Attributes:
      form: the one it was found in. evidence: what shows it.
      tensors: of modules, as Flax has them: `kernel` [in, out], `scale`, `embedding`.
      layers: the attention layers: in the layout of the form as it is found, in the canonical one when it was read.
      buffers: tensors that a model computes when it is built, by their names in the checkpoint.
      left_over, missing: names that have no place in the form, and places without a name. unread: those that no model
        reads. faults: layers that are not
        as many as they must be.
      steps, checks: of all layers. dropped: tensors of the checkpoint that are not carried over, and why.
      tables: those of the dropped that a model computes, and whose bytes are kept for the way back.
      ties, shared: heads that were made of the embedding; tensors left out because they are it.
      reasons: everything that is wrong. notes: what a person should know. headline: what a refusal begins with.
    """

    form: Form
    evidence: tuple[str, ...] = ()
    tensors: dict[str, Lazy] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    buffers: dict[str, tuple[Rule, Lazy]] = field(default_factory=dict)
    left_over: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    steps: dict[str, Step] = field(default_factory=dict)
    checks: list[Callable[[Read], None]] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    ties: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    headline: str = ""

    @property
    def complete(self) -> bool:
        """Whether every name has its place and every place its name."""
        return not self.left_over and not self.missing and not self.faults

    def note(self, layer: Layer) -> None:
        """Notes what there is to say of a layer that was brought into another layout; equal steps once."""
        self.steps.update({str(step): step for step in layer.steps})
        self.checks += layer.checks
        self.tables += layer.tables
        self.dropped.update(dict.fromkeys(layer.dropped, "checked to be what a model computes when it is built"))
