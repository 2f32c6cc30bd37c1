"""One picture's tokens made visible: what the viewer shows as layers, and what files of splats and drawings hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from token_methods.gaussiantoken.flat_splats import flat_splats
from token_methods.gaussiantoken.network import ImageTokens
from token_methods.rendering.ellipses import Ellipses, draw_ellipses, picture_ellipses, svg_document
from token_methods.rendering.footprints import footprint_colors, footprints
from token_methods.rendering.gaussians3d import Gaussians3D

CANVAS_HEIGHT = 512
"""Ellipses are drawn upon smaller pictures enlarged to about this many pixels."""
DIMMED = 0.3
"""Share of its light that the picture behind ellipses keeps: they have its colours."""

Picture = Float[Tensor, "1 3 height width"]


class PictureLayers:
    """Pictures about the tokens of one picture. What costs time is made when first asked for, and kept."""

    def __init__(self, tokens: ImageTokens, original: Picture, reconstruction: Picture, decode: Callable[[ImageTokens], Picture]) -> None:
        """
        Args:
            tokens: of one picture.
            original: what was encoded, RGB in [0, 1].
            reconstruction: what all tokens decode to, RGB in [0, 1].
            decode: tokens to a picture, RGB in [0, 1].
        """
        self.tokens = tokens
        self.original = original
        self.reconstruction = reconstruction
        self._decode = decode
        self._last: tuple[tuple[int, int], dict[str, Picture]] | None = None

    @property
    def count(self) -> int:
        """Number of tokens."""
        return self.tokens.indices.shape[1]

    # Where the tokens are.

    @cached_property
    def weights(self) -> Float[Tensor, "1 n map_height map_width"]:
        """What each token covers of the feature map."""
        gaussians, height, width = self.tokens.gaussians, self.tokens.height, self.tokens.width
        if gaussians is None:
            return torch.eye(self.count, device=self.tokens.features.device).view(1, self.count, height, width)
        return footprints(gaussians, height, width)

    @cached_property
    def ellipses(self) -> Ellipses | None:
        """In pixels of the picture; None for tokens that are cells of a grid."""
        gaussians = self.tokens.gaussians
        return None if gaussians is None else picture_ellipses(gaussians, (self.tokens.height, self.tokens.width), self._size)

    @cached_property
    def colors(self) -> Float[Tensor, "1 n 3"]:
        """Mean colour of the reconstruction under each token's footprint; black for cells of a grid, which are not drawn."""
        if self.ellipses is None:
            return self.original.new_zeros(1, self.count, 3)
        return footprint_colors(self.weights, self.ellipses.centres, self.reconstruction)

    @cached_property
    def importance(self) -> Float[Tensor, " n"]:
        """How much each token adds to the feature map: its weights' sum times the length of its feature."""
        return self.weights.sum(dim=(-2, -1))[0] * self.tokens.features[0].float().norm(dim=-1)

    # Pictures of it.

    def pictures(self, kept: int, chosen: int) -> dict[str, Picture]:
        """The layers by their name, RGB in [0, 1]: `rgb` is the reconstruction, `input` the original, `error` their absolute difference
        (mean of the channels, in all three of them), `ellipses` one standard deviation of each Gaussian, `token` what the chosen token
        changes (as `error`). Tokens on a grid have no `ellipses`. Those asked for last are kept.

        Args:
            kept: so many of the most important tokens are decoded; all counts beyond 1..n mean the nearest of these.
            chosen: number of a token, in the order of the tokens; likewise.
        """
        selection = min(max(kept, 1), self.count), min(max(chosen, 0), self.count - 1)
        last = self._last
        if last is None or last[0] != selection:
            last = self._last = selection, self._pictures(*selection)
        return dict(last[1])

    def splats(self) -> Gaussians3D:
        """The tokens as flat 3D Gaussians in the picture's plane; none for tokens on a grid."""
        ellipses, gaussians = self.ellipses, self.tokens.gaussians
        if ellipses is None or gaussians is None:
            nothing = self.original.new_zeros(1, 0, 4)
            return Gaussians3D(nothing[..., :3], nothing, nothing[..., :3], nothing[..., 0], nothing[..., :3])
        opacities = None if gaussians.opacities is None else gaussians.opacities[..., 0]
        return flat_splats(ellipses, self.colors, self._size, opacities)

    def svg(self) -> str:
        """The ellipses over the reconstruction as an SVG document; each says its token's number and code.

        Raises:
            ValueError: the tokens are cells of a grid.
        """
        if self.ellipses is None:
            raise ValueError("tokens on a grid are no ellipses")
        titles = [f"token {number}, code {code}" for number, code in enumerate(self.tokens.indices[0].tolist())]
        return svg_document(self.ellipses, self.colors, titles, self._size, self.reconstruction[0])

    @property
    def _size(self) -> tuple[int, int]:
        return self.original.shape[-2], self.original.shape[-1]

    def _pictures(self, kept: int, chosen: int) -> dict[str, Picture]:
        is_kept = self._most_important(kept)
        rgb = self.reconstruction if kept == self.count else self._decode(only(self.tokens, is_kept))
        without = is_kept.clone()
        without[chosen] = False
        fewer = self._decode(only(self.tokens, without)) if is_kept[chosen] else rgb
        layers = {"rgb": rgb, "input": self.original, "error": _difference(rgb, self.original)}
        if self.ellipses is not None:
            layers["ellipses"] = self._drawn_ellipses(rgb, is_kept)
        return layers | {"token": _difference(rgb, fewer)}

    def _most_important(self, kept: int) -> Bool[Tensor, " n"]:
        mask = torch.zeros(self.count, dtype=torch.bool, device=self.importance.device)
        mask[self.importance.argsort(descending=True, stable=True)[:kept]] = True
        return mask

    def _drawn_ellipses(self, rgb: Picture, is_kept: Bool[Tensor, " n"]) -> Picture:
        assert self.ellipses is not None
        times = max(1, round(CANVAS_HEIGHT / rgb.shape[-2]))
        canvas = DIMMED * F.interpolate(rgb, scale_factor=times, mode="nearest")
        large = replace(
            self.ellipses,
            centres=self.ellipses.centres * times,
            semi_axes=self.ellipses.semi_axes * times,
            is_drawn=self.ellipses.is_drawn & is_kept,
        )
        return draw_ellipses(large, self.colors, canvas)


def only(tokens: ImageTokens, mask: Bool[Tensor, " n"]) -> ImageTokens:
    """The tokens that `mask` marks. A cell of a grid keeps its place: without its token it is zero, as a map without Gaussians is."""
    if tokens.gaussians is None:
        return replace(tokens, features=tokens.features * mask[:, None])
    return replace(
        tokens,
        gaussians=tokens.gaussians.map(lambda value: value[:, mask]),
        indices=tokens.indices[:, mask],
        features=tokens.features[:, mask],
    )


def _difference(one: Picture, other: Picture) -> Picture:
    return (one - other).abs().mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
