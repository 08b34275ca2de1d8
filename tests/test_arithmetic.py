"""Choices by arithmetic give what the functions of NumPy give, in every framework, and of ints."""

import numpy as np
import pytest

from maskattn import _arithmetic as a
from maskattn.arrays import to_numpy

X, Y = np.array([-3, 0, 2, 5, 2]), np.array([4, 0, -2, 5, 3])  # two are equal, one of them not 0
FLAG = np.array([True, False, False, True, True])
CASES = {
    "zero": (a.zero, (X, Y), np.zeros(5)),
    "never": (a.never, (X, Y), np.zeros(5, bool)),
    "negated": (a.negated, (FLAG,), ~FLAG),
    "as_int": (a.as_int, (FLAG,), FLAG.astype(int)),
    "choose": (a.choose, (FLAG, X, Y), np.where(FLAG, X, Y)),
    "minimum": (a.minimum, (X, Y), np.minimum(X, Y)),
    "maximum": (a.maximum, (X, Y), np.maximum(X, Y)),
    "clip": (lambda x: a.clip(x, -1, 2), (X,), np.clip(X, -1, 2)),
    "constant": (lambda x: a.constant(0.5, x), (X / 2,), np.full(5, 0.5)),
    "is_number": (a.is_number, (np.where(FLAG, np.nan, X),), ~FLAG),
}


def check(result, expected):
    np.testing.assert_array_equal(to_numpy(result), expected)
    assert (to_numpy(result).dtype == bool) == (np.asarray(expected).dtype == bool)


@pytest.mark.parametrize("name", CASES)
def test_a_choice_is_that_of_numpy(name):
    function, arguments, expected = CASES[name]
    check(function(*arguments), expected)


@pytest.mark.parametrize("name", CASES)
def test_a_choice_is_that_of_numpy_in_each_framework_traced_or_not(name, twin):
    function, arguments, expected = CASES[name]
    given = [twin.array(x) for x in arguments]
    assert type(function(*given)) is type(given[0])
    check(function(*given), expected)
    check(twin.compile(function)(*given), expected)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("constant", "is_number")])
def test_a_choice_of_ints_and_bools_is_one(name):
    function, arguments, expected = CASES[name]
    for i in range(5):
        result = function(*(x[i].item() for x in arguments))
        assert type(result) in (int, bool) and result == expected[i]


def test_a_result_is_filled_to_the_shape_of_its_indices():
    row, column = np.arange(3)[:, None], np.arange(4)
    assert a.broadcast_shape(row, column, 2) == (3, 4)
    for result in (True, 7, np.arange(4), np.array([[True], [False], [True]])):
        np.testing.assert_array_equal(a.fill(result, row, column), np.broadcast_to(result, (3, 4)))
    assert a.fill(True, 1, 2) is True
