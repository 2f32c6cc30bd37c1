"""Tokens at random, and the layouts that files are tested with."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from token_methods.gaussiantoken.geometry_quantization import GeometryBits
from token_methods.gaussiantoken.picture_tokens import PictureTokens, TokenGeometry, TokenLayout
from token_methods.gaussiantoken.token_file import encode_tokens
from token_methods.gaussiantoken.token_file_header import HEADER_KEY

PAGE = Path(__file__).resolve().parents[2] / "docs" / "token_file.md"
SCALES = (0.1, 3.0)
LAYOUT = TokenLayout(1000, 4, "0" * 64, 32, 32, 8, 8, 5, SCALES)
GRID = replace(LAYOUT, tokens_per_tile=64, scale_range=None)
BITS = GeometryBits(7, 5, 6)


def random_geometry(tiles: int, count: int, seed: int) -> TokenGeometry:
    random = np.random.default_rng(seed)
    return TokenGeometry(
        means=random.uniform(-1, 1, (tiles, count, 2)).astype(np.float32),
        scales=random.uniform(*SCALES, (tiles, count, 2)).astype(np.float32),
        rotations=random.uniform(0, math.pi, (tiles, count, 1)).astype(np.float32),
    )


def random_tokens(height: int, width: int, seed: int = 0, layout: TokenLayout = LAYOUT) -> PictureTokens:
    shape = (layout.num_tiles(height, width), layout.tokens_per_tile)
    indices = np.random.default_rng(seed).integers(0, layout.codebook_size, shape)
    return PictureTokens(height, width, indices, None if layout.scale_range is None else random_geometry(*shape, seed))


def some_pictures(layout: TokenLayout = LAYOUT) -> list[tuple[str, PictureTokens]]:
    sizes = {"a.png": (40, 70), "folder/b c.jpg": (1, 1), "\u00e9t\u00e9.webp": (32, 33)}
    return [(name, random_tokens(*size, seed, layout)) for seed, (name, size) in enumerate(sizes.items())]


def forged(folder: Path, change: Callable[[dict[str, Any]], object], streams: dict[str, np.ndarray] | None = None) -> Path:
    """A token file with another header, or other tensors; its checksum is right."""
    content = encode_tokens(some_pictures(), LAYOUT, BITS)
    start = 8 + struct.unpack("<Q", content[:8])[0]
    table = json.loads(content[8:start])
    told = json.loads(table.pop("__metadata__")[HEADER_KEY])
    own = {name: np.frombuffer(content[start:], np.uint8)[slice(*entry["data_offsets"])] for name, entry in table.items()}
    own.update(streams or {})
    told["crc32"] = zlib.crc32(b"".join(own[name].tobytes() for name in ("indices", "means", "scales", "rotations") if name in own))
    change(told)
    save_file(own, folder / "forged.safetensors", metadata={HEADER_KEY: json.dumps(told)})
    return folder / "forged.safetensors"
