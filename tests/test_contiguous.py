import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from maskattn import _contiguous
from maskattn._contiguous import contiguous

DTYPES = ["u1", "f2", "f4", "f8", "c16", ">f4", "?", "V2", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, "f4,i2"]


def raw(shape, dtype):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    data = np.random.default_rng(0).integers(0, 2 if dtype == "?" else 256, size, dtype=np.uint8)
    return data.view(dtype).reshape(shape)


@pytest.fixture(params=["as it is", "tiny tiles"])
def tiles(request, monkeypatch):
    """With tiny tiles and no lower bounds, small arrays take every path that large ones take."""
    if request.param == "tiny tiles":
        for name, value in {"SOURCE_RUN": 4, "RESULT_RUN": 3, "TILED_FROM": 1, "THREADED_FROM": 64}.items():
            monkeypatch.setattr(_contiguous, name, value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_permutation_slice_and_direction(tiles, dtype):
    array = raw((5, 1, 7, 6), dtype)
    for order in itertools.permutations(range(4)):
        for part in (np.s_[:], np.s_[::2], np.s_[..., ::-1], np.s_[::-1, :, 1:5:3], np.s_[..., 0], np.s_[:, :0]):
            view = array.transpose(order)[part]
            made = contiguous(view)
            assert made.flags.c_contiguous and made.dtype == view.dtype and made.tobytes() == view.tobytes()
            assert made.shape == view.shape
    heads = raw((24, 35), dtype).T.reshape(35, 4, 6)
    assert contiguous(heads).tobytes() == heads.tobytes()
    spread = np.broadcast_to(raw((7, 1), dtype), (3, 7, 5))
    assert contiguous(spread).tobytes() == spread.tobytes()
    assert contiguous(raw((), dtype)).shape == ()


@pytest.mark.parametrize("dtype", ["u1", "f4", ml_dtypes.bfloat16], ids=str)
def test_large_arrays_in_two_threads(dtype):
    array = raw((1200, 5, 1100), dtype)
    for view in (array.T, array.transpose(2, 1, 0)[::-1], array.transpose(1, 2, 0)):
        assert contiguous(view).tobytes() == view.tobytes()


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_strided_view(data):
    shape = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    view = raw(shape, data.draw(st.sampled_from(["u1", "f4", ml_dtypes.bfloat16])))
    view = view.transpose(data.draw(st.permutations(range(len(shape)))))
    for axis in range(view.ndim):
        step = data.draw(st.sampled_from([1, 1, 2, -1, -3]))
        view = view[(slice(None),) * axis + (slice(None, None, step),)]
    assert contiguous(view).tobytes() == view.tobytes()


def test_what_is_contiguous_is_returned_and_out_is_checked():
    array = raw((3, 4), "f4")
    assert contiguous(array) is array
    out = np.empty((4, 3), "f4")
    assert contiguous(array.T, out) is out and out.tobytes() == array.T.tobytes()
    for wrong in (np.empty((3, 4), "f4"), np.empty((4, 3), "f8"), np.empty((3, 4), "f4").T):
        with pytest.raises(ValueError, match=r"out: expected a C-contiguous array of shape \[4, 3\] and dtype float32"):
            contiguous(array.T, wrong)


@pytest.mark.parametrize("dtype", ["uint8", "bfloat16", "float32", "complex128"])
def test_fill_writes_the_same_where_both_are_strided(dtype, monkeypatch):
    """A layer's part of a stacked tensor: the rows of the target lie apart, those of the source are columns."""

    monkeypatch.setattr(_contiguous, "TILED_FROM", 0)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    draw = np.random.default_rng(0)
    for axis in range(3):
        source = (draw.random((70, 9, 31)) * 100).astype(kind)
        for view in (source, source.transpose(2, 1, 0), source.transpose(1, 0, 2), source[:, ::-1, ::3]):
            stacked = np.zeros((*view.shape[:axis], 3, *view.shape[axis:]), kind)
            expected = stacked.copy()
            np.moveaxis(expected, axis, 0)[1] = view
            _contiguous.fill(np.moveaxis(stacked, axis, 0)[1], view)
            assert stacked.tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match=r"target of shape \[2\] and dtype float64, source of shape \[3\]"):
        _contiguous.fill(np.zeros(2), np.zeros(3))
