"""Mixtures of experts: who is chosen, and that nobody else is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maskattn import models, standards
from maskattn.models.experts import Router
from maskattn.models.leaves import Linear
from maskattn.models.part import Run

pytestmark = pytest.mark.hurried

#: Rows of each of six groups: some have none, one has more than a block of rows.
COUNTS = (3, 0, 11, 1, 0, 6)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape[0]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("turned", [False, True])
def test_rows_meet_the_matrix_of_their_group_alone(twin: Any, turned: bool) -> None:
    x, weights, given = drawn(21, 5), drawn(6, 5, 4), drawn(21, 4)
    group = np.repeat(np.arange(6), COUNTS)
    right = np.einsum("ni,nio->no", x, weights[group])
    of_x = np.einsum("no,nio->ni", given, weights[group])
    of_weights = np.zeros_like(weights)
    np.add.at(of_weights, group, x[:, :, None] * given[:, None])
    weights[[1, 4]] = np.nan  # what no row is of is not read
    counts = twin.array(np.array(COUNTS, np.int32))
    if turned:
        weights, of_weights = weights.swapaxes(1, 2).copy(), of_weights.swapaxes(1, 2)

    def product(x: Any, weights: Any) -> Any:
        return (twin.models.ops.OPS.grouped(x, weights, counts, turned),)

    found = twin.vjp(product, (x, weights), (given,))
    for made, wanted in zip(found, (right, of_x, of_weights), strict=True):
        assert np.abs(made - wanted).max() <= standards.value("tier4.float32") * np.abs(wanted).max()


def test_of_equal_experts_the_first_is_chosen(twin: Any) -> None:
    use = twin.models.ops.OPS
    given = np.array([[1, 3, 2, 3, 3, 0], [0, 0, 0, 0, 0, 0]], np.float32)
    assert twin.to_numpy(use.top(twin.array(given), 4)).tolist() == [[1, 3, 4, 2], [0, 1, 2, 3]]


def test_groups_come_together_in_their_order(twin: Any) -> None:
    order, back, counts = twin.models.ops.OPS.groups(twin.array(np.array([[2, 0], [4, 2], [0, 2]])), 6)
    assert twin.to_numpy(order).tolist() == [1, 4, 0, 3, 5, 2]
    assert twin.to_numpy(back)[twin.to_numpy(order)].tolist() == list(range(6))
    assert np.asarray(counts).tolist() == [2, 0, 3, 0, 1, 0]


def test_groups_that_are_not_kept_are_not_chosen(twin: Any) -> None:
    use = twin.models.ops.OPS
    router = Router(Linear("gate", 6, 6), 2, groups=3, kept=1)
    by = twin.array(np.array([[0.3, 0.2, 0.4, 0.0, 0.05, 0.05]], np.float32))
    assert twin.to_numpy(router._within_groups(by, Run(use))).tolist() == [[0, 0, np.float32(0.4), 0, 0, 0]]
    # of its two best together the first group is the better one
    router = Router(Linear("gate", 6, 6), 2, "sigmoid", groups=3, kept=1)
    kept = twin.to_numpy(router._within_groups(by, Run(use)))
    assert kept[0, :2].tolist() == by[0, :2].tolist() and np.isneginf(kept[0, 2:]).all()


def test_a_way_to_choose_groups_that_is_not_known_is_refused() -> None:
    config = {"model_type": "deepseek_v2", "topk_method": "noaux_tc", "hidden_size": 8, "num_attention_heads": 2}
    config |= {"qk_rope_head_dim": 2, "qk_nope_head_dim": 2, "v_head_dim": 2, "kv_lora_rank": 3, "vocab_size": 9}
    config |= {"num_hidden_layers": 1, "intermediate_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2}
    config |= {"moe_intermediate_size": 8, "n_shared_experts": 1, "n_group": 2, "topk_group": 1}
    with pytest.raises(ValueError, match="topk_method must be greedy or group_limited_greedy, got 'noaux_tc'"):
        models.describe(config)
    config["topk_method"] = "greedy"
    names = [path for path, _ in models.describe(config).leaves()]
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    assert "model.layers.0.self_attn.kv_a_proj_with_mqa" in names
