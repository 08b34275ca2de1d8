"""What another program may have done otherwise, a family of edits in each file."""

from collections.abc import Iterator

from maskattn_torch.tracing.edits import (
    activations,
    attention,
    constants,
    embeddings,
    experts,
    fused,
    layers,
    linear,
    norms,
    operands,
    outputs,
    rotary,
)
from maskattn_torch.tracing.replay import Edit, Edits, Program

#: All families, those first that say most of what was done.
FAMILIES: tuple[Edits, ...] = (
    attention.edits,
    rotary.edits,
    norms.edits,
    activations.edits,
    embeddings.edits,
    constants.edits,
    experts.edits,
    linear.edits,
    fused.edits,
    outputs.edits,
    layers.edits,
    operands.edits,
)


def edits(program: Program) -> Iterator[Edit]:
    """All edits of the calls that are near."""
    for family in FAMILIES:
        yield from family(program)
