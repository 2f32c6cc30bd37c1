"""Exact pictures of analytic solids: rays are intersected with boxes, ellipsoids, cylinders and cones in closed form.

Light is what a matt world returns: lamps with shadow rays to a small disc, light from all around with contact shadows (the distance
field along the normal), textures through filtered pyramids. Colour does not depend on the viewing direction, so that every view of a
scene agrees with every other. Cameras are OpenCV (x right, y down, z forward), camera-to-world, pixel centres at +0.5.

On a CPU a picture is made in small tiles, each of which looks only at the solids it can meet; on a GPU in a few large ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dataparsers.procedural.solids import Material, Scene, Shape

_NEAR = 1e-4
_TINY = 1e-12
"""Keeps a ray that runs exactly along a face from dividing by zero."""
_RAYS_TIMES_SOLIDS = 6e7
"""Intersections in flight on a GPU; ten numbers or so are kept for each."""
_SHADOW_GAP = 4e-3
"""Nearest occluder of a shadow ray, scene units before the surface: float32 puts hit points on either side of it."""
_CONTACT_REACH = (0.1, 0.4)
"""Distances along the normal at which contact shadows look for neighbours, scene units."""


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
        counts = tuple(int(mask[a:b].sum()) for a, b in zip(starts[:-1], starts[1:]))
        index = mask.nonzero()[:, 0].to(self.centre.device)
        fields = (self.centre, self.half_size, self.to_local, self.taper, self.material)
        return Solids(counts, *(value[index] for value in fields))  # type: ignore[arg-type]


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


def linear_from_srgb(colour: Tensor) -> Tensor:
    """sRGB's transfer function (IEC 61966-2-1)."""
    return torch.where(colour <= 0.04045, colour / 12.92, ((colour.clamp_min(0) + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(colour: Tensor) -> Tensor:
    """Inverse of `linear_from_srgb`."""
    return torch.where(colour <= 0.0031308, colour * 12.92, 1.055 * colour.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


def tone_map(light: Tensor) -> Tensor:
    """Linear light to display RGB in [0, 1): what film keeps of an exposure, then sRGB."""
    return srgb_from_linear(1 - torch.exp(-light))


class Raycaster:
    """A scene ready to be looked at, on one device."""

    def __init__(self, scene: Scene, device: torch.device | str = "cpu") -> None:
        self.scene = scene
        self.device = torch.device(device)
        materials: dict[int, Material] = {}
        for solid in scene.solids:
            materials.setdefault(id(solid.side), solid.side)
            materials.setdefault(id(solid.cap), solid.cap)
        if scene.sky is not None:
            materials.setdefault(id(scene.sky), scene.sky)
        rows = {key: row for row, key in enumerate(materials)}
        self.atlas = _atlas(list(materials.values()), self.device)
        self.sky_row = rows[id(scene.sky)] if scene.sky is not None else None
        ordered = sorted(scene.solids, key=lambda solid: solid.shape)

        def tensor(values: list) -> Tensor:
            return torch.tensor(np.array(values), dtype=torch.float32, device=self.device)

        half = tensor([s.half_size for s in ordered]).reshape(-1, 3)
        self.solids = Solids(
            counts=tuple(sum(s.shape == shape for s in ordered) for shape in Shape),  # type: ignore[arg-type]
            centre=tensor([s.centre for s in ordered]).reshape(-1, 3),
            half_size=half,
            to_local=tensor([s.rotation.T for s in ordered]).reshape(-1, 3, 3),
            taper=tensor([s.taper for s in ordered]),
            material=torch.tensor([[rows[id(s.side)], rows[id(s.cap)]] for s in ordered], device=self.device).reshape(-1, 2),
        )
        self._opaque = (self.atlas.emission[self.solids.material[:, 0]] == 0).cpu()

    def clearance(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, " points"]:
        """Distance to the nearest surface, scene units; negative inside a solid. Exact near boxes, close to it near the others."""
        return signed_distance(self.solids, points.T.contiguous()).amin(0)

    def first_hit(
        self, origin: Float[Tensor, "3 rays"], direction: Float[Tensor, "3 rays"]
    ) -> tuple[Float[Tensor, " rays"], Int[Tensor, " rays"]]:
        """Distance in units of |direction| and index of the solid; infinite and -1 where a ray meets nothing but sky."""
        distance, index = intersect(self.solids, origin, direction).min(0)
        return distance, torch.where(distance.isinf(), -1, index)

    @torch.no_grad()
    def render(
        self,
        camera_to_world: Float[Tensor, "4 4"],
        intrinsics: tuple[float, float, float, float],
        height: int,
        width: int,
        samples: int,
        display: bool = True,
    ) -> tuple[Float[Tensor, "height width 3"], Float[Tensor, "height width"]]:
        """One view.

        Args:
            camera_to_world: OpenCV.
            intrinsics: fx, fy, cx, cy in pixels.
            samples: rays per pixel, spread evenly over its square; their linear light is averaged.
            display: return display RGB in [0, 1]; else linear light before exposure.

        Returns:
            Colour, and the depth along the optical axis of the ray through each pixel's centre (sky: that of the sky's sphere).
        """
        pose = camera_to_world.to(self.device, torch.float32)
        colour = torch.zeros(height, width, 3, device=self.device)
        depth = torch.zeros(height, width, device=self.device)
        if self.device.type == "cpu":  # small enough for the caches, and for few solids to be in sight
            tile = max(16, int(math.sqrt(2560 / samples)))
        else:
            tile = max(16, int(math.sqrt(_RAYS_TIMES_SOLIDS / (samples + 1) / max(1, len(self.solids.centre)))))
        for top in range(0, height, tile):
            for left in range(0, width, tile):
                rows, columns = slice(top, min(top + tile, height)), slice(left, min(left + tile, width))
                colour[rows, columns], depth[rows, columns] = self._tile(pose, intrinsics, rows, columns, samples)
        return (tone_map(colour * self.scene.exposure) if display else colour), depth

    def _tile(
        self, pose: Tensor, intrinsics: tuple[float, float, float, float], rows: slice, columns: slice, samples: int
    ) -> tuple[Tensor, Tensor]:
        fx, fy, cx, cy = intrinsics
        v = torch.arange(rows.start, rows.stop, device=self.device, dtype=torch.float32)
        u = torch.arange(columns.start, columns.stop, device=self.device, dtype=torch.float32)
        offset = sample_pattern(samples).to(self.device)
        # one ray more than the samples: the pixel's centre, for depth
        offset = torch.cat([offset, offset.new_tensor([[0.5, 0.5]])])
        x = ((u[None, None, :] + offset[:, 0, None, None] - cx) / fx).expand(-1, len(v), -1)
        y = ((v[None, :, None] + offset[:, 1, None, None] - cy) / fy).expand(-1, -1, len(u))
        camera = torch.stack([x, y, torch.ones_like(x)]).reshape(3, -1)
        direction = pose[:3, :3] @ camera
        origin = pose[:3, 3:]
        solids = self.solids
        if self.device.type == "cpu":
            bounds = camera[:2].amin(1), camera[:2].amax(1)
            solids = solids.select(self._in_bundle(origin[:, 0], pose[:3, :3].T, *bounds, torch.tensor(math.inf)))
        distance, index = intersect(solids, origin, direction).min(0) if len(solids.centre) else _nothing(direction)
        distance, index, sky_distance = self._with_sky(origin, direction, distance, index)
        pixels = len(v) * len(u)
        depth = distance[-pixels:].reshape(len(v), len(u))
        rays = slice(0, samples * pixels)
        footprint = _length(camera[:, rays]) * distance[rays] / (fx * math.sqrt(samples))
        light = self._shade(solids, origin, direction[:, rays], distance[rays], index[rays], footprint, samples)
        return light.reshape(3, samples, len(v), len(u)).mean(1).permute(1, 2, 0), depth

    def _in_bundle(
        self, apex: Tensor, frame: Float[Tensor, "3 3"], low: Float[Tensor, "2"], high: Float[Tensor, "2"], far: Tensor, slack: float = 0.0
    ) -> Bool[Tensor, " n"]:
        """The solids that rays from `apex` may meet.

        Args:
            frame: rows are two directions across the rays and the one along them.
            low, high: bounds of the rays' coordinates across, per unit along.
            far: bound of their length along.
            slack: how far from the apex rays may start.
        """
        middle = (self.solids.centre - apex) @ frame.T
        extent = _extent(self.solids, frame) + slack
        ends = torch.stack([(middle[:, 2] - extent[:, 2]).clamp_min(0), middle[:, 2] + extent[:, 2]])
        left, right = (low[:, None, None] * ends).amin(1).T, (high[:, None, None] * ends).amax(1).T
        across, half = middle[:, :2], extent[:, :2]
        return ((across - half <= right) & (across + half >= left)).all(1) & (ends[1] > 0) & (ends[0] < far)

    def _towards(self, lamp: Tensor, frame: Float[Tensor, "3 3"], points: Tensor, radius: float) -> Solids:
        """The opaque solids that may lie between a lamp and any of the points."""
        if self.device.type != "cpu":
            return self.solids.select(self._opaque)
        x, y, z = frame @ (points - lamp)
        if float(z.amin()) <= 0:  # the points surround the lamp
            return self.solids.select(self._opaque)
        tangents = torch.stack([x, y]) / z
        bundle = self._in_bundle(lamp[:, 0], frame, tangents.amin(1), tangents.amax(1), z.amax(), 2 * radius)
        return self.solids.select(self._opaque & bundle)

    def _around(self, points: Tensor, reach: float) -> Solids:
        """The opaque solids that may lie within `reach` of any of the points."""
        if self.device.type != "cpu":
            return self.solids.select(self._opaque)
        gap = _extent(self.solids, torch.eye(3)) + reach
        meets = (self.solids.centre - gap <= points.amax(1)) & (self.solids.centre + gap >= points.amin(1))
        return self.solids.select(self._opaque & meets.all(1))

    def _with_sky(self, origin: Tensor, direction: Tensor, distance: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = (direction * direction).sum(0), (origin * direction).sum(0)
        c = (origin * origin).sum(0) - self.scene.sky_radius**2
        sky = (-b + (b * b - a * c).clamp_min(0).sqrt()) / a
        index = torch.where(distance < sky, index, -1)
        return torch.minimum(distance, sky), index, sky

    def _shade(
        self, solids: Solids, origin: Tensor, direction: Tensor, distance: Tensor, index: Tensor, footprint: Tensor, samples: int
    ) -> Tensor:
        """Linear light [3, rays] that leaves the points that were hit."""
        hit = origin + direction * distance
        is_sky = index < 0
        if len(solids.centre):
            normal, u, v, material, stretch = _surface(solids, self.atlas, index.clamp_min(0), hit)
        else:
            normal, material, stretch = torch.zeros_like(hit), torch.zeros_like(index), torch.ones_like(distance)
            u, v = torch.zeros_like(distance), torch.zeros_like(distance)
        if self.sky_row is not None:
            # as seen from the middle of the sky's sphere, so that it is a surface like any other
            height_angle = torch.asin((hit[2] / self.scene.sky_radius).clamp(-1, 1))
            u = torch.where(is_sky, torch.atan2(hit[1], hit[0]) / math.tau, u)
            v = torch.where(is_sky, height_angle / math.pi + 0.5, v)
            stretch = torch.where(is_sky, 1 / (math.pi * self.scene.sky_radius), stretch)
            material = torch.where(is_sky, self.sky_row, material)
        facing = (_unit(direction) * normal).sum(0).abs().clamp_min(0.1)
        facing = torch.where(is_sky, 1.0, facing)
        albedo = self._texture(material, u, v, footprint * stretch / facing.sqrt())
        emission = self.atlas.emission[material]
        if self.sky_row is None:
            albedo = torch.where(is_sky, 0.0, albedo)
        lit = self._light(hit, normal, samples) if bool((~is_sky).any()) else torch.zeros_like(albedo)
        return albedo * torch.where(is_sky | (emission > 0), emission, lit)

    def _light(self, hit: Tensor, normal: Tensor, samples: int) -> Tensor:
        """Linear light [3, rays] that arrives."""
        scene = self.scene
        above, below = (torch.tensor(value, device=self.device)[:, None] for value in (scene.ambient_above, scene.ambient_below))
        upward = 0.5 + 0.5 * normal[2]
        light = (below * (1 - upward) + above * upward) * self._contact(hit, normal)
        per_sample = hit.shape[1] // samples
        disc = _disc(samples).to(self.device).repeat_interleave(per_sample, dim=1)
        for lamp in scene.lamps:
            centre = torch.tensor(lamp.position, dtype=torch.float32, device=self.device)[:, None]
            axis = _unit((hit - centre).mean(1))
            frame = torch.stack([*_across(axis), axis])
            # sample s of every pixel looks at point s of the lamp: soft rims without noise
            source = centre + lamp.radius * (frame[:2].T @ disc)
            ray = hit - source
            square = (ray * ray).sum(0)
            cosine = (-(ray * normal).sum(0) / square.sqrt()).clamp_min(0)
            turned = (cosine > 0).nonzero()[:, 0]
            if not len(turned):
                continue
            blockers = self._towards(centre, frame, hit[:, turned], lamp.radius)
            if len(blockers.centre):
                nearest = intersect(blockers, source[:, turned], ray[:, turned]).amin(0)
                free = nearest >= 1 - _SHADOW_GAP / square[turned].sqrt()
                cosine = cosine.index_put((turned,), cosine[turned] * free)
            power = torch.tensor(lamp.power, device=self.device)[:, None]
            light = light + power * (cosine / (square + lamp.radius**2))
        return light

    def _contact(self, hit: Tensor, normal: Tensor) -> Tensor:
        """Share of the light from all around that corners and neighbours leave, by the distance field along the normal."""
        near = self._around(hit, 2 * _CONTACT_REACH[-1])
        share = torch.ones_like(hit[0])
        if not len(near.centre):
            return share
        for reach, weight in zip(_CONTACT_REACH, (0.3, 0.55)):
            free = signed_distance(near, hit + normal * reach).amin(0)
            share = share * (1 - weight * (1 - (free / reach).clamp(0, 1)))
        return share

    def _texture(self, material: Tensor, u: Tensor, v: Tensor, footprint: Tensor) -> Tensor:
        """Linear RGB [3, rays] at (u, v) in repeats, averaged over about `footprint` repeats (trilinear in the pyramid)."""
        atlas = self.atlas
        level = torch.log2((footprint * atlas.side).clamp_min(1)).clamp_max(atlas.levels - 1.001)
        floor = level.floor()
        blend = level - floor
        colour = torch.zeros(3, len(u), device=self.device)
        u, v = u - u.floor(), v - v.floor()
        for step, share in ((0, 1 - blend), (1, blend)):
            side = torch.exp2(atlas.levels - 1 - floor - step)
            start = atlas.start[material] + _level_start(atlas.side, floor.long() + step)
            x, y = u * side - 0.5, v * side - 0.5
            x0, y0 = x.floor(), y.floor()
            wx, wy = x - x0, y - y0
            for dx, part_x in ((0, 1 - wx), (1, wx)):
                for dy, part_y in ((0, 1 - wy), (1, wy)):
                    texel = start + (torch.remainder(y0 + dy, side) * side + torch.remainder(x0 + dx, side)).long()
                    colour += atlas.texels[texel].T * (share * part_x * part_y)
        return colour


def sample_pattern(samples: int) -> Float[Tensor, "samples 2"]:
    """Points spread evenly over the unit square: a lattice by the golden ratio."""
    index = torch.arange(samples, dtype=torch.float64)
    golden = (math.sqrt(5) - 1) / 2
    return torch.stack([(index + 0.5) / samples, (index * golden + 0.5 / samples) % 1], dim=1).float()


def _disc(samples: int) -> Float[Tensor, "2 samples"]:
    """Points spread evenly over the unit disc (sunflower)."""
    index = torch.arange(samples, dtype=torch.float64)
    radius, angle = ((index + 0.5) / samples).sqrt(), index * math.pi * (3 - math.sqrt(5))
    return torch.stack([radius * angle.cos(), radius * angle.sin()]).float()


def _across(axis: Float[Tensor, "3"]) -> tuple[Tensor, Tensor]:
    """Two unit vectors square to `axis` and to each other."""
    helper = torch.where(axis[2].abs() < 0.9, axis.new_tensor([0.0, 0.0, 1.0]), axis.new_tensor([1.0, 0.0, 0.0]))
    side = _unit(torch.linalg.cross(helper, axis))
    return side, torch.linalg.cross(axis, side)


def _length(vectors: Tensor, dim: int = 0) -> Tensor:
    """Length of vectors along a short axis; torch's norm takes twenty times as long there."""
    return (vectors * vectors).sum(dim).sqrt()


def _unit(vectors: Tensor) -> Tensor:
    """Vectors [3, ...] of length one."""
    return vectors / _length(vectors).clamp_min(1e-12)


def _extent(solids: Solids, frame: Float[Tensor, "3 3"]) -> Float[Tensor, "n 3"]:
    """Half size of each solid along the rows of `frame`."""
    return ((frame @ solids.to_local.transpose(1, 2)).abs() @ solids.half_size[..., None])[..., 0]


def _nothing(direction: Tensor) -> tuple[Tensor, Tensor]:
    rays = direction.shape[1]
    return direction.new_full((rays,), math.inf), torch.full((rays,), -1, device=direction.device)


def _level_start(side: int, level: Tensor) -> Tensor:
    """Texels before a level of a pyramid: side^2 (1 + 1/4 + ...) = 4/3 (side^2 - (side / 2^level)^2)."""
    return (4 * (side * side - (side >> level) ** 2)) // 3


def _atlas(materials: list[Material], device: torch.device) -> Atlas:
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


def _local(solids: Solids, vectors: Tensor, part: slice) -> Tensor:
    """World vectors [3, m] in the frame of each solid of a part: [n, 3, m], by one matrix product."""
    to_local = solids.to_local[part]
    return (to_local.reshape(-1, 3) @ vectors).view(len(to_local), 3, -1)


def _parts(solids: Solids) -> tuple[slice, slice, slice]:
    boxes, balls, drums = solids.counts
    return slice(0, boxes), slice(boxes, boxes + balls), slice(boxes + balls, boxes + balls + drums)


def intersect(solids: Solids, origin: Float[Tensor, "3 #rays"], direction: Float[Tensor, "3 rays"]) -> Float[Tensor, "n rays"]:
    """Distance to each solid's surface in units of |direction|; infinite where a ray misses or starts inside."""
    found = []
    for shape, part in zip((_hit_boxes, _hit_balls, _hit_drums), _parts(solids)):
        if part.stop > part.start:
            start = _local(solids, origin, part) - (solids.to_local[part] @ solids.centre[part, :, None])
            heading = _local(solids, direction, part).add_(_TINY)
            found.append(shape(start, heading, solids.half_size[part], solids.taper[part]))
    return torch.cat(found)


def _hit_boxes(start: Tensor, heading: Tensor, half: Tensor, taper: Tensor) -> Tensor:
    inverse = heading.reciprocal_()
    middle, width = start * inverse, half[..., None] * inverse.abs_()  # of the stretch of ray between two faces; middle with its sign turned
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
    boxes, balls, drums = _parts(solids)
    offset = points[None]
    for part, shape in ((boxes, Shape.BOX), (balls, Shape.BALL), (drums, Shape.DRUM)):
        if part.stop == part.start:
            continue
        offset = _local(solids, points, part) - (solids.to_local[part] @ solids.centre[part, :, None])
        half = solids.half_size[part][..., None]
        if shape == Shape.BALL:
            scaled = _length(offset / half, 1)
            found.append(scaled * (scaled - 1) / _length(offset / (half * half), 1).clamp_min(1e-6))
            continue
        if shape == Shape.BOX:
            beyond = offset.abs() - half
        else:
            taper, height = solids.taper[part][:, None], half[:, 2]
            lean = half[:, 0] * (1 - taper) / (2 * height)
            rim = half[:, 0] * (1 + taper) / 2 - lean * offset[:, 2]
            across = (_length(offset[:, :2], 1) - rim) / (1 + lean * lean).sqrt()
            beyond = torch.stack([across, offset[:, 2].abs() - height], dim=1)
        found.append(_length(beyond.clamp_min(0), 1) + beyond.amax(1).clamp_max(0))
    return torch.cat(found)


def _surface(solids: Solids, atlas: Atlas, index: Tensor, hit: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outward normal [3, rays], texture coordinates in repeats, material row, and repeats per scene unit, where rays hit."""
    to_local, half, taper = solids.to_local[index], solids.half_size[index].T, solids.taper[index]
    local = torch.einsum("rij,jr->ir", to_local, hit - solids.centre[index].T)
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
    normal = _unit(torch.where(face < 3, flat, curved))
    normal = torch.einsum("rij,ir->jr", to_local, normal)

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
    size = atlas.size[material]
    metric = size > 0
    safe = torch.where(metric, size, 1.0)
    # whole repeats around a curved surface, else there would be a seam
    repeats_u = torch.where(metric, torch.where(face == 3, (extent_u / safe).round().clamp_min(1), extent_u / safe), 1.0)
    repeats_v = torch.where(metric, extent_v / safe, 1.0)
    stretch = torch.maximum(repeats_u / extent_u, repeats_v / extent_v)
    stretch = torch.where(is_ball, stretch / latitude.cos().clamp_min(0.2), stretch)
    # faces are measured from their middle; a stretched texture from its edge
    edge = torch.where(metric, 0.0, 0.5)
    return normal, along_u * repeats_u + edge, along_v * repeats_v + edge, material, stretch
