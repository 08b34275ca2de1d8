"""Parameters of two sides, paired by their numbers."""

import ml_dtypes
import numpy as np
import pytest

from maskattn.diagnose.parameters import paired
from maskattn.diagnose.trace import Node, Trace

RNG = np.random.default_rng(0)


def drawn(*shape):
    return RNG.standard_normal(shape).astype(np.float32).astype(np.float64)


def side(unread=(), **arrays):
    """A run that reads all parameters but some."""
    names = {name.replace("__", "."): np.asarray(one, np.float64) for name, one in arrays.items()}
    nodes = [Node("parameter", name, one) for name, one in names.items()]
    read = tuple(at for at, name in enumerate(names) if name not in unread)
    return Trace([*nodes, Node("operation", "all", np.zeros(1), read)], {"": len(nodes)})


def pairs(ours, theirs):
    """The pairs of two sides, and that the places say which number is which."""
    found = paired(ours, theirs, [(len(ours.nodes) - 1, len(theirs.nodes) - 1)])
    for pair in found.pairs:
        here, there = (trace.nodes[trace.parameters[name]].value.ravel() for trace, name in
                       ((ours, pair.torch), (theirs, pair.jax)))  # fmt: skip
        if pair.how == "differs":
            continue
        part, whole = (there, here) if pair.how == "holds" else (here, there)
        np.testing.assert_allclose(whole[pair.places], part, rtol=0.01 if pair.rounded else 0)
    return found


def one(ours, theirs):
    (pair,) = pairs(ours, theirs).pairs
    return pair


W = drawn(12, 16)


@pytest.mark.parametrize(
    ("other", "how"),
    [
        (W, "equal"),
        (W[None], "equal"),
        (W.reshape(12, 2, 8), "reshaped"),
        (W.T, "transposed"),
        (W.T.reshape(16, 3, 4), "transposed"),
        (W.reshape(3, 4, 16).transpose(0, 2, 1), "transposed"),
        (W.reshape(2, 6, 16).swapaxes(0, 1).reshape(12, 16), "in another order"),
    ],
)
def test_arrangement_does_not_matter(other, how):
    assert one(side(w=W), side(kernel=other)).how == how


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("finer", ["torch", "jax"])
def test_numbers_that_one_side_has_rounded_are_the_same(precision, finer):
    dtype = getattr(ml_dtypes, precision, precision)
    coarse = W.astype(dtype).astype(np.float64).T
    sides = (side(w=W), side(kernel=coarse)) if finer == "torch" else (side(w=coarse), side(kernel=W))
    found = pairs(*sides)
    (pair,) = found.pairs
    assert (pair.rounded, pair.finer) == (precision, finer)
    assert any(f"rounded to {precision}" in note for note in found.notes())
    instead = found.instead(*sides)
    name = {"torch": "w", "jax": "kernel"}[finer]
    np.testing.assert_array_equal(instead[finer == "jax"][name], W.astype(dtype).astype(np.float64))
    assert not instead[finer == "torch"]


def test_what_is_close_only_is_not_taken_for_rounded():
    assert one(side(w=W), side(kernel=W * (1 + 1e-4 * drawn(12, 16)))).how == "differs"


@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("fuse", ["rows", "columns", "heads", "stacked", "with heads", "uneven"])
def test_parts_of_a_fused_parameter_are_found(fuse, dtype):
    q, k, v = drawn(16, 16), drawn(16, 16), drawn(16, 16)
    if fuse == "uneven":
        k, v = k[:8], v[:8]
    fused = {
        "rows": lambda: np.concatenate([q, k, v]),
        "uneven": lambda: np.concatenate([q, k, v]),
        "columns": lambda: np.concatenate([q.T, k.T, v.T], 1),
        "heads": lambda: np.stack([q, k, v]).reshape(3, 4, 4, 16).swapaxes(0, 1).reshape(48, 16),
        "stacked": lambda: np.stack([q.T, k.T, v.T]),
        "with heads": lambda: np.stack([q.T, k.T, v.T], 1).reshape(16, 3, 4, 4),
    }[fuse]()
    ours, theirs = side(q=q, k=k, v=v), side(fused=fused.astype(dtype).astype(np.float64))
    assert [(pair.torch, pair.how) for pair in pairs(ours, theirs).pairs] == [(name, "part of") for name in "qkv"]
    if dtype is np.float64:
        assert [(pair.jax, pair.how) for pair in pairs(theirs, ours).pairs] == [(name, "holds") for name in "qkv"]


def test_equal_numbers_in_a_part_do_not_confuse_its_arrangement():
    w = drawn(3, 12, 16)
    w[1, 2, 3] = w[1, 7, 5]
    for other in (w.swapaxes(1, 2), w.transpose(1, 2, 0)):
        ours = side(**{f"layers__{at}__w": w[at] for at in range(3)})
        each = [pair.places for pair in pairs(ours, side(w=other)).pairs]
        mark = np.arange(w.size).reshape(w.shape)
        there = mark.swapaxes(1, 2) if other.shape[0] == 3 else mark.transpose(1, 2, 0)
        for at, places in enumerate(each):
            np.testing.assert_array_equal(there.ravel()[places], mark[at].ravel())


def test_parts_of_a_fused_bias_are_found():
    q, k = drawn(16), drawn(8)
    found = pairs(side(q=q, k=k), side(b=np.concatenate([q, k]), stacked=drawn(2, 16)))
    assert [pair.detail for pair in found.pairs] == ["numbers 0 to 15 of it", "numbers 16 to 23 of it"]
    assert found.jax_only == ("stacked",)


def test_equal_layers_that_are_stacked_are_taken_in_order():
    found = pairs(side(**{f"layers__{at}__w": W for at in range(3)}), side(w=np.stack([W.T] * 3)))
    assert [pair.detail[:8] for pair in found.pairs] == ["number 0", "number 1", "number 2"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (W + 1, "JAX's numbers are 1 plus PyTorch's"),
        (W * 2, "JAX's numbers are 2 times PyTorch's"),
        (-W.T, "JAX's numbers are -1 times PyTorch's"),
        (np.where(np.arange(16) == 3, W + 0.5, W), "12 of 192 numbers, by up to 0.5"),
    ],
)
def test_what_differs_is_named_and_by_what(other, said):
    found = pairs(side(w=W, x=drawn(12, 16)), side(y=drawn(12, 16), kernel=other))
    pair = next(pair for pair in found.pairs if pair.torch == "w")
    assert (pair.jax, pair.how, pair.detail) == ("kernel", "differs", said)
    assert any(said in finding for finding in found.findings())


def test_what_is_left_over_and_what_is_not_used_is_named():
    bias = drawn(16)
    found = pairs(
        side(w=W, bias=bias, pool=drawn(3, 3), unread=("pool",)), side(w=W, b=bias, extra=drawn(5), unread=("b",))
    )
    said = "\n".join(found.findings())
    assert "on the JAX side only: extra" in said
    assert "the JAX side does not use b (bias = b, equal)" in said
    assert "do not depend on these of the PyTorch side: pool" in said


def test_what_holds_one_number_only_is_counted():
    ones, zeros = np.ones(16), np.zeros(16)
    found = pairs(side(a=ones, b=ones, c=zeros, scale=[3.0]), side(norms=np.ones((2, 16)), s=[3.0]))
    assert [(pair.torch, pair.jax, pair.how) for pair in found.pairs] == [("scale", "s", "equal")]
    said = "\n".join(found.notes())
    assert "2 parameters of PyTorch and 1 of JAX are all 1: an exchange" in said
    assert not list(found.findings())  # zeros on one side only are none


def test_parameters_in_each_others_places_are_named():
    q, k = drawn(16, 16), drawn(16, 16)
    found = pairs(side(layers__0__q_proj=q, layers__0__k_proj=k), side(layers__0__q_proj=k, layers__0__k_proj=q))
    assert "exchanged" in "\n".join(found.findings())
    shifted = pairs(side(layers__0__w=q, layers__1__w=k), side(block_1__w=q, block_2__w=k))
    assert not list(shifted.findings())


def test_a_parameter_in_two_copies_is_paired_with_both():
    assert [pair.jax for pair in pairs(side(w=W), side(embed=W, head=W.T)).pairs] == ["embed", "head"]
