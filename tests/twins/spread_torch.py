"""Run by test_functional_devices.py: attention over four processes that talk over gloo, held to that of one.

Each check is called in every process, on DTensors of tensors that are the same in all; what fails is written down.
"""

import contextlib
import json
import sys
import time
import traceback
import warnings
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import maskattn_torch.rng
from maskattn import AttentionConfig, biases, masks, standards
from maskattn_torch import attention, explain
from maskattn_torch.parallel import HeadParallel

CHECKS = {}
KERNELS = ("auto", "reference", "blockwise", "fused", "exact")
ROWS, HEADS, QUERIES, WHOLE = Shard(0), Shard(2), Shard(1), Replicate()
LIMIT = standards.value("same.compiled")


def check(function):
    CHECKS[function.__name__] = function
    return function


def meshes():
    return init_device_mesh("cpu", (4,), mesh_dim_names=("x",)), init_device_mesh(
        "cpu", (2, 2), mesh_dim_names=("data", "model")
    )


def qkv(batch=4, q_len=24, kv_len=24, heads=8, kv_heads=4, width=8, dtype=torch.float32, value_width=None):
    made = torch.Generator().manual_seed(5)
    shapes = [(batch, q_len, heads, width), (batch, kv_len, kv_heads, width)]
    shapes.append((batch, kv_len, kv_heads, value_width or width))
    return [torch.randn(shape, generator=made, dtype=torch.float64).to(dtype) for shape in shapes]


def close(found, expected):
    assert found.shape == expected.shape, (found.shape, expected.shape)
    highest = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    assert torch.allclose(found, expected, rtol=0, atol=LIMIT * highest), (found - expected).abs().max()


def squared(out):
    """A loss of an output: of a DTensor, this device's share of it."""
    out = out.to_local() if isinstance(out, DTensor) else out
    return (out.double() ** 2).sum()


def one_device(arrays, mask=None, learned=(), **options):
    """(output, lse or None, gradients)."""
    out = attention(*arrays, mask, **options)
    out, lse = out if isinstance(out, tuple) else (out, None)
    return out, lse, torch.autograd.grad(squared(out), [*arrays, *learned])


class Pair(NamedTuple):
    """What is given on one device, and what is given beside DTensors."""

    bare: object
    other: object


def same(mesh, placements, arrays=None, mask=None, keys=None, at=None, learned=(), **options):
    """DTensors give what one device does: output, lse and gradients. The output, and what was sent.

    Args:
        placements, keys: of the query and, where they are others, of key and value. at: where the output has to be.
        mask, options: a Pair where the two differ.
        learned: pairs of further leaves, of one device and of DTensors.
    """
    arrays = [x.requires_grad_() for x in arrays or qkv()]
    bare, other = ({n: x[i] if isinstance(x, Pair) else x for n, x in options.items()} for i in (0, 1))
    masks_given = mask if isinstance(mask, Pair) else (mask, mask)
    bare.setdefault("return_lse", True), other.setdefault("return_lse", True)
    expected = one_device(arrays, masks_given[0], [x for x, _ in learned], **bare)
    given = [
        distribute_tensor(x.detach(), mesh, placements if n == 0 else keys or placements) for n, x in enumerate(arrays)
    ]
    given = [x.requires_grad_() for x in given]
    counted = CommDebugMode()
    with counted:
        out, lse, gradients = one_device(given, masks_given[1], [x for _, x in learned], **other)
    assert list(out.placements) == list(at or placements), out.placements
    close(out.full_tensor(), expected[0])
    if expected[1] is not None:
        close(lse.full_tensor(), expected[1])
    # a device whose part others have too counts as each of them: the loss is a sum over all
    for grad, x in zip(gradients, expected[2], strict=True):
        close(grad.full_tensor() if isinstance(grad, DTensor) else grad, x)
    return out, {str(name).split(".")[-1]: n for name, n in counted.get_comm_counts().items()}


MASK = (masks.Causal() | masks.Strided(5)) & masks.KeyPadding([24, 20, 7, 13])
FREE = ((0, [ROWS]), (0, [HEADS]), (1, [ROWS, HEADS]), (1, [HEADS, ROWS]), (1, [ROWS, ROWS]))


@check
def rows_and_heads_send_nothing_with_any_kernel(*meshes):
    for kernel in KERNELS:
        for n, placements in FREE:
            options = {"kernel": kernel, "return_lse": kernel != "fused"}
            _, sent = same(meshes[n], placements, mask=MASK, **options)
            assert not sent, (kernel, placements, sent)


@check
def queries_gather_keys_and_scatter_their_gradients(line, square):
    for mesh, placements in ((line, [QUERIES]), (square, [ROWS, QUERIES]), (square, [QUERIES, HEADS])):
        for kernel in KERNELS:
            _, sent = same(mesh, placements, mask=MASK, kernel=kernel, return_lse=kernel != "fused")
            assert sent == {"all_gather_into_tensor": 2, "reduce_scatter_tensor": 2}, sent


@check
def heads_that_share_keys(line, square):
    for heads, kv_heads in ((8, 2), (8, 1), (4, 4), (6, 3), (3, 1), (2, 2)):
        for mesh, placements in ((line, [HEADS]), (square, [HEADS, QUERIES])):
            arrays = qkv(heads=heads, kv_heads=kv_heads, value_width=5)
            keys = [WHOLE if p == HEADS and kv_heads % 4 else p for p in placements]
            same(mesh, placements, arrays, MASK, keys=keys, kernel="reference")
            same(mesh, placements, arrays, MASK, kernel="blockwise")


@check
def uneven_parts(line, square):
    for sizes in ({"batch": 3}, {"batch": 1, "q_len": 7}, {"q_len": 1}, {"q_len": 2, "batch": 5, "kv_heads": 2}):
        lengths = masks.KeyPadding(list(range(11, 11 + sizes.get("batch", 4))))
        for mesh, placements in ((line, [ROWS]), (square, [ROWS, QUERIES]), (square, [QUERIES, HEADS])):
            arrays = qkv(**sizes)
            at = [WHOLE if arrays[0].shape[p.dim] == 1 else p for p in placements]
            for kernel in ("reference", "blockwise"):
                same(mesh, placements, arrays, masks.Causal(3) & lengths, at=at, kernel=kernel)


@check
def other_placements_are_gathered_and_said(line, square):
    for placements, keys, at in (
        ([Shard(3)], [WHOLE], [WHOLE]),
        ([WHOLE], [ROWS], [ROWS]),
        ([WHOLE], [HEADS], [HEADS]),
        ([WHOLE], [QUERIES], [WHOLE]),
        ([ROWS], [QUERIES], [ROWS]),
        ([HEADS], [ROWS], [HEADS]),
        ([WHOLE], [WHOLE], [WHOLE]),
    ):
        arrays = [distribute_tensor(x, line, placements if n == 0 else keys) for n, x in enumerate(qkv())]
        counted = CommDebugMode()
        with counted:
            _, why = explain(*arrays, MASK)
        assert not counted.get_total_counts()
        expected = attention(*qkv(), MASK)
        found = attention(*arrays, MASK)
        assert list(found.placements) == at, found.placements
        close(found.full_tensor(), expected)
        if placements == [Shard(3)]:
            assert "query is gathered over mesh axis x" in why, why
        if keys == [QUERIES]:
            assert "key is gathered over mesh axis x; value is gathered over mesh axis x" in why, why
        if keys == placements:
            assert "nothing is gathered" in why, why
    partial_query = DTensor.from_local(qkv()[0] / 4, line, [Partial()])
    close(attention(partial_query, *arrays[1:], MASK).full_tensor(), expected)


def dropped(**options):
    return {"dropout_rate": 0.5, "dropout_key": 7, **options}


@check
def dropout_is_the_draw_of_one_device(line, square):
    for n, placements in (*FREE, (0, [QUERIES]), (1, [QUERIES, HEADS])):
        mesh = (line, square)[n]
        for kernel, shared in (("reference", ()), ("blockwise", ("batch",) if n else ("batch", "heads"))):
            same(mesh, placements, mask=MASK, kernel=kernel, **dropped(), dropout_broadcast=shared)
    _, (out, again) = None, (attention(*x, MASK, kernel="exact", **dropped()) for x in both(square, [ROWS, QUERIES]))
    assert torch.equal(again.full_tensor(), out)
    long = qkv(q_len=1100, kv_len=1000, batch=2, heads=2, kv_heads=2, width=2)  # the reference takes some rows each
    out, again = (attention(*x, kernel="reference", **dropped()) for x in both(square, [QUERIES, HEADS], long))
    close(again.full_tensor(), out)


def both(mesh, placements, arrays=None):
    """Query, key and value, plain and as DTensors."""
    arrays = arrays or qkv()
    return arrays, [distribute_tensor(x, mesh, placements) for x in arrays]


@check
def exact_has_the_bits_of_one_device(line, square):
    for mesh, placements in ((line, [ROWS]), (square, [HEADS, QUERIES]), (square, [ROWS, HEADS])):
        for dtype in (torch.float32, torch.bfloat16):
            out, again = (attention(*x, MASK, kernel="exact") for x in both(mesh, placements, qkv(dtype=dtype)))
            assert torch.equal(again.full_tensor(), out)


def learned(mesh, x, placements=None):
    """A leaf of one device, and one of DTensors, or a plain one."""
    other = x.clone() if placements is None else distribute_tensor(x, mesh, placements)
    return Pair(x.clone().requires_grad_(), other.requires_grad_())


@check
def what_is_learned_gets_its_whole_gradient(line, square):
    made = torch.Generator().manual_seed(1)
    dense, table, slopes = (torch.randn(shape, generator=made) for shape in ((1, 8, 24, 24), (12, 8), (8,)))
    window, sinks, rows = (torch.randn(shape, generator=made) for shape in ((23 * 3, 8), (8,), (4, 1, 1, 24)))
    kinds = (
        (dense, biases.DenseBias, 1),
        (rows, biases.DenseBias, 0),
        (table, lambda x: biases.T5Buckets(x, 20), 1),
        (slopes.abs(), lambda x: biases.ALiBi(8, x), 0),
        (window, lambda x: biases.RelativeTable(x, (2, 12)), 1),
    )
    for placements, kernel in (
        ([ROWS, HEADS], "reference"),
        ([QUERIES, HEADS], "blockwise"),
    ):
        for i, (x, kind, axis) in enumerate(kinds):
            for where in (None, [WHOLE, WHOLE], [Shard(axis), WHOLE])[i % 2 :]:
                pair = learned(square, x, where)
                same(square, placements, mask=MASK, kernel=kernel, bias=Pair(*map(kind, pair)), learned=[pair])
        for where in (None, [Shard(0) if p == HEADS else WHOLE for p in placements]):
            pair = learned(square, sinks, where)
            same(square, placements, mask=MASK, kernel=kernel, sinks=pair, learned=[pair])
    pair = learned(line, dense, [Shard(1)])
    biased = Pair(*map(biases.DenseBias, pair))
    _, sent = same(line, [HEADS], bias=biased, learned=[pair])
    assert not sent, sent


@check
def masks_of_arrays_and_of_dtensors(line, square):
    made = torch.Generator().manual_seed(2)
    for shape in ((4, 1, 1, 24), (4, 8, 24, 24), (8, 24, 1)):
        keep = torch.rand(shape, generator=made) < 0.7
        for mesh, placements in ((line, [QUERIES]), (square, [ROWS, HEADS])):
            same(mesh, placements, mask=keep)
            for axis in (n for n, size in enumerate(shape) if size > 1):
                given = distribute_tensor(keep, mesh, [Shard(axis), WHOLE][: mesh.ndim])
                same(mesh, placements, mask=Pair(keep, given))
            same(mesh, placements, mask=Pair(masks.Dense(keep), masks.Dense(given)))
    same(mesh, placements, mask=keep.numpy())
    lengths, ids = torch.tensor([24, 3, 9, 17]), torch.arange(24).expand(4, 24) // torch.tensor([[3], [4], [7], [9]])
    where = distribute_tensor(lengths, line, [ROWS]), distribute_tensor(ids.contiguous(), line, [ROWS])
    given = masks.KeyPadding(where[0]) & masks.Segments(where[1])
    for kernel in ("auto", "reference", "blockwise"):
        _, sent = same(line, [ROWS], mask=Pair(masks.KeyPadding(lengths) & masks.Segments(ids), given), kernel=kernel)
        assert not sent, sent
    same(line, [QUERIES], mask=Pair(masks.KeyPadding(lengths) & masks.Segments(ids), given))
    arrays = [distribute_tensor(x, line, [QUERIES]) for x in qkv()]
    assert "the mask's data is gathered over mesh axis x" in explain(*arrays, given)[1], explain(*arrays, given)


@check
def what_is_wrong_is_named(line, square):
    arrays, given = both(line, [ROWS])

    def refused(kind, words, *arguments, **options):
        try:
            attention(*arguments, **options)
        except kind as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"not refused: {words}")

    refused(TypeError, "must be DTensors, all or none, got key, value as Tensor", given[0], *arrays[1:])
    refused(TypeError, "must be DTensors, all or none, got query as Tensor", arrays[0], *given[1:])
    other = [distribute_tensor(x, square, [ROWS, WHOLE]) for x in arrays]
    refused(ValueError, "must be of one mesh", given[0], *other[1:])
    keep = distribute_tensor(torch.ones(4, 1, 1, 24, dtype=torch.bool), line, [ROWS])
    refused(TypeError, "are a DTensor, but query, key and value are plain", *arrays, keep)
    elsewhere = masks.Dense(distribute_tensor(torch.ones(4, 1, 1, 24, dtype=torch.bool), square, [ROWS, WHOLE]))
    refused(ValueError, "must be of one mesh, got data of mask or bias", *given, elsewhere)
    refused(ValueError, "expects batch 3, got 4", *given, masks.KeyPadding([1, 2, 3]))
    refused(
        ValueError,
        "the first is (batch, head, query) = (2, 0, 0)",
        *given,
        masks.KeyPadding([1, 2, 0, 3]),
        empty_rows="error",
    )
    lengths = distribute_tensor(torch.tensor([1, 2, 0, 3]), line, [ROWS])
    empty = {"mask": masks.KeyPadding(lengths), "empty_rows": "error"}
    refused(ValueError, "the first is (batch, head, query) = (2, 0, 0)", *given, **empty)
    key = DTensor.from_local(maskattn_torch.rng.key(7), line, [WHOLE], run_check=False)
    options = {"dropout_rate": 0.5, "kernel": "reference"}
    found = attention(*given, dropout_key=key, **options)
    close(found.full_tensor(), attention(*arrays, dropout_key=7, **options))
    refused(ValueError, "cannot run this call", *given, kernel="fused", return_lse=True)
    close(attention(*given, MASK, empty_rows="error").full_tensor(), attention(*arrays, MASK))


@check
def what_follows_works_on_the_result(line, square):
    arrays, given = both(square, [ROWS, HEADS])
    for kernel in ("auto", "fused", "blockwise"):
        out, again = attention(*arrays, kernel=kernel), attention(*given, kernel=kernel)
        close(again.flatten(2).full_tensor(), out.flatten(2))
        close(again.reshape(4, 24, -1).full_tensor(), out.reshape(4, 24, -1))
        close(again.transpose(1, 2).contiguous().full_tensor(), out.transpose(1, 2))
    first = [attention(q, k[:, :12], v[:, :12], masks.Causal(), return_lse=True) for q, k, v in (arrays, given)]
    last = [
        attention(q, k[:, 12:], v[:, 12:], masks.Causal().at(0, 12), return_lse=True) for q, k, v in (arrays, given)
    ]
    for found, expected in zip(
        maskattn_torch.merge(*first[1], *last[1]), maskattn_torch.merge(*first[0], *last[0]), strict=True
    ):
        close(found.full_tensor(), expected)


@check
def compiled(line, square):
    _, given = both(square, [ROWS, HEADS])

    def loss(q, k, v):
        return (attention(q, k, v, MASK, kernel="blockwise").to_local() ** 2).sum()

    given = [x.detach().requires_grad_() for x in given]
    plain = torch.autograd.grad(loss(*given), given)
    again = torch.autograd.grad(torch.compile(loss, backend="aot_eager", fullgraph=True)(*given), given)
    for one, other in zip(again, plain, strict=True):
        close(one.full_tensor(), other.full_tensor())


def modules(**options):
    """Two modules with the same parameters, drawn alike in every process."""
    config = AttentionConfig(32, 8, **options)
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(maskattn_torch.MultiHeadAttention(config).train())
    if config.sinks:
        for module in made:
            torch.nn.init.normal_(module.sinks, generator=torch.Generator().manual_seed(4))
    return made


def x_of(width=32, length=24):
    return torch.randn(4, length, width, generator=torch.Generator().manual_seed(6))


def full(state):
    return {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in state.items()}


def trained(module, *inputs, counted=True, **options):
    """(output, gradients of the inputs, state dict after a step of SGD), and what was sent until then."""
    given = [x.clone().requires_grad_() for x in inputs]
    count = CommDebugMode() if counted else contextlib.nullcontext()  # it takes no layer that is called twice
    with warnings.catch_warnings(), count:
        warnings.simplefilter("error")
        out = module(*given, **options)
        (squared(out) / 100).backward()
    sent = {str(name).split(".")[-1]: n for name, n in count.get_comm_counts().items()} if counted else {}
    torch.optim.SGD(module.parameters(), 0.1).step()
    return out, [x.grad for x in given], full(module.state_dict()), sent


def same_training(plain, other, *inputs, **options):
    before = plain.state_dict()
    assert list(other.state_dict()) == list(before)
    for name, x in full(other.state_dict()).items():
        assert torch.equal(x, before[name]), name
    expected, found = trained(plain, *inputs, **options), trained(other, *inputs, **options)
    close(found[0], expected[0])
    for x, y in zip(found[1], expected[1], strict=True):
        close(x, y)
    for name, x in expected[2].items():
        close(found[2][name], x)
    return found[3]


@check
def tensor_parallel_modules(line, square):
    options = {"mask": MASK}
    for config in (
        {},
        {"num_kv_heads": 4, "qkv_bias": False},
        {"num_kv_heads": 2, "sinks": True},
        {"num_kv_heads": 1, "head_dim": 6, "v_head_dim": 5},
    ):
        plain, other = modules(**config)
        parallelize_module(other, line, HeadParallel())
        sent = same_training(plain, other, x_of(), **options)
        shared = config.get("num_kv_heads", 8) % 4 > 0  # then gradients of keys and values are added up, too
        assert sent == {"all_reduce": 4 if shared else 2}, (config, sent)
    plain, other = modules(kdim=16, vdim=20, dropout_rate=0.3, out_dropout_rate=0.2)
    parallelize_module(other, line, HeadParallel())
    bias = biases.ALiBi(8)
    same_training(plain, other, x_of(), x_of(16), x_of(20), bias=bias, dropout_key=5, kernel="blockwise", **options)


@check
def sequence_parallel_and_other_layouts(line, square):
    plain, other = modules()
    style = HeadParallel(input_layouts=QUERIES, output_layouts=QUERIES, use_local_output=False)
    parallelize_module(other, line, style)
    x = x_of()
    spread = distribute_tensor(x, line, [QUERIES])
    with CommDebugMode() as counted:
        found = other(spread.to_local(), mask=MASK)
    sent = {str(name).split(".")[-1]: n for name, n in counted.get_comm_counts().items()}
    assert sent == {"all_gather_into_tensor": 1, "reduce_scatter_tensor": 1}, sent
    close(found.full_tensor(), plain(x, mask=MASK))
    close(other(spread, mask=MASK).full_tensor(), plain(x, mask=MASK))
    torch.manual_seed(3)
    seed, other = maskattn_torch.Attention(32, 8), maskattn_torch.Attention(32, 8)
    other.load_state_dict(seed.state_dict())
    parallelize_module(other, line, HeadParallel())
    soft = torch.rand(4, 24, generator=torch.Generator().manual_seed(2))
    close(other(x, soft), seed(x, soft))


@check
def sharded_modules(line, square):
    for config in ({}, {"project": False, "sinks": True}, {"kdim": 16, "vdim": 16}):
        plain, other = modules(**config)
        fully_shard(other, mesh=line)
        inputs = (x_of(), *([x_of(16)] if "kdim" in config else []))
        same_training(plain, other, *inputs, mask=MASK)


@check
def both_on_two_axes(line, square):
    for config in ({"num_kv_heads": 2}, {"num_kv_heads": 1, "sinks": True}):
        plain, other = modules(**config)
        before = plain.state_dict()
        parallelize_module(other, square["model"], HeadParallel())
        fully_shard(other, mesh=square["data"])
        same_training(plain, other, x_of(), mask=MASK)
        other.load_state_dict({name: distribute_tensor(x, square, [WHOLE, WHOLE]) for name, x in before.items()})
        for name, x in full(other.state_dict()).items():
            assert torch.equal(x, before[name]), name


@check
def checkpoints_of_whole_modules(line, square):
    plain, other = modules(num_kv_heads=4, sinks=True)
    parallelize_module(other, line, HeadParallel())
    whole = get_model_state_dict(other, options=StateDictOptions(full_state_dict=True))
    assert list(whole) == list(plain.state_dict())
    for name, x in plain.state_dict().items():
        assert not isinstance(whole[name], DTensor) and torch.equal(whole[name], x), name
    changed = {name: x + 1 for name, x in whole.items()}
    set_model_state_dict(other, dict(changed), options=StateDictOptions(full_state_dict=True))
    for name, x in full(other.state_dict()).items():
        assert torch.equal(x, changed[name]), name
    try:
        other.load_state_dict({**other.state_dict(), "qkv.weight": torch.zeros(5, 32)})
    except RuntimeError as error:
        assert "qkv.weight" in str(error), error
    else:
        raise AssertionError("a weight of another shape was taken")


@check
def styles_that_do_not_fit_are_refused(line, square):
    def refused(kind, words, act):
        try:
            act()
        except kind as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"not refused: {words}")

    refused(
        TypeError,
        "expected a MultiHeadAttention",
        lambda: parallelize_module(torch.nn.Linear(2, 2), line, HeadParallel()),
    )
    three = maskattn_torch.MultiHeadAttention(12, 3)
    refused(
        ValueError,
        "num_heads 3 cannot be divided by 4 devices",
        lambda: parallelize_module(three, line, HeadParallel()),
    )
    bare = maskattn_torch.MultiHeadAttention(32, 8, project=False)
    refused(ValueError, "no parameters that could be divided", lambda: parallelize_module(bare, line, HeadParallel()))
    plan = {"qkv": ColwiseParallel(), "proj": RowwiseParallel()}
    cut = parallelize_module(modules()[0], line, plan)
    refused(ValueError, "HeadParallel", lambda: cut(x_of()))
    _, whole = modules()
    parallelize_module(whole, line, HeadParallel())
    refused(ValueError, "must be a plain nn.Linear", lambda: whole(x_of(), kernel="exact"))


@check
def modules_of_whole_parameters_take_dtensors(line, square):
    plain, other = modules(dropout_rate=0.2, out_dropout_rate=0.5)
    distribute_module(other, square)
    x = x_of()
    for placements in ([ROWS, WHOLE], [ROWS, QUERIES]):
        found = other(distribute_tensor(x, square, placements), mask=MASK, dropout_key=3)
        assert list(found.placements) == placements, found.placements
        close(found.full_tensor(), plain(x, mask=MASK, dropout_key=3))


def main(rank, store, results, checks=CHECKS, devices=4):
    """Run the checks that are named behind, or all, as one of so many processes."""
    torch.set_num_threads(1)
    options = {"rank": rank, "world_size": devices, "timeout": timedelta(seconds=200)}
    dist.init_process_group("gloo", init_method=f"file://{store}", **options)
    given = meshes() if devices == 4 else (init_device_mesh("cpu", (devices,), mesh_dim_names=("x",)),)
    found = {}
    for name in sys.argv[4:] or list(checks):
        started = time.time()
        try:
            checks[name](*given)
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
        print(f"{rank} {name} {time.time() - started:.1f} s {found[name]}", flush=True)
    with open(f"{results}.{rank}", "w") as file:
        json.dump(found, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
