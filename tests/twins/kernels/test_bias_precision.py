"""A bias that is wider than the inputs keeps its precision, in every kernel: what `reference` gives is the measure."""

import functools

import ml_dtypes
import numpy as np
import pytest

from maskattn import biases, masks, standards
from tests.twin import load

pytestmark = pytest.mark.hurried

LENGTH = 32
PADDED = masks.KeyPadding(np.array([LENGTH - 9, 0]))  # row 1 is padding only
LEAST = float(np.finfo(np.float32).min)


def plus(shift):
    return np.random.default_rng(3).standard_normal((2, 1, LENGTH, LENGTH)).astype(np.float32) + np.float32(shift)


def padding(value):
    return np.where(PADDED.dense(LENGTH, LENGTH, 2, 1), 0, value).astype(np.float32)


#: name: (the bias, the size of what it makes of the logits of rows that are not padding only)
ARRAYS = {
    "+1000": (plus(1000), 1e3),
    "+7e4": (plus(7e4), 7e4),
    "-1e5": (plus(-1e5), 1e5),
    "padding -1e4": (padding(-1e4), 1e4),
    "padding -1e9": (padding(-1e9), 1e1),
    "padding of the least number": (padding(LEAST), 1e1),
    "-inf": (np.where(np.tri(LENGTH, dtype=bool), plus(300), -np.inf).astype(np.float32), 3e2),
}
#: name: (the bias in a twin, the mask, the size)
OBJECTS = {
    "to_additive": (
        lambda twin: twin.lower.to_additive(PADDED, twin.numpy.float32, LENGTH, LENGTH, 2, 3),
        None,
        1e1,
    ),
    "Additive": (lambda twin: biases.Additive(PADDED, LEAST), None, 1e1),
    "ALiBi by key": (lambda twin: biases.ALiBi(3, form="key"), masks.Causal(), 3e1),
    "T5": (lambda twin: biases.T5Buckets(np.linspace(-900, 900, 96, dtype=np.float32).reshape(32, 3)), None, 9e2),
}
NARROW = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}


def results(twin, dtype, kernel, bias=None, mask=None, times=1):
    """The output and the gradients of query, key and value, in float32; the batch of 2 repeated."""
    given = np.random.default_rng(1).standard_normal((4, 2, LENGTH, 3, 8)).astype(NARROW[dtype])
    *arrays, cotangent = [np.tile(x, (times, 1, 1, 1)) for x in given]
    more = [bias] if isinstance(bias, np.ndarray) else []
    found = twin.vjp(
        lambda q, k, v, *more: [twin.attention(q, k, v, mask, bias=more[0] if more else bias, kernel=kernel)],
        arrays,
        [cotangent],
        *more,
    )
    return [x.astype(np.float32) for x in found]


@functools.cache
def own_error(name, dtype, kernel):
    """What a kernel is off by where there is no bias."""
    twin = load(name)
    return off(results(twin, dtype, kernel), results(twin, dtype, "reference")) + standards.eps(dtype)


def off(found, right):
    return max(float(np.abs(x - y).max()) for x, y in zip(found, right, strict=True))


def kernels(twin, dtype):
    return ["auto", "blockwise", *(() if twin.name == "jax" and dtype == "float16" else ("fused",))]


def check(twin, dtype, kernel, found, right, size):
    assert all(np.isfinite(x).all() for x in right)
    largest = max(1.0, *(float(np.abs(x).max()) for x in right))
    most = standards.value("tier2.plain") * own_error(twin.name, dtype, kernel) * largest
    most += standards.tier2_limit("float32", largest, size, LENGTH)
    assert off(found, right) <= most, (kernel, off(found, right), most)


@pytest.mark.parametrize(
    "dtype", [pytest.param(x, marks=[pytest.mark.slow_in("jax")] * (x == "float32")) for x in NARROW]
)
def test_an_array_of_float32_is_not_rounded_to_the_inputs_dtype(twin, dtype):
    bias = np.concatenate([bias for bias, _ in ARRAYS.values()])
    right = results(twin, dtype, "reference", bias, times=len(ARRAYS))
    for kernel in kernels(twin, dtype):
        found = results(twin, dtype, kernel, bias, times=len(ARRAYS))
        for place, (_, size) in enumerate(ARRAYS.values()):
            part = slice(2 * place, 2 * place + 2)
            check(twin, dtype, kernel, [x[part] for x in found], [x[part] for x in right], size)


@pytest.mark.parametrize("name", OBJECTS)
def test_neither_is_one_that_a_bias_computes(twin, name):
    make, mask, size = OBJECTS[name]
    bias, dtype = make(twin), "bfloat16"
    right = results(twin, dtype, "reference", bias, mask)
    for kernel in kernels(twin, dtype)[1:]:
        check(twin, dtype, kernel, results(twin, dtype, kernel, bias, mask), right, size)
