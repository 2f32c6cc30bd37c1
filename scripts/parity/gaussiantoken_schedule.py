"""What changes from step to step: learning rates, optimisers under them, averaged weights and the range of scales."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scripts.parity.comparison import Comparison, NotACase, compare_number, not_compared
from scripts.parity.gaussiantoken_case import GaussianTokenCase
from token_methods.core.schedules import WarmupCosine, warmup_cosine
from token_methods.gaussiantoken.embedder import ScaleRange

RANGE_TOLERANCE = 5e-6
"""Absolute: the published state is float32."""


def compare(case: GaussianTokenCase) -> Iterator[Comparison]:
    """Every sequence of numbers in the settings, then every tensor."""
    for name, told in case.setting("values").items():
        if "lr_after_update" in told:
            yield from compare_rates(case, name, told)
        elif "steps_x_max_ema" in told:
            yield from compare_range(name, told)
        else:
            yield not_compared(name, "neither learning rates nor a range of scales")
    yield from compare_average(case)
    for name in ("adamw", "adam"):
        if f"{name}.param_init" in case.tensors:
            yield from compare_optimiser(case, name)


def compare_rates(case: GaussianTokenCase, name: str, told: dict[str, Any]) -> Iterator[Comparison]:
    """The learning rate after each recorded update."""
    if told["min_lr"] != 0:
        raise NotACase(f"{case.path}: {name} ends at {told['min_lr']}; only schedules that end at 0 are supported")
    tolerance = case.setting("tolerance")["lr"]["rtol"]
    updates_per_epoch = told["updates_per_epoch"]
    for step, expected in told["lr_after_update"]:
        rate = warmup_cosine(
            step,
            peak=told["lr"],
            total_steps=told["num_epochs"] * updates_per_epoch,
            warmup_steps=told["warmup_epochs"] * updates_per_epoch,
            initial=told["warmup_lr"],
        )
        yield compare_number(f"{name}.lr[{step}]", rate, expected, tolerance * expected)


def compare_range(name: str, told: dict[str, Any]) -> Iterator[Comparison]:
    """The upper end of the scales and their running mean after each update with a mean scale."""
    scale_range = ScaleRange(told["initial"][0], told["initial"][1], told["final"][1])
    scale_range.shrinkage, scale_range.averaging = told["decay_rate"], told["ema_alpha"]
    for index, (mean_scale, largest, average) in enumerate(told["steps_x_max_ema"]):
        scale_range.update(torch.tensor(mean_scale))
        yield compare_number(f"{name}.max[{index}]", scale_range.current_range_max, largest, RANGE_TOLERANCE)
        yield compare_number(f"{name}.ema[{index}]", scale_range.ema, average, RANGE_TOLERANCE)


def compare_average(case: GaussianTokenCase) -> Iterator[Comparison]:
    """torch's averaged model, told that it has seen a first model so that the first update is an average too."""
    num_outputs, num_inputs = case["init.weight"].shape
    model = nn.Linear(num_inputs, num_outputs)
    load(model, case, "init.")
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(case.setting("ema_decay")))
    averaged.n_averaged.fill_(1)
    for index in range(sum(name.startswith("ema") and name.endswith(".weight") for name in case.tensors)):
        load(model, case, f"param{index}.")
        averaged.update_parameters(model)
        for name, value in averaged.module.state_dict().items():
            yield case.compare(name, value, prefix=f"ema{index}.")


def load(model: nn.Linear, case: GaussianTokenCase, prefix: str) -> None:
    model.load_state_dict({name: case[prefix + name] for name in model.state_dict()})


def compare_optimiser(case: GaussianTokenCase, name: str) -> Iterator[Comparison]:
    """Parameters after each step with the stored gradients, the rates as the schedule sets them."""
    told = case.setting("optimiser_case")
    parameter = nn.Parameter(case[f"{name}.param_init"].clone())
    optimizer = make_optimiser(name, parameter)
    schedule = WarmupCosine(
        optimizer,
        told["lr"],
        total_steps=told["num_epochs"] * told["updates_per_epoch"],
        warmup_steps=told["updates_per_epoch"],
    )
    for step in range(1, told["steps"] + 1):
        parameter.grad = case[f"{name}.grad{step}"].clone()
        optimizer.step()
        schedule.step()
        yield case.compare(f"{name}.param{step}", parameter)


def make_optimiser(name: str, parameter: Tensor) -> Optimizer:
    """The two optimisers of the presets; the rate is the schedule's."""
    if name == "adamw":
        return torch.optim.AdamW([parameter], betas=(0.9, 0.999), weight_decay=0.01)
    return torch.optim.Adam([parameter], betas=(0.5, 0.9))
