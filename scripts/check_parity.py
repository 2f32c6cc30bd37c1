"""Run this project on cases of a published system and compare every tensor with the published one.

    python scripts/check_parity.py tokengs CASE_FOLDER [CASE_FOLDER ...]
    python scripts/check_parity.py gaussiantoken CASE.safetensors [CASE.safetensors ...]

A TokenGS case is a folder with case.json, tensors.safetensors and the scenes that they were made from; a GaussianToken case is
one file. For each tensor and number
the largest error, the tolerance and the verdict are printed, then one line for the case. The exit status is 0 when all are
within their tolerances, 1 when one is out, 2 when a folder is no case or of a kind that is not supported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `scripts`, which is not installed

from rich.console import Console

from scripts.parity.comparison import Comparison, NotACase, summary, table

METHODS = {
    "tokengs": "scripts.parity.tokengs:compare_tokengs",
    "gaussiantoken": "scripts.parity.gaussiantoken:compare_gaussiantoken",
}
"""Method -> what yields the comparisons of one case; loaded when it is asked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS, help="the published system")
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="CASE", help="a folder with case.json and tensors.safetensors, or a .safetensors file"
    )
    parsed = parser.parse_args(arguments)
    module, name = METHODS[parsed.method].split(":")
    compare: Callable[[Path], Iterator[Comparison]] = getattr(import_module(module), name)
    summaries, refused, wrong = [], False, False
    for folder in parsed.folders:
        try:
            comparisons = check(folder, compare)
        except NotACase as error:
            summaries.append(f"{folder.name}: not compared: {error}")
            print(error, file=sys.stderr)
            refused = True
            continue
        print(*table(comparisons), sep="\n")
        summaries.append(summary(folder.resolve().name, comparisons))
        print(summaries[-1], end="\n\n", flush=True)
        wrong |= not all(comparison.passed for comparison in comparisons)
    if len(summaries) > 1:
        print(*summaries, sep="\n")
    return 1 if wrong else 2 if refused else 0


def check(folder: Path, compare: Callable[[Path], Iterator[Comparison]]) -> list[Comparison]:
    """All comparisons of a case; a line on the terminal says how far it is.

    Raises:
        NotACase: the folder cannot be compared.
    """
    comparisons = []
    with Console(stderr=True).status(f"{folder}: reading") as status:
        for comparison in compare(folder):
            comparisons.append(comparison)
            status.update(f"{folder}: {comparison.name}")
    return comparisons


if __name__ == "__main__":
    sys.exit(main())
