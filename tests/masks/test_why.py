from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from maskattn import masks
from maskattn.masks._names import library_classes
from maskattn.parity.attention.cases import Shape
from maskattn.parity.draws import Draws
from tests.masks.definitions import pair, shaped_expressions

FORMULA = re.compile(r" it: (.*) is (true|false) \((.*)\)$")


def check(text, allowed, q, k):
    """The verdicts agree with one another, and every formula with numbers in it is as true as it is said to be."""
    head, *lines = text.splitlines()
    assert head.startswith(f"query {q} {'may' if allowed else 'may not'} attend to key {k} (batch row ")
    assert f" {'allows' if allowed else 'forbids'} it" in lines[0]
    formulas = 0
    for line in lines:
        found = FORMULA.search(line)
        if found and "nothing" not in found[1]:
            values = {"inf": math.inf, "abs": abs, "__builtins__": {}}
            assert eval(found[1], values) == (found[2] == "true"), line
            assert (" allows it: " in line) == (found[2] == "true"), line
            formulas += 1
    return formulas


@settings(deadline=None, max_examples=150)
@given(shaped_expressions(), st.data())
def test_every_verdict_is_right(case, data):
    (batch, heads, q_len, kv_len), mask = case
    b, h, q, k = (data.draw(st.integers(0, n - 1)) for n in (batch, heads, q_len, kv_len))
    check(mask.why(b, h, q, k), pair(mask, b, h, q, k), q, k)


@pytest.mark.parametrize("name", sorted(library_classes()))
def test_every_mask_gives_its_rule_with_the_numbers_in_it(name):
    shape = Shape(2, 12, 12, 2, 1, 8, 8)
    for mask in library_classes()[name].examples(shape, Draws(name)):
        dense = mask.dense(12, 12, 2, 2)
        formulas = sum(check(mask.why(b, 1, q, 5), dense[b, 1, q, 5], q, 5) for b in range(2) for q in range(12))
        said = mask.why(1, 1, 3, 5).splitlines()[1]
        assert " it: " in said or said.endswith(" it:")
        if re.search("[<=]", mask.rule):
            assert formulas >= 20, said  # a rule with a number in it is said in numbers


@pytest.mark.parametrize(
    "mask, where, expected",
    [
        (masks.Full(), (0, 0, 1, 2), ["Full() allows it: it allows everything"]),
        (
            masks.KeyPadding([5]),
            (0, 0, 1, 7),
            ["KeyPadding([5]) forbids it: 0 <= 7 < 5 is false (0 <= k < lengths[b])"],
        ),
        (masks.KeyMask([[True, False]]), (0, 0, 1, 1), ["KeyMask([[True, False]]) forbids it: keep[0, 1] is False"]),
        (
            masks.Segments([[0, 0, 1]]),
            (0, 0, 0, 2),
            ["Segments([[0, 0, 1]]) forbids it: 0 == 1 >= 0 is false (q_ids[b, q] == k_ids[b, k] >= 0)"],
        ),
        (
            masks.Segments([[0, 0, 1]]),
            (0, 0, 0, 9),
            ["Segments([[0, 0, 1]]) forbids it: 0 == nothing >= 0 is false (q_ids[b, q] == k_ids[b, k] >= 0)"],
        ),
        (
            masks.SlidingWindow(None, 1),
            (0, 0, 3, 5),
            ["SlidingWindow(None, right=1) forbids it: -inf <= 5 - 3 <= 1 is false (-left <= k - q <= right)"],
        ),
        (
            masks.WindowPartition((2, 4), 2),
            (0, 0, 1, 2),
            [
                "WindowPartition((2, 4), (2, 2), shift=(0, 0)) forbids it: it is not so that query 1 and key 2 lie in "
                "the same window of the shifted grid"
            ],
        ),
        (
            masks.Causal().at(q_offset=[2, 3]),
            (1, 0, 1, 5),
            [
                "Causal().at(q_offset=[2, 3]) forbids it:",
                "  here query 4:",
                "    Causal() forbids it: 5 <= 4 + 0 is false (k <= q + offset)",
            ],
        ),
        (
            masks.Causal().with_positions([[7, 8]], [[9, 3]]),
            (0, 0, 0, 1),
            [
                "Causal().with_positions([[7, 8]], [[9, 3]]) allows it:",
                "  here query 7 and key 3:",
                "    Causal() allows it: 3 <= 7 + 0 is true (k <= q + offset)",
            ],
        ),
        (
            masks.Causal().with_positions([[7, 8]], [[9, 3]]),
            (0, 0, 2, 1),
            [
                "Causal().with_positions([[7, 8]], [[9, 3]]) forbids it: it is not so that query 2 and key 1 have "
                "positions"
            ],
        ),
        (
            masks.PerHead([masks.Empty(), masks.Causal()]),
            (0, 1, 2, 2),
            [
                "PerHead((Empty(), Causal())) allows it:",
                "  Causal() allows it: 2 <= 2 + 0 is true (k <= q + offset)",
            ],
        ),
        (
            masks.Causal() | ~masks.QueryMask(np.ones((1, 20), bool)),
            (0, 0, 1, 2),
            [
                "Causal() | ~QueryMask([[" + ", ".join(["True"] * 20) + "]]) forbids it:",
                "  Causal() forbids it: 2 <= 1 + 0 is false (k <= q + offset)",
                "  ~QueryMask([[" + ", ".join(["True"] * 20) + "]]) forbids it:",
                "    QueryMask([[" + ", ".join(["True"] * 20) + "]]) allows it: keep[0, 1] is True",
            ],
        ),
    ],
)
def test_the_words(mask, where, expected):
    assert mask.why(*where).splitlines()[1:] == [f"  {line}" for line in expected]
