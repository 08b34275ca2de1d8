"""Steps of one token on the CPU, where most is known from the step before: what they give, whatever came between."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from maskattn import masks, standards
from maskattn_torch import _short, attention
from maskattn_torch.cache import Cache

B, H, K, D, V = 3, 4, 2, 8, 6
WINDOW = masks.Causal() & masks.SlidingWindow(4)


def token(heads, width, batch=B):
    return torch.randn(batch, 1, heads, width)


def empty(rolling=False, batch=B):
    return Cache.empty(batch, 5 if rolling else 12, K, D, V, rolling=rolling)


def stepped(cache, mask, query=None):
    """The cache with one more token in each row, whose attention is that of the tokens that the slots hold."""
    before = cache.lengths.clone()
    key, value = token(K, D, cache.batch), token(K, V, cache.batch)
    cache = cache.update(key, value)
    assert torch.equal(cache.lengths, before + 1) and cache.lengths.dtype == torch.int32
    for b, slot in enumerate((before % cache.size).tolist()):
        assert torch.equal(cache.key[b, slot], key[b, 0]) and torch.equal(cache.value[b, slot], value[b, 0])
    query = token(H, D, cache.batch) if query is None else query
    step = cache.mask(mask, 1)
    found = attention(query, cache.key, cache.value, step)
    places, newest = cache.positions[:, None, None, :], before[:, None, None, None]
    allowed = (places >= 0) & (places <= newest) & (places > newest - (5 if mask is WINDOW else 99))
    assert torch.equal(torch.as_tensor(step.dense(1, cache.size, cache.batch)), allowed.expand(cache.batch, 1, 1, -1))
    held = cache.key.nan_to_num(), cache.value.nan_to_num()
    wanted = attention(query, *held, allowed.contiguous(), kernel="reference")
    limit = standards.value("same.tiles") * float(wanted.detach().abs().max())
    np.testing.assert_allclose(found.detach().numpy(), wanted.detach().numpy(), rtol=0, atol=limit)
    return cache


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("rolling", [False, True])
@pytest.mark.parametrize("mask", [masks.Causal(), WINDOW])
def test_steps_after_whatever_came_between(mask, rolling, grad):
    if rolling and mask is not WINDOW:
        pytest.skip("no rolling cache holds it")
    with torch.set_grad_enabled(grad):
        cache = empty(rolling)
        for _ in range(7):
            cache = stepped(cache, mask)
        # rows that differ, and back again
        cache = empty(rolling).update(*[torch.randn(B, 3, K, n) for n in (D, V)], lengths=torch.tensor([1, 3, 0]))
        for _ in range(6):
            cache = stepped(cache, mask)
        if not rolling:
            cache = cache.rewind(torch.tensor([2, 1, 5]))
            cache.stored[0][:, :, 6:] = torch.nan  # what is not in use reaches nothing
            cache.stored[1][:, :, 6:] = torch.nan
            cache = stepped(cache, mask)
        cache = stepped(cache.reorder(torch.tensor([2, 0])), mask)
        for again in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
            cache = stepped(stepped(again, mask), mask)
        mask_again = pickle.loads(pickle.dumps(cache.mask(mask, 1)))
        assert mask_again == cache.mask(mask, 1)


def test_a_step_goes_to_sdpa_at_once(monkeypatch):
    calls, whole = [], _short.attend_anew
    monkeypatch.setattr(_short, "attend_anew", lambda *given: calls.append(given) or whole(*given))
    cache, query = empty(), token(H, D)
    with torch.no_grad():
        for _ in range(6):
            cache = cache.update(token(K, D), token(K, V))
            attention(query, cache.key, cache.value, cache.mask(masks.Causal(), 1))
        many = len(calls)
        cache = cache.update(token(K, D), token(K, V))
        step = cache.mask(masks.Causal(), 1)
        attention(query, cache.key, cache.value, step)
        assert len(calls) == many <= 1
        # what asks for more is done anew
        attention(query, cache.key, cache.value, step, softcap=5.0)
        attention(query, cache.key, cache.value, step, return_lse=True)
        assert len(calls) == many + 2


def test_gradients_go_to_the_query_of_a_step():
    cache = empty(batch=1)
    for _ in range(4):
        cache = stepped(cache, masks.Causal(), token(H, D, 1).requires_grad_())
    query = token(H, D, 1).requires_grad_()
    step = cache.mask(masks.Causal(), 1)
    out = attention(query, cache.key, cache.value, step)
    other = attention(query, cache.key[:, :4], cache.value[:, :4], kernel="reference")
    found, wanted = (torch.autograd.grad(x.sum(), query)[0] for x in (out, other))
    limit = standards.value("same.tiles") * float(wanted.abs().max())
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=0, atol=limit)


def test_keys_that_ask_for_gradients_are_not_written_in_place():
    cache = stepped(empty(), masks.Causal())
    key = token(K, D).requires_grad_()
    after = cache.update(key, token(K, V))
    assert after.stored[0] is not cache.stored[0] and after.key.requires_grad
    assert not cache.key[:, 1].any()


def test_a_row_that_would_run_over_is_refused():
    cache = empty()
    for _ in range(12):
        cache = cache.update(token(K, D), token(K, V))
    with pytest.raises(ValueError, match="12 slots, but row 0 would have 13"):
        cache.update(token(K, D), token(K, V))


def test_a_query_elsewhere_is_refused_as_ever():
    cache = stepped(stepped(stepped(empty(), masks.Causal()), masks.Causal()), masks.Causal())
    with pytest.raises((TypeError, ValueError), match="query"):
        attention(token(H, D).to("meta"), cache.key, cache.value, cache.mask(masks.Causal(), 1))


def test_the_next_position_of_all_rows_is_known_where_it_is_one():
    cache = empty()
    assert cache.first_position == 0
    cache = stepped(cache, masks.Causal())
    assert cache.first_position == 1
    ragged = cache.update(token(K, D), token(K, V), lengths=[1, 0, 1])
    assert ragged.first_position is None
    assert ragged.rewind(1).first_position == 1
