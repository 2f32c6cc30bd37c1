"""Gaussians as files: `.ply` in the layout of 3D Gaussian Splatting (Kerbl et al. 2023), and the compact `.spz`, `.splat`.

A .ply holds what is optimised in 3DGS, not what is drawn: the logit of the opacity, the logarithm of the scales and
the constant spherical harmonic of the colour. Ours have no further harmonics. .spz (Niantic) holds the same in 20
bytes a Gaussian, .splat (read by web viewers) what is drawn in 32.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from plyfile import PlyData, PlyElement, PlyParseError
from torch.nn.functional import normalize

from token_methods.rendering.gaussians3d import Gaussians3D

SH_C0 = 0.28209479177387814
"""The constant spherical harmonic: colour = 0.5 + SH_C0 * f_dc."""
MIN_OPACITY = 0.005
"""Fainter Gaussians are not worth their bytes (TokenGS)."""
PLY_FIELDS = (
    *("x", "y", "z"),
    *("f_dc_0", "f_dc_1", "f_dc_2"),
    "opacity",
    *("scale_0", "scale_1", "scale_2"),
    *("rot_0", "rot_1", "rot_2", "rot_3"),
)
SPZ_SMALLEST_SCALE = 4.6e-5
"""spz stores the logarithm of a scale from -10 upwards."""


SUFFIXES = (".ply", ".spz", ".splat")


class SplatFileError(ValueError):
    """A splat file that cannot be read or written; the message says which, why, and what to do."""


def check_splat_name(path: Path) -> None:
    """Refuse a file name that `write_splats` would refuse, before the work is done.

    Raises:
        SplatFileError: unknown ending.
    """
    if path.suffix not in SUFFIXES:
        raise SplatFileError(f"{path}: cannot write '{path.suffix}' files; name it {' or '.join(SUFFIXES)}")


def write_splats(gaussians: Gaussians3D, path: Path, min_opacity: float = MIN_OPACITY) -> int:
    """Write one scene; the ending of the name (.ply, .spz, .splat) chooses the format. Returns the number of Gaussians written.

    The file appears under its name when it is complete, not before.

    Args:
        gaussians: a batch of one scene, in the frame and unit that the file shall have.
        path: where to; missing folders are made.
        min_opacity: Gaussians below it are left out, as are those with a number that is not finite.

    Raises:
        SplatFileError: unknown ending, nothing left to write, or a folder that cannot be written.
    """
    path = Path(path)
    check_splat_name(path)
    writers: dict[str, Callable[[Float32[np.ndarray, "n 14"], Path], None]] = {
        ".ply": _write_ply,
        ".spz": _write_spz,
        ".splat": _write_splat,
    }
    gaussians = gaussians.detach().to("cpu").map(lambda value: value.float())
    gaussians = gaussians.keep(gaussians.finite()[0] & (gaussians.opacities[0] >= min_opacity))
    if gaussians.num_gaussians == 0:
        raise SplatFileError(f"{path}: no Gaussian has an opacity of {min_opacity} or more; is the model trained?")
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writers[path.suffix](_file_values(gaussians), unfinished)
        unfinished.replace(path)
    except OSError as error:
        raise SplatFileError(f"{path} cannot be written ({error}): name another folder or make room") from error
    finally:
        with contextlib.suppress(OSError):  # its folder may be a file
            unfinished.unlink(missing_ok=True)
    return gaussians.num_gaussians


def read_splats(path: Path) -> Gaussians3D:
    """Read a .ply, .spz or .splat file as a batch of one scene. Spherical harmonics above the constant one are dropped.

    Raises:
        SplatFileError: the file is missing, damaged, or no Gaussian splat file.
    """
    path = Path(path)
    readers = {".ply": _read_ply, ".spz": _read_spz, ".splat": _read_splat}
    if path.suffix not in readers:
        raise SplatFileError(f"{path}: cannot read '{path.suffix}' files; give one that ends in {' or '.join(readers)}")
    if not path.is_file():
        raise SplatFileError(f"{path} does not exist")
    values = torch.from_numpy(readers[path.suffix](path))[None]
    return Gaussians3D(
        means=values[..., 0:3],
        quats=normalize(values[..., 10:14], dim=-1),
        scales=values[..., 7:10].exp(),
        opacities=values[..., 6].sigmoid(),
        colors=0.5 + SH_C0 * values[..., 3:6],
    )


def _file_values(gaussians: Gaussians3D) -> Float32[np.ndarray, "n 14"]:
    """The numbers of a file, one column per field of PLY_FIELDS."""
    # Clamped in float64: 1 - 1e-8 is 1 in float32, and its logit infinite.
    logits = gaussians.opacities.double().clamp(1e-8, 1 - 1e-8).logit().float()
    # TokenGS writes log(scale + 1e-8). In a frame whose unit is a kilometre the sum would change sizes: only zero is guarded.
    log_scales = gaussians.scales.clamp_min(1e-30).log()
    columns = [gaussians.means, (gaussians.colors - 0.5) / SH_C0, logits[..., None], log_scales, gaussians.quats]
    return np.ascontiguousarray(torch.cat(columns, dim=-1)[0].numpy())


def _write_ply(values: Float32[np.ndarray, "n 14"], path: Path) -> None:
    rows = values.view([(name, "<f4") for name in PLY_FIELDS])[:, 0]
    PlyData([PlyElement.describe(rows, "vertex")], byte_order="<").write(str(path))


def _read_ply(path: Path) -> Float32[np.ndarray, "n 14"]:
    try:
        ply = PlyData.read(str(path))
        vertex = ply["vertex"]
        names = [field.name for field in vertex.properties]
        missing = [name for name in PLY_FIELDS if name not in names]
        if missing:
            raise SplatFileError(f"{path} is no 3D Gaussian file: its vertices lack {', '.join(missing)}")
        return np.stack([np.asarray(vertex[name], dtype=np.float32) for name in PLY_FIELDS], axis=-1)
    except (PlyParseError, KeyError, UnicodeDecodeError, OSError, ValueError) as error:
        if isinstance(error, SplatFileError):
            raise
        raise SplatFileError(f"{path} is damaged or no .ply file ({error}): write or copy it again") from error


def _write_spz(values: Float32[np.ndarray, "n 14"], path: Path) -> None:
    from gsply import GSData, write_spz

    smallest = float(np.exp(values[:, 7:10].max(axis=1)).min())
    if smallest < SPZ_SMALLEST_SCALE:
        raise SplatFileError(
            f"{path}: .spz holds no scales below {SPZ_SMALLEST_SCALE}, the scene has Gaussians of size {smallest:.1e}; write a .ply"
        )
    # Centres are 24-bit fixed-point numbers: as many fractional bits as the farthest centre leaves.
    farthest = max(1.0, float(np.abs(values[:, 0:3]).max()))
    bits = 22 - int(np.floor(np.log2(farthest)))
    if bits < 1:
        raise SplatFileError(f"{path}: .spz holds no centres beyond 4194303, the scene reaches {farthest:.0f}; write a .ply")
    harmonics = np.zeros((len(values), 0, 3), np.float32)  # none above the constant one
    data = GSData(values[:, 0:3], values[:, 7:10], values[:, 10:14], values[:, 6], values[:, 3:6], harmonics)
    write_spz(path, data, version=3, fractional_bits=bits)


def _read_spz(path: Path) -> Float32[np.ndarray, "n 14"]:
    from gsply import read_spz

    try:
        data = read_spz(path)
    except Exception as error:  # gsply raises whatever its decoders meet
        raise SplatFileError(f"{path} is damaged or no .spz file ({error}): write or copy it again") from error
    return np.concatenate([data.means, data.sh0, np.reshape(data.opacities, (-1, 1)), data.scales, data.quats], axis=1, dtype=np.float32)


SPLAT_ROW = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])


def _write_splat(values: Float32[np.ndarray, "n 14"], path: Path) -> None:
    opacities = 1 / (1 + np.exp(-values[:, 6:7]))
    rows = np.empty(len(values), SPLAT_ROW)
    rows["means"], rows["scales"] = values[:, 0:3], np.exp(values[:, 7:10])
    rows["color"] = np.rint(255 * np.clip(np.concatenate([0.5 + SH_C0 * values[:, 3:6], opacities], axis=1), 0, 1))
    rows["rotation"] = np.clip(np.rint(128 * values[:, 10:14] + 128), 0, 255)
    rows.tofile(path)


def _read_splat(path: Path) -> Float32[np.ndarray, "n 14"]:
    if path.stat().st_size % SPLAT_ROW.itemsize:
        raise SplatFileError(f"{path} is cut off: its size is no multiple of {SPLAT_ROW.itemsize} bytes; write or copy it again")
    rows = np.fromfile(path, SPLAT_ROW)
    color = rows["color"].astype(np.float64) / 255
    opacities = np.clip(color[:, 3:], 1e-8, 1 - 1e-8)
    rotation = (rows["rotation"].astype(np.float64) - 128) / 128
    columns = [rows["means"], (color[:, :3] - 0.5) / SH_C0, np.log(opacities / (1 - opacities)), np.log(rows["scales"]), rotation]
    return np.concatenate(columns, axis=1, dtype=np.float32, casting="same_kind")
