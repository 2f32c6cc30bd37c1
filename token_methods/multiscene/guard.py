"""A guard against collapse: names what went wrong within fifty steps, before a good checkpoint is overwritten."""

from __future__ import annotations

import torch
from torch import Tensor

PATIENCE = 20
"""Steps that a vital sign must stay at zero before training is stopped."""
INTERVAL = 10
"""Steps between looks: the values stay on the device until then, so that the guard costs no synchronisation."""
ZERO = 1e-3
NO_GRADIENT = 1e-10

ADVICE = {
    "opacity": "all opacities are nearly 0, so nothing is drawn: lower the learning rate, lengthen the warm-up, or raise the start's opacity",
    "in_view": "all Gaussians have drifted out of every target view: raise the visibility loss, lower the learning rate, or check the scene "
    "scale (far-away or tiny scenes need another camera scale method)",
}


class TrainingCollapsed(RuntimeError):
    """Training can no longer learn; the message says what happened and what to change."""


class CollapseGuard:
    """Watches loss, gradient norm and the model's vital signs."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, list[str], Tensor]] = []
        self._silent: dict[str, int] = {}

    def observe(self, step: int, loss: Tensor, gradient_norm: Tensor, health: dict[str, Tensor]) -> None:
        """Note one step; every few steps look at what was noted.

        Raises:
            TrainingCollapsed: see `check`.
        """
        names = ["loss", "gradient", *health]
        values = [loss, gradient_norm, *health.values()]
        self._pending.append((step, names, torch.stack([value.detach().float().reshape(()).to(loss.device) for value in values])))
        if len(self._pending) >= INTERVAL:
            self.check()

    def check(self) -> None:
        """Look at everything noted so far.

        Raises:
            TrainingCollapsed: the loss or a gradient is not finite, or gradients or a vital sign stayed at zero.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        table = torch.stack([values for _, _, values in pending]).cpu()
        for (step, names, _), row in zip(pending, table.tolist()):
            values = dict(zip(names, row))
            for name in ("loss", "gradient"):
                if values[name] != values[name] or abs(values[name]) == float("inf"):
                    raise TrainingCollapsed(
                        f"step {step}: the {name} is not finite. Lower the learning rate or lengthen the warm-up; if it happens at once, "
                        "look for broken poses or images. The last checkpoint is from before this step: resume from it with --load-dir"
                    )
            for name, value in values.items():
                if name == "loss":
                    continue
                silent = value < (NO_GRADIENT if name == "gradient" else ZERO)
                self._silent[name] = self._silent.get(name, 0) + 1 if silent else 0
                if self._silent[name] >= PATIENCE:
                    reason = ADVICE.get(name, "all gradients are 0, so nothing is learnt: raise the learning rate or change the start")
                    raise TrainingCollapsed(f"step {step}: for {PATIENCE} steps {reason}. The last good checkpoint is kept")
