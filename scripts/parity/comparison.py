"""One tensor or number beside the published one, and how a table of them is printed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

LOSS_TOLERANCE, SMALLEST_LOSS = 2e-5, 0.1
"""Losses and metrics: relative, where the number is smaller than SMALLEST_LOSS relative to that, as the cases' own tolerances are."""
INPUT_TOLERANCE = 1e-5
"""Of tensors that a case gives no tolerance for, above all what a network is fed; relative to the largest value where that is above 1."""


class NotACase(ValueError):
    """A folder that cannot be compared: no case, or one of a kind that is not supported. The message is one sentence."""


@dataclass(frozen=True)
class Comparison:
    """One tensor or number beside the published one."""

    name: str
    error: float
    """Largest absolute difference; infinite where there is nothing to compare with."""
    tolerance: float
    passed: bool
    remark: str = ""
    """Which allowance was used, or why there is no error to state."""

    def __str__(self) -> str:
        return f"{self.verdict:4} {self.name:75} error {self.error:.3e}  tolerance {self.tolerance:.3e} {self.remark}".rstrip()

    @property
    def verdict(self) -> str:
        """`ok`, `OUT`, or `--` for what was not compared."""
        return "--" if math.isnan(self.tolerance) else "ok" if self.passed else "OUT"

    @property
    def share(self) -> float:
        """Error over tolerance."""
        return 0.0 if self.error == 0 else self.error / self.tolerance if self.tolerance > 0 else math.inf


def compare_tensor(name: str, value: Tensor, expected: Tensor, tolerance: float | None = None) -> Comparison:
    """The largest difference of two tensors; by default to `INPUT_TOLERANCE`."""
    if tolerance is None:
        tolerance = INPUT_TOLERANCE * max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
    if value.shape != expected.shape:
        return out(name, f"shape {list(value.shape)} instead of {list(expected.shape)}", tolerance)
    error = (value.detach() - expected).abs().max().item() if expected.numel() else 0.0
    return Comparison(name, error, tolerance, error <= tolerance)


def compare_number(name: str, value: Tensor | float, expected: float, tolerance: float | None = None) -> Comparison:
    """A scalar against the published one; by default to a relative `LOSS_TOLERANCE`."""
    tolerance = LOSS_TOLERANCE * max(abs(expected), SMALLEST_LOSS) if tolerance is None else tolerance
    error = abs((value.item() if isinstance(value, Tensor) else float(value)) - expected)
    return Comparison(name, error, tolerance, error <= tolerance)


def out(name: str, remark: str, tolerance: float = 0.0) -> Comparison:
    """Something that cannot be right, whatever the numbers are."""
    return Comparison(name, math.inf, tolerance, False, remark)


def not_compared(name: str, remark: str) -> Comparison:
    """Something that a case stores and nothing here compares; it neither passes nor fails."""
    return Comparison(name, math.nan, math.nan, True, remark)


class Block(dict[str, Any]):
    """An object in `case.json`; a key that it lacks is an error that names it."""

    def __missing__(self, key: str) -> Any:
        raise NotACase(f"case.json lacks the key {key} beside {', '.join(list(self)[:5]) or 'nothing'}")


def read_report(folder: Path) -> Block:
    """`case.json` of a case folder.

    Raises:
        NotACase: there is none, or it is no JSON object.
    """
    path = folder / "case.json"
    if not path.is_file():
        raise NotACase(f"{folder} is not a case: it has no case.json")
    try:
        report = json.loads(path.read_text(encoding="utf-8"), object_hook=Block)
    except (ValueError, OSError) as error:
        raise NotACase(f"{path} is not valid JSON ({error})") from None
    if not isinstance(report, Block):
        raise NotACase(f"{path} must hold a JSON object, not a {type(report).__name__}")
    return report


def table(comparisons: Sequence[Comparison]) -> list[str]:
    """One aligned line for each comparison."""
    width = max((len(comparison.name) for comparison in comparisons), default=4)
    lines = [f"{'name':{width}}  {'error':>9}  {'tolerance':>9}"]
    for comparison in comparisons:
        numbers = f"{comparison.error:9.2e}  {comparison.tolerance:9.2e}" if comparison.verdict != "--" else f"{'-':>9}  {'-':>9}"
        lines.append(f"{comparison.name:{width}}  {numbers}  {comparison.verdict:3}  {comparison.remark}".rstrip())
    return lines


def summary(case: str, comparisons: Sequence[Comparison]) -> str:
    """One line for a whole case: how much was compared, how much is out, and what came nearest to its tolerance."""
    compared = [comparison for comparison in comparisons if comparison.verdict != "--"]
    wrong = [comparison.name for comparison in compared if not comparison.passed]
    worst = max(compared, key=lambda comparison: comparison.share, default=None)
    nearest = f", largest error over tolerance {worst.share:.3g} ({worst.name})" if worst else ""
    skipped = f", {len(comparisons) - len(compared)} not compared" if len(comparisons) > len(compared) else ""
    verdict = f"{len(wrong)} OUT: {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}" if wrong else "all ok"
    return f"{case}: {len(compared)} tensors and numbers{skipped}, {verdict}{nearest}"
