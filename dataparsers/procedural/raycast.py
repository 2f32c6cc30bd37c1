"""Exact pictures of analytic solids: rays are intersected with boxes, ellipsoids, cylinders and cones in closed form.

Light is what a matt world returns: lamps with shadow rays to points of a small globe, light from all around with contact shadows
(the distance field along the normal), textures through filtered pyramids. Colour does not depend on the viewing direction, so that
every view of a scene agrees with every other. Cameras are OpenCV (x right, y down, z forward), camera-to-world, pixel centres at +0.5.

On a CPU a picture is made in small tiles, each of which looks only at the solids it can meet; on a GPU in a few large ones.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dataparsers.procedural.atlas import build_atlas, srgb_from_linear
from dataparsers.procedural.intersections import (
    Solids,
    Surface,
    extents,
    intersect,
    length,
    pack,
    rotate,
    signed_distance,
    surface,
    unhindered,
    unit_vectors,
)
from dataparsers.procedural.solids import Material, Scene, Vector

_RAYS_TIMES_SOLIDS = 6e7
"""Intersections in flight on a GPU; ten numbers or so are kept for each."""
_SHADOW_GAP = 4e-3
"""Nearest occluder of a shadow ray, scene units before the surface: float32 puts hit points on either side of it."""
_CONTACT_REACH = (0.1, 0.4)
"""Distances along the normal at which contact shadows look for neighbours, scene units."""


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
        self.atlas = build_atlas(list(materials.values()), self.device)
        self.sky_row = rows[id(scene.sky)] if scene.sky is not None else None
        self.solids = pack(scene.solids, [(rows[id(s.side)], rows[id(s.cap)]) for s in scene.solids], self.device)
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
        direction = rotate(pose[:3, :3], camera)
        origin = pose[:3, 3:]
        solids = self.solids
        if self.device.type == "cpu":
            bounds = camera[:2].amin(1), camera[:2].amax(1)
            solids = solids.select(self._in_bundle(origin[:, 0], pose[:3, :3].T, *bounds, torch.tensor(math.inf)))
        distance, index = intersect(solids, origin, direction).min(0) if len(solids.centre) else _nothing(direction)
        distance, index = self._with_sky(origin, direction, distance, index)
        pixels = len(v) * len(u)
        depth = distance[-pixels:].reshape(len(v), len(u))
        rays = slice(0, samples * pixels)
        footprint = length(camera[:, rays]) * distance[rays] / (fx * math.sqrt(samples))
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
        extent = extents(self.solids, frame) + slack
        ends = torch.stack([(middle[:, 2] - extent[:, 2]).clamp_min(0), middle[:, 2] + extent[:, 2]])
        left, right = (low[:, None, None] * ends).amin(1).T, (high[:, None, None] * ends).amax(1).T
        across, half = middle[:, :2], extent[:, :2]
        return ((across - half <= right) & (across + half >= left)).all(1) & (ends[1] > 0) & (ends[0] < far)

    def _towards(self, lamp: Tensor, points: Tensor, radius: float) -> Solids:
        """The opaque solids that may lie between a lamp and any of the points."""
        if self.device.type != "cpu":
            return self.solids.select(self._opaque)
        axis = unit_vectors((points - lamp).mean(1))
        frame = torch.stack([*_across(axis), axis])
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
        gap = extents(self.solids, torch.eye(3)) + reach
        meets = (self.solids.centre - gap <= points.amax(1)) & (self.solids.centre + gap >= points.amin(1))
        return self.solids.select(self._opaque & meets.all(1))

    def _with_sky(self, origin: Tensor, direction: Tensor, distance: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (direction * direction).sum(0), (origin * direction).sum(0)
        c = (origin * origin).sum(0) - self.scene.sky_radius**2
        sky = (-b + (b * b - a * c).clamp_min(0).sqrt()) / a
        index = torch.where(distance < sky, index, -1)
        return torch.minimum(distance, sky), index

    def _shade(
        self, solids: Solids, origin: Tensor, direction: Tensor, distance: Tensor, index: Tensor, footprint: Tensor, samples: int
    ) -> Tensor:
        """Linear light [3, rays] that leaves the points that were hit."""
        hit = origin + direction * distance
        is_sky = index < 0
        if len(solids.centre):
            seen = surface(solids, self.atlas.size, index.clamp_min(0), hit)
        else:
            zero = torch.zeros_like(distance)
            seen = Surface(torch.zeros_like(hit), torch.zeros_like(index), zero, zero, zero)
        normal, material, u, v, stretch = seen.normal, seen.material, seen.u, seen.v, seen.stretch
        if self.sky_row is not None:
            # as seen from the middle of the sky's sphere, so that it is a surface like any other
            height_angle = torch.asin((hit[2] / self.scene.sky_radius).clamp(-1, 1))
            u = torch.where(is_sky, torch.atan2(hit[1], hit[0]) / math.tau, u)
            v = torch.where(is_sky, height_angle / math.pi + 0.5, v)
            stretch = torch.where(is_sky, 1 / (math.pi * self.scene.sky_radius), stretch)
            material = torch.where(is_sky, self.sky_row, material)
        facing = (unit_vectors(direction) * normal).sum(0).abs().clamp_min(0.1)
        facing = torch.where(is_sky, 1.0, facing)
        albedo = self.atlas.sample(material, u, v, footprint * stretch / facing.sqrt())
        emission = self.atlas.emission[material]
        if self.sky_row is None:
            albedo = torch.where(is_sky, 0.0, albedo)
        lit = (~is_sky & (emission == 0)).nonzero()[:, 0]
        light = emission.expand(3, -1).clone()
        if len(lit):
            light[:, lit] = self._light(hit[:, lit], normal[:, lit], lit // (len(index) // samples), samples)
        return albedo * light

    def _light(self, hit: Tensor, normal: Tensor, sample: Tensor, samples: int) -> Tensor:
        """Linear light [3, rays] that arrives; `sample` is each ray's number among the `samples` of its pixel."""
        scene = self.scene
        above, below = self._vector(scene.ambient_above), self._vector(scene.ambient_below)
        upward = 0.5 + 0.5 * normal[2]
        light = (below * (1 - upward) + above * upward) * self._contact(hit, normal)
        globe = _globe(samples).to(self.device)[:, sample]
        for lamp in scene.lamps:
            centre = self._vector(lamp.position)
            # sample s of every pixel looks at point s of the lamp: soft rims without noise
            source = centre + lamp.radius * globe
            ray = hit - source
            square = (ray * ray).sum(0)
            cosine = (-(ray * normal).sum(0) / square.sqrt()).clamp_min(0)
            turned = (cosine > 0).nonzero()[:, 0]
            if not len(turned):
                continue
            blockers = self._towards(centre, hit[:, turned], lamp.radius)
            if len(blockers.centre):
                until = 1 - _SHADOW_GAP / square[turned].sqrt()
                turned = turned[unhindered(blockers, source[:, turned], ray[:, turned], until)]
            lit = torch.zeros_like(cosine)
            lit[turned] = cosine[turned] / (square[turned] + lamp.radius**2)
            light = light + self._vector(lamp.power) * lit
        return light

    def _vector(self, value: Vector) -> Float[Tensor, "3 1"]:
        return torch.tensor(value, dtype=torch.float32, device=self.device)[:, None]

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


def sample_pattern(samples: int) -> Float[Tensor, "samples 2"]:
    """Points spread evenly over the unit square: a lattice by the golden ratio."""
    index = torch.arange(samples, dtype=torch.float64)
    golden = (math.sqrt(5) - 1) / 2
    return torch.stack([(index + 0.5) / samples, (index * golden + 0.5 / samples) % 1], dim=1).float()


def _globe(samples: int) -> Float[Tensor, "3 samples"]:
    """Points spread evenly over the unit sphere (Fibonacci's)."""
    index = torch.arange(samples, dtype=torch.float64)
    height, angle = 1 - (2 * index + 1) / samples, index * math.pi * (3 - math.sqrt(5))
    girth = (1 - height * height).sqrt()
    return torch.stack([girth * angle.cos(), girth * angle.sin(), height]).float()


def _across(axis: Float[Tensor, "3"]) -> tuple[Tensor, Tensor]:
    """Two unit vectors square to `axis` and to each other."""
    helper = torch.where(axis[2].abs() < 0.9, axis.new_tensor([0.0, 0.0, 1.0]), axis.new_tensor([1.0, 0.0, 0.0]))
    side = unit_vectors(torch.linalg.cross(helper, axis))
    return side, torch.linalg.cross(axis, side)


def _nothing(direction: Tensor) -> tuple[Tensor, Tensor]:
    rays = direction.shape[1]
    return direction.new_full((rays,), math.inf), torch.full((rays,), -1, device=direction.device)
