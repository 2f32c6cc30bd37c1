"""Bytes against PSNR: the tokens of a run beside PNG, JPEG and WebP, as a table, a plot and JSON.

    python scripts/rate_distortion.py --load-config RUN --images kodak --output-dir OUT
    python scripts/rate_distortion.py --load-config RUN --images cifar10.npz --output-dir OUT --max-pictures 1000

Every picture is a file of its own, with the header that its format needs. On pictures as small as CIFAR's these headers outweigh
everything else; so the table also tells each format's overhead, and sizes without it.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image

from token_methods.commands.main import EXPECTED
from token_methods.commands.picture_files import picture_files
from token_methods.commands.tokenize import Pixels, groups, load_tokenizer, progress, psnr, read_pictures
from token_methods.gaussiantoken.geometry_quantization import EXACT, NO_GEOMETRY, GeometryBits
from token_methods.gaussiantoken.token_file import encode_tokens, kept_tokens, picture_bytes
from token_methods.gaussiantoken.tokenizer import ImageTokenizer

DEPTHS = (
    GeometryBits(4, 2, 2),
    GeometryBits(5, 3, 3),
    GeometryBits(6, 4, 4),
    GeometryBits(7, 5, 5),
    GeometryBits(8, 6, 6),
    GeometryBits(10, 8, 8),
    EXACT,
)
"""Bits of position, scale and rotation that are compared."""
QUALITIES = (1, 4, 7, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 95)
LOSSY: dict[str, dict[str, Any]] = {"JPEG": {"optimize": True}, "WebP": {"method": 4}}


@dataclass(frozen=True)
class Point:
    """One setting of one format over all pictures."""

    format: str
    setting: str
    num_bytes: float
    """Of a picture's file, mean."""
    overhead: float
    """Of these, what a grey picture of 16 x 16 pixels takes; for tokens, what is neither code nor geometry. Mean."""
    bits_per_pixel: float
    """Of all files together over all pixels together."""
    psnr: float
    """In dB, mean over pictures; infinite where nothing is lost."""


@dataclass
class RateDistortion:
    """Compare the tokens of a run with PNG, JPEG and WebP."""

    load_config: Path
    """A GaussianToken run's config.yml, or its folder."""
    images: Path
    """A folder or zip archive of pictures, or a .npz file with x_test (uint8 [n, height, width, 3]), such as CIFAR's."""
    output_dir: Path
    """Folder for rate_distortion.json, .md and .png."""
    max_pictures: int | None = None
    """Compare on the first so many pictures; by default on all."""

    def main(self) -> None:
        pictures, notes = self.pictures()
        tokenizer = load_tokenizer(self.load_config)
        points = [*token_points(tokenizer, pictures), *codec_points(pictures)]
        at_our_psnr = [row for point in points if point.format == "tokens" for row in sizes_at(point, points)]
        self.output_dir.mkdir(parents=True, exist_ok=True)
        told = {
            "pictures": len(pictures),
            "pixels": sum(picture.shape[0] * picture.shape[1] for picture in pictures),
            "notes": notes,
            "points": [asdict(point) | {"psnr": None if math.isinf(point.psnr) else point.psnr} for point in points],
            "sizes_at_our_psnr": at_our_psnr,
        }
        place = self.output_dir / "rate_distortion"
        write(place.with_suffix(".json"), json.dumps(told, indent=1).encode())
        write(place.with_suffix(".md"), markdown(points, at_our_psnr, notes, len(pictures)).encode())
        write(place.with_suffix(".png"), plot(points))
        CONSOLE.print(f"{len(pictures)} pictures, {len(points)} settings: {place}.md, .json, .png", soft_wrap=True)

    def pictures(self) -> tuple[list[Pixels], list[str]]:
        """The pictures, and what must be said about them."""
        if self.max_pictures is not None and self.max_pictures < 1:
            raise ValueError(f"--max-pictures must be 1 or more, not {self.max_pictures}")
        if self.images.suffix == ".npz":
            return read_arrays(self.images)[: self.max_pictures], []
        files = picture_files([self.images])[: self.max_pictures]
        read = list(read_pictures(files, lambda: None))
        if not read:
            raise ValueError(f"none of the pictures of {self.images} can be read: name another folder")
        jpegs = sum(file.path.suffix.lower() in (".jpg", ".jpeg") for file, _ in read)
        note = f"{jpegs} of the {len(read)} pictures were JPEG files already, which favours JPEG and swells PNG."
        return [pixels for _, pixels in read], [note] * (jpegs > 0)


def read_arrays(path: Path) -> list[Pixels]:
    """The test pictures of a .npz file.

    Raises:
        ValueError: there are none.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pixels = arrays["x_test"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} has no readable array x_test ({error}): write it as uint8 [n, height, width, 3]") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or not pixels.size:
        raise ValueError(f"{path}: x_test is {pixels.dtype} {list(pixels.shape)}, and must be uint8 [n, height, width, 3]")
    return list(pixels)


def token_points(tokenizer: ImageTokenizer, pictures: Sequence[Pixels]) -> list[Point]:
    """A point for every depth of geometry; the pictures are tokenized once."""
    layout = tokenizer.layout
    depths = (NO_GEOMETRY,) if layout.scale_range is None else DEPTHS
    measured: list[list[tuple[float, float, float, int]]] = [[] for _ in depths]
    with progress("Tokens", len(pictures)) as advance:
        for group in groups(pictures, tokenizer.batch_size, lambda picture: layout.num_tiles(*picture.shape[:2])):
            tokens = tokenizer.tokenize_all(group)
            for bits, rows in zip(depths, measured):
                decoded = tokenizer.detokenize_all([kept_tokens([("picture.png", own)], layout, bits)[0] for own in tokens])
                for own, picture, back in zip(tokens, group, decoded):
                    size = len(encode_tokens([("picture.png", own)], layout, bits))
                    overhead = size - picture_bytes(own, layout, bits)
                    rows.append((size, overhead, psnr(picture, back), picture.shape[0] * picture.shape[1]))
            for _ in group:
                advance()
    names = ["grid" if not bits.any else f"{bits.position}/{bits.scale}/{bits.rotation} bits" for bits in depths]
    return [summary("tokens", name, rows) for name, rows in zip(names, measured)]


def codec_points(pictures: Sequence[Pixels]) -> list[Point]:
    """PNG, and every quality of JPEG and WebP."""
    settings: list[tuple[str, str, dict[str, Any]]] = [("PNG", "lossless", {"optimize": True})]
    settings += [(name, f"quality {quality}", {**options, "quality": quality}) for name, options in LOSSY.items() for quality in QUALITIES]
    points = []
    with progress("Codecs", len(settings)) as advance:
        for name, setting, options in settings:
            overhead = len(encode(np.full((16, 16, 3), 128, np.uint8), name, options))
            rows = []
            for picture in pictures:
                content = encode(picture, name, options)
                back = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
                rows.append((len(content), overhead, psnr(picture, back), picture.shape[0] * picture.shape[1]))
            points.append(summary(name, setting, rows))
            advance()
    return points


def encode(picture: Pixels, name: str, options: dict[str, Any]) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=name, **options)
    return buffer.getvalue()


def summary(name: str, setting: str, rows: Sequence[tuple[float, float, float, int]]) -> Point:
    """A point from bytes, overhead, PSNR and pixels of every picture."""
    sizes, overheads, psnrs, pixels = (np.array(column, dtype=np.float64) for column in zip(*rows))
    rate = 8 * sizes.sum() / pixels.sum()
    return Point(name, setting, float(sizes.mean()), float(overheads.mean()), float(rate), float(psnrs.mean()))


def sizes_at(ours: Point, points: Sequence[Point]) -> list[dict[str, Any]]:
    """What each lossy codec takes at the PSNR of one of our points; None where no quality comes near it."""
    return [
        {
            "tokens": ours.setting,
            "psnr": ours.psnr,
            "format": name,
            "bytes": interpolated([point for point in points if point.format == name], ours.psnr, lambda point: point.num_bytes),
            "bytes_less_overhead": interpolated(
                [point for point in points if point.format == name], ours.psnr, lambda point: point.num_bytes - point.overhead
            ),
            "our_bytes": ours.num_bytes,
            "our_bytes_less_overhead": ours.num_bytes - ours.overhead,
        }
        for name in LOSSY
    ]


def interpolated(points: Sequence[Point], wanted: float, size_of: Callable[[Point], float]) -> float | None:
    """Size at a PSNR, the logarithm of the size taken as linear between neighbouring qualities."""
    curve = sorted((point.psnr, size_of(point)) for point in points if math.isfinite(point.psnr) and size_of(point) > 0)
    if not curve or not curve[0][0] <= wanted <= curve[-1][0]:
        return None
    psnrs, sizes = zip(*curve)
    return float(np.exp(np.interp(wanted, psnrs, np.log(sizes))))


def markdown(points: Sequence[Point], at_our_psnr: Sequence[dict[str, Any]], notes: Sequence[str], count: int) -> str:
    """Both tables."""

    def decibels(value: float) -> str:
        return "lossless" if math.isinf(value) else f"{value:.2f}"

    def size(value: float | None) -> str:
        return "out of reach" if value is None else f"{value:,.0f}"

    lines = [
        f"Rate and distortion on {count} pictures, one file each; means over pictures, bits per pixel over all pixels.",
        "Overhead: of PNG, JPEG and WebP what a grey picture of 16 x 16 pixels takes, of tokens what is neither code nor geometry.",
        *notes,
        "",
        "| format | setting | bytes | of these overhead | bytes less overhead | bits per pixel | PSNR |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for point in points:
        sizes = " | ".join(map(size, (point.num_bytes, point.overhead, point.num_bytes - point.overhead)))
        lines.append(f"| {point.format} | {point.setting} | {sizes} | {point.bits_per_pixel:.4f} | {decibels(point.psnr)} |")
    lines += ["", "Sizes at the PSNR of our tokens, interpolated between qualities:", ""]
    lines += ["| tokens | PSNR | bytes | less overhead | beside | bytes | less overhead |", "|---|---:|---:|---:|---|---:|---:|"]
    for row in at_our_psnr:
        ours, theirs = ((size(row[f"{whose}bytes"]), size(row[f"{whose}bytes_less_overhead"])) for whose in ("our_", ""))
        lines.append(f"| {row['tokens']} | {decibels(row['psnr'])} | {' | '.join(ours)} | {row['format']} | {' | '.join(theirs)} |")
    return "\n".join(lines) + "\n"


def plot(points: Sequence[Point]) -> bytes:
    """PSNR over bits per pixel, as a small PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="bits per pixel, files as they are", ylabel="mean PSNR in dB")
    for name in ("tokens", *LOSSY):
        curve = [point for point in points if point.format == name and math.isfinite(point.psnr)]
        curve.sort(key=lambda point: point.bits_per_pixel)
        axes.plot([point.bits_per_pixel for point in curve], [point.psnr for point in curve], marker=".", label=name)
    for point in points:
        if math.isinf(point.psnr):
            axes.axvline(point.bits_per_pixel, color="grey", linestyle=":", label=f"{point.format}, {point.setting}")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_bytes(content)
    unfinished.replace(path)


if __name__ == "__main__":
    comparison = tyro.cli(RateDistortion, description=__doc__)
    try:
        comparison.main()
    except EXPECTED as error:
        sys.exit(f"rate_distortion: {error}")
