"""Learning rates, optimisers, weight averaging and the range of scales over many steps, beside the published runs."""

from __future__ import annotations

from pathlib import Path

from scripts.parity.gaussiantoken_case import GaussianTokenCase
from scripts.parity.gaussiantoken_schedule import compare


def test_published_runs(reference: Path) -> None:
    case = GaussianTokenCase(reference / "parity" / "gaussiantoken" / "cases" / "schedule.safetensors")
    comparisons = list(compare(case))
    assert not [comparison.name for comparison in comparisons if not comparison.passed]
    told = {comparison.name for comparison in comparisons}
    assert {name for name in case.tensors if name.startswith("ema") or (".param" in name and name.split(".param")[1].isdigit())} <= told
