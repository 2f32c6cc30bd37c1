"""Camera conventions: the only place where one is converted into another.

Inside the house cameras are OpenCV (x right, y down, z forward), camera-to-world, 4x4; intrinsics are
(fx, fy, cx, cy) in pixels with pixel centres at +0.5. nerfstudio's are OpenGL (x right, y up, z back), 3x4.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from token_methods.core.views import SceneBatch, Views


def opencv_from_opengl(camera_to_world: Float[Tensor, "*batch rows 4"]) -> Float[Tensor, "*batch 4 4"]:
    """OpenGL camera-to-world (3x4 or 4x4) to OpenCV camera-to-world 4x4: the camera's y and z axes turn round."""
    poses = torch.zeros(*camera_to_world.shape[:-2], 4, 4, dtype=camera_to_world.dtype, device=camera_to_world.device)
    poses[..., :3, :] = camera_to_world[..., :3, :]
    poses[..., :3, 1:3] *= -1
    poses[..., 3, 3] = 1
    return poses


def opengl_from_opencv(camera_to_world: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 3 4"]:
    """OpenCV camera-to-world 4x4 to nerfstudio's OpenGL 3x4."""
    return opencv_from_opengl(camera_to_world)[..., :3, :]


def rigid_inverse(pose: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Inverse of a rigid transform; camera-to-world becomes world-to-camera."""
    rotation = pose[..., :3, :3].transpose(-1, -2)
    inverse = torch.zeros_like(pose)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3] = -(rotation @ pose[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1
    return inverse


def intrinsics_matrix(intrinsics: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """The 3x3 matrix of (fx, fy, cx, cy), built on the device without reading a number back."""
    fx, fy, cx, cy = intrinsics.unbind(-1)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], dim=-1).unflatten(-1, (3, 3))


@dataclass(frozen=True)
class Similarity:
    """x -> scale * rotation @ x + translation, one per scene."""

    rotation: Float[Tensor, "batch 3 3"]
    translation: Float[Tensor, "batch 3"]
    scale: Float[Tensor, " batch"]

    @classmethod
    def identity(cls, batch: int, device: torch.device | str = "cpu") -> Similarity:
        return cls(torch.eye(3, device=device).repeat(batch, 1, 1), torch.zeros(batch, 3, device=device), torch.ones(batch, device=device))

    @classmethod
    def from_dataparser(cls, transform: Float[Tensor, "3 4"], scale: float) -> Similarity:
        """Original world -> nerfstudio's dataset frame: `dataparser_transform`, then `dataparser_scale` on positions."""
        transform = transform.double()
        return cls(transform[None, :, :3], scale * transform[None, :, 3], torch.tensor([scale], dtype=torch.float64))

    def inverse(self) -> Similarity:
        rotation = self.rotation.transpose(-1, -2)
        scale = 1 / self.scale
        return Similarity(rotation, -scale[:, None] * (rotation @ self.translation[..., None])[..., 0], scale)

    def then(self, after: Similarity) -> Similarity:
        """The transform that applies `self` first and `after` second."""
        return Similarity(
            after.rotation @ self.rotation,
            after.points(self.translation[:, None])[:, 0],
            after.scale * self.scale,
        )

    def points(self, points: Float[Tensor, "batch n 3"]) -> Float[Tensor, "batch n 3"]:
        return self.scale[:, None, None] * (points @ self.rotation.transpose(-1, -2)) + self.translation[:, None]

    def poses(self, camera_to_world: Float[Tensor, "batch views 4 4"]) -> Float[Tensor, "batch views 4 4"]:
        """Cameras carried along: orientations turn, positions move and scale, the result stays rigid."""
        poses = torch.zeros_like(camera_to_world)
        poses[..., :3, :3] = self.rotation[:, None] @ camera_to_world[..., :3, :3]
        poses[..., :3, 3] = self.points(camera_to_world[..., :3, 3])
        poses[..., 3, 3] = 1
        return poses

    def views(self, views: Views) -> Views:
        """Views carried along; those without cameras are the same in every frame."""
        if views.camera_to_world is None:
            return views
        return dataclasses.replace(views, camera_to_world=self.poses(views.camera_to_world))

    def to(self, device: torch.device | str | torch.dtype) -> Similarity:
        return Similarity(self.rotation.to(device), self.translation.to(device), self.scale.to(device))


def first_camera_frame(camera_to_world: Float[Tensor, "batch views 4 4"]) -> Similarity:
    """World -> frame of the first view (TokenGS `first_cam`)."""
    return _frame_of(camera_to_world[:, 0])


def mean_camera_frame(camera_to_world: Float[Tensor, "batch views 4 4"]) -> Similarity:
    """World -> frame of the mean camera of the views (TokenGS `mean_cam`).

    Mean position, mean forward axis, mean down axis made orthogonal to it. Where the axes cancel (a full orbit), those of the
    first view stand in, so that the frame is always rigid.
    """
    first = camera_to_world[:, 0, :3, :]
    mean = camera_to_world[..., :3, :].mean(dim=1)
    crossed = torch.cross(mean[..., 1], mean[..., 2], dim=-1).norm(dim=-1)[:, None, None]
    mean = torch.cat([torch.where(crossed > 1e-3, mean[..., :3], first[..., :3]), mean[..., 3:]], dim=-1)
    forward = torch.nn.functional.normalize(mean[..., 2], dim=-1)
    down = mean[..., 1] - (mean[..., 1] * forward).sum(-1, keepdim=True) * forward
    down = torch.nn.functional.normalize(down, dim=-1)
    right = torch.cross(down, forward, dim=-1)
    pose = torch.stack([right, down, forward, mean[..., 3]], dim=-1)
    bottom = pose.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(pose.shape[0], 1, 4)
    return _frame_of(torch.cat([pose, bottom], dim=1))


def _frame_of(pose: Float[Tensor, "batch 4 4"]) -> Similarity:
    inverse = rigid_inverse(pose)
    return Similarity(inverse[:, :3, :3], inverse[:, :3, 3], torch.ones_like(inverse[:, 0, 0]))


def normalise_batch(batch: SceneBatch, frame: Similarity) -> SceneBatch:
    """All cameras of a batch carried into `frame`; `unit` and `sparse_depth` scale along."""
    return dataclasses.replace(
        batch,
        context=frame.views(batch.context),
        target=frame.views(batch.target),
        condition=None if batch.condition is None else frame.views(batch.condition),
        unit=None if batch.unit is None else batch.unit * frame.scale,
        sparse_depth=None if batch.sparse_depth is None else batch.sparse_depth * frame.scale,
    )


def camera_rays(views: Views) -> tuple[Float[Tensor, "batch views 3 height width"], Float[Tensor, "batch views 3 height width"]]:
    """World-space ray origins and unit directions through the pixel centres."""
    assert views.camera_to_world is not None and views.intrinsics is not None
    pose, device = views.camera_to_world, views.device
    fx, fy, cx, cy = views.intrinsics[..., None, None].unbind(2)
    column = torch.arange(views.width, device=device, dtype=pose.dtype) + 0.5
    row = torch.arange(views.height, device=device, dtype=pose.dtype)[:, None] + 0.5
    x = ((column - cx) / fx).expand(*pose.shape[:2], views.height, views.width)
    y = ((row - cy) / fy).expand(*pose.shape[:2], views.height, views.width)
    direction = torch.nn.functional.normalize(torch.stack([x, y, torch.ones_like(x)], dim=2), dim=2)
    direction = torch.einsum("bvij,bvjhw->bvihw", pose[..., :3, :3], direction)
    origin = pose[..., :3, 3, None, None].expand_as(direction)
    return origin, direction


def plucker_rays(views: Views) -> Float[Tensor, "batch views 6 height width"]:
    """Plücker coordinates of the pixel rays: moment (origin x direction) first, unit direction second."""
    origin, direction = camera_rays(views)
    return torch.cat([torch.cross(origin, direction, dim=2), direction], dim=2)


def mirror(views: Views, mirror_principal_point: bool = True) -> Views:
    """Left-right mirror image of a scene: pictures flip, the world reflects in x.

    `mirror_principal_point=False` keeps cx, as the TokenGS publication does (the same where cx = width / 2).
    """
    fields: dict[str, Tensor] = {}
    if views.images is not None:
        fields["images"] = views.images.flip(-1)
    if views.masks is not None:
        fields["masks"] = views.masks.flip(-1)
    if views.camera_to_world is not None and views.intrinsics is not None:
        sign = views.camera_to_world.new_tensor([-1.0, 1.0, 1.0, 1.0])
        fields["camera_to_world"] = views.camera_to_world * sign[:, None] * sign
        if mirror_principal_point:
            intrinsics = views.intrinsics.clone()
            intrinsics[..., 2] = views.width - intrinsics[..., 2]
            fields["intrinsics"] = intrinsics
    return dataclasses.replace(views, **fields)  # type: ignore[arg-type]
