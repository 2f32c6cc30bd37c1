"""A seed becomes a world."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from dataparsers.procedural.gardens import make_garden
from dataparsers.procedural.paths import Stage
from dataparsers.procedural.rooms import make_room
from dataparsers.procedural.solids import Scene, Solid

_SHARE_OF_ROOMS = 0.75
_GROWTH = 4e-5
"""Scene units; far above float32's resolution at a few units' distance, far below what a picture shows."""


@dataclass(frozen=True)
class World:
    """A scene and where a camera may go in it."""

    scene: Scene
    stage: Stage


def make_world(rng: np.random.Generator) -> World:
    """A furnished room, or a garden; everything about it comes from the generator."""
    scene = Scene()
    stage = (make_room if rng.random() < _SHARE_OF_ROOMS else make_garden)(scene, rng)
    scene.solids = [_grown(solid, _GROWTH * (i % 31)) for i, solid in enumerate(scene.solids)]
    return World(scene, stage)


def _grown(solid: Solid, by: float) -> Solid:
    """A little larger, each solid by another amount: of two faces in one plane a ray would find either at random."""
    x, y, z = solid.half_size
    return dataclasses.replace(solid, half_size=(x + by, y + by, z + by))
