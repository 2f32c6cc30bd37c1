"""The shell of a room: floor, ceiling, walls with windows and doors, skirting, panels, curtains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dataparsers.procedural import furniture, textures
from dataparsers.procedural.solids import Assembly, Material
from dataparsers.procedural.style import Style

Rng = np.random.Generator

_THICKNESS = 0.2


@dataclass(frozen=True)
class Opening:
    """A hole in a wall, in the wall's frame."""

    left: float
    right: float
    bottom: float
    top: float

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2


@dataclass
class Wall:
    """One wall: x runs along it, y into the room. Knows which stretches are taken."""

    frame: Assembly
    length: float
    openings: list[Opening]
    taken: list[tuple[float, float]]

    def place(self, rng: Rng, width: float, low: bool) -> Assembly | None:
        """A free stretch of the given width, or None; low pieces may stand under windows."""
        blocked = self.taken + [(o.left, o.right) for o in self.openings if not (low and o.bottom > 0.7)]
        for _ in range(12):
            if width + 0.2 > self.length:
                return None
            x = rng.uniform(width / 2 + 0.1, self.length - width / 2 - 0.1)
            if all(x + width / 2 < a or x - width / 2 > b for a, b in blocked):
                self.taken.append((x - width / 2 - 0.05, x + width / 2 + 0.05))
                return self.frame.at(x, 0)
        return None


def build_shell(a: Assembly, style: Style, rng: Rng, width: float, depth: float, height: float) -> list[Wall]:
    """A closed box with one corner at the origin; returns its walls, anticlockwise from the one along x."""
    t = _THICKNESS
    a.box((width / 2, depth / 2, -t / 2), (width + 2 * t, depth + 2 * t, t), style.white, _floor(style, rng))
    a.box((width / 2, depth / 2, height + t / 2), (width + 2 * t, depth + 2 * t, t), style.white)
    if rng.random() < 0.3:
        beam = style.wood()
        for x in np.arange(0.5, width, rng.uniform(0.9, 1.4)):
            a.box((x, depth / 2, height - 0.08), (0.14, depth, 0.16), beam)
    paper, feature = _wallpaper(style, rng), _wallpaper(style, rng)
    panel = style.one_of(style.white, style.wood(), style.paint()) if rng.random() < 0.4 else None
    skirting, moulding = style.one_of(style.white, style.wood()), rng.random() < 0.5
    corners = ((0, 0, 0.0, width), (width, 0, 0.5, depth), (width, depth, 1.0, width), (0, depth, 1.5, depth))
    windowed = rng.choice(4, rng.integers(1, 3), replace=False)
    door = rng.integers(4)
    walls = []
    for i, (x, y, turns, length) in enumerate(corners):
        frame = a.at(x, y, 0, turns * math.pi)
        openings = _openings(rng, length, height, i in windowed, i == door)
        wall = Wall(frame, length, openings, [])
        _build_wall(wall, height, feature if i == 2 else paper)
        _trim(wall, style, height, skirting, panel, moulding)
        for opening in openings:
            (_window if opening.bottom > 0.1 else _door)(frame, style, rng, opening)
        walls.append(wall)
    return walls


def _floor(style: Style, rng: Rng) -> Material:
    tone = np.array([(0.62, 0.43, 0.27), (0.45, 0.3, 0.2), (0.76, 0.6, 0.42), (0.35, 0.24, 0.18)][rng.integers(4)])
    soft, other = style.soft(), style.dark()
    makers = [
        lambda: (textures.planks(rng, tone), 1.4),
        lambda: (textures.planks(rng, tone).swapaxes(0, 1), 1.4),
        lambda: (textures.parquet(rng, tone), 1.6),
        lambda: (textures.tiles(rng, [soft, soft * 0.9], soft * 0.5), rng.uniform(1.2, 2.0)),
        lambda: (textures.checker(rng, soft, other), rng.uniform(1.2, 1.8)),
        lambda: (textures.terrazzo(rng, soft, [*style.accents(2), other]), 1.2),
        lambda: (textures.marble(rng, soft, other), 2.0),
        lambda: (textures.weave(rng, style.accent() * 0.8, 64), 1.0),
    ]
    texture, size = makers[rng.choice(len(makers), p=[0.22, 0.14, 0.16, 0.14, 0.1, 0.08, 0.08, 0.08])]()
    return Material(texture, size)


def _wallpaper(style: Style, rng: Rng) -> Material:
    soft = style.soft()
    makers = [
        lambda: (textures.plain(rng, soft, 0.04), 2.0),
        lambda: (textures.ornament(rng, soft, [soft * 0.8, style.accent()]), rng.uniform(0.8, 1.4)),
        lambda: (textures.stripes(rng, [soft, soft * 0.86, style.soft()], 10), rng.uniform(0.7, 1.2)),
        lambda: (textures.bricks(rng, (0.62, 0.34, 0.26), (0.75, 0.7, 0.65)), 0.9),
        lambda: (textures.bricks(rng, (0.85, 0.82, 0.78), (0.7, 0.68, 0.65)), 0.9),
        lambda: (textures.dots(rng, soft, style.accents(3)), rng.uniform(0.8, 1.2)),
        lambda: (textures.planks(rng, soft, 8), 1.2),
        lambda: (textures.plain(rng, style.accent() * 0.85, 0.05), 2.0),
    ]
    texture, size = makers[rng.choice(len(makers), p=[0.24, 0.18, 0.16, 0.1, 0.06, 0.08, 0.08, 0.1])]()
    return Material(texture, size)


def _openings(rng: Rng, length: float, height: float, windows: bool, door: bool) -> list[Opening]:
    openings = []
    if windows:
        count = int(rng.integers(1, 3)) if length > 4.5 else 1
        bottom, top = rng.uniform(0.75, 1.0), min(height - 0.3, rng.uniform(2.0, 2.5))
        for i in range(count):
            middle = length * (i + 0.5) / count + rng.uniform(-0.2, 0.2)
            half = min(rng.uniform(0.5, 1.0), 0.4 * length / count)
            openings.append(Opening(middle - half, middle + half, bottom, top))
    elif door:
        left = rng.uniform(0.4, length - 1.4)
        openings.append(Opening(left, left + 0.95, 0.0, 2.1))
    return openings


def _build_wall(wall: Wall, height: float, material: Material) -> None:
    """Boxes around the openings; the textures of all of them continue one another only roughly, as real wallpaper does."""
    t = _THICKNESS

    def part(left: float, right: float, bottom: float, top: float) -> None:
        if right - left > 1e-3 and top - bottom > 1e-3:
            wall.frame.box(((left + right) / 2, -t / 2, (bottom + top) / 2), (right - left, t, top - bottom), material)

    position = -t
    for opening in sorted(wall.openings, key=lambda o: o.left):
        part(position, opening.left, 0, height)
        part(opening.left, opening.right, 0, opening.bottom)
        part(opening.left, opening.right, opening.top, height)
        position = opening.right
    part(position, wall.length + t, 0, height)


def _trim(wall: Wall, style: Style, height: float, skirting: Material, panel: Material | None, moulding: bool) -> None:
    """Skirting board, perhaps panelling and a moulding under the ceiling."""
    position = 0.0
    stretches = []
    for opening in [o for o in wall.openings if o.bottom < 0.1]:
        stretches.append((position, opening.left - 0.08))
        position = opening.right + 0.08
    stretches.append((position, wall.length))
    for left, right in stretches:
        middle, long = (left + right) / 2, right - left
        if long <= 0:
            continue
        wall.frame.box((middle, 0.01, 0.05), (long, 0.02, 0.1), skirting)
        if panel is not None:
            low = min([0.85, *(o.bottom - 0.1 for o in wall.openings if o.bottom > 0.1)])
            wall.frame.box((middle, 0.006, low / 2), (long, 0.012, low), panel)
            wall.frame.box((middle, 0.015, low), (long, 0.03, 0.05), skirting)
    if moulding:
        wall.frame.box((wall.length / 2, 0.03, height - 0.05), (wall.length, 0.06, 0.1), style.white)


def _window(frame: Assembly, style: Style, rng: Rng, o: Opening) -> None:
    rim = style.white
    x, z, wide, high = o.middle, (o.bottom + o.top) / 2, o.right - o.left, o.top - o.bottom
    for side in (o.left, o.right):
        frame.box((side, -0.08, z), (0.07, 0.1, high), rim)
    for level in (o.bottom, o.top):
        frame.box((x, -0.08, level), (wide, 0.1, 0.07), rim)
    frame.box((x, -0.1, z), (0.05, 0.05, high), rim)
    if high > 1.2:
        frame.box((x, -0.1, z + 0.15 * high), (wide, 0.05, 0.04), rim)
    frame.box((x, 0.06, o.bottom - 0.03), (wide + 0.2, 0.2, 0.05), rim)
    if rng.random() < 0.55:
        cloth = style.cloth()
        frame.drum((x, 0.12, o.top + 0.16 - wide / 2 - 0.3), 0.018, wide + 0.6, style.metal, yaw=math.pi / 2, tilt=math.pi / 2)
        for side, sign in ((o.left, -1), (o.right, 1)):
            for fold in range(3):
                frame.drum((side + sign * (0.1 - 0.1 * fold), 0.12, 0.1), 0.065, o.top + 0.05, cloth)
    elif rng.random() < 0.6:
        furniture.trinket(frame.at(x + rng.uniform(-0.3, 0.3) * wide, 0.06, o.bottom), style, rng, 0.3)


def _door(frame: Assembly, style: Style, rng: Rng, o: Opening) -> None:
    panel = style.one_of(style.wood(), style.white, style.paint())
    for side in (o.left - 0.04, o.right + 0.04):
        frame.box((side, 0, o.top / 2), (0.1, 0.06, o.top), style.white)
    frame.box((o.middle, 0, o.top + 0.05), (o.right - o.left + 0.18, 0.06, 0.1), style.white)
    frame.box((o.middle, -0.06, o.top / 2), (o.right - o.left, 0.06, o.top), panel)
    for z in (0.55, 1.45):
        frame.box((o.middle, -0.03, z), (0.6 * (o.right - o.left), 0.03, 0.65), panel)
    frame.ball((o.right - 0.1, 0.02, 1.02), 0.035, style.metal)
