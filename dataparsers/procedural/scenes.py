"""A seed becomes a world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataparsers.procedural.gardens import make_garden
from dataparsers.procedural.paths import Stage
from dataparsers.procedural.rooms import make_room
from dataparsers.procedural.solids import Scene

_SHARE_OF_ROOMS = 0.75


@dataclass(frozen=True)
class World:
    """A scene and where a camera may go in it."""

    scene: Scene
    stage: Stage


def make_world(rng: np.random.Generator) -> World:
    """A furnished room, or a garden; everything about it comes from the generator."""
    scene = Scene()
    stage = (make_room if rng.random() < _SHARE_OF_ROOMS else make_garden)(scene, rng)
    return World(scene, stage)
