"""The oracle of a layer judges the PyTorch module of every part: outputs and gradients, in each dtype."""

import ml_dtypes
import numpy as np
import pytest

from maskattn import standards
from maskattn.parity.layers.oracle import Call, judge
from tests.frameworks import maskattn_torch, torch
from tests.modules.test_run import LAYERS, X, called, weights

DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16}


def answered(config, mask, given, dtype):
    """The PyTorch module's output and gradients in float64, and what is right."""
    kept = DTYPES[dtype]
    tensors = {name: x.astype(kept) for name, x in weights(config).items()}
    own = maskattn_torch.MultiHeadAttention(config, dtype=getattr(torch, dtype)).eval()
    maskattn_torch.params.load(own, tensors)
    named = {
        n: torch.tensor(x) if x.dtype != np.float32 else torch.tensor(x).to(getattr(torch, dtype))
        for n, x in given.items()
    }
    query = torch.tensor(X).to(getattr(torch, dtype)).requires_grad_()
    output = own(query, mask=mask, **named)
    cotangent = np.random.default_rng(5).standard_normal(output.shape).astype(kept)
    output.backward(torch.tensor(cotangent.astype(np.float64)).to(output.dtype))
    grads = {name: parameter.grad for name, parameter in own.named_parameters()}
    holder = maskattn_torch.MultiHeadAttention(config, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in holder.named_parameters():
            parameter.copy_(grads[name] if grads[name] is not None else torch.zeros_like(parameter))
    found = {"query": query.grad.double().numpy(), **maskattn_torch.params.dump(holder)}
    call = called(mask, {n: x.astype(kept) if x.dtype == np.float32 else x for n, x in given.items()}, X.astype(kept))
    return output.detach().double().numpy(), found, judge(config, tensors, call, dtype, cotangent=cotangent)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_within_their_limits(name, dtype):
    output, found, verdict = answered(*LAYERS[name], dtype)
    assert np.all(np.abs(output - verdict.output) <= verdict.limit)
    assert found.keys() == verdict.gradients.keys()
    for key, gradient in verdict.gradients.items():
        assert np.max(np.abs(found[key] - gradient)) <= verdict.gradient_limits[key], key
    # nothing hides below a limit
    assert dtype == "bfloat16" or verdict.limit.max() <= standards.value("module.limit") * np.abs(verdict.output).max()


def test_frequencies_of_another_library_widen_the_limit_with_the_position():
    config = LAYERS["qwen3"][0]
    call = Call(X)
    own, other = (judge(config, weights(config), call, "float32", frequency_ulps=ulps).limit for ulps in (0.0, 5.0))
    assert np.all(other >= own) and np.all(other[:, 1:] > own[:, 1:])
