"""Seeded worlds and the walks through them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataparsers.procedural import textures
from dataparsers.procedural.paths import Stage
from dataparsers.procedural.solids import Assembly, Lamp, Material, Scene


@dataclass(frozen=True)
class World:
    """A scene and where a camera may go in it."""

    scene: Scene
    stage: Stage


def make_world(rng: np.random.Generator) -> World:
    scene = Scene()
    a = Assembly(scene)
    def mat():
        return Material(textures.checker(rng, rng.uniform(0.2, 1, 3), rng.uniform(0.2, 1, 3)), rng.uniform(0.5, 1.5))
    w, d, h = 6, 5, 2.7
    a.box((w / 2, d / 2, -0.1), (w, d, 0.2), mat())
    a.box((w / 2, d / 2, h + 0.1), (w, d, 0.2), mat())
    a.box((-0.1, d / 2, h / 2), (0.2, d, h), mat())
    a.box((w + 0.1, d / 2, h / 2), (0.2, d, h), mat())
    a.box((w / 2, -0.1, h / 2), (w, 0.2, h), mat())
    a.box((w / 2, d + 0.1, h / 2), (w, 0.2, h), mat())
    for _ in range(12):
        x, y = rng.uniform(0.5, w - 0.5), rng.uniform(2.5, d - 0.5)
        r = rng.uniform(0.2, 0.4)
        match rng.integers(3):
            case 0:
                a.box((x, y, r), (2 * r, 2 * r, 2 * r), mat(), yaw=rng.uniform(0, 3))
            case 1:
                a.ball((x, y, r), r, mat())
            case _:
                a.drum((x, y, 0), r, 2 * r, mat(), taper=rng.uniform(0, 1))
    scene.sky = Material(textures.plain(rng, (0.5, 0.7, 0.9)), None, 1.0)
    scene.lamps.append(Lamp((3, 1.5, 2.4), (2.0, 1.9, 1.7), 0.15))
    return World(scene, Stage((0.3, 0.3), (w - 0.3, d - 0.3), (1.2, 1.6), np.array([[x, y, 0.6] for x in (2, 3, 4) for y in (3, 4)])))
