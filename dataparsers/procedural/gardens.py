"""Open places under the sky: gardens, squares and colonnades between houses and trees."""

from __future__ import annotations

import math

import numpy as np

from dataparsers.procedural import furniture, textures
from dataparsers.procedural.paths import Stage
from dataparsers.procedural.solids import Assembly, Lamp, Material, Scene
from dataparsers.procedural.style import Style, colour

Rng = np.random.Generator

_SUN_DISTANCE = 60.0


def make_garden(scene: Scene, rng: Rng) -> Stage:
    """Fill an empty scene with a place in the open and say where one may walk."""
    style = Style(rng)
    a = Assembly(scene)
    half = rng.uniform(4.0, 5.5)
    paved = rng.random() < 0.4
    lawn = Material(textures.grass(rng, colour(rng.uniform(0.2, 0.33), rng.uniform(0.4, 0.65), rng.uniform(0.4, 0.6))), 3.0)
    a.box((0, 0, -0.2), (120, 120, 0.4), lawn)
    _paving(a, style, rng, half, paved)
    attractions = _centre(a, style, rng, paved)
    _surroundings(a, style, rng, half)
    _details(a, style, rng, half)
    attractions += [(x, y, rng.uniform(0.7, 1.4)) for x, y in rng.uniform(-0.6 * half, 0.6 * half, (4, 2))]
    _light(scene, rng)
    return Stage((-half, -half), (half, half), (1.2, 1.7), np.array(attractions))


def _paving(a: Assembly, style: Style, rng: Rng, half: float, paved: bool) -> None:
    grey = colour(rng.uniform(0.05, 0.12), rng.uniform(0.05, 0.3), rng.uniform(0.55, 0.75))
    makers = [
        lambda: textures.cobbles(rng, grey),
        lambda: textures.tiles(rng, [grey, grey * 0.9, style.soft()], grey * 0.6),
        lambda: textures.bricks(rng, (0.6, 0.38, 0.3), (0.6, 0.55, 0.5)),
        lambda: textures.checker(rng, grey, grey * 0.7),
    ]
    stone = Material(makers[rng.integers(4)](), rng.uniform(1.2, 2.0))
    if paved:
        a.box((0, 0, 0.0), (1.6 * half, 1.6 * half, 0.04), stone)
        return
    for turns in range(2):
        a.at(0, 0, 0, turns * math.pi / 2).box(
            (0, rng.uniform(-0.8, 0.8), 0.005 * (turns + 1)), (2.6 * half, rng.uniform(1.0, 1.6), 0.03), stone
        )


def _centre(a: Assembly, style: Style, rng: Rng, paved: bool) -> list[tuple[float, float, float]]:
    kind = rng.integers(5)
    if kind == 0:
        furniture.fountain(a, style, rng)
    elif kind == 1:
        furniture.pedestal(a, style, rng)
        for angle in np.arange(4) * math.pi / 2 + 0.4:
            furniture.plant(a.at(1.1 * math.cos(angle), 1.1 * math.sin(angle)), style, rng, 0.8)
    elif kind == 2:  # a little temple
        for i in range(8):
            angle = i * math.pi / 4
            furniture.column(a.at(1.5 * math.cos(angle), 1.5 * math.sin(angle)), style, 2.4, 0.14)
        a.drum((0, 0, 2.4), 1.85, 0.25, style.stone())
        a.drum((0, 0, 2.65), 1.8, 0.8, style.paint(), taper=0.1)
        furniture.pedestal(a, style, rng)
    elif kind == 3:  # a table laid outside
        furniture.table(a, style, rng, 1.6, 0.9, 0.75)
        for side in (-1, 1):
            for along in (-0.4, 0.4):
                furniture.chair(a.at(along, side * 0.65, 0, 0 if side < 0 else math.pi), style, rng)
        a.drum((0, 0, 0), 0.03, 2.3, style.metal)
        a.drum((0, 0, 2.0), 1.3, 0.5, style.cloth(), taper=0.05)
    else:
        furniture.blocks(a.at(0, 0, 0.02), style, rng)
        furniture.blocks(a.at(1.2, -0.7, 0.02, 2.0), style, rng)
    return [(0.0, 0.0, 0.8), (0.0, 0.0, 1.1), (0.0, 0.0, 0.9)]


def _surroundings(a: Assembly, style: Style, rng: Rng, half: float) -> None:
    """Houses, a hedge, a fence, a wall or trees on each of the four sides."""
    tone = style.soft()
    wall = [
        lambda: Material(textures.plain(rng, tone, 0.05), 2.0),
        lambda: Material(textures.bricks(rng, (0.62, 0.36, 0.28), (0.75, 0.72, 0.68)), 1.0),
        lambda: Material(textures.planks(rng, tone, 8), 1.4),
        lambda: Material(textures.bricks(rng, tone, tone * 0.7), 1.6),
    ]
    roof = Material(textures.bricks(rng, (0.55, 0.27, 0.2) if rng.random() < 0.6 else (0.35, 0.36, 0.4), (0.25, 0.18, 0.16), 12), 1.5)
    for side in range(4):
        edge = a.at(0, 0, 0, side * math.pi / 2).at(0, -half - 1.0)
        kind = rng.choice(5, p=[0.35, 0.15, 0.15, 0.15, 0.2])
        if kind == 0:
            material = wall[rng.integers(4)]()
            for x in (-0.55 * half, 0.6 * half):
                width, tall = rng.uniform(0.8, 1.05) * half, rng.uniform(2.8, 5.5)
                furniture.house(edge.at(x, -2.2 + rng.uniform(-0.4, 0.4)), style, rng, width, 3.6, tall, material, roof)
        elif kind == 1:
            edge.box((0, 0, 0.6), (2 * half, 0.7, rng.uniform(1.0, 1.6)), style.foliage())
        elif kind == 2:
            board = style.paint() if rng.random() < 0.5 else style.wood()
            for x in np.arange(-half, half, 0.5):
                edge.box((x, 0, 0.55), (0.3, 0.04, 1.1), board)
            for z in (0.35, 0.85):
                edge.box((0, -0.04, z), (2 * half, 0.05, 0.08), board)
        elif kind == 3:
            edge.box((0, 0, 0.9), (2 * half, 0.3, 1.8), wall[1](), style.stone())
            for x in np.arange(-half, half + 0.1, half / 2):
                edge.box((x, 0, 1.0), (0.45, 0.45, 2.0), style.stone())
                edge.ball((x, 0, 2.2), 0.22, style.stone())
        for _ in range(3):
            spread = rng.uniform(-1.2, 1.2) * half
            furniture.tree(edge.at(spread, -rng.uniform(4.5, 12) if kind < 4 else -rng.uniform(0, 5)), style, rng, rng.uniform(2.5, 5.5))


def _details(a: Assembly, style: Style, rng: Rng, half: float) -> None:
    """Benches, pots, statues, flower beds, lamp posts around the middle."""
    count = int(rng.integers(5, 9))
    for i, angle in enumerate(np.arange(count) * math.tau / count + rng.uniform(0, 1)):
        away = rng.uniform(0.55, 0.95) * half
        spot = a.at(away * math.cos(angle), away * math.sin(angle), 0.01, angle + math.pi / 2)
        kind = (i + rng.integers(2)) % 6
        if kind == 0:
            furniture.bench(spot, style)
        elif kind == 1:
            furniture.plant(spot, style, rng, rng.uniform(0.9, 1.6))
        elif kind == 2:
            furniture.pedestal(spot, style, rng)
        elif kind == 3:
            spot.box((0, 0, 0.12), (1.4, 0.9, 0.24), style.stone(), style.soil)
            for x, y in rng.uniform(-1, 1, (7, 2)) * (0.55, 0.32):
                spot.ball((x, y, 0.32), rng.uniform(0.1, 0.17), style.paint() if rng.random() < 0.6 else style.foliage())
        elif kind == 4:
            spot.drum((0, 0, 0), 0.05, 2.6, style.metal, taper=0.6)
            spot.ball((0, 0, 2.7), 0.2, style.white)
        else:
            furniture.tree(spot, style, rng, rng.uniform(2.2, 3.2))


def _light(scene: Scene, rng: Rng) -> None:
    scene.sky = Material(textures.sky(rng), None, emission=1.5)
    warm, azimuth, elevation = rng.uniform(), rng.uniform(0, math.tau), rng.uniform(0.45, 1.1)
    away = np.array([math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation), math.sin(elevation)])
    strength = rng.uniform(2.5, 4.0) * _SUN_DISTANCE**2
    sunlight = np.array([1.0, 0.94 - 0.1 * warm, 0.85 - 0.25 * warm]) * strength
    scene.lamps.append(Lamp(tuple(_SUN_DISTANCE * away), tuple(sunlight), 1.2))
    scene.ambient_above = (0.8, 0.95, 1.2)
    scene.ambient_below = (0.5, 0.5, 0.42)
