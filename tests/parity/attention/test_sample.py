"""The sample of cases for devices: what is in it, that it ends in time, and what is said where there is no device."""

import pytest
from click.testing import CliRunner

from maskattn.cli.main import main
from maskattn.parity.attention import adapters, run
from maskattn.parity.attention.cases import DTYPES, families, registry
from maskattn.parity.attention.sample import MOST, sample
from tests.frameworks import in_both, jax, torch


def test_every_mask_dtype_and_kind_of_case_is_in_it():
    chosen = sample()
    assert len(chosen) <= MOST == 60 and len({case.id for case in chosen}) == len(chosen)
    assert set(families()) <= {case.family for case in chosen}
    assert {case.dtype for case in chosen} == set(DTYPES)
    assert {case.family for case in registry()} <= {case.family for case in chosen} | {"dropout"}
    assert any(case.dropout_rate for case in chosen)
    assert [case.id for case in chosen] == [case.id for case in sample()]
    narrow = {case.dtype for case in chosen if case.family in families()}
    assert narrow == {"float32", "bfloat16", "float16"}


def test_what_may_share_a_compilation_follows_one_another():
    kinds = [(case.config is None, case.shape, case.dtype) for case in sample()]
    changes = sum(one != other for one, other in zip(kinds, kinds[1:], strict=False))
    assert changes + 1 == len(set(kinds))


@in_both
def test_no_case_is_begun_when_the_time_is_over():
    cases = sample()[:3]
    result = run.run_cases(cases, adapters.twins(), seconds=-1.0)
    assert [outcome.status for outcome in result.outcomes] == ["unsupported"] * 6
    assert result.outcomes[0].reasons == ["not begun: the -1 seconds were over"] and result.exit_code == 1


@in_both
@pytest.mark.skipif(torch.cuda.is_available() if torch else False, reason="there is a GPU")
def test_without_a_gpu_it_says_what_each_framework_sees():
    result = CliRunner().invoke(main, ["parity", "run", "--device", "gpu"])
    assert result.exit_code == 1
    assert f"--device gpu: PyTorch {torch.__version__} sees no CUDA device; JAX {jax.__version__} sees no GPU, but" in (
        result.output
    )
    own = ["--impl", "maskattn.parity.attention.adapters:NumpyExact"]
    said = CliRunner().invoke(main, ["parity", "run", "--device", "gpu", *own]).output
    assert "numpy has to place its arrays itself" in said
    said = CliRunner().invoke(main, ["parity", "run", "--all"]).output
    assert "--all goes with --device gpu" in said


@pytest.mark.device
@in_both
@pytest.mark.parametrize("kernel", ["exact", "reference"])
def test_on_a_gpu(kernel):
    cases = [case for case in sample() if case.id.startswith(("Causal/", "options/all/", "MultiHeadAttention/self"))]
    result = run.run_cases(cases, adapters.standard(kernel, "gpu"), kernel=kernel)
    assert not result.failures and not result.not_run
