"""Run by test_parallel_torch.py: layers with parts over two processes that talk over gloo, held to those of one.

Heads are divided by `HeadParallel`, parameters by `fully_shard`; each check is called in both processes.
"""

import sys

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module

from maskattn import masks
from maskattn.layer import (
    Clip,
    ContinuousTable,
    Cosine,
    Disentangled,
    DynamicNTK,
    ExtraKeys,
    Gate,
    GlobalTokens,
    LongRope,
    Norm,
    Rotary,
    Slopes,
    T5Table,
    Temperature,
    WindowTable,
)
from maskattn_torch.cache import Cache
from maskattn_torch.parallel import HeadParallel
from tests.twins.spread_torch import QUERIES, close, main, modules, same_training, x_of

CHECKS = {}
MASK = (masks.Causal() | masks.Strided(5)) & masks.KeyPadding([24, 20, 7, 13])
GLOBALS = torch.zeros(4, 24, dtype=torch.bool)
GLOBALS[:, ::7] = True
RELATIVE = torch.randn(10, 32, generator=torch.Generator().manual_seed(8)).requires_grad_()
#: name -> (configuration, what a call is given)
LAYERS = {
    "qwen3": ({"num_kv_heads": 4, "rotary": Rotary(theta=100.0), "qk_norm": Norm()}, {}),
    "shared keys": ({"num_kv_heads": 1, "rotary": Rotary(theta=100.0), "qk_norm": Norm(scale="per_head")}, {}),
    "olmo2": (
        {
            "num_kv_heads": 4,
            "rotary": Rotary(scaling=DynamicNTK(2.0, trained=6), width=2, pairs="interleaved"),
            "qk_norm": Norm("layer", over="all", scale="per_head", bias=True),
            "clip": Clip(0.9),
        },
        {},
    ),
    "llama4": (
        {
            "rotary": Rotary(scaling=LongRope((1.0, 1.0), (2.0, 3.0), trained=6, by=4.0)),
            "qk_norm": Norm(scale="none", after_rotary=True),
            "temperature": Temperature(0.3, 2.0),
        },
        {"positions": torch.arange(24).flip(0)},
    ),
    "gated": ({"gate": Gate(bias=True), "sinks": True, "num_kv_heads": 2}, {}),
    "gated heads": ({"gate": Gate("head", "silu")}, {}),
    "swin v2": ({"cosine": Cosine(), "position_bias": ContinuousTable((4, 6), hidden=16)}, {"mask": None}),
    "swin": ({"position_bias": WindowTable((4, 6))}, {"mask": None}),
    "t5": ({"position_bias": T5Table(8, 6), "num_kv_heads": 1}, {}),
    "alibi": ({"position_bias": Slopes()}, {}),
    "extra": (
        {"extra_keys": ExtraKeys(zero=True), "num_kv_heads": 4},
        {"bias": torch.randn(8, 24, 24, generator=torch.Generator().manual_seed(7))},
    ),
    "deberta": (
        {"position_bias": Disentangled(5, buckets=4, max_distance=7), "num_kv_heads": 4},
        {"relative": RELATIVE},
    ),
    "deberta apart": ({"position_bias": Disentangled(5, shared=False)}, {"relative": RELATIVE}),
    "longformer": (
        {"global_tokens": GlobalTokens(), "num_kv_heads": 4},
        {"mask": masks.SlidingWindow(2, 2) | masks.Global(GLOBALS), "global_tokens": GLOBALS},
    ),
}
#: What is sent beside the sums of the output and of the input's gradient: gradients of what every device computes, and
#: the sums of a norm over all heads.
SENT = {
    "shared keys": {"all_reduce": 4},
    "t5": {"all_reduce": 4},
    "swin v2": {"all_reduce": 3},
    "deberta apart": {"all_reduce": 3},
    "olmo2": {"all_reduce": 6, "reduce_scatter_tensor": 4},
}


def check(function):
    CHECKS[function.__name__] = function
    return function


def two(name):
    """Two modules of a layer, with the same parameters; and what a call is given."""
    config, given = LAYERS[name]
    made = modules(**config)
    for module in made:
        drawn = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=drawn) * 0.1)
    return *made, {"mask": MASK, **given}


def _heads(name):
    def divided(line):
        plain, other, given = two(name)
        parallelize_module(other, line, HeadParallel())
        for path, x in other.named_parameters():
            alone = path in ("proj.bias", "cpb_mlp.0.weight", "cpb_mlp.0.bias") or path.endswith("_norm.weight")
            assert x.placements[0].is_shard() or alone or "1" in str(plain.config.num_kv_heads), path
        sent = same_training(plain, other, x_of(), counted=name != "deberta", **given)
        assert sent == (SENT.get(name, {"all_reduce": 2}) if name != "deberta" else {}), sent

    return divided


for each in LAYERS:
    CHECKS[f"heads of {each}"] = _heads(each)


@check
def what_is_asked_for_is_whole(line):
    plain, other, given = two("qwen3")
    parallelize_module(other, line, HeadParallel(input_layouts=QUERIES, output_layouts=QUERIES))
    x = x_of()
    mine = x.chunk(2, 1)[line.get_rank()]
    expected = plain(x, **given, return_weights=True, return_lse=True)
    found = other(mine, **given, return_weights=True, return_lse=True)
    close(found[0], expected[0].chunk(2, 1)[line.get_rank()])
    close(found[1], expected[1])
    close(found[2], expected[2])
    style = HeadParallel(use_local_output=False)
    _, other, _ = two("gated")
    plain, *_ = two("gated")
    parallelize_module(other, line, style)
    out, lse = other(x, mask=MASK, return_lse=True)
    assert out.placements == (Replicate(),) and lse.placements == (Shard(2),)
    close(lse.full_tensor(), plain(x, mask=MASK, return_lse=True)[1])


@check
def decoding_with_a_cache_of_own_heads(line):
    mask, x = masks.Causal() & masks.SlidingWindow(9), x_of()
    for name, own in (("qwen3", 2), ("shared keys", 1), ("t5", 1)):
        plain, other, _ = two(name)
        parallelize_module(other, line, HeadParallel())
        for rolling in (False, True):
            whole = plain(x, mask=mask, kernel="blockwise")
            cache = Cache.empty(4, 12 if rolling else 24, own, 4, rolling=rolling)
            found = []
            with torch.no_grad():
                for step in x.split([9, 1, 9, 1, 4], 1):
                    out, cache = other(step, mask=mask, cache=cache)
                    found.append(out)
            close(torch.cat(found, 1), whole)
            assert not isinstance(cache.key, DTensor) and cache.lengths.tolist() == [24] * 4
    valid = torch.tensor([[False, True, True]] * 4)
    _, other, _ = two("qwen3")
    parallelize_module(other, line, HeadParallel())
    out, cache = other(x[:, :3], cache=Cache.empty(4, 8, 2, 4), mask=mask, valid=valid)
    close(out[:, 1:], two("qwen3")[0](x[:, 1:3], mask=mask))
    try:
        other(x[:, :1], cache=Cache.for_config(other.config, 4, 8))
    except ValueError as error:
        assert "key must have shape [4, L, 4, 4], got [4, 1, 2, 4]" in str(error), error
    else:
        raise AssertionError("a cache of all heads was taken")
    plain, *_ = two("qwen3")
    distribute_module(plain, line)
    try:
        plain(distribute_tensor(x, line, [Shard(0)]), cache=Cache.for_config(plain.config, 4, 24), mask=mask)
    except ValueError as error:
        assert "may be divided by heads alone" in str(error), error
    else:
        raise AssertionError("rows of a cache were divided")


@check
def exact_needs_whole_weights(line):
    _, other, given = two("gated")
    parallelize_module(other, line, HeadParallel())
    try:
        other(x_of(), kernel="exact", **given)
    except ValueError as error:
        assert "gate must be a plain nn.Linear, got one whose weight is a DTensor" in str(error), error
    else:
        raise AssertionError("not refused")


def _parameters(name):
    def divided(line):
        plain, other, given = two(name)
        fully_shard(other, mesh=line)
        assert all(isinstance(x, DTensor) for x in other.parameters())
        same_training(plain, other, x_of(), counted=False, **given)
        whole = get_model_state_dict(other, options=StateDictOptions(full_state_dict=True))
        changed = {path: x + 1 for path, x in whole.items()}
        set_model_state_dict(other, dict(changed), options=StateDictOptions(full_state_dict=True))
        plain.load_state_dict(changed)
        close(other(x_of(), **given), plain(x_of(), **given))

    return divided


for each in ("qwen3", "olmo2", "gated", "swin v2", "t5", "extra", "deberta", "longformer"):
    CHECKS[f"parameters of {each}"] = _parameters(each)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], CHECKS, 2)
