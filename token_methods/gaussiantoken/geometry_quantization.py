"""The five numbers of a Gaussian in a few bits each. (The published tokenizer leaves them as floats: 160 bits beside a code of 10.)

Every number is cut into 2^bits equal steps over its range and stands for the middle of its step, so it is off by half a step at most:
positions over -1..1, scales over the range that the Gaussians of a file fill, rotations over a quarter turn. A quarter is enough: a
Gaussian turned by 90 degrees is the same Gaussian with its scales swapped, and whole half turns change nothing. That saves a bit over
the half turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64

from token_methods.gaussiantoken.picture_tokens import TokenGeometry

Part = Literal["means", "scales", "rotations"]
PARTS: dict[Part, int] = {"means": 2, "scales": 2, "rotations": 1}
"""Numbers per Gaussian."""
MAX_STEP_BITS = 16
EXACT_BITS = 32
"""Numbers of so many bits are stored as the float32 that they are."""
QUARTER_TURN = math.pi / 2
_ROUNDING = 1e-5
"""Numbers may lie so far outside of their range: float32 rounds."""


@dataclass(frozen=True)
class GeometryBits:
    """Bits for each number of a Gaussian: 1 to 16, or 32 for the exact float32. All zero: tokens without geometry.

    Raises:
        ValueError: any other number of bits.
    """

    position: int = 8
    scale: int = 6
    rotation: int = 6

    def __post_init__(self) -> None:
        for name, bits in vars(self).items():
            if not (1 <= bits <= MAX_STEP_BITS or bits == EXACT_BITS) and self.any:
                raise ValueError(f"{name} bits must be 1 to {MAX_STEP_BITS}, or {EXACT_BITS} for exact numbers, not {bits}")

    @property
    def any(self) -> bool:
        """Whether there is any geometry."""
        return (self.position, self.scale, self.rotation) != (0, 0, 0)

    @property
    def exact(self) -> bool:
        """Whether nothing is lost."""
        return all(bits in (0, EXACT_BITS) for bits in (self.position, self.scale, self.rotation))

    @property
    def per_token(self) -> int:
        """Bits of all five numbers together."""
        return 2 * self.position + 2 * self.scale + self.rotation

    def of(self, part: Part) -> int:
        """Bits of one number of a part."""
        return {"means": self.position, "scales": self.scale, "rotations": self.rotation}[part]


NO_GEOMETRY = GeometryBits(0, 0, 0)
EXACT = GeometryBits(EXACT_BITS, EXACT_BITS, EXACT_BITS)
StoredGeometry = dict[Part, Int64[np.ndarray, "tiles n k"] | Float32[np.ndarray, "tiles n k"]]
"""Numbers of steps, or floats where they are exact."""


def part_range(part: Part, scale_range: tuple[float, float]) -> tuple[float, float]:
    """From where to where the steps of a part go."""
    return {"means": (-1.0, 1.0), "scales": scale_range, "rotations": (0.0, QUARTER_TURN)}[part]


def quantize(geometry: TokenGeometry, bits: GeometryBits, scale_range: tuple[float, float]) -> StoredGeometry:
    """Geometry as it is stored.

    Raises:
        ValueError: see `check_geometry`.
    """
    check_geometry(geometry, scale_range)
    values: dict[Part, np.ndarray] = {"means": geometry.means, "scales": geometry.scales, "rotations": geometry.rotations}
    if bits.rotation != EXACT_BITS:
        turns = np.floor(geometry.rotations.astype(np.float64) / QUARTER_TURN)
        values["rotations"] = geometry.rotations - turns * QUARTER_TURN
        values["scales"] = np.where(turns % 2 == 1, geometry.scales[..., ::-1], geometry.scales)
    return {part: _steps(value, bits.of(part), *part_range(part, scale_range)) for part, value in values.items()}


def dequantize(stored: StoredGeometry, bits: GeometryBits, scale_range: tuple[float, float]) -> TokenGeometry:
    """Geometry from what is stored; rotations are within a quarter turn, unless they are exact."""
    return TokenGeometry(**{part: _middles(value, bits.of(part), *part_range(part, scale_range)) for part, value in stored.items()})


def check_geometry(geometry: TokenGeometry, scale_range: tuple[float, float]) -> None:
    """Refuse numbers that no network of this range gives.

    Raises:
        ValueError: numbers that are not finite, positions outside of -1..1, or scales outside of their range.
    """
    for part, (low, high) in {"means": (-1.0, 1.0), "scales": scale_range, "rotations": (-math.inf, math.inf)}.items():
        values = getattr(geometry, part)
        if not np.isfinite(values).all():
            raise ValueError(f"{part} of Gaussians must be finite numbers")
        if values.size and not low - _ROUNDING <= values.min() <= values.max() <= high + _ROUNDING:
            raise ValueError(f"{part} of Gaussians must lie in {low:g}..{high:g}, not {values.min():g}..{values.max():g}")


def _steps(values: np.ndarray, bits: int, low: float, high: float) -> np.ndarray:
    if bits == EXACT_BITS:
        return values.astype(np.float32)
    steps = np.floor((values.astype(np.float64) - low) / (high - low) * 2**bits)
    return steps.clip(0, 2**bits - 1).astype(np.int64)


def _middles(stored: np.ndarray, bits: int, low: float, high: float) -> np.ndarray:
    if bits == EXACT_BITS:
        return stored.astype(np.float32)
    return (low + (stored + 0.5) * ((high - low) / 2**bits)).astype(np.float32)
