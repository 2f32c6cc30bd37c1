"""The whole GaussianToken network: an evaluation pass, and training steps with the published and with the exact splat gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scripts.parity.comparison import Comparison, NotACase, compare_number, out
from scripts.parity.gaussiantoken_case import GaussianTokenCase, formula_image, formula_weights
from scripts.parity.gaussiantoken_embedder import embedder_architecture
from scripts.parity.gaussiantoken_quantizer import quantizer_options
from token_methods.gaussiantoken.config import GaussianTokenArchitecture
from token_methods.gaussiantoken.network import GaussianTokenNetwork

SAFE_GAP, SHARE_MAY_DIFFER = 1e-3, 0.01
"""Where the best two codes are nearer than this, a share of the indices may differ."""
COMMIT_WEIGHT = 0.25
RUNNING_MEAN = ".range_scheduler.ema"
"""No published buffer: the formula does not set it, and it lives on over the steps of a case."""


def architecture_of(case: GaussianTokenCase) -> GaussianTokenArchitecture:
    """The architecture of a case's configuration.

    Raises:
        NotACase: it uses something that no published preset does and that is not rebuilt here.
    """
    config: dict[str, Any] = case.setting("config")
    encoder, decoder = config["img_encoder_cfg"], config["img_decoder_cfg"]
    if any(encoder[name] != decoder[name] for name in ("ch", "ch_mult", "num_res_blocks")):
        raise NotACase(f"{case.path} has an encoder and a decoder of different sizes, as no published preset has")
    embedder = embedder_architecture(config["gs_embed_cfg"], case) if "gs_embed_cfg" in config else None
    height, width = case.setting("image_shape")[2:]
    factor = 2 ** (len(encoder["ch_mult"]) - 1)
    return GaussianTokenArchitecture(
        map_size=(height // factor, width // factor),
        multipliers=tuple(encoder["ch_mult"]),
        embedder=embedder,
        channels=encoder["ch"],
        num_residual_blocks=encoder["num_res_blocks"],
        **quantizer_options(config["vq_cfg"]),
    )


def compare(case: GaussianTokenCase) -> Iterator[Comparison]:
    """Everything that a case stores.

    Raises:
        NotACase: the case asks for something that is not rebuilt here.
    """
    network = GaussianTokenNetwork(architecture_of(case))
    reset(network, case)
    shape, seed = case.setting("image_shape"), case.setting("formula_seed")
    image = case["in.image"] if "in.image" in case.tensors else formula_image("image", shape, seed)
    tolerance = case.setting("tolerance")

    values, reconstruction = evaluation_values(network.eval(), image, case)
    for name in [name for name in case.tensors if name.startswith("out.") and name != "out.indices"]:
        kind = name if name in tolerance else "out.reconstruction"
        yield case.compare(name, values[name], kind) if name in values else out(name, "unknown here")
    yield compare_indices(values["out.indices"], case)
    scale = tolerance["out.reconstruction"]["atol_rel_to_max"] * case["out.reconstruction"].abs().max().item()
    yield compare_number("reconstruction_mean", reconstruction.mean(), case.setting("reconstruction_mean"), scale)
    yield compare_number("reconstruction_std", reconstruction.std(), case.setting("reconstruction_std"), scale)

    if "train.reconstruction" in case.tensors:
        for published in (True, False):
            reset(network, case)
            values = training_values(network.train(), image, case, published)
            for name in [name for name in values if name in case.tensors]:
                yield case.compare(name, values[name], "grad" if name.startswith("grad") else "out.reconstruction")
        for name in case.tensors:
            if name.startswith(("train.", "grad_")) and name.removeprefix("grad_published.") == name and name not in values:
                yield out(name, "unknown here")


def reset(network: GaussianTokenNetwork, case: GaussianTokenCase) -> None:
    """All weights and buffers as the formula has them."""
    state = network.state_dict()
    weights = formula_weights(state, case.setting("formula_seed"), case.setting("key_prefix"))
    network.load_state_dict({key: state[key] if key.endswith(RUNNING_MEAN) else value for key, value in weights.items()})


def evaluation_values(network: GaussianTokenNetwork, image: Tensor, case: GaussianTokenCase) -> tuple[dict[str, Tensor], Tensor]:
    """The stored tensors of the evaluation pass, and the whole reconstruction."""
    step = case.setting("subsample")
    with torch.no_grad():
        values = {"out.fm_raw": network.img_encoder(image)[:, ::step]}
        tokens, _ = network.tokenize(image)
        values["out.indices"] = tokens.indices
        if case.setting("min_distance_gap") <= SAFE_GAP:
            # An index that may differ is judged by itself; what follows from it would not be comparable.
            features = network.quantize.lookup(case["out.indices"].view(tokens.indices.shape))
            gaussians = None if tokens.gaussians is None else replace(tokens.gaussians, features=features)
            tokens = replace(tokens, gaussians=gaussians, features=features)
        values["out.features_quantized"] = tokens.features
        if network.gs_embed is not None:
            raw = network.gs_embed(network.img_encoder(image))
            values |= {f"out.{name}": getattr(raw, name) for name in ("means", "scales", "rotations", "features")}
            if raw.opacities is not None:
                values["out.opacities"] = raw.opacities
        values["out.fm_quant"] = network.feature_map(tokens)
        reconstruction = network.decode(tokens)
    values["out.reconstruction"] = reconstruction[..., ::step, ::step]
    return values, reconstruction


def compare_indices(indices: Tensor, case: GaussianTokenCase) -> Comparison:
    """Code indices: all equal, unless the case says that its two nearest codes are too near."""
    expected = case["out.indices"]
    wrong = int((indices.view(expected.shape) != expected).sum())
    allowed = 0 if case.setting("min_distance_gap") > SAFE_GAP else int(SHARE_MAY_DIFFER * expected.numel())
    return Comparison("out.indices", float(wrong), float(allowed), wrong <= allowed, "entries that differ" if wrong else "exact")


def training_values(network: GaussianTokenNetwork, image: Tensor, case: GaussianTokenCase, published: bool) -> dict[str, Tensor]:
    """Gradients, outputs and the buffers after one training step."""
    network.published_splat = published
    network.zero_grad()
    tokens, commitment = network.tokenize(image)
    reconstruction = network.decode(tokens)
    ((reconstruction * case["in.v_reconstruction"]).mean() + COMMIT_WEIGHT * commitment).backward()
    prefix = f"grad_{'published' if published else 'exact'}."
    gradients = {f"{prefix}{key}": value.grad for key, value in network.named_parameters() if value.grad is not None}
    if published:
        return gradients
    return gradients | {
        "train.reconstruction": reconstruction,
        "train.commit_loss": commitment.reshape(1),
        "train.indices": tokens.indices.view(case["train.indices"].shape),
        **{f"train.after.{key}": value for key, value in network.state_dict().items()},
    }
