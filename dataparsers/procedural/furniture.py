"""Pieces to put into a scene, each built where it stands by an `Assembly`.

Pieces that lean on a wall have their back at y = 0 and reach towards +y, with x = 0 in the middle; the others stand around the origin.
Every size is in scene units (metres).
"""

from __future__ import annotations

import numpy as np

from dataparsers.procedural.solids import Assembly, Material
from dataparsers.procedural.style import Style

Rng = np.random.Generator


def table(a: Assembly, style: Style, rng: Rng, width: float, depth: float, height: float) -> None:
    """Round or rectangular, on four legs or one foot, with something on it."""
    top, legs = style.wood(), style.wood()
    if rng.random() < 0.4:
        radius = min(width, depth) / 2
        a.drum((0, 0, height - 0.05), radius, 0.05, top)
        a.drum((0, 0, 0), 0.05, height - 0.05, legs)
        a.drum((0, 0, 0), 0.6 * radius, 0.05, legs, taper=0.5)
        width = depth = 1.3 * radius
    else:
        a.box((0, 0, height - 0.025), (width, depth, 0.05), top)
        for x in (-1, 1):
            for y in (-1, 1):
                a.box((x * (width / 2 - 0.06), y * (depth / 2 - 0.06), height / 2 - 0.03), (0.06, 0.06, height - 0.06), legs)
    for _ in range(rng.integers(1, 4)):
        trinket(a.at(rng.uniform(-0.35, 0.35) * width, rng.uniform(-0.35, 0.35) * depth, height, rng.uniform(0, 6)), style, rng)


def chair(a: Assembly, style: Style, rng: Rng, height: float = 0.45) -> None:
    """Looks towards +y."""
    wood, seat = style.wood(), style.cloth()
    a.box((0, 0, height), (0.42, 0.42, 0.06), seat)
    for x in (-0.18, 0.18):
        a.box((x, 0.18, height / 2), (0.04, 0.04, height), wood)
        a.box((x, -0.19, 0.48), (0.04, 0.04, 0.96), wood)
    a.box((0, -0.19, 0.82), (0.36, 0.03, 0.22), style.one_of(wood, seat))


def sofa(a: Assembly, style: Style, rng: Rng, width: float) -> None:
    """Against a wall: seat, back, arms, cushions."""
    cloth, cushion = style.cloth(), style.cloth()
    depth = 0.85
    a.box((0, depth / 2, 0.22), (width, depth, 0.32), cloth)
    a.box((0, 0.12, 0.58), (width, 0.24, 0.5), cloth)
    for x in (-1, 1):
        a.box((x * (width / 2 - 0.1), depth / 2, 0.36), (0.2, depth, 0.5), cloth)
    for x in np.linspace(-width / 2 + 0.4, width / 2 - 0.4, int(rng.integers(2, 4))):
        a.box((x, 0.36, 0.58), (0.4, 0.14, 0.38), cushion, yaw=rng.normal(0, 0.2), tilt=-0.3)


def armchair(a: Assembly, style: Style, rng: Rng) -> None:
    """Round, looks towards +y."""
    cloth = style.cloth()
    a.drum((0, 0, 0.08), 0.4, 0.34, cloth)
    a.box((0, -0.32, 0.5), (0.7, 0.16, 0.8), cloth, tilt=0.12)
    a.ball((0, 0.02, 0.45), (0.33, 0.33, 0.1), style.cloth())


def bed(a: Assembly, style: Style, rng: Rng, width: float) -> None:
    """Head at the wall."""
    wood, sheet, cover = style.wood(), style.white, style.cloth()
    a.box((0, 0.04, 0.55), (width + 0.1, 0.08, 1.1), wood)
    a.box((0, 1.05, 0.18), (width, 2.0, 0.3), wood)
    a.box((0, 1.05, 0.42), (width - 0.06, 1.95, 0.2), sheet)
    a.box((0, 1.4, 0.47), (width + 0.02, 1.3, 0.2), cover)
    for x in (-0.25, 0.25):
        a.ball((x * width, 0.35, 0.58), (0.22 * width, 0.2, 0.12), style.cloth())


def bookcase(a: Assembly, style: Style, rng: Rng, width: float, height: float) -> None:
    """Boards with books and trinkets between them."""
    wood, depth = style.wood(), 0.32
    shelves = max(2, round(height / 0.38))
    for x in (-1, 1):
        a.box((x * (width / 2 - 0.02), depth / 2, height / 2), (0.04, depth, height), wood)
    a.box((0, 0.01, height / 2), (width, 0.02, height), wood)
    step = (height - 0.04) / shelves
    for i in range(shelves + 1):
        a.box((0, depth / 2, 0.02 + i * step), (width, depth, 0.04), wood)
    for i in range(shelves):
        base = 0.04 + i * step
        if rng.random() < 0.75:
            share = rng.uniform(0.5, 1.0)
            length = share * (width - 0.1)
            a.box(((share - 1) / 2 * (width - 0.1), 0.14, base + 0.45 * step), (length, 0.22, 0.86 * step), style.books(), style.soil)
            if share < 0.75:
                trinket(a.at(width / 2 - 0.2, depth / 2, base), style, rng, 0.7 * step)
        else:
            for at in (-0.25, 0.2):
                trinket(a.at(at * width, depth / 2, base), style, rng, 0.75 * step)


def cabinet(a: Assembly, style: Style, rng: Rng, width: float, height: float) -> None:
    """Chest of drawers or sideboard with things on top."""
    body, front = style.wood(), style.one_of(style.wood(), style.paint(), style.white)
    depth = 0.45
    a.box((0, depth / 2, height / 2 + 0.03), (width, depth, height - 0.06), body)
    columns, rows = max(1, round(width / 0.5)), max(1, round(height / 0.35))
    for i in range(columns):
        for j in range(rows):
            x = (i + 0.5) / columns * width - width / 2
            z = 0.08 + (j + 0.5) / rows * (height - 0.12)
            a.box((x, depth, z), (width / columns - 0.04, 0.03, (height - 0.12) / rows - 0.03), front)
            a.ball((x, depth + 0.03, z + 0.03), 0.02, style.metal)
    for x in rng.uniform(-0.4, 0.4, rng.integers(1, 4)):
        trinket(a.at(x * width, depth / 2, height), style, rng)


def counter(a: Assembly, style: Style, rng: Rng, width: float) -> None:
    """Kitchen units below, a stone top, cupboards above."""
    front = style.one_of(style.paint(), style.white, style.wood())
    a.box((0, 0.28, 0.45), (width, 0.56, 0.82), front)
    a.box((0, 0.3, 0.88), (width + 0.04, 0.62, 0.05), style.stone())
    a.box((0, 0.02, 1.18), (width, 0.02, 0.56), style.toy())
    a.box((0, 0.16, 1.85), (width, 0.32, 0.7), front)
    doors = max(2, round(width / 0.5))
    for i in range(doors):
        x = (i + 0.5) / doors * width - width / 2
        for z, y, high in ((0.45, 0.57, 0.7), (1.85, 0.33, 0.62)):
            a.box((x, y, z), (width / doors - 0.03, 0.02, high), front)
            a.ball((x + 0.15, y + 0.03, z), 0.02, style.metal)
    for x in rng.uniform(-0.42, 0.42, 3):
        trinket(a.at(x * width, 0.35, 0.9), style, rng, 0.35)


def trinket(a: Assembly, style: Style, rng: Rng, height: float = 0.35) -> None:
    """A small thing on a shelf or table."""
    kind = rng.integers(7)
    h = height * rng.uniform(0.6, 1.0)
    if kind == 0:  # vase
        a.drum((0, 0, 0), 0.25 * h, 0.65 * h, style.toy(), taper=1.4)
        a.drum((0, 0, 0.65 * h), 0.35 * h, 0.35 * h, style.toy(), taper=0.45)
    elif kind == 1:
        a.ball((0, 0, 0.4 * h), 0.4 * h, style.toy())
    elif kind == 2:  # flowers
        a.drum((0, 0, 0), 0.18 * h, 0.45 * h, style.paint(), taper=1.3)
        for angle in range(3):
            a.ball((0.14 * h * np.cos(2 * angle), 0.14 * h * np.sin(2 * angle), (0.72 + 0.05 * angle) * h), 0.17 * h, style.foliage())
    elif kind == 3:  # lamp
        a.drum((0, 0, 0), 0.2 * h, 0.08 * h, style.metal)
        a.drum((0, 0, 0), 0.05 * h, 0.6 * h, style.metal)
        a.drum((0, 0, 0.5 * h), 0.4 * h, 0.5 * h, style.glow if rng.random() < 0.5 else style.white, taper=0.6)
    elif kind == 4:  # pile of books
        for i in range(3):
            a.box((0, 0, (0.07 + 0.14 * i) * h), (0.7 * h, 0.5 * h, 0.13 * h), style.paint(), yaw=rng.normal(0, 0.3))
    elif kind == 5:
        a.drum((0, 0, 0), 0.3 * h, h, style.toy(), taper=0.0)
    else:
        a.box((0, 0, 0.3 * h), (0.6 * h, 0.6 * h, 0.6 * h), style.toy(), yaw=rng.uniform(0, 1.5))


def floor_lamp(a: Assembly, style: Style, rng: Rng) -> None:
    a.drum((0, 0, 0), 0.16, 0.03, style.metal)
    a.drum((0, 0, 0), 0.018, 1.4, style.metal)
    a.drum((0, 0, 1.3), 0.24, 0.32, style.glow, taper=0.65)


def plant(a: Assembly, style: Style, rng: Rng, height: float = 1.2) -> None:
    """In a pot: a bush, a little tree or a cactus."""
    a.drum((0, 0, 0), 0.16, 0.32, style.toy(), style.soil, taper=1.35)
    leaf = style.foliage()
    kind = rng.integers(3)
    if kind == 0:
        for _ in range(6):
            x, y = rng.normal(0, 0.13, 2)
            a.ball((x, y, rng.uniform(0.45, height - 0.15)), (0.2, 0.2, 0.18), leaf, rng.uniform(0, 6), rng.normal(0, 0.4))
    elif kind == 1:
        a.drum((0, 0, 0.3), 0.03, 0.6 * height, style.wood())
        a.ball((0, 0, height - 0.15), (0.32, 0.32, 0.35), leaf)
    else:
        a.ball((0, 0, 0.3 + 0.35 * height), (0.12, 0.12, 0.35 * height), leaf)
        a.ball((0.17, 0, 0.3 + 0.4 * height), (0.06, 0.06, 0.16 * height), leaf, tilt=0.2)


def picture(a: Assembly, style: Style, rng: Rng, width: float, height: float) -> None:
    """Framed, hung with its middle at the origin."""
    rim = rng.uniform(0.03, 0.07)
    a.box((0, 0.015, 0), (width + 2 * rim, 0.03, height + 2 * rim), style.one_of(style.wood(), style.metal, style.white))
    a.box((0, 0.025, 0), (width, 0.02, height), style.painting())


def blocks(a: Assembly, style: Style, rng: Rng) -> None:
    """Toys: a tower, balls, a cone."""
    z = 0.0
    for i in range(rng.integers(2, 5)):
        edge = 0.4 - 0.07 * i
        a.box((0, 0, z + edge / 2), (edge, edge, edge), style.toy(), yaw=rng.uniform(0, 1.5))
        z += edge
    a.ball((rng.normal(0, 0.1), 0, z + 0.14), 0.14, style.toy())
    for _ in range(3):
        angle, radius = rng.uniform(0, 6.28), rng.uniform(0.1, 0.25)
        a.ball((0.65 * np.cos(angle), 0.65 * np.sin(angle), radius), radius, style.toy())
    a.drum((-0.5, 0.5, 0), 0.2, 0.5, style.toy(), taper=0)


def pedestal(a: Assembly, style: Style, rng: Rng) -> None:
    """A plinth with one large solid on it."""
    height = rng.uniform(0.6, 1.0)
    stone, thing = style.stone(), style.one_of(style.toy(), style.stone(), style.paint())
    a.box((0, 0, height / 2), (0.5, 0.5, height), stone)
    a.box((0, 0, height + 0.03), (0.6, 0.6, 0.06), stone)
    z = height + 0.06
    kind = rng.integers(5)
    if kind == 0:
        a.ball((0, 0, z + 0.32), 0.32, thing)
    elif kind == 1:
        a.box((0, 0, z + 0.35), (0.4, 0.4, 0.4), thing, yaw=rng.uniform(0, 1.5), tilt=0.62)
    elif kind == 2:
        a.drum((0, 0, z), 0.3, 0.65, thing, taper=0)
    elif kind == 3:  # a bust
        a.drum((0, 0, z), 0.24, 0.3, thing, taper=0.45)
        a.ball((0, 0, z + 0.44), (0.15, 0.18, 0.21), thing)
    else:
        for i in range(4):
            a.drum((0, 0, z + 0.17 * i), 0.28 - 0.05 * i, 0.15, style.toy())


def column(a: Assembly, style: Style, height: float, radius: float = 0.2) -> None:
    stone = style.stone()
    a.box((0, 0, 0.08), (2.8 * radius, 2.8 * radius, 0.16), stone)
    a.drum((0, 0, 0.16), radius, height - 0.32, stone, taper=0.85)
    a.box((0, 0, height - 0.08), (2.6 * radius, 2.6 * radius, 0.16), stone)


def bench(a: Assembly, style: Style) -> None:
    wood = style.wood()
    for y in (-0.15, 0.0, 0.15):
        a.box((0, y, 0.45), (1.5, 0.12, 0.05), wood)
    for x in (-0.6, 0.6):
        a.box((x, 0, 0.21), (0.08, 0.4, 0.42), style.metal)
    a.box((0, -0.22, 0.72), (1.5, 0.05, 0.3), wood, tilt=0.15)


def tree(a: Assembly, style: Style, rng: Rng, height: float) -> None:
    """Round crown or fir."""
    bark, leaf = style.wood(), style.foliage()
    a.drum((0, 0, -0.05), 0.05 * height, 0.5 * height, bark, taper=0.6)
    if rng.random() < 0.3:
        for i in range(4):
            a.drum((0, 0, (0.2 + 0.19 * i) * height), (0.3 - 0.06 * i) * height, 0.28 * height, leaf, taper=0.05)
    else:
        for _ in range(5):
            x, y = rng.normal(0, 0.11 * height, 2)
            size = height * rng.uniform(0.16, 0.24)
            a.ball((x, y, height * rng.uniform(0.55, 0.85)), (size, size, 0.85 * size), leaf, rng.uniform(0, 6))


def fountain(a: Assembly, style: Style, rng: Rng) -> None:
    stone, water = style.stone(), style.glass
    a.drum((0, 0, 0), 1.0, 0.4, stone, water)
    a.drum((0, 0, 0.4), 0.12, 0.6, stone)
    a.drum((0, 0, 0.95), 0.25, 0.15, stone, water, taper=2.0)
    a.ball((0, 0, 1.25), 0.15, style.paint())


def house(a: Assembly, style: Style, rng: Rng, width: float, depth: float, height: float, wall: Material, roof: Material) -> None:
    """A closed house with windows and a door towards +y, hipped or flat roof."""
    a.box((0, 0, height / 2), (width, depth, height), wall, style.stone())
    if rng.random() < 0.6:
        for side in (-1, 1):
            slope = np.arctan2(1.2, depth / 2 + 0.3)
            length = np.hypot(1.2, depth / 2 + 0.3)
            a.box((0, side * (depth / 4 + 0.15), height + 0.55), (width + 0.6, length, 0.12), roof, tilt=-side * slope)
        a.box((0, 0, height + 0.3), (width - 0.1, depth * 0.45, 0.7), wall)
    else:
        a.box((0, 0, height + 0.1), (width + 0.3, depth + 0.3, 0.2), roof)
    front = depth / 2
    a.box((0, front, 1.0), (1.0, 0.08, 2.0), style.paint())
    a.box((0, front, 2.08), (1.2, 0.14, 0.12), style.white)
    for x in np.arange(-width / 2 + 0.9, width / 2 - 0.5, 1.6):
        for z in np.arange(1.4, height - 0.6, 1.9):
            if abs(x) < 1.1 and z < 2.4:
                continue
            a.box((x, front, z), (0.9, 0.08, 1.1), style.white)
            a.box((x, front, z), (0.76, 0.1, 0.96), style.glass)
            a.box((x, front + 0.03, z), (0.05, 0.08, 0.96), style.white)
            a.box((x, front + 0.08, z - 0.6), (1.0, 0.2, 0.06), style.white)
