"""The losses of both twins: against float64, the frameworks' own, each other, compiled; what is ignored; bad input."""

import numpy as np
import pytest

from maskattn import standards
from tests.frameworks import F, jax, jnp, maskattn_jax, maskattn_torch, optax, torch
from tests.twins.losses.loss_cases import JAX, TORCH, Case, cases, jax_step, judge, limit, oracle, run, torch_step

pytestmark = pytest.mark.hurried

CASES = list(cases())
EACH = pytest.mark.parametrize("case", CASES, ids=str)
LOSSES = {JAX: maskattn_jax.losses, TORCH: maskattn_torch.losses}


@EACH
def test_the_loss_is_the_oracles_and_what_is_ignored_does_not_matter(twin, case):
    judge(twin.name, case)


@pytest.mark.parametrize("case", {case.loss: case for case in CASES}.values(), ids=str)
def test_float64_stays_float64(twin, case):
    value, grads = run(twin.name, case, "float64")
    assert value.dtype == np.float64 and all(x.dtype == np.float64 for x in grads.values())
    np.testing.assert_allclose(value, oracle(case), rtol=0, atol=limit(case, "float64"))


@EACH
def test_the_twins_agree_forward_and_backward(case):
    (one, grads), (other, others) = (run(twin, case) for twin in (JAX, TORCH))
    np.testing.assert_allclose(one, other, rtol=0, atol=limit(case, "float32"))
    for name, grad in grads.items():
        assert grad.any() or case.loss == "accuracy"
        np.testing.assert_allclose(grad, others[name], rtol=0, atol=limit(case, "float32"))


@pytest.mark.parametrize("case", [case for case in CASES if case.loss != "accuracy"], ids=str)
def test_gradients_are_those_of_the_formula(case):
    data = {name: torch.as_tensor(x) for name, x in case.data.items()}
    floats = [torch.tensor(x, requires_grad=True) for x in case.floats.values()]

    def call(*values):
        return getattr(maskattn_torch.losses, case.loss)(
            **dict(zip(case.floats, values, strict=True)), **data, **case.options
        )

    assert torch.autograd.gradcheck(call, floats)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_cross_entropy_is_pytorchs_and_optaxs(smoothing):
    case = CASES[0]
    logits, labels = case.floats["logits"], case.data["labels"]
    at_most = limit(case, "float64")
    for reduction in ("mean", "sum", "none"):
        options = {"label_smoothing": smoothing, "reduction": reduction}
        ours, grads = run(TORCH, Case("cross_entropy", case.floats, case.data, options), "float64")
        x = torch.tensor(logits, requires_grad=True)
        theirs = F.cross_entropy(x.movedim(-1, 1), torch.tensor(labels), **options)
        np.testing.assert_allclose(ours, theirs.detach(), rtol=0, atol=at_most)
        theirs.sum().backward()
        np.testing.assert_allclose(grads["logits"], x.grad, rtol=0, atol=at_most)
    with jax.enable_x64(True):
        counted = labels != -100
        target = optax.smooth_labels(jax.nn.one_hot(np.where(counted, labels, 0), 7, dtype=jnp.float64), smoothing)
        each = optax.softmax_cross_entropy(jnp.asarray(logits), target)
        ours, _ = run(JAX, Case("cross_entropy", case.floats, case.data, {"label_smoothing": smoothing}), "float64")
        np.testing.assert_allclose(ours, (each * counted).sum() / counted.sum(), rtol=0, atol=at_most)


def without_anything(case):
    """The case with everything ignored, and NaN in all of it."""
    data = dict(case.data)
    if "labels" in data:
        data["labels"] = np.full_like(data["labels"], case.options.get("ignore_index", -100))
    else:
        for name in {"keep", "removed", "valid"} & data.keys():
            data[name] = np.zeros_like(data[name])
    return Case(case.loss, {n: np.full_like(x, np.nan) for n, x in case.floats.items()}, data, case.options)


@pytest.mark.parametrize("case", [case for case in CASES if case.data], ids=str)
def test_where_everything_is_ignored_the_loss_is_0_and_so_are_its_gradients(twin, case):
    value, grads = run(twin.name, without_anything(case))
    assert not value.any() and not any(x.any() for x in grads.values())
    assert np.isfinite(value).all() and all(np.isfinite(x).all() for x in grads.values())


@pytest.mark.parametrize("case", [CASES[3], CASES[10], CASES[14], CASES[16]], ids=str)
def test_compiled_is_eager(case):
    floats = {name: np.asarray(x, np.float32) for name, x in case.floats.items()}
    pairs = [(jax_step(case, compiler=lambda f: f)(floats), run(JAX, case))] if case is CASES[3] else []
    torch.compiler.reset()
    traced = torch_step(case, compiler=lambda f: torch.compile(f, backend="aot_eager", fullgraph=True))
    for (value, grads), (other, others) in [*pairs, (traced(floats), run(TORCH, case))]:
        np.testing.assert_allclose(value, other, rtol=0, atol=limit(case, "float32"))
        for name, grad in grads.items():
            np.testing.assert_allclose(grad, others[name], rtol=0, atol=limit(case, "float32"))


def test_vmap_is_a_loop():
    case = CASES[3]
    arrays = [np.asarray(case.floats["logits"], np.float32), case.data["labels"], np.float32(case.data["weights"])]
    for losses, vmap, array in (
        (maskattn_jax.losses, jax.vmap, jnp.asarray),
        (maskattn_torch.losses, torch.func.vmap, torch.as_tensor),
    ):
        given = [array(x) for x in arrays]

        def call(logits, labels, weights, losses=losses):
            return losses.cross_entropy(logits, labels, weights=weights, label_smoothing=0.1)

        together = np.asarray(vmap(call)(*given))
        alone = np.stack([np.asarray(call(*(x[i] for x in given))) for i in range(3)])
        np.testing.assert_allclose(together, alone, rtol=0, atol=limit(case, "float32"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_logits_are_summed_in_float32(twin, dtype):
    narrow = torch.tensor(CASES[0].floats["logits"]).to(getattr(torch, dtype))
    labels = torch.tensor(CASES[0].data["labels"])
    if twin.name == TORCH:
        value = maskattn_torch.losses.cross_entropy(narrow, labels)
    else:
        logits = jnp.asarray(narrow.float().numpy(), dtype)
        value = maskattn_jax.losses.cross_entropy(logits, jnp.asarray(labels.numpy()))
    exact = Case("cross_entropy", {"logits": narrow.double().numpy()}, CASES[0].data)
    assert str(value.dtype).endswith("float32")
    np.testing.assert_allclose(value, oracle(exact), rtol=0, atol=limit(exact, "float32"))


def test_patches_are_rows_of_patches_and_rows_of_pixels():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    expected = [[images[b, y : y + 2, x : x + 2].ravel() for y in (0, 2) for x in (0, 2, 4)] for b in (0, 1)]
    np.testing.assert_array_equal(maskattn_jax.losses.patchify(jnp.asarray(images), 2), expected)
    np.testing.assert_array_equal(maskattn_torch.losses.patchify(torch.tensor(images), 2), expected)


def test_a_learned_temperature_gets_its_gradient():
    rows = np.random.default_rng(3).standard_normal((2, 4, 3))
    with jax.enable_x64(True):
        one = jax.jit(jax.grad(lambda t: maskattn_jax.losses.contrastive(*map(jnp.asarray, rows), temperature=t)))(0.3)
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    maskattn_torch.losses.contrastive(*map(torch.tensor, rows), temperature=t).backward()
    assert float(one) == pytest.approx(float(t.grad), rel=standards.value("same.float64")) and abs(float(one)) > 0.01


def test_a_traced_label_out_of_range_is_seen():
    for label in (-1, 7, -101):
        labels = jnp.full((2,), label)
        assert np.isnan(jax.jit(maskattn_jax.losses.cross_entropy)(jnp.zeros((2, 7)), labels))


# What a wrong loss might do, made of the right one of either twin.
def over_ignored(right, case):
    def wrong(**named):
        mask = named["labels"] != -100 if "labels" in named else named[next(iter(case.data))]
        return right(**named) * mask.sum() / len(mask.reshape(-1))

    return wrong


def nan_leaks(right, case):
    return lambda **named: right(**named) + 0 * named[next(iter(case.floats))].sum()


def weights_left_out(right, case):
    return lambda **named: right(**{name: x for name, x in named.items() if name != "weights"})


def other_polarity(right, case):
    return lambda **named: right(**{name: ~x if name in MASKS else x for name, x in named.items()})


def other_index(right, case):
    return lambda **named: right(**named | {"ignore_index": -1})


MASKS = {"keep", "removed", "valid"}
PLAIN = [case for case in CASES if case.data and "weights" not in case.data and not case.options.get("axis")]
PLANTED = {
    over_ignored: [case for case in PLAIN if "ignore_index" not in case.options],
    nan_leaks: [case for case in CASES if case.ignored],
    weights_left_out: [case for case in CASES if "weights" in case.data],
    other_polarity: [case for case in CASES if MASKS & case.data.keys()],
    other_index: [case for case in PLAIN if "labels" in case.data and not case.options],
}


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught_in_every_case_it_concerns(twin, fault):
    concerned = PLANTED[fault]
    assert len(concerned) >= 2
    if twin.name == JAX:  # which compiles: one case of each loss
        concerned = {case.loss: case for case in concerned}.values()
    for case in concerned:
        with pytest.raises((AssertionError, ValueError)):
            judge(twin.name, case, fault(getattr(twin.losses, case.loss), case))


X, LABELS, KEEP = np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), np.int32), np.ones((2, 3), bool)
BAD = [
    ("cross_entropy", (X, LABELS.astype(np.float32)), {}, TypeError, "labels must be ints, got dtype float32"),
    ("cross_entropy", (LABELS, LABELS), {}, TypeError, "logits must be floats, got dtype int32"),
    ("cross_entropy", (X, LABELS[:1]), {}, ValueError, r"labels must have shape \[2, 3\], .* got \[1, 3\]"),
    ("cross_entropy", (X, LABELS + 4), {}, ValueError, r"labels must be in \[0, 4\) or ignore_index -100, got 4 to 4"),
    ("cross_entropy", (X, LABELS - 1), {}, ValueError, "got -1 to -1"),
    ("cross_entropy", (X, LABELS), {"weights": X[0, 0] * 0 - 1}, ValueError, r"leading axes of labels \[2, 3\]"),
    ("cross_entropy", (X, LABELS), {"weights": X[..., 0] - 0.5}, ValueError, "weights must not be negative .*got -0.5"),
    (
        "cross_entropy",
        (X, LABELS),
        {"weights": X[..., 0] * np.nan},
        ValueError,
        "weights must not be negative .*got nan",
    ),
    (
        "cross_entropy",
        (X, LABELS),
        {"label_smoothing": 1.5},
        ValueError,
        r"label_smoothing must be in \[0, 1\], got 1.5",
    ),
    ("cross_entropy", (X, LABELS), {"ignore_index": 0.5}, TypeError, "ignore_index must be an int, got 0.5"),
    ("cross_entropy", (X, LABELS), {"reduction": "avg"}, ValueError, "reduction must be one of mean, sum, none"),
    ("cross_entropy", (X[..., :0], LABELS), {}, ValueError, "at least one class"),
    ("accuracy", (X, LABELS.astype(np.float32)), {}, TypeError, "accuracy: labels must be ints"),
    (
        "masked_mean",
        (X, KEEP * 1.0),
        {},
        TypeError,
        "keep must be bool, got dtype float",
    ),
    ("masked_mean", (X, KEEP[:, :2]), {}, ValueError, r"keep must have leading axes of values \[2, 3, 4\]"),
    (
        "masked_mean",
        (X, KEEP),
        {"axis": 3},
        ValueError,
        r"axis must name axes of values, each once, in \[-3, 3\), got 3",
    ),
    ("patchify", (np.zeros((1, 4, 6, 1), np.float32), 4), {}, ValueError, "multiples of patch 4, got 4 x 6"),
    ("patchify", (X, 0), {}, ValueError, "patch must be at least 1, got 0"),
    ("mae_loss", (X, X[:1], KEEP), {}, ValueError, r"one shape \[batch, patches, numbers\]"),
    ("mae_loss", (X, X, LABELS), {}, TypeError, "removed must be bool, got dtype int32"),
    ("mae_loss", (X, X, KEEP[:, :2]), {}, ValueError, r"removed must have shape \[2, 3\], got \[2, 2\]"),
    ("mae_loss", (X[..., :1], X[..., :1], KEEP), {"normalize": True}, ValueError, "at least 2 numbers in a patch"),
    (
        "simmim_loss",
        (X[None], X[None], KEEP[None, :, :2]),
        {},
        ValueError,
        "removed must have shape .* 2 x 3 pixels, got",
    ),
    ("contrastive", (X[0], X[1, :2]), {}, ValueError, r"one shape \[B, D\], got \[3, 4\] and \[2, 4\]"),
    ("contrastive", (X[0], X[0]), {"valid": LABELS[0]}, TypeError, "valid must be bool, True = counts"),
    ("contrastive", (X[0], X[0]), {"temperature": 0.0}, ValueError, "temperature must be positive, got 0.0"),
    ("contrastive", (X[0], X[0]), {"symmetric": 1}, TypeError, "symmetric must be a bool, got 1"),
]


@pytest.mark.parametrize("name, arguments, options, error, message", BAD, ids=range(len(BAD)))
def test_bad_input_is_named(twin, name, arguments, options, error, message):
    def array(x):
        return twin.array(x) if isinstance(x, np.ndarray) else x

    with pytest.raises(error, match=message):
        getattr(twin.losses, name)(*map(array, arguments), **{key: array(x) for key, x in options.items()})


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(TypeError) as caught:
        maskattn_torch.losses.cross_entropy(torch.zeros(2, 3).int(), torch.zeros(2), label_smoothing=2, reduction="avg")
    for part in ("4 problems", "logits must be floats", "labels must be ints", "label_smoothing", "reduction"):
        assert part in str(caught.value)
