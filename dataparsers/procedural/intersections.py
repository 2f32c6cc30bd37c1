"""Rays, points and solids in closed form: first hits, distances, surfaces.

Vectors are stored one coordinate per row, [3, rays]: long rows are what torch is fast at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dataparsers.procedural.solids import Shape, Solid

_NEAR = 1e-4
_TINY = 1e-12
"""Keeps a ray that runs exactly along a face from dividing by zero."""


@dataclass(frozen=True)
class Solids:
    """Solids as tensors, ordered by shape."""

    counts: tuple[int, int, int]
    centre: Float[Tensor, "n 3"]
    half_size: Float[Tensor, "n 3"]
    to_local: Float[Tensor, "n 3 3"]
    taper: Float[Tensor, " n"]
    material: Int[Tensor, "n 2"]
    """Side and cap, rows of the atlas."""

    def select(self, mask: Bool[Tensor, " n"]) -> Solids:
        """Some of the solids; the mask lies on the CPU."""
        starts = np.cumsum((0, *self.counts))
        counts = tuple(int(mask[a:b].sum()) for a, b in itertools.pairwise(starts))
        index = mask.nonzero()[:, 0].to(self.centre.device)
        fields = (self.centre, self.half_size, self.to_local, self.taper, self.material)
        return Solids(counts, *(value[index] for value in fields))  # type: ignore[arg-type]


def pack(solids: Sequence[Solid], rows: Sequence[tuple[int, int]], device: torch.device) -> Solids:
    """Solids as tensors; `rows` are the atlas rows of each one's side and cap."""
    order = sorted(range(len(solids)), key=lambda i: solids[i].shape)
    ordered = [solids[i] for i in order]

    def tensor(values: list, *shape: int) -> Tensor:
        return torch.tensor(np.array(values), dtype=torch.float32, device=device).reshape(-1, *shape)

    return Solids(
        counts=tuple(sum(s.shape == shape for s in ordered) for shape in Shape),  # type: ignore[arg-type]
        centre=tensor([s.centre for s in ordered], 3),
        half_size=tensor([s.half_size for s in ordered], 3),
        to_local=tensor([s.rotation.T for s in ordered], 3, 3),
        taper=tensor([s.taper for s in ordered]),
        material=torch.tensor([rows[i] for i in order], device=device).reshape(-1, 2).long(),
    )


def length(vectors: Tensor, dim: int = 0) -> Tensor:
    """Length of vectors along a short axis; torch's norm takes twenty times as long there."""
    return (vectors * vectors).sum(dim).sqrt()


def unit_vectors(vectors: Tensor) -> Tensor:
    """Vectors [3, ...] of length one."""
    return vectors / length(vectors).clamp_min(1e-12)


def extents(solids: Solids, frame: Float[Tensor, "3 3"]) -> Float[Tensor, "n 3"]:
    """Half size of each solid along the rows of `frame`."""
    return ((frame @ solids.to_local.transpose(1, 2)).abs() @ solids.half_size[..., None])[..., 0]


def rotate(matrices: Float[Tensor, "*n 3 3"], vectors: Float[Tensor, "3 rays"]) -> Float[Tensor, "*n 3 rays"]:
    """Every vector by every matrix; written out, because a matrix product may be rounded to TF32 or bfloat16 by the caller's settings."""
    out = matrices[..., 0, None] * vectors[0]
    out.addcmul_(matrices[..., 1, None], vectors[1])
    return out.addcmul_(matrices[..., 2, None], vectors[2])


def _local(solids: Solids, part: slice, points: Float[Tensor, "3 points"]) -> Float[Tensor, "n 3 points"]:
    """Points of the world in the frame of each solid of a part."""
    to_local = solids.to_local[part]
    return rotate(to_local, points) - (to_local * solids.centre[part, None]).sum(-1, keepdim=True)


def _parts(solids: Solids) -> list[tuple[Shape, slice]]:
    """Where each shape that occurs lies among the solids."""
    ends = list(itertools.accumulate(solids.counts))
    return [(shape, slice(end - count, end)) for shape, count, end in zip(Shape, solids.counts, ends) if count]


def intersect(solids: Solids, origin: Float[Tensor, "3 #rays"], direction: Float[Tensor, "3 rays"]) -> Float[Tensor, "n rays"]:
    """Distance to each solid's surface in units of |direction|; infinite where a ray misses or starts inside."""
    return torch.cat([_hits(solids, shape, part, origin, direction) for shape, part in _parts(solids)])


def unhindered(
    solids: Solids, origin: Float[Tensor, "3 rays"], direction: Float[Tensor, "3 rays"], until: Float[Tensor, " rays"]
) -> Int[Tensor, " free"]:
    """Numbers of the rays that meet no solid before `until`, in units of |direction|. Rays that a box stops are asked no further."""
    free = torch.arange(direction.shape[1], device=direction.device)
    for shape, part in _parts(solids):
        nearest = _hits(solids, shape, part, origin[:, free], direction[:, free]).amin(0)
        free = free[nearest >= until[free]]
    return free


def _hits(solids: Solids, shape: Shape, part: slice, origin: Tensor, direction: Tensor) -> Tensor:
    start = _local(solids, part, origin)
    heading = rotate(solids.to_local[part], direction).add_(_TINY)
    hit = {Shape.BOX: _hit_boxes, Shape.BALL: _hit_balls, Shape.DRUM: _hit_drums}[shape]
    return hit(start, heading, solids.half_size[part], solids.taper[part])


def _hit_boxes(start: Tensor, heading: Tensor, half: Tensor, taper: Tensor) -> Tensor:
    inverse = heading.reciprocal_()
    # the ray is between a pair of faces from -middle - width to -middle + width
    middle = start * inverse
    width = half[..., None] * inverse.abs_()
    leave = (width - middle).amin(1)
    enter = middle.add_(width).neg_().amax(1)
    return enter.masked_fill_((enter > leave) | (enter <= _NEAR), math.inf)


def _hit_balls(start: Tensor, heading: Tensor, half: Tensor, taper: Tensor) -> Tensor:
    start, heading = start / half[..., None], heading / half[..., None]
    a, b, c = (heading * heading).sum(1), (start * heading).sum(1), (start * start).sum(1) - 1
    root = b * b - a * c
    near = (-b - root.clamp_min(0).sqrt()) / a
    return torch.where((root >= 0) & (near > _NEAR), near, math.inf)


def _hit_drums(start: Tensor, heading: Tensor, half: Tensor, taper: Tensor) -> Tensor:
    (ox, oy, oz), (dx, dy, dz) = (start / half[..., None]).unbind(1), (heading / half[..., None]).unbind(1)
    # radius over height in the drum's own units: 1 at the bottom (z = -1), taper at the top (z = 1)
    mean, slope = (1 + taper[:, None]) / 2, (taper[:, None] - 1) / 2
    rim, grow = mean + slope * oz, slope * dz
    a = dx * dx + dy * dy - grow * grow
    b = ox * dx + oy * dy - rim * grow
    c = ox * ox + oy * oy - rim * rim
    a = torch.where(a.abs() < 1e-9, 1e-9, a)
    root = b * b - a * c
    spread = root.clamp_min(0).sqrt()
    best = torch.full_like(root, math.inf)
    for t in ((-b - spread) / a, (-b + spread) / a):
        best = torch.where((root >= 0) & (t > _NEAR) & ((oz + t * dz).abs() <= 1) & (t < best), t, best)
    for end, radius in ((-1.0, torch.ones_like(mean)), (1.0, taper[:, None])):
        t = (end - oz) / dz
        x, y = ox + t * dx, oy + t * dy
        best = torch.where((x * x + y * y <= radius * radius) & (t > _NEAR) & (t < best), t, best)
    return best


def signed_distance(solids: Solids, points: Float[Tensor, "3 points"]) -> Float[Tensor, "n points"]:
    """Distance to each solid, negative inside: exact for boxes and spheres, a close estimate for ellipsoids, cylinders and cones."""
    found = []
    for shape, part in _parts(solids):
        offset = _local(solids, part, points)
        half = solids.half_size[part][..., None]
        if shape == Shape.BALL:
            scaled = length(offset / half, 1)
            found.append(scaled * (scaled - 1) / length(offset / (half * half), 1).clamp_min(1e-6))
            continue
        if shape == Shape.BOX:
            beyond = offset.abs() - half
        else:
            taper, height = solids.taper[part][:, None], half[:, 2]
            lean = half[:, 0] * (1 - taper) / (2 * height)
            rim = half[:, 0] * (1 + taper) / 2 - lean * offset[:, 2]
            across = (length(offset[:, :2], 1) - rim) / (1 + lean * lean).sqrt()
            beyond = torch.stack([across, offset[:, 2].abs() - height], dim=1)
        found.append(length(beyond.clamp_min(0), 1) + beyond.amax(1).clamp_max(0))
    return torch.cat(found)


@dataclass(frozen=True)
class Surface:
    """What rays found."""

    normal: Float[Tensor, "3 rays"]
    """Outward, length one."""
    material: Int[Tensor, " rays"]
    u: Float[Tensor, " rays"]
    v: Float[Tensor, " rays"]
    """Texture coordinates in repeats."""
    stretch: Float[Tensor, " rays"]
    """Repeats per scene unit."""


def surface(
    solids: Solids, texture_size: Float[Tensor, " materials"], index: Int[Tensor, " rays"], hit: Float[Tensor, "3 rays"]
) -> Surface:
    """The surface at points on solids, given by number. Texture sizes are in scene units per repeat, 0 for one repeat per face."""
    to_local, half, taper = solids.to_local[index], solids.half_size[index].T, solids.taper[index]
    local = (to_local * (hit.T - solids.centre[index])[:, None]).sum(-1).T
    x, y, z = unit = local / half
    boxes, balls, _ = solids.counts
    is_box, is_ball = index < boxes, (index >= boxes) & (index < boxes + balls)
    # which face: of a box the axis with the largest coordinate, of a drum its ends where |z| = 1
    lean = half[0] * (1 - taper) / (2 * half[2])
    rim = (1 + taper) / 2 + (taper - 1) / 2 * z
    on_end = ~is_box & ~is_ball & (z.abs() - 1 > torch.hypot(x, y) - rim)
    face = torch.where(is_box, unit.abs().argmax(0), torch.where(on_end, 2, 3))
    flat = torch.nn.functional.one_hot(face, 4).T[:3] * unit.sign()
    round_drum = torch.stack([x / half[0], y / half[1], lean * torch.hypot(x, y) / half[0]])
    curved = torch.where(is_ball, unit / half, round_drum)
    normal = unit_vectors(torch.where(face < 3, flat, curved))
    normal = (to_local * normal.T[:, :, None]).sum(1).T

    material = solids.material[index].T
    material = torch.where(face == 2, material[1], material[0])
    # texture coordinates: lengths on flat faces, length around and up on curved ones
    around = torch.atan2(local[1], local[0])
    girth = half[:2].amax(0) * math.tau
    latitude = torch.asin(z.clamp(-1, 1))
    extent_u = torch.where(face == 0, 2 * half[1], torch.where(face < 3, 2 * half[0], girth))
    extent_v = torch.where(face == 2, 2 * half[1], torch.where(is_ball, math.pi * half[2], 2 * half[2]))
    along_u = torch.where(face == 0, local[1] / extent_u, torch.where(face < 3, local[0] / extent_u, around / math.tau))
    along_v = torch.where(face == 2, local[1] / extent_v, torch.where(is_ball, latitude / math.pi, local[2] / extent_v))
    size = texture_size[material]
    metric = size > 0
    safe = torch.where(metric, size, 1.0)
    # whole repeats around a curved surface, else there would be a seam
    repeats_u = torch.where(metric, torch.where(face == 3, (extent_u / safe).round().clamp_min(1), extent_u / safe), 1.0)
    repeats_v = torch.where(metric, extent_v / safe, 1.0)
    stretch = torch.maximum(repeats_u / extent_u, repeats_v / extent_v)
    stretch = torch.where(is_ball, stretch / latitude.cos().clamp_min(0.2), stretch)
    # faces are measured from their middle; a stretched texture from its edge
    edge = torch.where(metric, 0.0, 0.5)
    return Surface(normal, material, along_u * repeats_u + edge, along_v * repeats_v + edge, stretch)
