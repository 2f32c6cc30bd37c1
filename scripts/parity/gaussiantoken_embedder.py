"""GaussianToken's embedder: every stored intermediate tensor, the Gaussians, and gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scripts.parity.comparison import Comparison, NotACase, out
from scripts.parity.gaussiantoken_case import GaussianTokenCase, formula_weights
from token_methods.gaussiantoken.config import EmbedderArchitecture
from token_methods.gaussiantoken.embedder import LAYERS_PER_BLOCK, GaussianEmbedder

BLOCK = ("cross_attn", "ffn", "refine")
NAMES = ("cross", "ffn", "anchor")
"""What cases call the outputs of the three layers of a block."""


def embedder_architecture(config: Mapping[str, Any], case: GaussianTokenCase) -> EmbedderArchitecture:
    """The architecture of a published configuration (`gs_embed_cfg`).

    Raises:
        NotACase: it uses something that no published preset does and that is not rebuilt here.
    """
    lifter, decoder, encoder = config["gaussian_lifter_cfg"], config["attn_decoder_cfg"], config["attn_encoder_cfg"]
    layer, refine, order = decoder["decoder_layer_cfg"], config["refine_cfg"], config["operation_order"]
    dim = lifter["embed_dim"]
    if (
        tuple(order) != BLOCK * (len(order) // 3)
        or config["fm_lifter_cfg"]["pe_version"] != "sine"
        or {config["fm_lifter_cfg"]["in_dim"], lifter["feature_dim"], refine["dim_feature"]} != {dim}
        or layer["n_levels"] != 1
        or {**layer} != {**encoder["encoder_layer_cfg"]}
        or layer["dropout"] != decoder["proj_drop"]
        or lifter["ins_feat_grad"]
    ):
        raise NotACase(f"{case.path} configures the embedder as no published preset does")
    return EmbedderArchitecture(
        num_gaussians=lifter["num_anchor"],
        embed_dim=dim,
        num_blocks=len(order) // LAYERS_PER_BLOCK,
        num_encoder_layers=encoder["num_layers"],
        num_decoder_layers=decoder["num_layers"],
        num_heads=layer["num_heads"],
        num_points=layer["n_points"],
        dropout=layer["dropout"],
        residual_mode=decoder["residual_mode"],
        has_opacity=lifter["include_opa"],
        smallest_scale=refine["initial_scale_range"][0],
        initial_largest_scale=refine["initial_scale_range"][1],
        final_largest_scale=refine["final_scale_range"][1],
    )


def shared_key(key: str, num_blocks: int) -> str:
    """The last block's name of a parameter, whose value counts where blocks share their parameters."""
    if not key.startswith("layers."):
        return key
    number, rest = key.removeprefix("layers.").split(".", 1)
    return f"layers.{LAYERS_PER_BLOCK * (num_blocks - 1) + int(number) % LAYERS_PER_BLOCK}.{rest}"


def recorded(embedder: GaussianEmbedder, values: dict[str, Tensor]) -> None:
    """Let a forward pass leave its intermediate tensors in `values`, under the names of cases."""

    def record(module: nn.Module, name: str, numbered: bool = False) -> None:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            number = sum(key.startswith(name) for key in values)
            values[f"{name}{number}" if numbered else name] = output

        module.register_forward_hook(hook)

    record(embedder.fm_lifter, "out.src")
    record(embedder.attn_encoder, "out.memory")
    for index, layer in enumerate(embedder.attn_encoder.layers):
        record(layer.get_submodule("self_attn"), f"out.enc_self_attn{index}")
    record(embedder.anchor_encoder, "out.anchor_embed", numbered=True)
    for index, layer in enumerate(embedder.layers):
        kind = index % LAYERS_PER_BLOCK
        record(layer, f"out.layer{index}_{NAMES[kind]}")
        if kind == 0:
            for inner, decoder_layer in enumerate(layer.get_submodule("layers").children()):
                record(decoder_layer.get_submodule("cross_attn"), f"out.layer{index}_{inner}_cross_attn")


def compare(case: GaussianTokenCase) -> Iterator[Comparison]:
    """Outputs and gradients of one evaluation pass.

    Raises:
        NotACase: the case asks for something that is not rebuilt here.
    """
    config, prefix = case.setting("config"), case.setting("key_prefix")
    if case.setting("mode") != "eval":
        raise NotACase(f"{case.path} is of mode {case.setting('mode')}; embedder cases are evaluation passes")
    architecture = embedder_architecture(config, case)
    feature_map = case["in.feature_map"].clone().requires_grad_()
    height, width = feature_map.shape[-2:]
    embedder = GaussianEmbedder(architecture, config["refine_cfg"]["z_channels"], (height, width)).eval()

    state = embedder.state_dict()
    source = {key: shared_key(key, architecture.num_blocks) if config["op_param_share"] else key for key in state}
    weights = formula_weights({source[key]: tensor for key, tensor in state.items()}, case.setting("formula_seed"), prefix)
    embedder.load_state_dict({key: weights[source[key]] for key in state})

    values: dict[str, Tensor] = {}
    recorded(embedder, values)
    gaussians = embedder(feature_map)
    values["out.pos"] = embedder.positions[None]
    outputs = {name: getattr(gaussians, name) for name in ("means", "scales", "rotations", "features", "opacities")}
    values |= {f"out.{name}": value for name, value in outputs.items() if value is not None}

    loss = sum((values[f"out.{name}"] * case[f"in.v_{name}"]).sum() for name in outputs if f"in.v_{name}" in case.tensors)
    assert isinstance(loss, Tensor), "embedder cases give a cotangent for an output at least"
    loss.backward()
    gradients: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    for key, parameter in embedder.named_parameters():
        if parameter.grad is not None:
            gradients[source[key]] = gradients[source[key]] + parameter.grad
    assert feature_map.grad is not None
    values["grad.feature_map"] = feature_map.grad
    values |= {f"grad.{prefix}{key}": gradients[source[key]] for key in source}

    for name in case.tensors:
        if not name.startswith("in."):
            yield case.compare(name, values[name], name.split(".")[0]) if name in values else out(name, "unknown here")
