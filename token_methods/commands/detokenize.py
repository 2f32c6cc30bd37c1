"""`ns-tokens detokenize`: a file of tokens becomes pictures again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import UInt8
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image

from token_methods.commands.reconstruct import check_folder
from token_methods.commands.tokenize import groups, load_tokenizer, progress
from token_methods.gaussiantoken.picture_tokens import TokenLayout
from token_methods.gaussiantoken.token_file import read_tokens


@dataclass
class Detokenize:
    """Turn a file of tokens into PNG pictures."""

    tokens: Annotated[Path, tyro.conf.Positional]
    """A file that ns-tokens tokenize wrote."""
    load_config: Path
    """The run that made it: its config.yml, or its folder."""
    output_dir: Path
    """Folder for the pictures, which keep their names but for the ending."""

    def main(self) -> None:
        file = read_tokens(self.tokens.expanduser())
        check_folder(self.output_dir)
        tokenizer = load_tokenizer(self.load_config)
        check_layout(file.layout, tokenizer.layout, self.tokens, self.load_config)
        names = png_names([picture.name for picture in file.pictures])
        entries = ((name, file.tokens(number)) for number, name in enumerate(names))
        with progress("Decoding", len(file)) as advance:
            for group in groups(entries, tokenizer.batch_size, lambda entry: len(entry[1].indices)):
                for (name, _), pixels in zip(group, tokenizer.detokenize_all([tokens for _, tokens in group])):
                    write_png(pixels, self.output_dir / name)
                    advance()
        CONSOLE.print(f"{len(file)} pictures of {self.tokens}: {self.output_dir}", soft_wrap=True)


def check_layout(tokens: TokenLayout, network: TokenLayout, path: Path, run: Path) -> None:
    """Refuse tokens of another network, which would give noise.

    Raises:
        ValueError: in what they differ.
    """
    differences = "; ".join(tokens.differences(network))
    if differences:
        raise ValueError(f"{path} was not made by the network of {run}: it has {differences}; name the run that made it")


def png_names(names: list[str]) -> list[str]:
    """Names with the ending .png in place of their own; where that would make two the same, behind their own."""
    short = [str(PurePosixPath(name).with_suffix(".png")) for name in names]
    return short if len(set(short)) == len(names) else [f"{name}.png" for name in names]


def write_png(pixels: UInt8[np.ndarray, "height width 3"], path: Path) -> None:
    """Write a picture, which is there whole or not at all.

    Raises:
        ValueError: the folder cannot be written or is full.
    """
    unfinished = path.with_name(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(unfinished, format="png")
        unfinished.replace(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror or error}): name another folder or make room") from error
    finally:
        if unfinished.exists():
            unfinished.unlink()
