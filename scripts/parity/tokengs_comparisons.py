"""This project's code run on a parity case; every function yields one `Comparison` per tensor or number.

They start from `Views`: those that the case stores, or those that were read from the case's own scene files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from scripts.parity.comparison import Comparison, NotACase, compare_number, out
from scripts.parity.tokengs_case import ParityCase
from scripts.parity.tokengs_options import TUNING_MODES
from scripts.parity.tokengs_stages import published_channels, recorded_inputs, recorded_stages
from token_methods.core.cameras import camera_rays, rigid_inverse
from token_methods.core.metrics import psnr, structural_similarity
from token_methods.core.views import Views, concatenate_views
from token_methods.multiscene.optimisation import AdamWOptimizerConfig, OneCycleSchedulerConfig
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.rasterize import RenderedViews
from token_methods.tokengs.config import LossWeights
from token_methods.tokengs.losses import chunked_losses, deferred_render, scene_losses, tokengs_losses
from token_methods.tokengs.network import network_inputs
from token_methods.tokengs.tuning import tune_scene_latents, tune_tokens

LR_TOLERANCE, BETA_TOLERANCE = 1e-9, 1e-6
METRICS = {"psnr": psnr, "ssim": structural_similarity}


def compare_inputs(case: ParityCase, context: Views, target: Views) -> Iterator[Comparison]:
    """What was read from files, cropped and normalised."""
    everything = target if case.options["use_input_supervision"] else concatenate_views([context, target], dim=1)
    origins, directions = (rays[..., :1, :] for rays in camera_rays(everything))
    yield from case.compare_stored(
        {
            "batch/input_first_views": torch.cat(network_inputs(context), dim=2),
            "batch/images_output": target.images,
            "batch/intrinsics_input": context.intrinsics,
            "batch/intrinsics": target.intrinsics,
            "batch/cam_view": _published_views(target),
            "batch/cam_view_input": _published_views(context),
            "batch/cam_to_world_input": context.camera_to_world,
            "batch/rays_os_first_pixel_row": origins,
            "batch/rays_ds_first_pixel_row": directions,
        }
    )


def compare_forward(case: ParityCase, context: Views, target: Views) -> Iterator[Comparison]:
    """Every stage of the network, Gaussians, renders, losses, metrics and gradients."""
    network, weights = case.network(), case.loss_weights()
    with recorded_stages(network) as stages:
        keys_values = network.keys_values(context)
        gaussians = network.decode(keys_values, network.tokens(context.batch_size))
    stages |= {"keys": keys_values.keys, "values": keys_values.values, "gaussians": published_channels(gaussians)}
    yield from case.compare_stored({name: stages.get(name.removeprefix("stage/")) for name in case.stored("stage/")})

    for field in fields(gaussians):
        getattr(gaussians, field.name).retain_grad()
    rendered = case.render(gaussians, target)
    yield from case.compare_stored(
        {"render/images_pred": rendered.images, "render/alphas_pred": rendered.alphas, "render/depths_pred": rendered.depths}
    )
    yield from _compare_losses(case, rendered, gaussians.detach(), target)
    yield from _compare_metrics(case, rendered.images, target)

    tokengs_losses(rendered, gaussians, target, weights, case.lpips(), case.has_mask)["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    yield from case.compare_stored({name: gradients.get(name.removeprefix("grad/")) for name in case.stored("grad/")})
    yield from case.compare_stored({"grad_gaussians": published_channels(gaussians.map(_gradient))})
    if "parameters_without_grad" in case.report:
        idle = {name for name, gradient in gradients.items() if gradient is None}
        yield compare_number("parameters_without_grad", len(idle.symmetric_difference(case.report["parameters_without_grad"])), 0, 0)
    if "grad_global_norm" in case.report:
        norm = torch.stack([gradient.norm() for gradient in gradients.values() if gradient is not None]).norm()
        yield compare_number("grad_global_norm", norm, case.report["grad_global_norm"])
    yield from _compare_memory_savers(case, gaussians.detach(), target)


def compare_tuning(case: ParityCase, context: Views, target: Views) -> Iterator[Comparison]:
    """Test-time tuning in every mode that the case has, step by step."""
    network, weights, lpips = case.network(), case.loss_weights(), case.lpips()

    def loss(gaussians: Gaussians3D) -> Tensor:
        return tokengs_losses(case.render(gaussians, context), gaussians, context, weights, lpips)["loss"]

    for mode, told in case.report.get("ttt", {}).items():
        if mode not in TUNING_MODES:
            raise NotACase(f"{case.folder / 'case.json'}: the tuning mode {mode} is not known; there are {', '.join(TUNING_MODES)}")
        of_latents = TUNING_MODES[mode] == "scene_latents"
        if of_latents and not network.has_latents:
            raise NotACase(f"{case.folder / 'case.json'}: {mode} needs the latent architecture")
        values: list[float] = []
        tokens = network.tokens(context.batch_size)
        settings = (loss, told["n_steps"], told["lr"], partial(_append_loss, values))
        backbone = network.enc_dec_backbone
        with torch.no_grad():
            start = network.scene_latents(context) if of_latents else tokens
            keys_values = network.keys_values(context)
        with recorded_inputs(backbone.latent_kv_proj if of_latents else backbone.decoder_blocks[0]) as variables:
            if of_latents:
                tuned = tune_scene_latents(network, start, tokens, *settings)
            else:
                tuned = tune_tokens(network, keys_values, start, *settings)
        steps = enumerate([*variables, tuned])
        yield from case.compare_stored({f"ttt_{mode}/variable_after_{step}": variable for step, variable in steps})
        yield from _compare_numbers(f"ttt_{mode}/loss_before_step", torch.tensor(values), told["loss_before_each_step"])
        with torch.no_grad():
            if of_latents:
                keys_values, tuned = network.keys_values_from_latents(tuned), tokens
            yield from case.compare_stored({f"ttt_{mode}/images_pred": case.render(network.decode(keys_values, tuned), target).images})


def compare_training(case: ParityCase, context: Views, target: Views) -> Iterator[Comparison]:
    """A few optimiser steps on the same batch: groups, schedule, losses, norms, and the parameters afterwards."""
    told = case.report.get("train")
    if told is None:
        return
    network = case.network()
    groups = network.weight_decay_groups()
    optimisers, schedules = [], []
    for index, (group, expected) in enumerate(zip(groups, told["groups"], strict=True)):
        yield compare_number(f"train/group_{index}_tensors", len(group), expected["n_tensors"], 0)
        yield compare_number(f"train/group_{index}_elements", sum(parameter.numel() for parameter in group), expected["n_elements"], 0)
        betas = tuple(told["adamw_betas_at_construction"])
        optimiser = AdamWOptimizerConfig(lr=told["lr"], betas=betas, eps=told["eps"], weight_decay=expected["weight_decay"]).setup(group)
        cycle = OneCycleSchedulerConfig(
            total_steps=told["total_steps"], warmup_steps=told["pct_start_steps"], final_divisor=case.options["final_div_factor"]
        )
        schedules.append(cycle.setup().get_scheduler(optimiser, told["lr"]))
        optimisers.append(optimiser)
    for index, expected in enumerate(told["steps"]):
        gaussians = network(context)
        losses = tokengs_losses(case.render(gaussians, target), gaussians, target, case.loss_weights(), case.lpips(), case.has_mask)
        network.zero_grad()
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), told["gradient_clip"])
        for number, optimiser in enumerate(optimisers):
            state, name = optimiser.param_groups[0], f"train/step_{index}/group_{number}"
            yield compare_number(f"{name}_lr", state["lr"], expected["lr"], LR_TOLERANCE)
            for beta, (mine, published) in enumerate(zip(state["betas"], expected["betas"], strict=True)):
                yield compare_number(f"{name}_beta{beta + 1}", mine, published, BETA_TOLERANCE)
        yield compare_number(f"train/step_{index}/loss", losses["loss"], expected["loss"])
        yield compare_number(f"train/step_{index}/psnr", losses["psnr"], expected["psnr"])
        yield compare_number(f"train/step_{index}/gradient_norm", norm, expected["grad_norm_before_clip"])
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
    trained = dict(network.named_parameters())
    yield from case.compare_stored({name: trained.get(name.removeprefix("after_train/")) for name in case.stored("after_train/")})


def _compare_losses(case: ParityCase, rendered: RenderedViews, gaussians: Gaussians3D, target: Views) -> Iterator[Comparison]:
    """Every loss term of the batch, and of each scene by itself."""
    weights, batch, scenes = case.loss_weights(), case.report.get("losses", {}), case.report.get("losses_per_scene", {})
    args = (rendered, gaussians, target)
    with torch.no_grad():
        terms = tokengs_losses(*args, _with_terms(weights, batch), case.lpips(), case.has_mask)
        terms["loss"] = tokengs_losses(*args, weights, case.lpips(), case.has_mask)["loss"]
        of_scenes = scene_losses(*args, _with_terms(weights, scenes), case.lpips(), case.has_mask)
        of_scenes["loss"] = scene_losses(*args, weights, case.lpips(), case.has_mask)["loss"]
    if any(case.has_mask):  # what is reported, not what is weighted, is divided by the number of scenes with masks
        for found in (terms, of_scenes):
            if "loss_mask" in found:
                found["loss_mask"] = found["loss_mask"] / (sum(case.has_mask) + 1e-6)
    tolerances = case.report.get("tolerances_losses_abs", {})
    for name, expected in batch.items():
        full = f"losses/{name}"
        yield compare_number(full, terms[name], expected, tolerances.get(name)) if name in terms else out(full, "has no counterpart here")
    for name, values in scenes.items():
        yield from _compare_numbers(f"losses_per_scene/{name}", of_scenes.get(name.removesuffix("_per_scene"), torch.empty(0)), values)


def _compare_numbers(name: str, values: Tensor, expected: Sequence[float]) -> Iterator[Comparison]:
    if expected and len(values) != len(expected):
        yield out(name, f"{len(values)} numbers instead of {len(expected)}")
        return
    for index, number in enumerate(expected):
        yield compare_number(f"{name}/{index}", values[index], number)


def _with_terms(weights: LossWeights, reported: dict[str, Any]) -> LossWeights:
    """The weights, where a term that is reported although it does not count gets one, so that it is computed."""
    names = [name for name in LossWeights.__dataclass_fields__ if any(key.startswith(f"loss_{name}") for key in reported)]
    return replace(weights, **{name: 1.0 for name in names if getattr(weights, name) == 0})  # type: ignore[arg-type]


def _compare_metrics(case: ParityCase, images: Tensor, target: Views) -> Iterator[Comparison]:
    """Evaluation metrics of each target view and their means."""
    assert target.images is not None
    told = case.report.get("metrics", {})
    for name, metric in METRICS.items():
        if f"{name}_per_view" in told or name in told:
            measured = metric(images.flatten(0, 1), target.images.flatten(0, 1))
            yield from _compare_numbers(f"metrics/{name}", measured, list(chain(*told.get(f"{name}_per_view", []))))
            if name in told:
                yield compare_number(f"metrics/{name}", measured.mean(), told[name])


def _compare_memory_savers(case: ParityCase, gaussians: Gaussians3D, target: Views) -> Iterator[Comparison]:
    """Mean-of-gradients chunks and deferred rendering, where the case records that they equal the ordinary way."""
    args = (case.loss_weights(), case.lpips(), case.has_mask)
    told: dict[str, Any] = {f"mean_of_grads/{name}": value for name, value in case.report.get("mean_of_grads", {}).items()}
    chosen = case.options["mean_of_grads"]
    if chosen != "none":
        sizes = case.options["mean_of_grads_scene_chunk_size"], case.options["mean_of_grads_view_chunk_size"]
        told.setdefault(f"mean_of_grads/{chosen}/scene_chunk={sizes[0]}/view_chunk={sizes[1]}", {})
    ways: dict[str, Callable[[Gaussians3D], dict[str, Tensor]]] = {}
    for name in told:
        chunks = _chunks(name, f"{case.folder / 'case.json'}")
        ways[name] = partial(_chunked, case, target, chunks)
    if "deferred_bp" in case.report:
        told["deferred_bp"] = case.report["deferred_bp"]
        ways["deferred_bp"] = lambda leaves: tokengs_losses(deferred_render(leaves, target, case.render), leaves, target, *args)
    for name, way in ways.items():
        leaves = gaussians.map(lambda value: value.clone().requires_grad_())
        losses = way(leaves)
        losses["loss"].backward()
        yield compare_number(f"{name}/loss", losses["loss"], told[name].get("loss", case.report["losses"]["loss"]))
        gradient = published_channels(leaves.map(_gradient))
        for comparison in case.compare_stored({"grad_gaussians": gradient}):
            yield replace(comparison, name=f"{name}/grad_gaussians")


def _chunked(case: ParityCase, target: Views, chunks: tuple[int, int | None], leaves: Gaussians3D) -> dict[str, Tensor]:
    return chunked_losses(leaves, target, case.render, case.loss_weights(), case.lpips(), case.has_mask, *chunks)


def _chunks(name: str, where: str) -> tuple[int, int | None]:
    """Scenes and views at a time (None: all views) of `mean_of_grads/KIND/scene_chunk=S/view_chunk=V`."""
    match = re.fullmatch(r"mean_of_grads/(per-scene|per-view)/scene_chunk=(\d+)/view_chunk=(\d+|None)", name)
    if match is None:
        raise NotACase(f"{where}: {name} is no way of mean-of-gradients")
    kind, scenes, views = match.groups()
    if views != "None":
        return int(scenes), int(views)
    return int(scenes), 1 if kind == "per-view" else None


def _gradient(value: Tensor) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad


def _append_loss(values: list[float], _step: int, value: float) -> None:
    values.append(value)


def _published_views(views: Views) -> Tensor:
    """World-to-camera, transposed."""
    assert views.camera_to_world is not None
    return rigid_inverse(views.camera_to_world).transpose(-1, -2)
