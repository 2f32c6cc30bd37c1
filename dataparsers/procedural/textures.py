"""Textures that repeat without seams, made from a seed.

Every function returns sRGB in [0, 1], float32 [SIDE, SIDE, 3]; the first row is the lowest on a wall. They are sampled through a pyramid
of box-filtered copies (`raycast`), so a pattern may be as sharp as it likes and still does not alias.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

SIDE = 256
Texture = Float[np.ndarray, "side side 3"]
Field = Float[np.ndarray, "side side"]
Colour = Sequence[float] | np.ndarray
Rng = np.random.Generator

_V, _U = (np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) + 0.5) / SIDE
_FREQUENCY = np.fft.fftfreq(SIDE, 1 / SIDE).astype(np.float32)


def noise(rng: Rng, scale: float = 8.0, roughness: float = 1.6, stretch: float = 1.0) -> Field:
    """Smooth random field with mean 0 and standard deviation 1.

    Args:
        scale: blobs per repeat; finer detail falls off as frequency ** (-2 roughness).
        stretch: > 1 draws the blobs out along v.
    """
    across = _FREQUENCY[: SIDE // 2 + 1]
    square = across[None, :] ** 2 + (stretch * _FREQUENCY[:, None]) ** 2
    spectrum = (1 + square / scale**2) ** (-roughness)
    spectrum[0, 0] = 0
    values = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((SIDE, SIDE), dtype=np.float32)) * spectrum, s=(SIDE, SIDE))
    return (values / values.std()).astype(np.float32)


def mix(first: Colour, second: Colour, weight: Field) -> Texture:
    """`first` where weight is 0, `second` where it is 1; each one colour or a texture."""
    weight = np.clip(weight, 0, 1)[..., None]
    return (np.asarray(first, np.float32) * (1 - weight) + np.asarray(second, np.float32) * weight).astype(np.float32)


def _shade(texture: Texture, brightness: Field) -> Texture:
    return np.clip(texture * (1 + brightness)[..., None], 0, 1).astype(np.float32)


def _filled(colour: Colour) -> Texture:
    return np.broadcast_to(np.asarray(colour, np.float32), (SIDE, SIDE, 3))


def _lines(position: Field, width: float) -> Field:
    """1 on a line of half width `width` around every whole number, 0 elsewhere."""
    return (np.abs(position - np.round(position)) < width).astype(np.float32)


def _scattered(rng: Rng, cells: int) -> tuple[Field, Field, Int[np.ndarray, "side side"]]:
    """Nearest and second nearest distance (in cells) to points scattered one per cell, and the number of the nearest."""
    points = rng.uniform(0.1, 0.9, (cells, cells, 2))
    x, y = _U * cells, _V * cells
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    first, second = np.full((SIDE, SIDE), 9.0, np.float32), np.full((SIDE, SIDE), 9.0, np.float32)
    owner = np.zeros((SIDE, SIDE), int)
    for dr in (-1, 0, 1):
        for dc in (-1, 0, 1):
            r, c = (row + dr) % cells, (column + dc) % cells
            gap = np.hypot(column + dc + points[r, c, 0] - x, row + dr + points[r, c, 1] - y)
            nearer = gap < first
            second = np.where(nearer, first, np.minimum(second, gap))
            owner = np.where(nearer, r * cells + c, owner)
            first = np.where(nearer, gap, first)
    return first, second, owner


def plain(rng: Rng, colour: Colour, mottle: float = 0.03) -> Texture:
    """One colour, a little uneven like paint or plaster."""
    return _shade(_filled(colour), mottle * (noise(rng, 3) + 0.7 * noise(rng, 40, 1.0)))


def checker(rng: Rng, first: Colour, second: Colour, cells: int = 4) -> Texture:
    """Squares in two colours, `cells` (even) to a side."""
    odd = (np.floor(_U * cells) + np.floor(_V * cells)) % 2
    return _shade(mix(first, second, odd), 0.05 * noise(rng, 20, 1.2))


def stripes(rng: Rng, colours: Sequence[Colour], bands: int = 8, level: bool = False) -> Texture:
    """Upright (or level) bands of random widths."""
    edges = np.cumsum(rng.uniform(0.3, 1, bands))
    band = np.searchsorted(edges / edges[-1], _V if level else _U).clip(max=bands - 1)
    chosen = np.arange(bands) % len(colours)
    return _shade(np.asarray(colours, np.float32)[chosen[band]], 0.03 * noise(rng, 30, 1.2))


def dots(rng: Rng, ground: Colour, colours: Sequence[Colour], cells: int = 6) -> Texture:
    """Round spots in offset rows (`cells` is even)."""
    row = np.floor(_V * cells)
    x = _U * cells + 0.5 * (row % 2)
    column = np.floor(x).astype(int) % cells
    spot = np.hypot(x - np.floor(x) - 0.5, _V * cells - row - 0.5) < rng.uniform(0.22, 0.36)
    chosen = rng.integers(len(colours), size=(cells, cells))[row.astype(int), column]
    return _shade(mix(ground, np.asarray(colours, np.float32)[chosen], spot), 0.02 * noise(rng, 30))


def tiles(rng: Rng, colours: Sequence[Colour], grout: Colour, cells: int = 4, spread: float = 0.06) -> Texture:
    """Square tiles, each of its own tone, with joints between them."""
    row, column = np.floor(_V * cells).astype(int), np.floor(_U * cells).astype(int)
    chosen = rng.integers(len(colours), size=(cells, cells))[row, column]
    tone = spread * rng.standard_normal((cells, cells)).astype(np.float32)[row, column]
    surface = _shade(np.asarray(colours, np.float32)[chosen], tone + 0.04 * noise(rng, 12))
    return mix(surface, grout, np.maximum(_lines(_U * cells, 0.025), _lines(_V * cells, 0.025)))


def bricks(rng: Rng, colour: Colour, mortar: Colour, courses: int = 8) -> Texture:
    """Running bond, `courses` (even) rows of half as many bricks."""
    row = np.floor(_V * courses).astype(int)
    x = _U * courses / 2 + 0.5 * (row % 2)
    column = np.floor(x).astype(int) % (courses // 2)
    tone = 0.16 * rng.standard_normal((courses, courses // 2)).astype(np.float32)[row, column]
    surface = _shade(_filled(colour), tone + 0.08 * noise(rng, 25, 1.1))
    joint = np.maximum(_lines(_V * courses, 0.07), _lines(x, 0.035))
    return mix(surface, plain(rng, mortar, 0.06), joint)


def wood(rng: Rng, colour: Colour) -> Texture:
    """Grain along v."""
    warp = noise(rng, 2, 2.0, 3.0)
    grain = np.sin(2 * np.pi * (6 * _U + 0.5 * warp)) * 0.05 + 0.07 * noise(rng, 30, 1.1, 12.0)
    return _shade(_filled(colour), grain + 0.05 * warp)


def planks(rng: Rng, colour: Colour, boards: int = 6) -> Texture:
    """Floor boards along v, each of its own tone, their ends at different places."""
    board = np.floor(_U * boards).astype(int)
    end = rng.uniform(size=boards)[board]
    half = np.floor((_V + end) * 2).astype(int) % 2
    tone = 0.14 * rng.standard_normal((boards, 2)).astype(np.float32)[board, half]
    grain = 0.09 * noise(rng, 40, 1.1, 14.0) + 0.04 * noise(rng, 6, 1.6, 5.0)
    joint = np.maximum(_lines(_U * boards, 0.02), _lines((_V + end) * 2, 0.006))
    return mix(_shade(_filled(colour), tone + grain), np.asarray(colour) * 0.35, joint)


def parquet(rng: Rng, colour: Colour, cells: int = 4) -> Texture:
    """Squares of short boards that lie crosswise by turns (`cells` is even)."""
    row, column = np.floor(_V * cells).astype(int), np.floor(_U * cells).astype(int)
    across = (row + column) % 2 == 0
    strip = np.floor(np.where(across, _U, _V) * cells * 4).astype(int) % 4
    tone = 0.13 * rng.standard_normal((cells, cells, 4)).astype(np.float32)[row, column, strip]
    grain = 0.08 * np.where(across, noise(rng, 40, 1.1, 10.0), noise(rng, 40, 1.1, 10.0).T)
    joint = np.maximum(_lines(_U * cells, 0.018), _lines(_V * cells, 0.018)) * 0.7
    return mix(_shade(_filled(colour), tone + grain), np.asarray(colour) * 0.4, joint)


def marble(rng: Rng, base: Colour, vein: Colour) -> Texture:
    """Clouded stone with thin veins."""
    veins = np.exp(-9 * np.abs(noise(rng, 3, 1.3))) * (0.4 + 0.6 * (noise(rng, 2) > -0.3))
    return mix(_shade(_filled(base), 0.04 * noise(rng, 4, 1.4)), vein, 0.75 * veins)


def terrazzo(rng: Rng, ground: Colour, colours: Sequence[Colour], cells: int = 18) -> Texture:
    """Stone chips in a ground."""
    first, second, owner = _scattered(rng, cells)
    chosen = np.asarray(colours, np.float32)[rng.integers(len(colours), size=cells * cells)[owner]]
    return mix(plain(rng, ground), chosen, (second - first > 0.25 + 0.3 * rng.uniform(size=cells * cells)[owner]).astype(np.float32))


def cobbles(rng: Rng, colour: Colour, cells: int = 8) -> Texture:
    """Rounded stones side by side."""
    first, second, owner = _scattered(rng, cells)
    tone = 0.18 * rng.standard_normal(cells * cells).astype(np.float32)[owner]
    stone = _shade(_filled(colour), tone + 0.06 * noise(rng, 30, 1.1) - 0.25 * first)
    return mix(stone, np.asarray(colour) * 0.3, np.clip(1.6 - (second - first) * 14, 0, 1))


def leaves(rng: Rng, colour: Colour, cells: int = 14) -> Texture:
    """Foliage: small overlapping blobs, light above and dark between."""
    first, second, owner = _scattered(rng, cells)
    tone = 0.25 * rng.standard_normal(cells * cells).astype(np.float32)[owner]
    return _shade(_filled(colour), tone + 0.2 * noise(rng, 5) - 0.5 * first + 0.25 * np.clip(second - first, 0, 1))


def grass(rng: Rng, colour: Colour) -> Texture:
    """A lawn with lighter and drier patches."""
    patches = mix(colour, np.asarray(colour) * (1.25, 1.1, 0.8), 0.5 + 0.4 * noise(rng, 3))
    return _shade(patches, 0.16 * noise(rng, 60, 0.9, 0.5) + 0.08 * noise(rng, 12))


def weave(rng: Rng, colour: Colour, threads: int = 32) -> Texture:
    """Cloth or wickerwork: over and under."""
    over = (np.floor(_U * threads) + np.floor(_V * threads)) % 2
    ridge = np.where(over > 0, np.sin(np.pi * threads * _U) ** 2, np.sin(np.pi * threads * _V) ** 2)
    return _shade(_filled(colour), 0.25 * (ridge - 0.6) + 0.06 * noise(rng, 10))


def plaid(rng: Rng, ground: Colour, colours: Sequence[Colour]) -> Texture:
    """Crossed bands."""
    texture = np.array(_filled(ground))
    for colour in colours:
        for _ in range(2):
            at, width = rng.uniform(), rng.uniform(0.03, 0.12)
            for axis in (_U, _V):
                texture = mix(texture, colour, 0.5 * (np.abs((axis - at + 0.5) % 1 - 0.5) < width))
    return _shade(texture, 0.05 * noise(rng, 60, 0.8))


def ornament(rng: Rng, ground: Colour, colours: Sequence[Colour], copies: int = 3) -> Texture:
    """A wallpaper motif: blots folded over two mirrors."""
    fold_u, fold_v = (np.abs(2 * ((axis * copies) % 1) - 1) for axis in (_U, _V))
    texture = np.array(_filled(ground))
    for colour in colours:
        blot = noise(rng, 3.5, 1.8)
        step = SIDE // 3
        value = blot[(fold_v * step).astype(int), (fold_u * step).astype(int)]
        texture = mix(texture, colour, (np.abs(value - rng.uniform(-0.3, 0.6)) < rng.uniform(0.2, 0.4)).astype(np.float32))
    return _shade(texture, 0.02 * noise(rng, 30))


def rug(rng: Rng, colours: Sequence[Colour]) -> Texture:
    """A carpet seen whole: bands along the rim, a folded figure in the middle."""
    rim = np.minimum(np.minimum(_U, 1 - _U), np.minimum(_V, 1 - _V))
    texture = ornament(rng, colours[0], colours[1:3], int(rng.integers(1, 4)))
    for colour, (low, high) in zip((colours[1], colours[2], colours[0]), ((0, 0.04), (0.04, 0.1), (0.1, 0.13))):
        texture = mix(texture, colour, ((rim >= low) & (rim < high)).astype(np.float32))
    row = np.floor(_V * 24) + np.floor(_U * 24)
    texture = mix(texture, colours[0], ((rim > 0.05) & (rim < 0.09) & (row % 2 == 0)).astype(np.float32))
    return _shade(texture, 0.07 * noise(rng, 70, 0.7))


def books(rng: Rng, colours: Sequence[Colour]) -> Texture:
    """The backs of a row of books, seen whole, shade above them."""
    texture = np.array(_filled((0.07, 0.05, 0.04)))
    position = 0.0
    while position < 1:
        width, height = rng.uniform(0.03, 0.075), rng.uniform(0.62, 0.96)
        colour = np.asarray(colours[rng.integers(len(colours))]) * rng.uniform(0.5, 1.1)
        back = (position <= _U) & (position + width - 0.004 > _U) & (height > _V)
        bulge = 0.75 + 0.35 * np.sin(np.pi * np.clip((_U - position) / width, 0, 1))
        texture = np.where(back[..., None], colour * bulge[..., None], texture)
        for at in rng.uniform(0.1, 0.55, 2):
            label = back & (np.abs(_V - at) < rng.uniform(0.01, 0.05))
            texture = np.where(label[..., None], np.clip(colour * 0.3 + (0.6, 0.52, 0.35), 0, 1), texture)
        position += width
    return np.clip(texture, 0, 1).astype(np.float32)


def painting(rng: Rng, colours: Sequence[Colour]) -> Texture:
    """A picture for the wall: a landscape, discs, panes or a blot."""
    kind = rng.integers(4)
    if kind == 0:
        return landscape(rng, colours)
    texture = np.array(_filled(colours[rng.integers(len(colours))]))
    if kind == 1:
        for _ in range(14):
            x, y, radius = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.04, 0.25)
            away = np.hypot(_U - x, _V - y)
            texture = mix(texture, colours[rng.integers(len(colours))], (away < radius).astype(np.float32))
            texture = mix(texture, (0.1, 0.1, 0.1), 0.8 * (np.abs(away - radius) < 0.008))
    elif kind == 2:
        for _ in range(12):
            (x0, x1), (y0, y1) = np.sort(rng.uniform(size=(2, 2)), axis=1)
            pane = (x0 < _U) & (x1 > _U) & (y0 < _V) & (y1 > _V)
            texture = mix(texture, colours[rng.integers(len(colours))], pane.astype(np.float32))
    else:
        for colour in colours:
            texture = mix(texture, colour, np.clip(2 * noise(rng, 2, 1.5) - 0.6, 0, 1))
    return _shade(texture, 0.05 * noise(rng, 40, 0.9))


def landscape(rng: Rng, colours: Sequence[Colour]) -> Texture:
    """Hills behind hills under a sky with a sun."""
    warm, cool = colours[0], colours[1]
    texture = mix(np.clip(np.asarray(warm) * 0.5 + 0.5, 0, 1), np.clip(np.asarray(cool) * 0.6 + 0.2, 0, 1), _V)
    x, y = rng.uniform(0.2, 0.8), rng.uniform(0.6, 0.85)
    texture = mix(texture, (1.0, 0.95, 0.75), (np.hypot(_U - x, _V - y) < 0.07).astype(np.float32))
    ridge = noise(rng, 2.5, 1.5)
    for depth in range(4):
        height = 0.55 - 0.13 * depth + 0.06 * ridge[depth * 60]
        colour = np.asarray(cool) * (0.75 - 0.15 * depth) + np.asarray(colours[2 % len(colours)]) * 0.12 * depth
        texture = mix(texture, np.clip(colour, 0, 1), (height[None, :] > _V).astype(np.float32))
    return _shade(texture, 0.04 * noise(rng, 30))


def sky(rng: Rng) -> Texture:
    """The whole sphere of the sky: zenith at the top, clouds, two ranges of hills along the horizon."""
    hue = rng.uniform()
    zenith = np.array([0.25, 0.45, 0.8]) * (1 - hue * 0.4) + np.array([0.5, 0.45, 0.6]) * hue * 0.4
    horizon = np.array([0.8, 0.88, 0.95]) * (1 - hue) + np.array([0.98, 0.85, 0.7]) * hue
    texture = mix(horizon, zenith, ((_V - 0.5) * 2.2).clip(0, 1) ** 0.5)
    clouds = np.clip(0.9 * noise(rng, 5, 1.3, 2.0) - rng.uniform(0.1, 1.3), 0, 1) * np.clip((_V - 0.52) * 14, 0, 1)
    texture = mix(texture, (0.97, 0.96, 0.95), 0.85 * clouds)
    ridge = noise(rng, 6, 1.2)
    for low, tone in ((0.53, 0.75), (0.51, 0.5)):
        hills = np.array([0.45, 0.55, 0.45]) * tone + horizon * (tone - 0.4)
        texture = mix(texture, np.clip(hills, 0, 1), ((low + 0.012 * ridge[int(low * 100)])[None, :] > _V).astype(np.float32))
    return _shade(texture, 0.015 * noise(rng, 30))
