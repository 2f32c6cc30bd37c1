"""Tokens of pictures as a file: safetensors with packed bits and a JSON header, described in docs/token_file.md.

Nothing in a file is believed before it has been compared with the file's own size, and nothing in it is executed.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from token_methods.gaussiantoken.bit_packing import pack, packed_size, unpack
from token_methods.gaussiantoken.geometry_quantization import (
    EXACT_BITS,
    PARTS,
    GeometryBits,
    StoredGeometry,
    check_geometry,
    dequantize,
    quantize,
)
from token_methods.gaussiantoken.picture_tokens import PictureTokens, TokenLayout
from token_methods.gaussiantoken.token_file_header import HEADER_KEY, PictureEntry, TokenFileError, TokenFileHeader

INDICES = "indices"


@dataclass(frozen=True)
class TokenFile:
    """An open token file: its header, and the streams of all pictures, unpacked picture by picture."""

    path: Path
    header: TokenFileHeader
    streams: dict[str, np.ndarray]
    """Packed bytes, or float32 where geometry is exact."""
    first_tiles: tuple[int, ...]
    """Each picture's first tile, and the number of tiles at the end."""

    @property
    def layout(self) -> TokenLayout:
        return self.header.layout

    @property
    def bits(self) -> GeometryBits:
        return self.header.bits

    @property
    def pictures(self) -> tuple[PictureEntry, ...]:
        return self.header.pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def tokens(self, number: int) -> PictureTokens:
        """The tokens of one picture.

        Raises:
            TokenFileError: codes that the codebook does not have, or exact geometry that is none.
        """
        picture, (first, last) = self.pictures[number], self.first_tiles[number : number + 2]
        shape = (last - first, self.layout.tokens_per_tile)

        def numbers(name: str, bits: int, per_token: int) -> np.ndarray:
            start, count = first * shape[1] * per_token, shape[0] * shape[1] * per_token
            stream = self.streams[name]
            values = stream[start : start + count] if bits == EXACT_BITS else unpack(stream, bits, count, start)
            return values.reshape(*shape, per_token)

        indices = numbers(INDICES, self.layout.index_bits, 1)[..., 0]
        if indices.max() >= self.layout.codebook_size:
            raise self.damaged(f"code {indices.max()} of {picture.name}, but there are {self.layout.codebook_size} codes")
        if self.layout.scale_range is None:
            return PictureTokens(picture.height, picture.width, indices, None)
        stored: StoredGeometry = {part: numbers(part, self.bits.of(part), per_token) for part, per_token in PARTS.items()}
        geometry = dequantize(stored, self.bits, self.layout.scale_range)
        try:
            check_geometry(geometry, self.layout.scale_range)
        except ValueError as error:
            raise self.damaged(f"{picture.name}: {error}") from error
        return PictureTokens(picture.height, picture.width, indices, geometry)

    def damaged(self, what: str) -> TokenFileError:
        return TokenFileError(f"{self.path} is damaged ({what}): copy it again or tokenize the pictures again")


def kept_tokens(pictures: Sequence[tuple[str, PictureTokens]], layout: TokenLayout, bits: GeometryBits) -> list[PictureTokens]:
    """The tokens of pictures as one file of them gives them back. Arguments and errors as those of `encode_tokens`."""
    scale_range = _check_pictures(pictures, layout, bits)
    if scale_range is None:
        return [tokens for _, tokens in pictures]
    return [replace(tokens, geometry=dequantize(_stored(tokens, bits, scale_range), bits, scale_range)) for _, tokens in pictures]


def picture_bytes(tokens: PictureTokens, layout: TokenLayout, bits: GeometryBits) -> float:
    """Bytes that the tokens of a picture take in a file, without header; a fraction, since pictures do not begin at whole bytes."""
    return tokens.indices.size * (layout.index_bits + bits.per_token) / 8


def encode_tokens(pictures: Sequence[tuple[str, PictureTokens]], layout: TokenLayout, bits: GeometryBits) -> bytes:
    """A token file's content.

    Args:
        pictures: names, relative and with slashes, and tokens.
        layout: that of the network.
        bits: of the geometry; `NO_GEOMETRY` for the baseline, and only there.

    Raises:
        ValueError: nothing to write; names that are no relative paths or appear twice; tokens or bits that do not suit the layout.
    """
    scale_range = _check_pictures(pictures, layout, bits)
    stored = [(tokens.indices, _stored(tokens, bits, scale_range)) for _, tokens in pictures]
    streams = {INDICES: pack(np.concatenate([indices.ravel() for indices, _ in stored]), layout.index_bits)}
    for part in PARTS if bits.any else ():
        values = np.concatenate([geometry[part].ravel() for _, geometry in stored])
        streams[part] = values.astype("<f4") if bits.of(part) == EXACT_BITS else pack(values, bits.of(part))
    entries = tuple(PictureEntry(name, tokens.height, tokens.width) for name, tokens in pictures)
    header = TokenFileHeader(replace(layout, scale_range=scale_range), bits, entries, _checksum(streams))
    return save(streams, metadata={HEADER_KEY: header.to_json()})


def write_tokens(pictures: Sequence[tuple[str, PictureTokens]], layout: TokenLayout, bits: GeometryBits, path: Path) -> int:
    """Write a token file, which is there whole or not at all. Returns its size in bytes. Arguments and errors are those of `encode_tokens`.

    Raises:
        TokenFileError: the folder cannot be written or is full.
    """
    content = encode_tokens(pictures, layout, bits)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        raise TokenFileError(f"{path} cannot be written ({error.strerror}): name another folder or make room") from error
    finally:
        if unfinished.exists():
            unfinished.unlink()
    return len(content)


def read_tokens(path: Path) -> TokenFile:
    """Open a token file. Its header, the lengths of its streams and their checksum are compared here; codes when they are unpacked.

    Raises:
        TokenFileError: no such file, not a token file, one of another version, or a damaged one.
    """
    if not path.is_file():
        raise TokenFileError(f"there is no token file {path}: name one that ns-tokens tokenize wrote")
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            if text is None:
                raise TokenFileError(f"{path} holds no tokens of pictures: name a file that ns-tokens tokenize wrote")
            header = TokenFileHeader.from_json(text, path)
            first_tiles = tuple(accumulate((header.layout.num_tiles(p.height, p.width) for p in header.pictures), initial=0))
            expected = stream_sizes(header, first_tiles[-1])
            found = {name: _shape(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            if found != expected:
                what = f"it holds {_told(found)}, but its header promises {_told(expected)}"
                raise TokenFileError(f"{path} is damaged ({what}): copy it again or tokenize the pictures again")
            streams = {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError) as error:
        raise TokenFileError(
            f"{path} is cut off, damaged or no safetensors file ({error}): copy it again, or name a file that ns-tokens tokenize wrote"
        ) from error
    opened = TokenFile(path, header, streams, first_tiles)
    if _checksum(streams) != header.crc32:
        raise opened.damaged("its bytes do not have the checksum that its header tells")
    return opened


def stream_sizes(header: TokenFileHeader, num_tiles: int) -> dict[str, tuple[str, int]]:
    """Type and length of every tensor that the file must hold."""
    tokens = num_tiles * header.layout.tokens_per_tile
    sizes = {INDICES: ("U8", packed_size(tokens, header.layout.index_bits))}
    for part, per_token in PARTS.items() if header.bits.any else ():
        bits = header.bits.of(part)
        sizes[part] = ("F32", tokens * per_token) if bits == EXACT_BITS else ("U8", packed_size(tokens * per_token, bits))
    return sizes


def _shape(tensor: object) -> tuple[str, int]:
    """Type and length; a tensor that is no row of numbers has the length -1."""
    shape = tensor.get_shape()  # type: ignore[attr-defined]
    return tensor.get_dtype(), shape[0] if len(shape) == 1 else -1  # type: ignore[attr-defined]


def _told(sizes: dict[str, tuple[str, int]]) -> str:
    listed = sorted(sizes.items())[: len(PARTS) + 2]
    return ", ".join(f"{name[:40]} {dtype}[{length}]" for name, (dtype, length) in listed) or "nothing"


def _checksum(streams: dict[str, np.ndarray]) -> int:
    checksum = 0
    for name in (INDICES, *PARTS):
        if name in streams:
            checksum = zlib.crc32(streams[name].tobytes(), checksum)
    return checksum


def _check_pictures(pictures: Sequence[tuple[str, PictureTokens]], layout: TokenLayout, bits: GeometryBits) -> tuple[float, float] | None:
    """Refuse what does not suit the layout. Returns the range of scales that just holds all Gaussians, so that its steps are small."""
    if not pictures:
        raise ValueError("there are no pictures to write")
    if bits.any and layout.scale_range is None:
        raise ValueError("tokens that are cells of the map have no geometry: give it no bits")
    if layout.scale_range is not None and not bits.any:
        raise ValueError("tokens that are Gaussians need bits for their geometry")
    smallest, largest = math.inf, 0.0
    for name, tokens in pictures:
        _check_tokens(name, tokens, layout)
        if tokens.geometry is not None:
            smallest, largest = min(smallest, float(tokens.geometry.scales.min())), max(largest, float(tokens.geometry.scales.max()))
    return (smallest, largest) if smallest < largest else layout.scale_range


def _check_tokens(name: str, tokens: PictureTokens, layout: TokenLayout) -> None:
    shape = (layout.num_tiles(tokens.height, tokens.width), layout.tokens_per_tile)
    if tokens.indices.shape != shape:
        raise ValueError(f"{name}: indices {list(tokens.indices.shape)}, but {tokens.width} x {tokens.height} pixels need {list(shape)}")
    if not 0 <= tokens.indices.min() <= tokens.indices.max() < layout.codebook_size:
        raise ValueError(f"{name}: codes {tokens.indices.min()} to {tokens.indices.max()}, but there are {layout.codebook_size}")
    if (tokens.geometry is None) != (layout.scale_range is None):
        raise ValueError(f"{name}: tokens that are cells have no geometry, and Gaussians have one")
    if tokens.geometry is not None and layout.scale_range is not None:
        try:
            check_geometry(tokens.geometry, layout.scale_range)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _stored(tokens: PictureTokens, bits: GeometryBits, scale_range: tuple[float, float] | None) -> StoredGeometry:
    return {} if tokens.geometry is None or scale_range is None else quantize(tokens.geometry, bits, scale_range)
