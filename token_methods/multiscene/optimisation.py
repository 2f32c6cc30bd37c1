"""Optimiser and schedule settings in nerfstudio's form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.engine.optimizers import OptimizerConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tyro.conf import Suppress

from token_methods.core.schedules import OneCycle, WarmupCosine


@dataclass
class AdamWOptimizerConfig(OptimizerConfig):
    """AdamW, fused where the device can."""

    _target: type = torch.optim.AdamW
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the moment estimates; a schedule that cycles the first one overrides it."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_norm: Suppress[float | None] = None  # clipping is over all parameters: see the trainer's max_gradient_norm

    def setup(self, params: Any) -> Optimizer:
        return torch.optim.AdamW(params, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True)


@dataclass
class OneCycleSchedulerConfig(SchedulerConfig):
    """One cosine rise and one cosine fall, with the first beta cycling the other way (Smith and Topin 2018)."""

    _target: type = field(default_factory=lambda: OneCycleScheduler)
    total_steps: int | None = None
    """Length of the cycle; by default the whole training."""
    warmup_steps: int = 2000
    """Steps of the rise; at most 99 % of the cycle."""
    initial_divisor: float = 25.0
    """Peak learning rate over initial learning rate."""
    final_divisor: float = 1000.0
    """Initial learning rate over final learning rate."""


class OneCycleScheduler(Scheduler):
    """Builds the torch schedule."""

    config: OneCycleSchedulerConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        if self.config.total_steps is None:
            raise ValueError("a one-cycle schedule needs total_steps")
        return OneCycle(
            optimizer,
            peak=lr_init,
            total_steps=self.config.total_steps,
            warmup_steps=self.config.warmup_steps,
            initial_divisor=self.config.initial_divisor,
            final_divisor=self.config.final_divisor,
        )


@dataclass
class WarmupCosineSchedulerConfig(SchedulerConfig):
    """A linear rise, then a cosine to zero that counts from the first step (GaussianToken's schedule)."""

    _target: type = field(default_factory=lambda: WarmupCosineScheduler)
    total_steps: int | None = None
    """Steps until zero; by default the whole training."""
    warmup_steps: int = 1000
    """Steps of the rise."""
    initial: float = 1e-6
    """Learning rate of the first step."""


class WarmupCosineScheduler(Scheduler):
    """Builds the torch schedule."""

    config: WarmupCosineSchedulerConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        if self.config.total_steps is None:
            raise ValueError("a cosine schedule needs total_steps")
        return WarmupCosine(
            optimizer, peak=lr_init, total_steps=self.config.total_steps, warmup_steps=self.config.warmup_steps, initial=self.config.initial
        )
