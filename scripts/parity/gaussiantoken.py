"""The seven kinds of GaussianToken cases, each compared by a module of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from scripts.parity.comparison import Comparison, NotACase
from scripts.parity.gaussiantoken_case import GaussianTokenCase

KINDS = ("splat2d", "embedder", "quantizer", "autoencoder", "discriminator", "losses", "schedule")
"""Each is compared by `scripts.parity.gaussiantoken_KIND`."""


def compare_gaussiantoken(path: Path) -> Iterator[Comparison]:
    """Everything that a case stores, beside what this project makes of its inputs.

    Raises:
        NotACase: the file is no case, or of a kind that is not supported.
    """
    case = GaussianTokenCase(path)
    if case.kind not in KINDS:
        raise NotACase(f"{case.path} is of kind {case.kind}, which is none of {', '.join(KINDS)}")
    compare: Callable[[GaussianTokenCase], Iterator[Comparison]] = import_module(f"scripts.parity.gaussiantoken_{case.kind}").compare
    yield from compare(case)
