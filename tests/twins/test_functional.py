"""attention(...) in both twins: what it takes, what it refuses, and the transformations it passes through."""

import dataclasses
import inspect

import numpy as np
import pytest

from maskattn import biases, masks, standards
from maskattn.attention import Call, check_attention, choose, refuse_empty_rows
from tests.frameworks import CAN_LINK, jax, jnp, maskattn_jax, maskattn_torch, torch

pytestmark = pytest.mark.hurried

RNG = np.random.default_rng(0)
QUERY = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
KEY = RNG.standard_normal((2, 6, 2, 5)).astype(np.float32)
VALUE = RNG.standard_normal((2, 6, 2, 7)).astype(np.float32)
KEEP = RNG.random((2, 1, 3, 6)) < 0.5
KEEP[0, 0, 1] = False
KEEP[1] = True


def call(twin, *, query=QUERY, key=KEY, value=VALUE, mask=None, **options):
    """attention(...) on arrays of the twin's own, whatever NumPy arrays were given."""
    wrapped = [twin.array(x) if isinstance(x, np.ndarray) else x for x in (query, key, value, mask)]
    options = {name: twin.array(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    return twin.attention(*wrapped, **options)


WRONG_VALUES = [
    ({"query": QUERY[0]}, ["query must have the four axes [B, L, H, D]", "(3, 4, 5)"]),
    ({"key": KEY[:1]}, ["agree in batch", "2, 1 and 2"]),
    ({"key": KEY[..., :4]}, ["head_dim", "5 and 4"]),
    ({"value": VALUE[:, :5]}, ["agree in length", "6 and 5"]),
    ({"value": VALUE[:, :, :1]}, ["agree in heads", "2 and 1"]),
    ({"query": QUERY[:, :, :3]}, ["multiple of key heads", "3 and 2"]),
    ({"key": KEY[:, :, :0], "value": VALUE[:, :, :0]}, ["multiple of key heads", "4 and 0"]),
    ({"query": QUERY[..., :0], "key": KEY[..., :0]}, ["head_dim must be at least 1"]),
    ({"key": KEY.astype(np.float16)}, ["one dtype", "query float32, key float16, value float32"]),
    ({"mask": KEEP[:, :, :, :5]}, ["mask must broadcast to [B, H, L, S] = (2, 4, 3, 6)", "(2, 1, 3, 5)"]),
    ({"mask": KEEP[None]}, ["mask must broadcast", "(1, 2, 1, 3, 6)"]),
    ({"mask": KEEP[:, 0, 0]}, ["got shape (2, 6); True for each key that counts? masks.KeyMask(mask)"]),
    ({"mask": KEEP[:, 0]}, ["got shape (2, 3, 6); [B, L, S]? mask[:, None]"]),
    ({"bias": np.zeros((3, 1, 6), np.float32)}, ["bias must broadcast", "(3, 1, 6)"]),
    ({"mask": masks.KeyMask(np.ones((3, 6), bool))}, ["batch 3", "2"]),
    ({"mask": masks.QueryMask(np.ones((2, 4), bool))}, ["q_len 4", "3"]),
    ({"mask": masks.KeyPadding([1, 2, 3])}, ["batch 3", "2"]),
    ({"bias": biases.Additive(masks.KeyMask(np.ones((2, 5), bool)))}, ["kv_len 5", "6"]),
    ({"sinks": np.zeros(2, np.float32)}, ["sinks must have one entry per query head, 4, got 2"]),
    ({"sinks": np.zeros((1, 4), np.float32)}, ["sinks must have the one axis [H]", "(1, 4)"]),
    ({"scale": float("nan")}, ["scale must be finite, got nan"]),
    ({"softcap": 0.0}, ["softcap must be positive, got 0.0"]),
    ({"softcap": float("inf")}, ["softcap must be finite, got inf"]),
    ({"dropout_rate": 0.1}, ["dropout_key must be given where dropout_rate is above 0, got None"]),
    ({"dropout_rate": 1.0}, ["dropout_rate must lie in [0, 1), got 1.0"]),
    ({"dropout_broadcast": ("batch", "queries")}, ["dropout_broadcast", "('batch', 'queries')"]),
    ({"empty_rows": "none"}, ["empty_rows must be one of zero, mean, nan, error, got 'none'"]),
    ({"precision": "low"}, ["precision must be one of default, high, highest, got 'low'"]),
    ({"kernel": "flash"}, ["kernel must be one of auto, reference, exact", "'flash'"]),
    ({"blocks": (0, 2)}, ["blocks[0] must be at least 1, got 0"]),
]

WRONG_TYPES = [
    ({"query": [[1.0]]}, ["query must be a", "list"]),
    ({"sinks": 1.0}, ["sinks must be a", "float"]),
    ({"query": QUERY.astype(np.int32)}, ["query must be one of float64", "int32"]),
    ({"mask": "causal"}, ["mask must be a Mask or a bool array (True = may attend), got str"]),
    ({"mask": KEEP.astype(np.float32)}, ["mask must be a Mask or a bool array", "float32; a mask of 0 and 1? mask."]),
    ({"mask": KEEP.astype(np.int32)}, ["int32; a mask of 0 and 1? mask.", "bool", ", or masks.from_flax(mask)"]),
    (
        {"mask": KEEP[:, 0, 0].astype(np.int32)},
        [", or masks.from_flax(mask); a tokenizer's, [B, S]? masks.from_hf(mask)"],
    ),
    ({"mask": np.where(KEEP, 0, -1e9).astype(np.float32)}, ["float32; an additive mask is a bias: pass it as bias"]),
    ({"mask": np.zeros((3, 6), np.float32)}, ["of 0 and 1? mask.", "; an additive mask is a bias: pass it as bias"]),
    ({"bias": KEEP}, ["bias must be one of", "bool", "pass it as mask"]),
    ({"bias": masks.Causal()}, ["bias must be a Bias or a float array, got Causal"]),
    ({"scale": "1"}, ["scale must be a number, got '1'"]),
    ({"softcap": True}, ["softcap must be a number, got True"]),
    ({"dropout_broadcast": "batch"}, ["dropout_broadcast must be a tuple of axis names"]),
    ({"empty_rows": None}, ["empty_rows must be one of", "None"]),
    ({"return_lse": 1}, ["return_lse must be True or False, got 1"]),
    ({"kernel": 3}, ["kernel must be one of", "3"]),
    ({"blocks": 2}, ["blocks must be two ints, the queries and keys of a tile, got 2"]),
    ({"blocks": (2, 2, 2)}, ["blocks must be two ints", "(2, 2, 2)"]),
    ({"blocks": (2.0, 2)}, ["blocks[0] must be an int, got 2.0"]),
]


@pytest.mark.parametrize(
    ("error", "change", "words"),
    [(ValueError, *x) for x in WRONG_VALUES] + [(TypeError, *x) for x in WRONG_TYPES],
    ids=lambda x: x[0][:40] if isinstance(x, list) else "",
)
def test_a_wrong_argument_is_named(twin, error, change, words):
    with pytest.raises(error) as caught:
        call(twin, **change)
    for word in words:
        assert word in str(caught.value)


def test_what_is_no_bool_mask_is_not_taken_for_a_bias_if_it_is_of_0_and_1(twin):
    given = {"0 and 1": KEEP * 1.0, "counts": KEEP * 2, "traced": KEEP * 1.0, "traced ints": KEEP * 1}
    said = {}

    def attend(mask):
        return call(twin, mask=mask)

    for name, mask in given.items():
        mask = twin.array(mask[None].astype(np.float32 if mask.dtype == float else np.int32))
        with pytest.raises(TypeError) as caught:
            (twin.vmap(attend) if "traced" in name else attend)(mask)
        said[name] = "0 and 1?" in str(caught.value), "pass it as bias" in str(caught.value)
    assert said == {
        "0 and 1": (True, False),
        "counts": (False, False),
        "traced": (True, True),
        "traced ints": (True, False),
    }


def test_several_faults_are_listed_together(twin):
    with pytest.raises(ValueError) as caught:
        call(twin, key=KEY[:1], softcap=-1.0, empty_rows="x", kernel="y", dropout_rate=2)
    for word in ("5 problems", "batch", "softcap", "empty_rows", "kernel", "dropout_rate"):
        assert word in str(caught.value)


def test_dtypes_that_a_framework_does_not_hold_are_refused():
    with pytest.raises(ValueError, match="query is float64, which JAX holds only where jax_enable_x64 is on"):
        maskattn_jax.attention(QUERY.astype(np.float64), KEY, VALUE)
    with pytest.raises(TypeError, match="query must be a torch.Tensor, got ndarray"):
        maskattn_torch.attention(QUERY, torch.tensor(KEY), torch.tensor(VALUE))
    with pytest.raises(ValueError, match="key is on meta, but query on cpu"):
        maskattn_torch.attention(torch.tensor(QUERY), torch.tensor(KEY).to("meta"), torch.tensor(VALUE))


def test_a_bool_array_is_a_dense_mask_and_a_float_array_a_dense_bias(twin):
    bias = RNG.standard_normal((4, 1, 6)).astype(np.float32)
    want = np.asarray(call(twin, mask=masks.Dense(KEEP), bias=biases.DenseBias(bias)))
    assert np.array_equal(np.asarray(call(twin, mask=KEEP, bias=bias)), want)
    forbidding = np.where(KEEP, bias, -np.inf).astype(np.float32)
    assert np.array_equal(np.asarray(call(twin, bias=forbidding)), want)
    assert np.array_equal(np.asarray(call(twin, mask=masks.Full())), np.asarray(call(twin)))
    assert call(twin, mask=KEEP[0, 0]).shape == (2, 3, 4, 7)
    output, lse = call(twin, mask=KEEP, return_lse=True)
    assert output.shape == (2, 3, 4, 7) and lse.shape == (2, 3, 4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_output_has_the_dtype_of_the_inputs_and_the_lse_is_wide(dtype):
    wide = "float64" if dtype == "float64" else "float32"
    q, k, v = (torch.tensor(x).to(getattr(torch, dtype)) for x in (QUERY, KEY, VALUE))
    output, lse = maskattn_torch.attention(q, k, v, return_lse=True)
    assert str(output.dtype) == f"torch.{dtype}" and str(lse.dtype) == f"torch.{wide}"
    with jax.enable_x64(dtype == "float64"):
        q, k, v = (jnp.asarray(x, dtype) for x in (QUERY, KEY, VALUE))
        output, lse = maskattn_jax.attention(q, k, v, return_lse=True)
        assert output.dtype == dtype and lse.dtype == wide


@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_precision_changes_nothing_on_the_cpu(twin, precision):
    assert np.array_equal(np.asarray(call(twin, precision=precision)), np.asarray(call(twin)))


@pytest.mark.parametrize("wrap", [masks.Dense, lambda keep: keep])
def test_an_empty_row_is_an_error_where_asked_for(twin, wrap):
    with pytest.raises(ValueError, match=r"4 of 24 rows may attend to no key; the first .* = \(0, 0, 1\)"):
        call(twin, mask=wrap(KEEP), empty_rows="error")
    bias = np.where(KEEP, 0, -np.inf).astype(np.float32)
    with pytest.raises(ValueError, match=r"4 of 24 rows .* \(0, 0, 1\)"):
        call(twin, bias=bias, empty_rows="error")
    with pytest.raises(ValueError, match="24 of 24 rows"):
        call(twin, key=KEY[:, :0], value=VALUE[:, :0], empty_rows="error")
    call(twin, mask=KEEP, sinks=np.zeros(4, np.float32), empty_rows="error")
    want = np.asarray(call(twin, mask=KEEP[1:]))
    assert np.array_equal(np.asarray(call(twin, mask=KEEP[1:], empty_rows="error")), want)


def test_an_empty_row_in_traced_data_cannot_be_checked():
    def checked(mask):
        return maskattn_jax.attention(QUERY, KEY, VALUE, mask, empty_rows="error")

    def checked_torch(mask):
        return maskattn_torch.attention(*(torch.tensor(x) for x in (QUERY, KEY, VALUE)), mask, empty_rows="error")

    message = 'empty_rows="error" cannot be checked where the data of mask are traced'
    with pytest.raises(ValueError, match=message):
        jax.jit(checked)(KEEP)
    with pytest.raises(ValueError, match=message):
        jax.vmap(checked)(KEEP[None])
    with pytest.raises(ValueError, match=message):
        torch.func.vmap(checked_torch)(torch.tensor(KEEP[None]))
    # what is not traced can be: masks without data, and data from outside
    jax.jit(lambda _: checked(masks.Causal() | masks.SlidingWindow(0, 1)))(0)
    jax.jit(lambda _: checked(KEEP[1:]))(0)
    outside = masks.Dense(jnp.asarray(KEEP))
    with pytest.raises(ValueError, match="rows may attend to no key"):
        jax.jit(lambda _: checked(outside))(0)
    with pytest.raises(ValueError, match="rows may attend to no key"):
        jax.jit(lambda _: checked(masks.Causal(-1)))(0)


def test_a_kernel_asked_for_by_name_says_why_it_cannot_run(twin, monkeypatch):
    module = twin.functional

    class Refusing:
        @staticmethod
        def unsupported(*args, **kwargs):
            return ["it cannot do this", "nor that"]

    monkeypatch.setitem(module.KERNELS, "refusing", Refusing)
    with pytest.raises(ValueError) as caught:
        call(twin, kernel="refusing")
    for word in ("'refusing'", "it cannot do this", "nor that"):
        assert word in str(caught.value)
    named = Call(QUERY, KEY, VALUE, kernel="reference")
    assert choose(named, module.FRAMEWORK) == ("reference", "it was asked for by name")


def test_an_argument_of_attention_is_a_field_of_call(twin, monkeypatch):
    """Each in its place, with its default, and every one is handed on."""
    module = twin.functional
    given = inspect.signature(module.attention).parameters
    fields = {field.name: field.default for field in dataclasses.fields(Call)}
    assert list(given) == list(fields)
    empty = inspect.Parameter.empty
    assert [x.default for x in given.values()] == [empty if x is dataclasses.MISSING else x for x in fields.values()]
    monkeypatch.setattr(module, "attend", lambda call, framework: call)
    values = {name: object() for name in given}
    assert vars(module.attention(**values)) == values


@pytest.mark.parametrize("kernel", ["reference", "exact", "blockwise", "fused"])
def test_the_size_of_tiles_is_an_argument(twin, kernel):
    want, got = (np.asarray(call(twin, mask=masks.Causal(2), kernel=kernel, blocks=x)) for x in (None, (2, 4)))
    assert (
        np.allclose(got, want, rtol=0, atol=standards.value("same.compiled"))
        if kernel == "blockwise"
        else np.array_equal(got, want)
    )


def test_explain_takes_what_attention_takes():
    q, k, v = (torch.tensor(x) for x in (QUERY, KEY, VALUE))
    with pytest.raises(TypeError, match="unexpected keyword argument 'windows'"):
        maskattn_torch.explain(q, k, v, windows=2)
    with pytest.raises(ValueError, match="blocks"):
        maskattn_torch.explain(q, k, v, blocks=(2, -1))


def test_auto_chooses_what_can_run_and_says_why(twin):
    module, array = twin.functional, twin.array
    q = array(np.zeros((1, 1024, 8, 64), np.float32))
    window, few = masks.SlidingWindow(63, 0), q[:, :8]
    assert module.explain(q, q, q, window)[0] == "blockwise"
    assert module.explain(q, q, q, window, return_lse=True, softcap=2.0)[0] == "blockwise"
    assert module.explain(few, few, few, masks.KeyPadding([4]))[0] == "fused"
    assert module.explain(few, few, few, window, empty_rows="mean")[0] == "reference"
    assert module.explain(q, q, q, window, kernel="exact") == ("exact", "it was asked for by name")
    for given in ({}, {"kernel": "exact"}, {"empty_rows": "mean"}):
        assert all(module.explain(few, few, few, **given))
    with pytest.raises(TypeError, match="dropout"):
        module.explain(q, q, q, dropout_rate="much")


def test_jit_eager_and_vmap_agree_in_jax():
    mask = masks.Dense(jnp.asarray(KEEP)) & masks.Causal(2)

    def attend(q, k, v, mask):
        return maskattn_jax.attention(q, k, v, mask, return_lse=True)

    eager = attend(QUERY, KEY, VALUE, mask)
    jitted = jax.jit(attend)(QUERY, KEY, VALUE, mask)
    axes = masks.Dense(jnp.asarray(KEEP[:, 0]))
    mapped = jax.vmap(lambda q, k, v, mask: attend(q[None], k[None], v[None], mask & masks.Causal(2)))
    mapped = [x[:, 0] for x in mapped(QUERY, KEY, VALUE, axes)]
    for results in (jitted, mapped):  # without jit: test_works_wherever_jax
        for x, want in zip(results, eager, strict=True):
            np.testing.assert_allclose(
                x, want, rtol=standards.value("same.compiled"), atol=standards.value("same.compiled")
            )
            assert np.array_equal(np.isneginf(x), np.isneginf(want))


def test_vmap_and_gradients_of_torch_func_agree_with_autograd():
    q, k, v, keep = (torch.tensor(x) for x in (QUERY, KEY, VALUE, KEEP))

    def loss(q, k, v, keep):
        return maskattn_torch.attention(q[None], k[None], v[None], keep[None]).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(q, k, v, keep)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    maskattn_torch.attention(*leaves, keep).square().sum().backward()
    for x, leaf in zip(gradients, leaves, strict=True):
        torch.testing.assert_close(x, leaf.grad, rtol=0, atol=standards.value("same.tiles"))


# PyTorch's compiler instantiates torch.autograd.Function itself, and then warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_torch_compile_with_gradients():
    def attend(q, k, v, keep, bias):
        return maskattn_torch.attention(q, k, v, keep, bias=bias, softcap=3.0, return_lse=True)

    results = []
    for function in (attend, torch.compile(attend, fullgraph=True, backend="aot_eager")):
        leaves = [torch.tensor(x).requires_grad_() for x in (QUERY, KEY, VALUE, np.ones((3, 6), np.float32))]
        output, lse = function(*leaves[:3], torch.tensor(KEEP), leaves[3])
        (output.square().sum() + torch.where(torch.isfinite(lse), lse, 0).sum()).backward()
        results.append([output, lse, *(leaf.grad for leaf in leaves)])
    for x, want in zip(*results, strict=True):
        torch.testing.assert_close(x, want, rtol=0, atol=standards.value("same.tiles"))


@CAN_LINK
# The compiler's default back end imports parts of torch.jit.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_torch_compile_to_machine_code():
    q, k, v, keep = (torch.tensor(x) for x in (QUERY, KEY, VALUE, KEEP))
    with torch.no_grad():
        compiled = torch.compile(maskattn_torch.attention, fullgraph=True)
        found = compiled(q, k, v, keep)
        eager = maskattn_torch.attention(q, k, v, keep)
        torch.testing.assert_close(found, eager, rtol=0, atol=standards.value("same.tiles"))


def test_an_empty_row_in_a_compiled_graph_cannot_be_checked():
    q, k, v = (torch.tensor(x) for x in (QUERY, KEY, VALUE))

    def attend(q):
        return maskattn_torch.attention(q, k, v, masks.Causal(), empty_rows="error")

    with pytest.raises(torch._dynamo.exc.Unsupported, match="cannot be checked inside a compiled graph"):
        torch.compile(attend, fullgraph=True, backend="eager")(q)


def test_a_mask_of_another_size_in_a_compiled_graph_is_told_so():
    q = torch.tensor(QUERY)

    def attend(q, lengths):
        return maskattn_torch.attention(q, q, q, masks.KeyPadding(lengths))

    for full, error in ((True, torch._dynamo.exc.Unsupported), (False, ValueError)):
        with pytest.raises(error, match=r"attention: KeyPadding\(int64\[5\]\) expects batch 5, got 2"):
            torch.compile(attend, fullgraph=full, backend="eager")(q, torch.ones(5, dtype=torch.int64))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("mask", [masks.Causal(1), masks.Causal() & masks.KeyPadding([2, 6])], ids=str)
def test_a_mask_goes_into_compiled_code(mask):
    mask = maskattn_torch.lower.bind(mask)
    q, k, v = (torch.tensor(x) for x in (QUERY, KEY, VALUE))

    def attend(q, mask):
        return maskattn_torch.attention(q, k, v, mask & masks.SlidingWindow(1, 1))

    assert torch.equal(torch.compile(attend, fullgraph=True, backend="aot_eager")(q, mask), attend(q, mask))


def test_autocast_does_not_lower_the_kernel():
    q, k, v = (torch.tensor(x) for x in (QUERY, KEY, VALUE))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = maskattn_torch.attention(q, k, v)
        mixed = maskattn_torch.attention(q.bfloat16(), k, v, kernel="reference")
    assert inside.dtype == torch.float32 and torch.equal(inside, maskattn_torch.attention(q, k, v))
    narrow = maskattn_torch.attention(*(x.bfloat16() for x in (q, k, v)), kernel="reference")
    assert torch.equal(mixed, narrow)  # as SDPA: dtypes that differ become autocast's


def test_the_checks_stand_alone(twin):
    framework = twin.functional.FRAMEWORK
    query, key, value, sinks = (twin.array(x) for x in (QUERY, KEY, VALUE, np.zeros(2, np.float32)))
    check_attention(Call(query, key, value), framework)
    with pytest.raises(ValueError, match="sinks must have one entry"):
        check_attention(Call(query, key, value, sinks=sinks), framework)
    refuse_empty_rows(masks.Causal(), None, (1, 1, 3, 3), np.asarray)
    with pytest.raises(ValueError, match=r"2 of 3 rows .* \(0, 0, 1\)"):
        refuse_empty_rows(
            masks.Causal(), biases.DenseBias(np.array([[0], [-np.inf], [-np.inf]])), (1, 1, 3, 3), np.asarray
        )
