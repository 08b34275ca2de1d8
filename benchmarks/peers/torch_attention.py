"""PyTorch's own tests of scaled_dot_product_attention and MultiheadAttention over ours.

    python benchmarks/peers/torch_attention.py .../test/test_transformers.py [-k EXPRESSION]
    python benchmarks/peers/torch_attention.py samples

The first runs a file of PyTorch's repository, which is no part of this one; its version should be the installed one,
and only tests for the CPU run without a GPU. The second takes what every installation has: the samples by which PyTorch
tests the function and the module (`torch.testing._internal`, which needs `expecttest`), compared with PyTorch's own
results; gradients, second derivatives and forward mode with finite differences.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import counted
import torch

from maskattn_torch.mha import MultiheadAttention
from maskattn_torch.sdpa import scaled_dot_product_attention

THEIRS = torch.nn.functional.scaled_dot_product_attention
MODULE = torch.nn.MultiheadAttention

DRAW = "known difference: dropout draws other weights from the same seed"
CHOICE = "PyTorch's choice among its own kernels, which is not ours"
EMPTY = "rows of only False: PyTorch's own function gives 0 too, where the test's formula gives NaN"
REASONS = {
    "*test_scaled_dot_product_attention_3D_input_dim_3D_attn_mask_dropout_p_0_0*": EMPTY,
    "*test_scaled_dot_product_attention_4D_input_dim_?D_attn_mask_dropout_p_0_0*": EMPTY,
    "*test_scaled_dot_product_attention_*dropout_p_0_[25]*": DRAW,
    "*test_fused_sdp_choice*": CHOICE,
    "*test_mask_check_fastpath*": "there is no fast path past `forward`, which the test asks for",
    "*test_disable_fastpath*": "there is no fast path past `forward`, which the test asks for",
    "*test_script*": "known difference: not for torch.jit.script",
    "*encoderlayer_subclass*": "known difference: not for torch.jit.script",
    "*test_transformer_bias_is_none*": "the warning about nested tensors has another reason",
}


def put_in_place() -> None:
    """Ours where PyTorch's are, before a test imports them."""
    for module in (torch.nn, torch.nn.modules, torch.nn.modules.activation, torch.nn.modules.transformer):
        module.MultiheadAttention = MultiheadAttention  # type: ignore[attr-defined]
    torch.nn.functional.scaled_dot_product_attention = scaled_dot_product_attention


def samples(dtype: torch.dtype, grad: bool) -> Iterator[Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    (op,) = (op for op in op_db if op.name == "nn.functional.scaled_dot_product_attention")
    yield from op.sample_inputs("cpu", dtype, requires_grad=grad)


def wide(x: Any) -> Any:
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def near(found: torch.Tensor, expected: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether ours is within PyTorch's own tolerance of theirs, or as near to float64's result, but for a factor 2."""
    try:
        torch.testing.assert_close(found, expected)
    except AssertionError:
        ours, theirs = ((x.double() - right).abs().max() for x in (found, expected))
        return found.dtype == expected.dtype and bool(ours <= 2 * theirs)
    return True


def compared() -> int:
    """Every sample of the function, and of the module: the numbers that held, differed, or were not compared."""
    torch.manual_seed(0)
    held, refused, wrong = 0, [], []
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for sample in samples(dtype, grad=False):
            given, options = (sample.input, *sample.args), sample.kwargs
            name = f"{dtype} {[tuple(x.shape) for x in given if isinstance(x, torch.Tensor)]} {options}"
            if options.get("dropout_p"):
                refused.append(f"{name}: {DRAW}")
                continue
            wide = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in given]
            more = {
                n: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
                for n, x in options.items()
            }
            try:
                found, expected = scaled_dot_product_attention(*given, **options), THEIRS(*given, **options)
                ok = near(found, expected, THEIRS(*wide, **more))
                held += ok
                wrong += [] if ok else [f"{name}: beyond rounding"]
            except (RuntimeError, TypeError, ValueError) as error:
                wrong.append(f"{name}: {error}")
    for sample in samples(torch.float64, grad=True):
        given, options = (sample.input, *sample.args), sample.kwargs

        def seeded(*arrays: torch.Tensor, options: dict[str, Any] = options) -> torch.Tensor:
            torch.manual_seed(0)
            return scaled_dot_product_attention(*arrays, **options)

        try:
            torch.autograd.gradcheck(seeded, given, check_forward_ad=True, fast_mode=True)
            torch.autograd.gradgradcheck(seeded, given, fast_mode=True)
            held += 2
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            wrong.append(f"gradients {[tuple(x.shape) for x in given]} {options}: {error}")
    more, others = modules()
    print(f"{held + more} held, {len(wrong) + len(others)} differed, {len(refused)} not compared ({DRAW})")
    print("\n".join([*wrong, *others]))
    return 1 if wrong or others or not held or not more else 0


def modules() -> tuple[int, list[str]]:
    from torch.testing._internal.common_modules import module_db

    (info,) = (info for info in module_db if info.module_cls is MODULE)
    held, wrong = 0, []
    for dtype in (torch.float64, torch.float32):
        for training in (True, False):
            for sample in info.module_inputs_func(info, "cpu", dtype, requires_grad=False, training=training):
                made, call = sample.constructor_input, sample.forward_input
                theirs = MODULE(*made.args, **{**made.kwargs, "dropout": 0.0}, dtype=dtype).train(training)
                try:
                    found = MultiheadAttention.of(theirs)(*call.args, **call.kwargs)
                    torch.testing.assert_close(found, theirs(*call.args, **call.kwargs))
                    held += 1
                except (AssertionError, RuntimeError, TypeError, ValueError) as error:
                    wrong.append(f"MultiheadAttention {sample.desc} {made.kwargs} {call.kwargs}: {error}")
    return held, wrong


def main() -> int:
    given = sys.argv[1:]
    if not given:
        raise SystemExit(__doc__)
    if given == ["samples"]:
        return compared()
    put_in_place()
    return counted.run(given[:1], REASONS, given[1:])


if __name__ == "__main__":
    sys.exit(main())
