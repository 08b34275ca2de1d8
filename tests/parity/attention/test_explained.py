import re

import pytest

from maskattn.parity.attention import adapters, run
from maskattn.parity.attention.cases import get
from maskattn.parity.attention.fault_list import FAULTS
from maskattn.parity.attention.faults import Faulty

pytestmark = pytest.mark.hurried

EXPECTED = {
    "causal-late": "one late",
    "causal-early": "one early",
    "causal-end": "up to the last key",
    "polarity": "inverted",
    "window-wide": "too wide by one",
    "window-narrow": "too narrow by one",
    "mask-after-softmax": "behind the softmax",
    "fill-zero": "the mask is missing",
    "fill-1e4": "gets -10000 added",
    "empty-mean": "an empty row gives mean",
    "scale-missing": "no scale",
    "scale-twice": "applied twice|1 / D",
    "scale-embed": "embed_dim",
    "softcap-dropped": "softcap is left out",
    "bias-dropped": "bias is left out",
    "sinks-dropped": "sinks is left out",
    "dropout-unscaled": "not divided by 1 - rate",
    "dropout-inverted": "keeps what it should drop",
    "heads-tiled": "tiled",
}


def _judged(name, fault, twin):
    adapter = adapters.twin(twin.name, fault.uses, **({"mode": "eager"} if fault.mask is None else {}))
    return run.run_case(get(name), [Faulty(adapter, fault)], fault.uses)[0]


#: What is told is found by NumPy from inputs and outputs. JAX compiles for each fault: one of a mask, one of a formula.
IN_JAX = ("causal-late", "scale-twice")


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow_in("jax")] * (x not in IN_JAX)) for x in EXPECTED]
)
def test_a_failing_implementation_is_told_its_mistake(twin, name):
    fault = next(fault for fault in FAULTS if fault.name == name)
    told = [
        finding.message
        for case in fault.cases
        for finding in _judged(case, fault, twin).findings
        if finding.check == "diagnosis"
    ]
    assert any(re.search(EXPECTED[name], text) for text in told), told


def test_what_no_mistake_explains_is_not_explained(twin):
    fault = next(fault for fault in FAULTS if fault.name == "float16-overflow")
    outcome = _judged(fault.cases[0], fault, twin)
    assert outcome.status == "failed"
    assert not [finding for finding in outcome.findings if finding.check == "diagnosis"]
