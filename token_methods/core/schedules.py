"""Learning-rate schedules that know nothing of nerfstudio."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def one_cycle(
    step: int, *, peak: float, total_steps: int, warmup_steps: int, initial_divisor: float = 25.0, final_divisor: float = 1000.0
) -> tuple[float, float]:
    """Learning rate and Adam's beta1 of the OneCycle schedule (Smith and Topin 2018), cosine form, at an optimiser step from 0.

    The rate climbs from peak / initial_divisor over `warmup_steps` and falls to peak / initial_divisor / final_divisor at
    `total_steps`; beta1 goes from 0.95 to 0.85 and back. Later steps keep the last values.
    """
    step = min(step, total_steps - 1)
    initial = peak / initial_divisor
    turn = min(warmup_steps / total_steps, 0.99) * total_steps - 1
    if turn > 0 and step <= turn:
        return _cosine(initial, peak, step / turn), _cosine(0.95, 0.85, step / turn)
    progress = (step - turn) / (total_steps - 1 - turn)
    return _cosine(peak, initial / final_divisor, progress), _cosine(0.85, 0.95, progress)


def warmup_cosine(step: int, *, peak: float, total_steps: int, warmup_steps: int, initial: float = 1e-6) -> float:
    """Learning rate that climbs in a line and falls as a cosine to zero (Loshchilov and Hutter 2017), at an optimiser step from 0.

    The line goes from `initial` to `peak`, which it would reach at `warmup_steps`. The cosine counts from step 0, so that the rate
    drops a little where it takes over. From `total_steps` on the rate is 0.
    """
    if step >= total_steps:
        return 0.0
    if step < warmup_steps:
        return initial + step * (peak - initial) / warmup_steps
    return _cosine(peak, 0.0, step / total_steps)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


class _StepSchedule(LRScheduler):
    """A schedule of the optimiser step alone: its state in a checkpoint is that one number."""

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch = self._step_count = state_dict["step"]
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


class OneCycle(_StepSchedule):
    """`one_cycle` as a torch scheduler: sets the rate and beta1 of every parameter group, once per optimiser step.

    Unlike torch's own OneCycleLR it holds its last values when training goes on, and its state is one number.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        peak: float,
        total_steps: int,
        warmup_steps: int,
        initial_divisor: float = 25.0,
        final_divisor: float = 1000.0,
    ) -> None:
        self.values = partial(
            one_cycle,
            peak=peak,
            total_steps=total_steps,
            warmup_steps=warmup_steps,
            initial_divisor=initial_divisor,
            final_divisor=final_divisor,
        )
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        lr, beta1 = self.values(self.last_epoch)
        for group in self.optimizer.param_groups:
            group["betas"] = (beta1, group["betas"][1])
        return [lr for _ in self.optimizer.param_groups]


class WarmupCosine(_StepSchedule):
    """`warmup_cosine` as a torch scheduler: sets the rate of every parameter group, once per optimiser step."""

    def __init__(self, optimizer: Optimizer, peak: float, total_steps: int, warmup_steps: int, initial: float = 1e-6) -> None:
        self.value = partial(warmup_cosine, peak=peak, total_steps=total_steps, warmup_steps=warmup_steps, initial=initial)
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        return [self.value(self.last_epoch) for _ in self.optimizer.param_groups]
