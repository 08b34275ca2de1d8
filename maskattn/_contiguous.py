"""Permuted arrays laid out anew, some ten times faster than NumPy copies them.

NumPy copies a transpose row by row, and every element it reads brings in a cache line of which it uses one entry.
Copied in tiles, each line is used whole; tiles also share out over threads, since NumPy releases the interpreter while
it copies. ``benchmarks/contiguous.py`` measures it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from maskattn.typing import NumPyArray as Array

# A tile: SOURCE_RUN elements that lie together in the source by RESULT_RUN that lie together in the result. It goes
# through a buffer that stays in the cache, whose rows are PADDING bytes longer, so that they share no sets of it.
SOURCE_RUN = 256
RESULT_RUN = 512
PADDING = 64
# Below these sizes in bytes, a plain copy is as fast, and a second thread costs more than it saves.
TILED_FROM = 2**17
THREADED_FROM = 2**22
THREADS = 2

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def contiguous(view: Array, out: Array | None = None) -> Array:
    """The values of ``view`` in C order: ``view`` itself where it is so already, otherwise a fresh array.

    Args:
        view: any strided array, of any dtype whose items hold no Python objects; its byte order is kept.
        out: a C-contiguous array of the same shape and dtype to fill and return instead.

    Raises:
        ValueError: ``out`` has another shape, dtype or memory order.
    """
    if out is None:
        if view.flags.c_contiguous:
            return view
        out = np.empty(view.shape, view.dtype)
    elif out.shape != view.shape or out.dtype != view.dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"out: expected a C-contiguous array of shape {list(view.shape)} and dtype {view.dtype}, "
            f"got shape {list(out.shape)}, dtype {out.dtype}, strides {out.strides}"
        )
    if view.nbytes < TILED_FROM or view.dtype.hasobject:
        out[...] = view
        return out
    _fill(out, view)
    return out


def fill(target: Array, source: Array) -> None:
    """``target[...] = source`` for arrays of one shape and dtype, as fast where both are strided.

    Raises:
        ValueError: their shapes or dtypes differ.
    """
    if target.shape != source.shape or target.dtype != source.dtype:
        raise ValueError(
            f"target of shape {list(target.shape)} and dtype {target.dtype}, source of shape {list(source.shape)} and "
            f"dtype {source.dtype}"
        )
    if source.nbytes < TILED_FROM or source.dtype.hasobject or 0 in source.strides:
        target[...] = source
    else:
        _fill(target, source)


def _fill(target: Array, source: Array) -> None:
    target, source = _merged(*_as_integers(target, source))
    if source.ndim < 2 or abs(source.strides[-1]) == source.itemsize:
        _parallel(target, source, None)  # the rows lie together: NumPy copies them as they are
    else:
        _parallel(target, source, int(np.argmin(np.abs(source.strides))))


def _as_integers(target: Array, source: Array) -> tuple[Array, Array]:
    """Both as unsigned integers of their size: NumPy moves bfloat16 one call per element."""
    unsigned = _UNSIGNED.get(source.itemsize)
    return (target.view(unsigned), source.view(unsigned)) if unsigned else (target, source)


def _merged(target: Array, source: Array) -> tuple[Array, Array]:
    """Both with neighbouring axes joined where the strides allow it: [E, H, D] of a transpose is [E, H*D]."""
    axes: list[tuple[int, int, int]] = []
    for size, to, stride in zip(source.shape, target.strides, source.strides, strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1:] == (to * size, stride * size):
            axes[-1] = (axes[-1][0] * size, to, stride)
        else:
            axes.append((size, to, stride))
    shape = tuple(size for size, _, _ in axes)
    strided = np.lib.stride_tricks.as_strided
    return (
        strided(target, shape, tuple(to for _, to, _ in axes)),
        strided(source, shape, tuple(stride for _, _, stride in axes), writeable=False),
    )


def _parallel(target: Array, source: Array, fastest: int | None) -> None:
    """Copies halves of the longest axis at once."""
    size, axis = max((size, -i) for i, size in enumerate(source.shape))
    if source.nbytes < THREADED_FROM or size < THREADS:
        _copy(target, source, fastest)
        return
    cuts = [size * i // THREADS for i in range(THREADS + 1)]
    before = (slice(None),) * -axis
    parts = [(*before, slice(a, b)) for a, b in zip(cuts, cuts[1:], strict=False)]
    with ThreadPoolExecutor(THREADS - 1) as pool:
        others = [pool.submit(_copy, target[part], source[part], fastest) for part in parts[1:]]
        _copy(target[parts[0]], source[parts[0]], fastest)
        for other in others:
            other.result()


def _copy(target: Array, source: Array, fastest: int | None) -> None:
    if fastest is None:
        np.copyto(target, source)
        return
    if source.ndim > 2:  # tiles span two axes; the longest of the others is walked
        axis = max((i for i in range(source.ndim - 1) if i != fastest), key=lambda i: source.shape[i])
        inner = fastest - (axis < fastest)
        for i in range(source.shape[axis]):
            at = (slice(None),) * axis + (i,)
            _copy(target[at], source[at], inner)
        return
    rows, columns = source.shape
    buffer = np.empty((RESULT_RUN, SOURCE_RUN + PADDING // source.itemsize), source.dtype)
    for row in range(0, rows, SOURCE_RUN):
        for column in range(0, columns, RESULT_RUN):
            part = slice(row, row + SOURCE_RUN), slice(column, column + RESULT_RUN)
            tile = source[part].T
            held = buffer[: tile.shape[0], : tile.shape[1]]
            held[...] = tile
            target[part] = held.T
