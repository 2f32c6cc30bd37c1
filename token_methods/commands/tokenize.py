"""`ns-tokens tokenize`: pictures of any size become a file of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np
import torch
import tyro
from jaxtyping import UInt8
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import Progress
from rich.table import Table

from token_methods.commands.picture_files import PictureFile, picture_files
from token_methods.commands.runs import read_config
from token_methods.gaussiantoken.config import GaussianTokenArchitecture
from token_methods.gaussiantoken.geometry_quantization import NO_GEOMETRY, GeometryBits
from token_methods.gaussiantoken.picture_tokens import PictureTokens
from token_methods.gaussiantoken.token_file import kept_tokens, picture_bytes, write_tokens
from token_methods.gaussiantoken.token_file_header import check_name
from token_methods.multiscene.errors import ImageError
from token_methods.multiscene.images import read_image
from token_methods.multiscene.network_files import read_network

if TYPE_CHECKING:
    from token_methods.gaussiantoken.tokenizer import ImageTokenizer

Pixels = UInt8[np.ndarray, "height width 3"]
Item = TypeVar("Item")
MAX_ROWS = 24
"""Pictures that the table tells by name."""


@dataclass
class Tokenize:
    """Turn pictures into a file of tokens, and measure what that loses."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Pictures, folders of pictures, zip archives of pictures."""
    load_config: Path
    """A GaussianToken run's config.yml, or its folder."""
    output: Path
    """File to write (.safetensors)."""
    position_bits: int = 8
    """Bits of each coordinate of a Gaussian's centre: 1 to 16, or 32 for the exact number."""
    scale_bits: int = 6
    """Bits of each of its two standard deviations: 1 to 16, or 32."""
    rotation_bits: int = 6
    """Bits of its angle: 1 to 16, or 32. Not one of the three counts for a network whose tokens are a grid."""

    def main(self) -> None:
        if self.output.suffix != ".safetensors":
            raise ValueError(f"--output {self.output} must end in .safetensors")
        bits = GeometryBits(self.position_bits, self.scale_bits, self.rotation_bits)
        files = picture_files(self.images)
        tokenizer = load_tokenizer(self.load_config)
        if tokenizer.layout.scale_range is None:
            bits = NO_GEOMETRY
        elif not bits.any:
            raise ValueError("the tokens of this network are Gaussians: their position, scale and rotation need 1 bit or more each")
        self.output.parent.mkdir(parents=True, exist_ok=True)  # now, not after the work

        pictures: list[tuple[PictureFile, PictureTokens]] = []
        with progress("Tokenizing", len(files)) as advance:
            for group in groups(
                read_pictures(files, advance), tokenizer.batch_size, lambda read: tokenizer.layout.num_tiles(*read[1].shape[:2])
            ):
                pictures += zip([file for file, _ in group], tokenizer.tokenize_all([pixels for _, pixels in group]))
        if not pictures:
            raise ValueError(f"none of the {len(files)} pictures can be read: nothing was written")
        num_bytes = write_tokens([(file.name, tokens) for file, tokens in pictures], tokenizer.layout, bits, self.output)
        CONSOLE.print(quality_table(measure(tokenizer, pictures, bits), num_bytes))
        told = f"{bits.per_token} bits of geometry and " if bits.any else ""
        skipped = f", {len(files) - len(pictures)} skipped" * (len(pictures) < len(files))
        CONSOLE.print(
            f"{len(pictures)} pictures{skipped}; {told}{tokenizer.layout.index_bits} bits of code per token: {self.output}", soft_wrap=True
        )


@dataclass(frozen=True)
class Measured:
    """What a picture takes, and what is lost."""

    name: str
    height: int
    width: int
    num_bytes: float
    """Of its tokens, without the file's header."""
    exact_psnr: float
    """In dB, of tokens whose geometry is not quantised."""
    psnr: float
    """In dB, of what the file gives back."""


def load_tokenizer(run: Path) -> ImageTokenizer:
    """The tokenizer of a run, with its averaged weights if it has them; on CUDA where there is one. No data are touched.

    Raises:
        ValueError: no run, or one of another method.
        CheckpointError, WeightsError: its weights cannot be read, or are of another architecture.
    """
    from token_methods.gaussiantoken.network import GaussianTokenNetwork
    from token_methods.gaussiantoken.tokenizer import ImageTokenizer
    from token_methods.gaussiantoken.weights import load_weights

    config = read_config(run)
    architecture = getattr(config.pipeline.model, "architecture", None)
    if not isinstance(architecture, GaussianTokenArchitecture):
        raise ValueError(f"{run} is a run of {config.method_name}, which does not tokenize pictures: name a run of GaussianToken")
    source = config.get_base_dir() / config.relative_model_dir
    network = GaussianTokenNetwork(architecture)
    load_weights(network, read_network(source), str(source))
    return ImageTokenizer(network.to("cuda" if torch.cuda.is_available() else "cpu"))


def measure(tokenizer: ImageTokenizer, pictures: Sequence[tuple[PictureFile, PictureTokens]], bits: GeometryBits) -> list[Measured]:
    """What the tokens of pictures lose with exact geometry, and what as one file with these bits gives them back.

    Raises:
        ImageError: a picture is no longer there.
    """
    layout, rows = tokenizer.layout, []
    kept = kept_tokens([(file.name, tokens) for file, tokens in pictures], layout, bits)
    with progress("Measuring", len(pictures)) as advance:
        for group in groups(zip(pictures, kept), tokenizer.batch_size, lambda item: len(item[1].indices)):
            exact = tokenizer.detokenize_all([tokens for (_, tokens), _ in group])
            back = exact if bits.exact else tokenizer.detokenize_all([tokens for _, tokens in group])
            for ((file, tokens), _), *decoded in zip(group, exact, back):
                pixels = read_image(file.path)
                quality = (psnr(pixels, own) for own in decoded)
                rows.append(Measured(file.name, tokens.height, tokens.width, picture_bytes(tokens, layout, bits), *quality))
                advance()
    return rows


def read_pictures(files: Iterable[PictureFile], advance: Callable[[], None]) -> Iterator[tuple[PictureFile, Pixels]]:
    """The pictures that can be read; every other one is named."""
    for file in files:
        try:
            check_name(file.name)
            yield file, read_image(file.path)
        except (ImageError, ValueError) as error:
            CONSOLE.print(f"[bold yellow]Skipped: {error}", soft_wrap=True)
        advance()


def groups(items: Iterable[Item], least: int, size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Items in turn, as few together as have at least this size."""
    group: list[Item] = []
    size = 0
    for item in items:
        group.append(item)
        size += size_of(item)
        if size >= least:
            yield group
            group, size = [], 0
    if group:
        yield group


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, moved on by one with every call of what it gives; it leaves nothing behind."""
    with Progress(console=CONSOLE, transient=True, disable=not CONSOLE.is_interactive) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def psnr(picture: Pixels, reference: Pixels) -> float:
    """Peak signal-to-noise ratio of two pictures of bytes in dB; infinite where they are equal."""
    error = float(np.mean((picture.astype(np.float32) - reference.astype(np.float32)) ** 2, dtype=np.float64))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def quality_table(rows: list[Measured], num_bytes: int) -> Table:
    """A row per picture with the bytes of its tokens, and one of the whole file with its header."""
    table = Table("picture", "pixels", "bytes", "bits per pixel", "PSNR, exact geometry", "PSNR of the file")
    for column in table.columns[1:]:
        column.justify = "right"

    def add(name: str, pixels: str, size: float, area: int, exact: float, kept: float) -> None:
        table.add_row(name, pixels, f"{math.ceil(size)}", f"{8 * size / area:.4f}", f"{exact:.2f}", f"{kept:.2f} ({kept - exact:+.2f})")

    for row in rows[:MAX_ROWS]:
        add(row.name, f"{row.width} x {row.height}", row.num_bytes, row.width * row.height, row.exact_psnr, row.psnr)
    if len(rows) > MAX_ROWS:
        table.add_row(f"... and {len(rows) - MAX_ROWS} more")
    table.add_section()
    area = sum(row.width * row.height for row in rows)
    means = [sum(values) / len(rows) for values in zip(*((row.exact_psnr, row.psnr) for row in rows))]
    add("whole file, mean PSNR", f"{area}", num_bytes, area, means[0], means[1])
    return table
