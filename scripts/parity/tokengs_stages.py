"""What happens inside a TokenGS network, under the published stage names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.tokengs.network import TokenGSNetwork


@contextmanager
def recorded_stages(network: TokenGSNetwork) -> Iterator[dict[str, Tensor]]:
    """Collects what goes into and comes out of the modules of a network while it runs."""
    backbone = network.enc_dec_backbone
    outputs: dict[str, nn.Module] = {
        "patch_embed": network.patch_embed,
        "patch_plucker_embed": network.patch_plucker_embed,
        "head_raw": network.activation_head.deconv,
    }
    for kind, blocks in (("encoder", backbone.encoder), ("decoder", backbone.decoder_blocks)):
        outputs |= {f"{kind}_block_{index}": block for index, block in enumerate(blocks)}
    if network.has_latents:
        outputs |= {f"latent_block_{index}": block for index, block in enumerate(backbone.latent_blocks)}
    projection = backbone.latent_feature_kv_proj if network.has_latents else backbone.kv_proj
    inputs = {"encoder_input": backbone.encoder[0], "encoder_features": projection, "decoder_tokens_in": backbone.decoder_blocks[0]}

    stages: dict[str, Tensor] = {}

    def keep_output(name: str) -> Any:
        return lambda _module, _inputs, output: stages.update({name: output})

    def keep_input(name: str) -> Any:
        return lambda _module, inputs: stages.update({name: inputs[0]})

    handles = [module.register_forward_hook(keep_output(name)) for name, module in outputs.items()]
    handles += [module.register_forward_pre_hook(keep_input(name)) for name, module in inputs.items()]
    try:
        yield stages
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recorded_inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Copies of what a module is given, one for each call."""
    calls: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls.append(inputs[0].detach().clone())

    handle = module.register_forward_pre_hook(keep)
    try:
        yield calls
    finally:
        handle.remove()


def published_channels(gaussians: Gaussians3D) -> Tensor:
    """The published order of the 14 channels: mean, opacity, scale, rotation, colour."""
    parts = (gaussians.means, gaussians.opacities[..., None], gaussians.scales, gaussians.quats, gaussians.colors)
    return torch.cat(parts, dim=-1)
