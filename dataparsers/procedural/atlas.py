"""Textures on the device: filtered copies of each, so that a surface far away shows its average and not a moiré."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dataparsers.procedural.solids import Material


@dataclass(frozen=True)
class Atlas:
    """All textures of a scene, linear RGB, each with its filtered copies down to one texel."""

    texels: Float[Tensor, "texels 3"]
    start: Int[Tensor, " materials"]
    side: int
    size: Float[Tensor, " materials"]
    """Scene units per repeat, 0 where one repeat covers the face."""
    emission: Float[Tensor, " materials"]

    @property
    def levels(self) -> int:
        return int(math.log2(self.side)) + 1

    def sample(
        self, material: Int[Tensor, " rays"], u: Float[Tensor, " rays"], v: Float[Tensor, " rays"], footprint: Float[Tensor, " rays"]
    ) -> Float[Tensor, "3 rays"]:
        """Linear RGB at (u, v) in repeats, averaged over about `footprint` repeats (trilinear in the pyramid)."""
        level = torch.log2((footprint * self.side).clamp_min(1)).clamp_max(self.levels - 1.001)
        floor = level.floor()
        blend = level - floor
        colour = torch.zeros(3, len(u), device=u.device)
        u, v = u - u.floor(), v - v.floor()
        for step, share in ((0, 1 - blend), (1, blend)):
            side = torch.exp2(self.levels - 1 - floor - step)
            start = self.start[material] + _level_start(self.side, floor.long() + step)
            x, y = u * side - 0.5, v * side - 0.5
            x0, y0 = x.floor(), y.floor()
            wx, wy = x - x0, y - y0
            for dx, part_x in ((0, 1 - wx), (1, wx)):
                for dy, part_y in ((0, 1 - wy), (1, wy)):
                    texel = start + (torch.remainder(y0 + dy, side) * side + torch.remainder(x0 + dx, side)).long()
                    colour += self.texels[texel].T * (share * part_x * part_y)
        return colour


def build_atlas(materials: Sequence[Material], device: torch.device) -> Atlas:
    sides = {material.texture.shape[0] for material in materials} or {1}
    if len(sides) != 1:
        raise ValueError(f"textures of one scene must have one size, got {sorted(sides)}")
    side = sides.pop()
    parts: list[Tensor] = []
    for material in materials:
        level = linear_from_srgb(torch.tensor(material.texture, dtype=torch.float32, device=device)).permute(2, 0, 1)[None]
        while True:
            parts.append(level[0].permute(1, 2, 0).reshape(-1, 3))
            if level.shape[-1] == 1:
                break
            level = torch.nn.functional.avg_pool2d(level, 2)
    texels = torch.cat(parts) if parts else torch.zeros(1, 3, device=device)
    per_material = (4 * side * side - 1) // 3
    return Atlas(
        texels=texels,
        start=torch.arange(len(materials), device=device) * per_material,
        side=side,
        size=torch.tensor([material.size or 0.0 for material in materials], device=device),
        emission=torch.tensor([material.emission for material in materials], device=device),
    )


def _level_start(side: int, level: Tensor) -> Tensor:
    """Texels before a level of a pyramid: side^2 (1 + 1/4 + ...) = 4/3 (side^2 - (side / 2^level)^2)."""
    return (4 * (side * side - (side >> level) ** 2)) // 3


def linear_from_srgb(colour: Tensor) -> Tensor:
    """sRGB's transfer function (IEC 61966-2-1)."""
    return torch.where(colour <= 0.04045, colour / 12.92, ((colour.clamp_min(0) + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(colour: Tensor) -> Tensor:
    """Inverse of `linear_from_srgb`."""
    return torch.where(colour <= 0.0031308, colour * 12.92, 1.055 * colour.clamp_min(1e-8) ** (1 / 2.4) - 0.055)
