"""What a procedural scene is made of: convex solids with textured surfaces, lamps and a sky."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from jaxtyping import Float

Vector = tuple[float, float, float]


class Shape(IntEnum):
    """The three solids; every one is scaled by its half size along its own axes and turned freely."""

    BOX = 0
    BALL = 1
    """Ellipsoid."""
    DRUM = 2
    """Cylinder or cone, axis along z, narrowed towards the top by `taper`."""


@dataclass(frozen=True, eq=False)
class Material:
    """A surface: a texture that repeats without seams, and whether it shines by itself."""

    texture: Float[np.ndarray, "side side 3"]
    """sRGB in [0, 1]; the first row is the lowest."""
    size: float | None = 1.0
    """Length in scene units that one repeat covers; None stretches one repeat over the whole face."""
    emission: float = 0.0
    """Light given off, in multiples of the surface's own colour. A shining surface takes and stops no light."""


@dataclass(frozen=True)
class Solid:
    """One convex solid in the world (z up, scene units)."""

    shape: Shape
    centre: Vector
    half_size: Vector
    rotation: Float[np.ndarray, "3 3"]
    """Columns are the solid's own axes in the world."""
    side: Material
    cap: Material
    """Surface of the faces across the solid's own z axis (of boxes and drums)."""
    taper: float = 1.0
    """Radius of a drum's top over that of its bottom: 1 is a cylinder, 0 a cone."""


@dataclass(frozen=True)
class Lamp:
    """A small round light. The sun is a lamp far away."""

    position: Vector
    power: Vector
    """Linear RGB that arrives at unit distance, square to the surface."""
    radius: float = 0.1
    """Blurs the rims of shadows."""


@dataclass
class Scene:
    """A world to look at. Solids never move; colour does not depend on the viewing direction."""

    solids: list[Solid] = field(default_factory=list)
    lamps: list[Lamp] = field(default_factory=list)
    sky: Material | None = None
    """Wrapped once around the horizon (u) and from nadir to zenith (v), at distance `sky_radius`."""
    sky_radius: float = 45.0
    ambient_above: Vector = (0.5, 0.5, 0.5)
    """Linear RGB light from all around on a face that looks up."""
    ambient_below: Vector = (0.3, 0.3, 0.3)
    """The same on a face that looks down."""
    exposure: float = 1.0


def turn(yaw: float, tilt: float = 0.0) -> Float[np.ndarray, "3 3"]:
    """Rotation about z by `yaw` after one about x by `tilt`, radians."""
    c, s, ct, st = np.cos(yaw), np.sin(yaw), np.cos(tilt), np.sin(tilt)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, ct, -st], [0, st, ct]])


@dataclass(frozen=True)
class Assembly:
    """Adds solids to a scene in a frame of its own, so that a table is described where it would be built, not where it stands."""

    scene: Scene
    origin: Vector = (0.0, 0.0, 0.0)
    yaw: float = 0.0

    def at(self, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> Assembly:
        """A frame inside this one."""
        return Assembly(self.scene, self.world((x, y, z)), self.yaw + yaw)

    def box(self, centre: Vector, size: Vector, side: Material, cap: Material | None = None, yaw: float = 0.0, tilt: float = 0.0) -> None:
        """A box of full extent `size`."""
        self._add(Shape.BOX, centre, (size[0] / 2, size[1] / 2, size[2] / 2), side, cap, yaw, tilt)

    def ball(self, centre: Vector, radii: Vector | float, side: Material, yaw: float = 0.0, tilt: float = 0.0) -> None:
        """A sphere or an ellipsoid."""
        radii = (radii, radii, radii) if isinstance(radii, (int, float)) else radii
        self._add(Shape.BALL, centre, radii, side, None, yaw, tilt)

    def drum(
        self,
        bottom: Vector,
        radius: float,
        height: float,
        side: Material,
        cap: Material | None = None,
        taper: float = 1.0,
        yaw: float = 0.0,
        tilt: float = 0.0,
    ) -> None:
        """A cylinder or cone that stands on `bottom` (tilted about its middle)."""
        centre = (bottom[0], bottom[1], bottom[2] + height / 2)
        if taper > 1:  # a drum narrows towards its own +z: turn it over
            radius, taper, tilt = radius * taper, 1 / taper, tilt + np.pi
        self._add(Shape.DRUM, centre, (radius, radius, height / 2), side, cap, yaw, tilt, taper)

    def _add(
        self, shape: Shape, centre: Vector, half: Vector, side: Material, cap: Material | None, yaw: float, tilt: float, taper: float = 1.0
    ) -> None:
        rotation = turn(self.yaw + yaw, tilt)
        self.scene.solids.append(Solid(shape, self.world(centre), half, rotation, side, cap or side, taper))

    def world(self, point: Vector) -> Vector:
        """A point of this frame in the world."""
        x, y, z = turn(self.yaw) @ np.array(point) + np.array(self.origin)
        return float(x), float(y), float(z)
