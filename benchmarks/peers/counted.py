"""Runs another library's own tests, counts what came of them, and says of each failure whether its reason is known."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

import pytest


class Counted:
    """A plugin of pytest: the outcome of every test."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = reasons
        self.passed = 0
        self.skipped: dict[str, int] = {}
        self.failed: dict[str, list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.split("::", 1)[-1]
        if report.failed:
            why = next((why for pattern, why in self.reasons.items() if fnmatch.fnmatch(name, pattern)), "unknown")
            self.failed.setdefault(why, []).append(name)
        elif report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped[why] = self.skipped.get(why, 0) + 1
        elif report.when == "call":
            self.passed += 1


def run(files: Sequence[str], reasons: Mapping[str, str], arguments: Sequence[str] = ()) -> int:
    """The exit status: 0 where every failure has a reason in `reasons`, which are by patterns of a test's name."""
    counted = Counted(reasons)
    plain = ["-q", "--no-header", "-p", "no:cacheprovider", "--import-mode=importlib", "--rootdir=/", "-W", "ignore"]
    pytest.main([*plain, "--tb=line", *arguments, *files], plugins=[counted])
    failed = sum(map(len, counted.failed.values()))
    print(f"\n{counted.passed} passed, {failed} failed, {sum(counted.skipped.values())} skipped")
    for why, names in counted.failed.items():
        print(f"  failed {len(names)}: {why}")
        for name in names if why == "unknown" else ():
            print(f"    {name}")
    for why, number in counted.skipped.items():
        print(f"  skipped {number}: {why}")
    return 1 if "unknown" in counted.failed or not counted.passed else 0
