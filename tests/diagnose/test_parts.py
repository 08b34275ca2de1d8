"""PyTorch's attention in its parts: the same numbers as its kernel's, and each part recorded."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from maskattn.diagnose.compare import TOLERANCE
from maskattn_torch.tracing import record
from maskattn_torch.tracing.parts import attention

draw = np.random.default_rng(0)
QUERY, KEY, VALUE = (torch.from_numpy(draw.standard_normal((2, 4, size, 8))) for size in (5, 7, 7))
FEW = {"key": KEY[:, ::2], "value": VALUE[:, ::2], "enable_gqa": True}
MASK = torch.from_numpy(draw.random((2, 1, 5, 7)) > 0.4)
EMPTY = MASK.clone()
EMPTY[0, 0, 2] = False
CASES = {
    "plain": {},
    "scale": {"scale": 0.3},
    "causal": {"is_causal": True},
    "mask": {"attn_mask": MASK},
    "a row that attends to nothing": {"attn_mask": EMPTY},
    "bias": {"attn_mask": torch.from_numpy(draw.standard_normal((5, 7)))},
    "groups": FEW,
    "groups, causal": {**FEW, "is_causal": True, "scale": 2.0},
}


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_parts_give_what_the_kernel_gives(case):
    given = {"query": QUERY, "key": KEY, "value": VALUE, **CASES[case]}
    made, right = attention(**given), functional.scaled_dot_product_attention(**given)
    assert float((made - right).abs().max()) <= TOLERANCE["float64"] * float(right.abs().max())


@pytest.mark.torch
def test_parts_are_recorded_and_settings_are_left_as_they_were():
    fast = torch.backends.mha.get_fastpath_enabled()
    layer = torch.nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).eval()
    for function in (layer, lambda x: functional.scaled_dot_product_attention(x, x, x)):
        names = {node.name for node in record(function, (draw.standard_normal((2, 5, 16)),), {}, wide=True).nodes}
        assert "_softmax" in names and not any("attention" in name or "transformer" in name for name in names)
    assert torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.torch
def test_convolutions_one_behind_the_other_are_recorded():
    """Numbers are float64 behind the first, kernels are float32: PyTorch refuses that before it dispatches."""
    model = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 3), torch.nn.Conv1d(4, 5, 2, stride=2, padding=1)).eval()
    x = draw.standard_normal((2, 3, 9)).astype(np.float32)
    found = record(model, (x,), {}, wide=True)
    (number,) = found.outputs.values()
    with torch.no_grad():
        right = model.double()(torch.from_numpy(x).double()).numpy()
    assert np.abs(found.nodes[number].value - right).max() <= TOLERANCE["float64"] * np.abs(right).max()
