"""DTensors in PyTorch: attention and modules over four processes give what one gives, and send only what they must."""

import re
from pathlib import Path

import pytest

from tests import scripts

SCRIPT = Path(__file__).parent / "spread_torch.py"
CHECKS = re.findall(r"@check\ndef (\w+)", SCRIPT.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What went wrong in each check, in each process: they take seconds to start, so all checks are done in one go."""
    return scripts.of_processes(SCRIPT, 4, tmp_path_factory.mktemp("spread"))


@pytest.mark.torch
@pytest.mark.parametrize("check", CHECKS)
def test_four_processes(found, check):
    assert [one[check] for one in found] == [""] * 4


def test_every_check_is_seen():
    assert len(CHECKS) > 15
