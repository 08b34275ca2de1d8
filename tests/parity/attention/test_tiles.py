"""The suite runs the blockwise kernels in small tiles: what goes wrong between tiles shows, in both twins."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from maskattn.parity.attention import adapters, cases
from maskattn.parity.attention.cases import SHAPES, get
from maskattn.parity.attention.run import run_cases
from tests.frameworks import in_both, optional

pytestmark = pytest.mark.hurried

in_jax = optional("maskattn_jax.kernels.blockwise")
in_torch = optional("maskattn_torch.kernels.blockwise.walk")

CASES = ("Causal/square/float32/0", "Full/wide/float32/0", "planted/nan/padding/float32")


def first_tiles_only(monkeypatch):
    """Plant in both twins: of a row of tiles only the first step is taken, so that one tile by itself is right."""
    cheapest, patches_of = in_jax.cheapest, in_torch.patches_of

    def fewer_steps(*arguments):
        tiling, steps = cheapest(*arguments)
        after = np.array(steps.after)
        after[..., 1:] = tiling.kv_tiles
        return tiling, replace(steps, after=after)

    def fewer_patches(*arguments):
        found = patches_of(*arguments)
        backward, forward = (tuple(x for x in some if x.piece.first) for some in (found.backward, found.forward))
        return replace(found, backward=backward, forward=forward, whole=False, covered=False)

    monkeypatch.setattr(in_jax, "cheapest", fewer_steps)
    monkeypatch.setattr(in_torch, "patches_of", fewer_patches)


def outcomes(case_id, **options):
    """How each twin fares; eagerly, since a compiled function would hide what is planted, or outlive it."""
    found = run_cases([get(case_id)], adapters.twins("blockwise", mode="eager", **options), kernel="blockwise")
    return {outcome.subject.partition("-")[0]: (outcome.status, outcome.failures) for outcome in found.outcomes}


@pytest.mark.parametrize("case_id", CASES)
@in_both
def test_a_fault_between_tiles_is_reported(case_id, monkeypatch):
    assert outcomes(case_id) == dict.fromkeys(adapters.TWINS, ("held", []))
    first_tiles_only(monkeypatch)
    assert outcomes(case_id, blocks=None) == dict.fromkeys(adapters.TWINS, ("held", []))
    seen = outcomes(case_id)
    assert {twin: status for twin, (status, _) in seen.items()} == dict.fromkeys(adapters.TWINS, "failed")
    assert all(any("output" in line for line in lines) for _, lines in seen.values())


def test_what_was_compiled_for_one_size_of_tile_is_not_used_for_another(monkeypatch):
    cheapest, seen = in_jax.cheapest, []

    def recording(*arguments):
        tiling, steps = cheapest(*arguments)
        seen.append((tiling.q_block, tiling.kv_block))
        return tiling, steps

    monkeypatch.setattr(in_jax, "cheapest", recording)
    case = replace(get("Causal/square/float32/0"), scale=0.1875)  # a compilation of its own
    small = adapters.twin("jax", "blockwise")
    for adapter in (replace(small, blocks=None), small, replace(small, blocks=None), small):
        adapter.run(case, cases.inputs(case), None, cases.cotangent(case))
    assert seen == [(24, 24), adapters.TILES]


@in_both
def test_adapters_bring_their_tiles_along():
    for adapter in adapters.standard("blockwise"):
        assert adapter.blocks == adapters.TILES and pickle.loads(pickle.dumps(adapter)) == adapter
    assert all(adapter.blocks is None for adapter in adapters.twins("reference"))


def test_every_shape_but_the_smallest_has_several_tiles():
    q_block, kv_block = adapters.TILES
    tiles = {name: -(-s.q_len // q_block) * -(-s.kv_len // kv_block) for name, s in SHAPES.items()}
    assert tiles == {"square": 20, "wide": 4, "tall": 4, "row": 3, "one": 1}
