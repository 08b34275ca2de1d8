"""Layers with parts on a GPU that is not there: nothing waits for it."""

import pytest

from maskattn import masks
from tests.modules.test_run import LAYERS, MASK

torch = pytest.importorskip("torch")

import maskattn_torch
from maskattn_torch.kernels.blockwise import flex
from tests.fake_cuda import NoWaiting, fake_cuda


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_waits(name, monkeypatch):
    monkeypatch.setattr(flex, "_has_triton", lambda: True)
    config, mask, given = LAYERS[name]
    with fake_cuda():
        module = maskattn_torch.MultiHeadAttention(config, device="cuda", dtype=torch.bfloat16)
        x = torch.empty(2, 9, 60, device="cuda", dtype=torch.bfloat16)
        given = {key: torch.from_numpy(value).to("cuda", non_blocking=True) for key, value in given.items()}
        given = {key: value.bfloat16() if value.is_floating_point() else value for key, value in given.items()}
        if mask is MASK:
            mask = masks.Causal() & masks.KeyPadding(torch.empty(2, dtype=torch.int32, device="cuda"))
        with NoWaiting():
            assert module(x, mask=mask, **given).shape == x.shape
