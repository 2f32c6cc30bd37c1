"""This project's code run on a parity case; every function yields one `Comparison` per tensor or number.

They start from `Views`: those that the case stores, or those that were read from the case's own scene files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from scripts.parity.tokengs_case import Comparison, ParityCase, compare_number
from token_methods.core.cameras import plucker_rays, rigid_inverse
from token_methods.core.metrics import psnr, structural_similarity
from token_methods.core.schedules import OneCycle
from token_methods.core.views import Views
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.tokengs.losses import chunked_losses, deferred_render, scene_losses, tokengs_losses
from token_methods.tokengs.network import IMAGENET_MEAN, IMAGENET_STD, TokenGSNetwork
from token_methods.tokengs.tuning import tune_scene_latents, tune_tokens

LR_TOLERANCE, BETA_TOLERANCE = 1e-9, 1e-6


def compare_inputs(case: ParityCase, context: Views, target: Views) -> Iterator[Comparison]:
    """What was read from files, cropped and normalised."""
    assert context.images is not None
    assert target.images is not None
    mean, std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    fed = torch.cat([(context.images - mean) / std, plucker_rays(context)], dim=2)
    yield case.compare("batch/input_first_views", fed)
    yield case.compare("batch/images_output", target.images)
    for views, pose, intrinsics in ((context, "cam_view_input", "intrinsics_input"), (target, "cam_view", "intrinsics")):
        assert views.camera_to_world is not None
        assert views.intrinsics is not None
        yield case.compare(f"batch/{pose}", rigid_inverse(views.camera_to_world).transpose(-1, -2))
        yield case.compare(f"batch/{intrinsics}", views.intrinsics)
    yield case.compare("batch/cam_to_world_input", context.camera_to_world)


def compare_forward(case: ParityCase, context: Views, target: Views) -> Iterator[Comparison]:
    """Every stage of the network, Gaussians, renders, losses, metrics and gradients."""
    network, weights = case.network(), case.loss_weights()
    with RecordedStages(network) as stages:
        keys_values = network.keys_values(context)
        gaussians = network.decode(keys_values, network.tokens(context.batch_size))
    stages |= {"keys": keys_values.keys, "values": keys_values.values, "gaussians": _channels(gaussians)}
    for name in case.tensors:
        if name.startswith("stage/"):
            yield case.compare(name, stages[name.removeprefix("stage/")])

    for field in fields(gaussians):
        getattr(gaussians, field.name).retain_grad()
    rendered = case.render(gaussians, target)
    for published, value in (("images", rendered.images), ("alphas", rendered.alphas), ("depths", rendered.depths)):
        yield case.compare(f"render/{published}_pred", value)

    args = (target, weights, case.lpips(), case.has_mask)
    losses = tokengs_losses(rendered, gaussians, *args)
    for name, expected in case.report["losses"].items():
        yield compare_number(f"losses/{name}", losses[name], expected, case.report["tolerances_losses_abs"][name])
    for name, values in case.report["losses_per_scene"].items():
        per_scene = scene_losses(rendered, gaussians, *args)[name.removesuffix("_per_scene")]
        for scene, expected in enumerate(values):
            yield compare_number(f"losses_per_scene/{name}/{scene}", per_scene[scene], expected)

    assert target.images is not None
    pairs = rendered.images.flatten(0, 1), target.images.flatten(0, 1)
    for name, measured in (("psnr", psnr(*pairs)), ("ssim", structural_similarity(*pairs))):
        for view, expected in enumerate(chain(*case.report["metrics"][f"{name}_per_view"])):
            yield compare_number(f"metrics/{name}/{view}", measured[view], expected)

    losses["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    for name in case.tensors:
        if name.startswith("grad/"):
            yield case.compare(name, gradients[name.removeprefix("grad/")])
    yield case.compare("grad_gaussians", _channels(gaussians.map(lambda value: value.grad)))
    norm = torch.stack([gradient.norm() for gradient in gradients.values() if gradient is not None]).norm()
    yield compare_number("grad_global_norm", norm, case.report["grad_global_norm"])
    yield from _compare_memory_savers(case, gaussians.detach(), target)


def compare_tuning(case: ParityCase, context: Views, target: Views) -> Iterator[Comparison]:
    """Test-time tuning in every mode that the case has, step by step."""
    network, weights, lpips = case.network(), case.loss_weights(), case.lpips()

    def loss(gaussians: Gaussians3D) -> Tensor:
        return tokengs_losses(case.render(gaussians, context), gaussians, context, weights, lpips)["loss"]

    for mode, told in case.report.get("ttt", {}).items():
        tokens = network.tokens(context.batch_size)
        with torch.no_grad():
            keys_values = network.keys_values(context)
            latents = None if mode == "token-tuning" else network.scene_latents(context)
        for steps in range(told["n_steps"] + 1):
            values: list[float] = []
            settings = (loss, steps, told["lr"], partial(_append_loss, values))
            if latents is None:
                tuned = tune_tokens(network, keys_values, tokens, *settings)
            else:
                tuned = tune_scene_latents(network, latents, tokens, *settings)
            yield case.compare(f"ttt_{mode}/variable_after_{steps}", tuned)
        for step, (value, expected) in enumerate(zip(values, told["loss_before_each_step"], strict=True)):
            yield compare_number(f"ttt_{mode}/loss_before_step_{step}", value, expected)
        with torch.no_grad():
            if latents is None:
                gaussians = network.decode(keys_values, tuned)
            else:
                gaussians = network.decode(network.keys_values_from_latents(tuned), tokens)
            yield case.compare(f"ttt_{mode}/images_pred", case.render(gaussians, target).images)


def compare_training(case: ParityCase, context: Views, target: Views) -> Iterator[Comparison]:
    """A few optimiser steps on the same batch: groups, schedule, losses, norms, and the parameters afterwards."""
    told = case.report.get("train")
    if told is None:
        return
    network = case.network()
    groups = network.weight_decay_groups()
    for index, (group, expected) in enumerate(zip(groups, told["groups"], strict=True)):
        yield compare_number(f"train/group_{index}_elements", sum(parameter.numel() for parameter in group), expected["n_elements"], 0)
    settings = [{"params": group, "weight_decay": expected["weight_decay"]} for group, expected in zip(groups, told["groups"], strict=True)]
    optimiser = torch.optim.AdamW(settings, lr=told["lr"], betas=(0.9, 0.95), eps=told["eps"])
    schedule = OneCycle(optimiser, told["lr"], told["total_steps"], told["pct_start_steps"])
    for index, expected in enumerate(told["steps"]):
        gaussians = network(context)
        losses = tokengs_losses(case.render(gaussians, target), gaussians, target, case.loss_weights(), case.lpips(), case.has_mask)
        optimiser.zero_grad()
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), told["gradient_clip"])
        group = optimiser.param_groups[0]
        yield compare_number(f"train/step_{index}/lr", group["lr"], expected["lr"], LR_TOLERANCE)
        for beta, (mine, published) in enumerate(zip(group["betas"], expected["betas"], strict=True)):
            yield compare_number(f"train/step_{index}/beta{beta + 1}", mine, published, BETA_TOLERANCE)
        yield compare_number(f"train/step_{index}/loss", losses["loss"], expected["loss"])
        yield compare_number(f"train/step_{index}/psnr", losses["psnr"], expected["psnr"])
        yield compare_number(f"train/step_{index}/gradient_norm", norm, expected["grad_norm_before_clip"])
        optimiser.step()
        schedule.step()
    for name in case.tensors:
        if name.startswith("after_train/"):
            yield case.compare(name, network.get_parameter(name.removeprefix("after_train/")))


class RecordedStages:
    """Collects what the modules of a network produce, under the published stage names."""

    def __init__(self, network: TokenGSNetwork) -> None:
        self.network = network
        self.stages: dict[str, Tensor] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> dict[str, Tensor]:
        backbone = self.network.enc_dec_backbone
        outputs = {"patch_embed": self.network.patch_embed, "patch_plucker_embed": self.network.patch_plucker_embed}
        outputs["head_raw"] = self.network.activation_head.deconv
        for kind, blocks in (("encoder", backbone.encoder), ("decoder", backbone.decoder_blocks)):
            outputs |= {f"{kind}_block_{index}": block for index, block in enumerate(blocks)}
        if self.network.has_latents:
            outputs |= {f"latent_block_{index}": block for index, block in enumerate(backbone.latent_blocks)}
        for name, module in outputs.items():
            self.handles.append(module.register_forward_hook(partial(self._keep_output, name)))
        projection = backbone.latent_feature_kv_proj if self.network.has_latents else backbone.kv_proj
        inputs = {"encoder_input": backbone.encoder[0], "encoder_features": projection, "decoder_tokens_in": backbone.decoder_blocks[0]}
        for name, module in inputs.items():
            self.handles.append(module.register_forward_pre_hook(partial(self._keep_input, name)))
        return self.stages

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _keep_output(self, name: str, _module: object, _inputs: object, output: Tensor) -> None:
        self.stages[name] = output

    def _keep_input(self, name: str, _module: object, inputs: tuple[Tensor, ...]) -> None:
        self.stages[name] = inputs[0]


def _compare_memory_savers(case: ParityCase, gaussians: Gaussians3D, target: Views) -> Iterator[Comparison]:
    """Mean-of-gradients chunks and deferred rendering, where the case records that they equal the ordinary way."""
    args = (case.loss_weights(), case.lpips(), case.has_mask)
    ways: dict[str, Any] = {}
    for name in case.report.get("mean_of_grads", {}):
        kind, scenes, views = name.split("/")
        per_view = None if views.endswith("None") else int(views.split("=")[1])
        if kind == "per-view" and per_view is None:
            per_view = 1
        chunks = {"scenes_per_chunk": int(scenes.split("=")[1]), "views_per_chunk": per_view}
        ways[f"mean_of_grads/{name}"] = lambda leaves, chunks=chunks: chunked_losses(leaves, target, case.render, *args, **chunks)
    if "deferred_bp" in case.report:
        ways["deferred_bp"] = lambda leaves: tokengs_losses(deferred_render(leaves, target, case.render), leaves, target, *args)
    for name, way in ways.items():
        leaves = gaussians.map(lambda value: value.clone().requires_grad_())
        losses = way(leaves)
        losses["loss"].backward()
        yield compare_number(f"{name}/loss", losses["loss"], case.report["losses"]["loss"])
        yield replace(case.compare("grad_gaussians", _channels(leaves.map(lambda value: value.grad))), name=f"{name}/grad_gaussians")


def _append_loss(values: list[float], _step: int, value: float) -> None:
    values.append(value)


def _channels(gaussians: Gaussians3D) -> Tensor:
    """The published order of the 14 channels."""
    parts = [gaussians.means, gaussians.opacities[..., None], gaussians.scales, gaussians.quats, gaussians.colors]
    return torch.cat(parts, dim=-1)
