"""The published writer's `gaussians.ply` beside ours."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from plyfile import PlyData
from torch import Tensor

from scripts.parity.comparison import Comparison, compare_number, compare_tensor, out
from scripts.parity.tokengs_case import ParityCase
from token_methods.core.views import Views
from token_methods.rendering.splat_files import SH_C0, write_splats

AS_DRAWN: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "opacity": ("sigmoid", torch.sigmoid),
    **{f"scale_{axis}": ("exp", torch.exp) for axis in range(3)},
    **{f"f_dc_{channel}": ("colour", lambda value: 0.5 + SH_C0 * value) for channel in range(3)},
}
"""Fields that hold a function of what the network gives: they are compared at its tolerance after the way back."""


def compare_ply(case: ParityCase, context: Views) -> Iterator[Comparison]:
    """The names of the fields, the number of Gaussians kept, and every field; nothing if the case has no such file."""
    published = case.folder / "gaussians.ply"
    if not published.is_file():
        return
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        ours = Path(folder) / "gaussians.ply"
        write_splats(case.network()(context), ours)
        mine, theirs = (_fields(path) for path in (ours, published))
    if list(mine) != list(theirs):
        yield out("gaussians.ply/fields", f"{' '.join(mine)} instead of {' '.join(theirs)}")
        return
    yield compare_number("gaussians.ply/gaussians", len(mine["x"]), len(theirs["x"]), 0)
    tolerance = case.report.get("tolerances_max_abs", {}).get("stage/gaussians")
    for name in mine:
        meaning, drawn = AS_DRAWN.get(name, ("", lambda value: value))
        full = f"gaussians.ply/{name}{f' ({meaning})' if meaning else ''}"
        yield compare_tensor(full, drawn(mine[name]), drawn(theirs[name]), tolerance)


def _fields(path: Path) -> dict[str, Tensor]:
    vertices = PlyData.read(str(path))["vertex"]
    return {field.name: torch.from_numpy(vertices[field.name].copy()) for field in vertices.properties}
