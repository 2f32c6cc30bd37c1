"""The taste of one scene: a palette, and a few materials of each kind that its furniture shares."""

from __future__ import annotations

import colorsys
from functools import cached_property

import numpy as np
from jaxtyping import Float

from dataparsers.procedural import textures
from dataparsers.procedural.solids import Material

Colour = Float[np.ndarray, "3"]
_WOODS = ((0.72, 0.53, 0.34), (0.55, 0.36, 0.2), (0.36, 0.22, 0.13), (0.84, 0.7, 0.5), (0.62, 0.42, 0.28), (0.45, 0.4, 0.36))
_HUES = (0.01, 0.05, 0.09, 0.12, 0.15, 0.27, 0.37, 0.45, 0.51, 0.56, 0.6, 0.65, 0.74, 0.95)
"""What people paint and dye things with: few violets and acid greens."""


def colour(hue: float, saturation: float, value: float) -> Colour:
    """sRGB of a hue (in turns), saturation and value."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


class Style:
    """Materials made when they are first asked for; the few of a kind are handed round."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        # two that clash a little, one beside the first, and a warm one
        first, second = rng.choice(_HUES, 2, replace=False)
        self.hues = np.array([first, first + rng.normal(0, 0.05), second, rng.uniform(0.03, 0.12)])

    def accent(self) -> Colour:
        """A strong colour of the palette."""
        return colour(self.rng.choice(self.hues) + self.rng.normal(0, 0.02), self.rng.uniform(0.4, 0.85), self.rng.uniform(0.45, 0.92))

    def soft(self) -> Colour:
        """A light, quiet colour of the palette."""
        return colour(self.rng.choice(self.hues), self.rng.uniform(0.03, 0.32), self.rng.uniform(0.72, 0.95))

    def dark(self) -> Colour:
        return colour(self.rng.choice(self.hues), self.rng.uniform(0.3, 0.7), self.rng.uniform(0.15, 0.4))

    def accents(self, count: int) -> list[Colour]:
        return [self.accent() for _ in range(count)]

    def one_of(self, *pool: Material) -> Material:
        """Any of the given materials."""
        return pool[self.rng.integers(len(pool))]

    def wood(self) -> Material:
        return self.one_of(*self._woods)

    def cloth(self) -> Material:
        """Upholstery, bedding and curtains."""
        return self.one_of(*self._cloths)

    def paint(self) -> Material:
        """Smooth and strongly coloured."""
        return self.one_of(*self._paints)

    def toy(self) -> Material:
        """Coloured and patterned."""
        return self.one_of(*self._toys)

    def stone(self) -> Material:
        return self.one_of(*self._stones)

    def foliage(self) -> Material:
        return self.one_of(*self._foliages)

    def painting(self) -> Material:
        return Material(textures.painting(self.rng, [*self.accents(3), self.soft(), self.dark()]), None)

    def books(self) -> Material:
        return self.one_of(*self._books)

    def rug(self) -> Material:
        return Material(textures.rug(self.rng, [self.accent(), self.soft(), self.dark()]), None)

    @cached_property
    def white(self) -> Material:
        return Material(textures.plain(self.rng, (0.9, 0.89, 0.86)), 2.0)

    @cached_property
    def metal(self) -> Material:
        return Material(textures.plain(self.rng, colour(0.09, self.rng.uniform(0, 0.5), self.rng.uniform(0.25, 0.7))), 1.0)

    @cached_property
    def soil(self) -> Material:
        return Material(textures.leaves(self.rng, (0.3, 0.2, 0.13)), 0.4)

    @cached_property
    def glow(self) -> Material:
        return Material(textures.plain(self.rng, (1.0, 0.93, 0.78), 0.01), 1.0, emission=2.2)

    @cached_property
    def glass(self) -> Material:
        """Panes seen from outside: the sky, dimly."""
        sky = textures.mix(colour(0.58, 0.3, 0.45), colour(0.6, 0.35, 0.25), textures.noise(self.rng, 2) * 0.4 + 0.5)
        return Material(sky, None)

    @cached_property
    def _woods(self) -> list[Material]:
        chosen = self.rng.choice(len(_WOODS), 2, replace=False)
        return [Material(textures.wood(self.rng, _WOODS[i]), 0.6) for i in chosen]

    @cached_property
    def _cloths(self) -> list[Material]:
        rng = self.rng
        makers = [
            lambda: textures.weave(rng, self.accent()),
            lambda: textures.plaid(rng, self.soft(), self.accents(3)),
            lambda: textures.stripes(rng, [self.soft(), self.accent(), self.soft(), self.dark()]),
            lambda: textures.ornament(rng, self.soft(), self.accents(2)),
            lambda: textures.dots(rng, self.soft(), self.accents(2)),
            lambda: textures.weave(rng, self.soft()),
        ]
        return [Material(makers[i](), rng.uniform(0.4, 0.8)) for i in rng.choice(len(makers), 3, replace=False)]

    @cached_property
    def _paints(self) -> list[Material]:
        return [Material(textures.plain(self.rng, self.accent()), 1.0) for _ in range(3)]

    @cached_property
    def _toys(self) -> list[Material]:
        rng = self.rng
        makers = [
            lambda: textures.checker(rng, self.accent(), self.soft()),
            lambda: textures.stripes(rng, self.accents(4), 6),
            lambda: textures.dots(rng, self.accent(), [self.soft()], 4),
            lambda: textures.stripes(rng, [self.accent(), self.soft()], 8, level=True),
            lambda: textures.marble(rng, self.accent(), self.soft()),
            lambda: textures.terrazzo(rng, self.soft(), self.accents(3), 10),
            lambda: textures.wood(rng, _WOODS[3]),
        ]
        return [Material(makers[i](), rng.uniform(0.3, 0.6)) for i in rng.choice(len(makers), 4, replace=False)]

    @cached_property
    def _stones(self) -> list[Material]:
        rng = self.rng
        grey = colour(rng.uniform(0.05, 0.15), rng.uniform(0.02, 0.25), rng.uniform(0.5, 0.8))
        makers = [
            lambda: textures.marble(rng, colour(0.1, 0.05, 0.9), self.dark()),
            lambda: textures.cobbles(rng, grey),
            lambda: textures.terrazzo(rng, colour(0.1, 0.08, 0.8), [self.soft(), self.dark(), self.accent()]),
            lambda: textures.bricks(rng, grey, grey * 0.7, 6),
        ]
        return [Material(makers[i](), rng.uniform(0.8, 1.3)) for i in rng.choice(len(makers), 2, replace=False)]

    @cached_property
    def _foliages(self) -> list[Material]:
        greens = [colour(self.rng.uniform(0.2, 0.36), self.rng.uniform(0.5, 0.8), self.rng.uniform(0.45, 0.75)) for _ in range(2)]
        if self.rng.random() < 0.25:
            greens.append(colour(self.rng.uniform(0.92, 1.1), 0.6, 0.8))  # autumn or blossom
        return [Material(textures.leaves(self.rng, green), 1.0) for green in greens]

    @cached_property
    def _books(self) -> list[Material]:
        return [Material(textures.books(self.rng, [*self.accents(5), self.soft(), self.dark()]), None) for _ in range(3)]
