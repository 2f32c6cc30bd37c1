"""The three kinds of TokenGS cases: a model, the training reader, the renderer. What `case.json` holds tells them apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scripts.parity.comparison import Comparison, NotACase, not_compared, read_report
from scripts.parity.rasteriser_case import compare_rasteriser
from scripts.parity.tokengs_case import ParityCase
from scripts.parity.tokengs_comparisons import compare_forward, compare_inputs, compare_training, compare_tuning
from scripts.parity.tokengs_ply import compare_ply
from scripts.parity.tokengs_sampler import compare_sampler
from scripts.parity.tokengs_scenes import network_views
from token_methods.core.views import Views


def compare_tokengs(folder: Path) -> Iterator[Comparison]:
    """Everything that a case folder stores, beside what this project makes of its scenes.

    Raises:
        NotACase: the folder is no case, or of a kind that is not supported.
    """
    report = read_report(folder)
    if "draws" in report:
        return compare_sampler(folder)
    if "losses" in report:
        return compare_model(folder)
    if {"height", "width", "near", "far", "scalar"} <= report.keys():
        return compare_rasteriser(folder)
    raise NotACase(
        f"{folder / 'case.json'} has neither losses (a model case) nor draws (the training reader) nor a scalar (the rasteriser)"
    )


def compare_model(folder: Path) -> Iterator[Comparison]:
    """A model case, from its zip archives to trained parameters.

    Raises:
        NotACase: see `compare_tokengs`.
    """
    case = ParityCase(folder)
    context, target = network_views(case)
    seen = {"batch/masks_output"}
    for comparison in _compare_all(case, context, target):
        seen.add(comparison.name)
        yield comparison
    for name in case.tensors:
        if name not in seen and not name.startswith("weights/"):
            yield not_compared(name, "nothing here computes it")


def _compare_all(case: ParityCase, context: Views, target: Views) -> Iterator[Comparison]:
    yield from compare_inputs(case, context, target)
    misfits = list(case.compare_weights())
    if misfits:
        yield from misfits
        return
    for compare in (compare_forward, compare_tuning, compare_training):
        yield from compare(case, context, target)
    yield from compare_ply(case, context)
