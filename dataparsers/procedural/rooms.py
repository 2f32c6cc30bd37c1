"""Furnished rooms: things along the walls and in the middle, pictures, a garden outside, sun and lamps."""

from __future__ import annotations

import math

import numpy as np

from dataparsers.procedural import furniture, textures
from dataparsers.procedural.paths import Stage
from dataparsers.procedural.solids import Assembly, Lamp, Material, Scene
from dataparsers.procedural.style import Style, colour
from dataparsers.procedural.walls import Opening, Wall, build_shell

Rng = np.random.Generator

_SUN_DISTANCE = 60.0


def make_room(scene: Scene, rng: Rng) -> Stage:
    """Fill an empty scene with a room and say where one may walk."""
    style = Style(rng)
    width, depth, height = rng.uniform(4.2, 7.5), rng.uniform(4.2, 6.5), rng.uniform(2.5, 3.3)
    a = Assembly(scene)
    walls = build_shell(a, style, rng, width, depth, height)
    _outside(a, style, rng, width, depth)
    _furnish_walls(walls, style, rng, height)
    attractions = _furnish_middle(a, style, rng, width, depth)
    for wall in walls:
        _hang_pictures(wall, style, rng, height)
    attractions += [wall.frame.world((x * wall.length, 0.2, rng.uniform(0.7, 1.3))) for wall in walls for x in (0.3, 0.7)]
    _light(scene, style, rng, walls, (width, depth, height))
    margin = 0.4
    return Stage((margin, margin), (width - margin, depth - margin), (1.15, 1.65), np.array(attractions))


def _furnish_walls(walls: list[Wall], style: Style, rng: Rng, height: float) -> None:
    kinds = ["sofa", "bookcase", "cabinet", "bed", "counter", "plant", "lamp", "desk", "bookcase", "cabinet", "pedestal"]
    order = [kinds[i] for i in rng.permutation(len(kinds))]
    if rng.random() < 0.75 or order.index("counter") < order.index("bed"):
        order.remove("bed")  # few rooms have one, none beside a kitchen
    if rng.random() < 0.7:
        order.remove("counter")
    for kind in order:
        wall = walls[rng.integers(4)]
        wide = {
            "sofa": rng.uniform(1.6, 2.3),
            "bookcase": rng.uniform(0.8, 1.8),
            "cabinet": rng.uniform(0.8, 1.7),
            "bed": rng.uniform(1.2, 1.8),
        }
        wide |= {"counter": rng.uniform(1.8, 2.8), "desk": 1.4, "plant": 0.7, "lamp": 0.5, "pedestal": 0.7}
        tall = rng.uniform(1.0, min(2.2, height - 0.3))
        if (spot := wall.place(rng, wide[kind], low=kind not in ("bookcase", "counter"))) is None:
            continue
        if kind == "sofa":
            furniture.sofa(spot, style, rng, wide[kind])
        elif kind == "bookcase":
            furniture.bookcase(spot, style, rng, wide[kind], tall)
        elif kind == "cabinet":
            furniture.cabinet(spot, style, rng, wide[kind], rng.uniform(0.5, 0.85))
        elif kind == "bed":
            furniture.bed(spot, style, rng, wide[kind])
        elif kind == "counter":
            furniture.counter(spot, style, rng, wide[kind])
        elif kind == "desk":
            furniture.table(spot.at(0, 0.4), style, rng, 1.3, 0.65, 0.74)
            furniture.chair(spot.at(0.1, 0.95, 0, math.pi + rng.normal(0, 0.4)), style, rng)
        elif kind == "plant":
            furniture.plant(spot.at(0, 0.4), style, rng, rng.uniform(0.9, 1.7))
        elif kind == "lamp":
            furniture.floor_lamp(spot.at(0, 0.35), style, rng)
        else:
            furniture.pedestal(spot.at(0, 0.45), style, rng)


def _hang_pictures(wall: Wall, style: Style, rng: Rng, height: float) -> None:
    for _ in range(3):
        wide, high = rng.uniform(0.4, 1.1), rng.uniform(0.4, 0.8)
        blocked = [(o.left, o.right) for o in wall.openings]
        x = rng.uniform(0.8, wall.length - 0.8)
        if all(x + wide / 2 + 0.15 < a or x - wide / 2 - 0.15 > b for a, b in blocked):
            wall.openings.append(Opening(x - wide / 2, x + wide / 2, 1.2, 2.0))
            furniture.picture(wall.frame.at(x, 0.0, min(1.75, height - 0.6)), style, rng, wide, high)


def _furnish_middle(a: Assembly, style: Style, rng: Rng, width: float, depth: float) -> list[tuple[float, float, float]]:
    x, y = width * rng.uniform(0.38, 0.62), depth * rng.uniform(0.38, 0.62)
    spot = a.at(x, y, 0, rng.choice([0, math.pi / 2]) + rng.normal(0, 0.08))
    if rng.random() < 0.7:
        spot.box((0, 0, 0.006), (rng.uniform(1.6, 2.4), rng.uniform(1.4, 2.0), 0.012), style.rug())
    kind = rng.integers(5)
    if kind == 0:
        furniture.table(spot, style, rng, rng.uniform(1.2, 1.8), 0.9, 0.75)
        for side in (-1, 1):
            for along in (-0.35, 0.35):
                furniture.chair(spot.at(along, side * 0.62, 0, 0 if side < 0 else math.pi), style, rng)
    elif kind == 1:
        furniture.table(spot, style, rng, 1.1, 0.7, 0.42)
        furniture.armchair(spot.at(rng.uniform(-0.4, 0.4), -1.0), style, rng)
    elif kind == 2:
        furniture.blocks(spot, style, rng)
    elif kind == 3:
        furniture.pedestal(spot, style, rng)
    else:
        for angle in rng.uniform(0, 1) + np.arange(2) * math.pi:
            furniture.armchair(spot.at(0.9 * math.cos(angle), 0.9 * math.sin(angle), 0, angle + math.pi / 2), style, rng)
        furniture.table(spot, style, rng, 0.6, 0.6, 0.5)
    return [(x, y, 0.6), (x, y, 0.9), (x, y, 0.5)]


def _outside(a: Assembly, style: Style, rng: Rng, width: float, depth: float) -> None:
    lawn = Material(textures.grass(rng, colour(rng.uniform(0.2, 0.33), 0.5, 0.5)), 3.0)
    a.box((width / 2, depth / 2, -0.6), (120, 120, 0.4), lawn)
    for _ in range(9):
        angle, away = rng.uniform(0, math.tau), rng.uniform(7, 16)
        furniture.tree(a.at(width / 2 + away * math.cos(angle), depth / 2 + away * math.sin(angle), -0.4), style, rng, rng.uniform(2.5, 5))


def _light(scene: Scene, style: Style, rng: Rng, walls: list[Wall], size: tuple[float, float, float]) -> None:
    width, depth, height = size
    scene.sky = Material(textures.sky(rng), None, emission=1.6)
    warm = rng.uniform()
    # the sun looks in at one of the windows
    sunny = [wall for wall in walls if any(o.bottom > 0.1 and o.top - o.bottom > 0.9 for o in wall.openings)]
    wall = sunny[rng.integers(len(sunny))] if sunny else walls[0]
    azimuth = wall.frame.yaw - math.pi / 2 + rng.uniform(-0.8, 0.8)
    elevation = rng.uniform(0.4, 0.85)
    away = np.array([math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation), math.sin(elevation)])
    position = np.array([width / 2, depth / 2, 0]) + _SUN_DISTANCE * away
    strength = rng.uniform(3.0, 5.0) * _SUN_DISTANCE**2
    sunlight = np.array([1.0, 0.93 - 0.1 * warm, 0.82 - 0.22 * warm]) * strength
    scene.lamps.append(Lamp(tuple(position), tuple(sunlight), 1.0))
    # daylight that the window scatters into the room
    inside = wall.frame.world((wall.openings[0].middle if wall.openings else wall.length / 2, 0.5, 1.7))
    scene.lamps.append(Lamp(inside, tuple(np.array([0.9, 0.97, 1.05]) * rng.uniform(1.0, 2.0)), 0.4))
    # a lamp under the ceiling
    a = Assembly(scene).at(width / 2 + rng.uniform(-0.4, 0.4), depth / 2 + rng.uniform(-0.4, 0.4))
    drop = rng.uniform(0.3, 0.6)
    a.drum((0, 0, height - drop), 0.015, drop, style.metal)
    if rng.random() < 0.5:
        a.ball((0, 0, height - drop), 0.16, style.glow)
    else:
        a.drum((0, 0, height - drop - 0.1), 0.26, 0.2, style.glow, taper=0.4)
    glow = np.array([1.0, 0.88, 0.7]) * rng.uniform(1.0, 3.0)
    scene.lamps.append(Lamp(a.world((0, 0, height - drop - 0.12)), tuple(glow), 0.12))
    shade = rng.uniform(0.45, 0.7)
    scene.ambient_above = (0.95 * shade, 0.98 * shade, 1.05 * shade)
    scene.ambient_below = (0.85 * shade, 0.8 * shade, 0.72 * shade)
