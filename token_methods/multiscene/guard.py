"""A guard against collapse: names what went wrong within fifty steps, before a good checkpoint is overwritten."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from token_methods.core.cameras import rigid_inverse
from token_methods.core.views import Views
from token_methods.rendering.gaussians3d import Gaussians3D

PATIENCE = 20
"""Steps that a vital sign must stay at zero before training is stopped: a single batch may be an odd one."""
INTERVAL = 10
"""Steps between looks: the values stay on the device until then, so that the guard costs no synchronisation."""
ZERO = 1e-3
"""A vital sign below this is at zero. Healthy ones are far above: the published start has a mean opacity of 0.119."""
NO_GRADIENT = 1e-10

CAUSES = {
    "opacity": "all opacities are nearly 0, so nothing is drawn; lower the learning rate, lengthen the warm-up, or start with more opacity",
    "in_view": "all Gaussians lie outside every target view, so nothing is drawn; lower the learning rate, raise the visibility loss, or "
    "check the scene scale (far-away or tiny scenes need another camera scale method) and the depth at which Gaussians start",
    "codes": "all tokens take the same few codes, so nothing is told; lower the learning rate, or replace dead codes sooner",
    "gradient": "all gradients are 0, so nothing is learnt; change the start, or lower the learning rate if training had begun well",
}
"""What a sign at zero means and what to change."""


class TrainingCollapsed(RuntimeError):
    """Training can no longer learn; the message says what happened and what to change.

    `began` is the first step whose forward pass showed it: the update of the step before it did the harm.
    """

    def __init__(self, message: str, began: int = 0) -> None:
        super().__init__(message)
        self.began = began


@torch.no_grad()
def gaussian_vital_signs(gaussians: Gaussians3D, views: Views, near: float, far: float) -> dict[str, Tensor]:
    """Mean opacity, and the share of Gaussians whose centre lies inside at least one view's frustum; 0-d, on the device.

    (The visibility loss cannot serve: as published it does not ask whether a Gaussian is in front of the camera or behind it.)
    """
    assert views.camera_to_world is not None and views.intrinsics is not None
    world_to_camera = rigid_inverse(views.camera_to_world.float())
    points = torch.einsum("bvij,bnj->bvni", world_to_camera[..., :3, :3], gaussians.means.float()) + world_to_camera[..., None, :3, 3]
    focal, centre = views.intrinsics[:, :, None, :2].float(), views.intrinsics[:, :, None, 2:].float()
    depth = points[..., 2]
    x, y = (focal * points[..., :2] / depth[..., None] + centre).unbind(dim=-1)
    inside = (depth > near) & (depth < far) & (x >= 0) & (x <= views.width) & (y >= 0) & (y <= views.height)
    return {"opacity": gaussians.opacities.float().mean(), "in_view": inside.any(dim=1).float().mean()}


@dataclass(frozen=True)
class _Step:
    number: int
    scenes: tuple[str, ...]
    names: tuple[str, ...]
    values: Tensor


class CollapseGuard:
    """Watches loss, gradient norm and the model's vital signs."""

    def __init__(self) -> None:
        self._pending: list[_Step] = []
        self._silent: dict[str, int] = {}

    def observe(self, step: int, loss: Tensor, gradient_norm: Tensor, health: dict[str, Tensor], scenes: tuple[str, ...] = ()) -> None:
        """Note one step; every few steps look at what was noted.

        Args:
            step: its number, for the message.
            loss: of the step, on any device.
            gradient_norm: over all parameters, before clipping.
            health: vital signs by name (see `CAUSES`): all of them are above zero while training can learn.
            scenes: that the step saw, for the message.

        Raises:
            TrainingCollapsed: see `check`.
        """
        values = torch.stack([value.detach().float().reshape(()).to(loss.device) for value in (loss, *health.values(), gradient_norm)])
        self._pending.append(_Step(step, scenes, ("loss", *health, "gradient"), values))
        if len(self._pending) >= INTERVAL:
            self.check()

    def check(self) -> None:
        """Look at everything noted so far.

        Raises:
            TrainingCollapsed: a value is not finite, or the gradient or a vital sign stayed at zero.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        for step, row in zip(pending, torch.stack([step.values for step in pending]).tolist()):
            values = dict(zip(step.names, row))
            broken = [name for name, value in values.items() if not math.isfinite(value)]
            if broken:
                seen = f" (scenes {', '.join(step.scenes)})" if step.scenes else ""
                raise TrainingCollapsed(
                    f"step {step.number}{seen}: the {' and the '.join(broken)} became infinite or NaN; lower the learning rate or "
                    "lengthen the warm-up; if it happens at the same scenes again, look for broken poses or images there.",
                    began=step.number - max(self._silent.values(), default=0),
                )
            del values["loss"]
            for name, value in values.items():
                silent = value < (NO_GRADIENT if name == "gradient" else ZERO)
                self._silent[name] = self._silent.get(name, 0) + 1 if silent else 0
            longest = max(self._silent.values())
            if longest >= PATIENCE:
                cause = CAUSES.get(str(self.doubt), f"the model's {self.doubt} is at zero; lower the learning rate or change the start")
                raise TrainingCollapsed(f"step {step.number}: for {PATIENCE} steps {cause}.", began=step.number - longest + 1)

    @property
    def doubt(self) -> str | None:
        """A sign that was at zero when last looked at, not yet for long enough to stop: such a state must not replace a good one.

        The nearest cause if there are several: without opacity there is no gradient either, which is observed last.
        """
        return next((name for name, steps in self._silent.items() if steps), None)
