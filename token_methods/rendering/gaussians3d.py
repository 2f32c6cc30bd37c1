"""Gaussians3D: the one type that encoders return, renderers draw and files store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from token_methods.core.cameras import Similarity


@dataclass(frozen=True)
class Gaussians3D:
    """Activated 3D Gaussians of a batch of scenes (Kerbl et al. 2023, without spherical harmonics)."""

    means: Float[Tensor, "batch n 3"]
    """Centres, in scene units."""
    quats: Float[Tensor, "batch n 4"]
    """Rotations as unit quaternions (w, x, y, z)."""
    scales: Float[Tensor, "batch n 3"]
    """Standard deviations along the Gaussian's own axes, in scene units."""
    opacities: Float[Tensor, "batch n"]
    """In [0, 1]."""
    colors: Float[Tensor, "batch n 3"]
    """RGB in [0, 1], as stored in images."""

    def __post_init__(self) -> None:
        leading = tuple(self.means.shape[:2])
        for name, trailing in (("means", (3,)), ("quats", (4,)), ("scales", (3,)), ("opacities", ()), ("colors", (3,))):
            shape = tuple(getattr(self, name).shape)
            if shape != (*leading, *trailing):
                raise ValueError(f"Gaussians3D.{name} must be {[*leading, *trailing]}, got {list(shape)}")

    @property
    def batch_size(self) -> int:
        return self.means.shape[0]

    @property
    def num_gaussians(self) -> int:
        return self.means.shape[1]

    @property
    def device(self) -> torch.device:
        return self.means.device

    def map(self, function: Callable[[Tensor], Tensor]) -> Gaussians3D:
        """Apply one function, which keeps the trailing axis, to every field."""
        return Gaussians3D(**{field.name: function(getattr(self, field.name)) for field in dataclasses.fields(self)})

    def to(self, device: torch.device | str) -> Gaussians3D:
        return self.map(lambda value: value.to(device))

    def detach(self) -> Gaussians3D:
        return self.map(lambda value: value.detach())

    def scenes(self, index: slice) -> Gaussians3D:
        """Some of the scenes of the batch."""
        return self.map(lambda value: value[index])

    def keep(self, mask: Bool[Tensor, " n"]) -> Gaussians3D:
        """The Gaussians of a single scene that `mask` marks."""
        if self.batch_size != 1:
            raise ValueError(f"Gaussians3D.keep takes one scene at a time, got a batch of {self.batch_size}")
        return self.map(lambda value: value[:, mask])

    def finite(self) -> Bool[Tensor, "batch n"]:
        """Where every number of a Gaussian is finite."""
        flat = torch.cat([self.means, self.quats, self.scales, self.opacities[..., None], self.colors], dim=-1)
        return flat.isfinite().all(dim=-1)

    def transformed(self, similarity: Similarity) -> Gaussians3D:
        """The same scene in another frame: centres move, sizes scale, rotations turn; colours are isotropic and stay."""
        turn = quaternion_from_matrix(similarity.rotation)[:, None].to(self.quats.dtype)
        return dataclasses.replace(
            self,
            means=similarity.points(self.means),
            quats=quaternion_product(turn.expand_as(self.quats), self.quats),
            scales=self.scales * similarity.scale[:, None, None],
        )


def quaternion_product(left: Float[Tensor, "*batch 4"], right: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Hamilton product of (w, x, y, z) quaternions: the rotation `right` followed by `left`."""
    w1, x1, y1, z1 = left.unbind(-1)
    w2, x2, y2, z2 = right.unbind(-1)
    return torch.stack(
        [
            w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
            w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
            w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
            w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
        ],
        dim=-1,
    )


def quaternion_from_matrix(rotation: Float[Tensor, "batch 3 3"]) -> Float[Tensor, "batch 4"]:
    """Unit quaternion (w, x, y, z) of a rotation matrix.

    The four candidates of Shepperd's method are computed and the one with the largest divisor is taken.
    """
    m = rotation
    trace = m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2]
    squares = torch.stack([trace, m[:, 0, 0], m[:, 1, 1], m[:, 2, 2]], dim=-1)
    squares = torch.cat([1 + squares[:, :1], 1 + 2 * squares[:, 1:] - trace[:, None]], dim=-1)
    a = m[:, 2, 1] - m[:, 1, 2]
    b = m[:, 0, 2] - m[:, 2, 0]
    c = m[:, 1, 0] - m[:, 0, 1]
    d = m[:, 1, 0] + m[:, 0, 1]
    e = m[:, 0, 2] + m[:, 2, 0]
    f = m[:, 2, 1] + m[:, 1, 2]
    candidates = torch.stack(
        [
            torch.stack([squares[:, 0], a, b, c], dim=-1),
            torch.stack([a, squares[:, 1], d, e], dim=-1),
            torch.stack([b, d, squares[:, 2], f], dim=-1),
            torch.stack([c, e, f, squares[:, 3]], dim=-1),
        ],
        dim=1,
    )
    best = squares.argmax(dim=-1)
    quaternion = candidates[torch.arange(len(m), device=m.device), best]
    return torch.nn.functional.normalize(quaternion, dim=-1)


def rotation_matrices(quats: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrices of (w, x, y, z) quaternions, normalised first."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z),
            2 * (x * y - w * z),
            2 * (x * z + w * y),
            2 * (x * y + w * z),
            1 - 2 * (x * x + z * z),
            2 * (y * z - w * x),
            2 * (x * z - w * y),
            2 * (y * z + w * x),
            1 - 2 * (x * x + y * y),
        ],
        dim=-1,
    ).unflatten(-1, (3, 3))
