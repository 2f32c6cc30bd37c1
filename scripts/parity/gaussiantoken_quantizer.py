"""GaussianToken's quantiser: an evaluation pass and training steps, with the case's own random choices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from scripts.parity.comparison import Comparison, NotACase, out
from scripts.parity.gaussiantoken_case import GaussianTokenCase
from token_methods.gaussiantoken.config import GaussianTokenArchitecture
from token_methods.gaussiantoken.quantizer import Quantizer

PREFIX = "quantize."


def quantizer_options(config: dict[str, Any]) -> dict[str, Any]:
    """A published quantiser configuration (`vq_cfg`) as fields of the architecture. The dead-code threshold is taken as it is."""
    return {
        "code_dim": config["dim"],
        "codebook_size": config["codebook_size"],
        "codebook_decay": config["decay"],
        "kmeans_iterations": config["kmeans_iters"],
        "dead_code_threshold": config["threshold_ema_dead_code"],
        "dead_code_vectors": 1,
    }


def compare(case: GaussianTokenCase) -> Iterator[Comparison]:
    """Everything of the evaluation pass (where there is one) and of each training step.

    Raises:
        NotACase: the case asks for something that is not rebuilt here.
    """
    config = case.setting("config")
    if config["commitment_weight"] != 1 or not config["ema_update"] or not config["rotation_trick"] or case.meta.get("world_size", 1) != 1:
        raise NotACase(f"{case.path} configures the quantiser as no published preset does, or for several processes")
    quantizer = Quantizer(GaussianTokenArchitecture(map_size=(1, 1), multipliers=(1,), embedder=None, **quantizer_options(config)))
    stem = f"init.{PREFIX}"
    quantizer.load_state_dict({name.removeprefix(stem): value for name, value in case.tensors.items() if name.startswith(stem)})
    is_map = config["accept_image_fmap"]

    compared = {name for name in case.tensors if name.startswith("init.")}
    if "eval.x" in case.tensors:
        values = evaluation_values(quantizer.eval(), case["eval.x"], is_map)
        compared |= values.keys() | {"eval.x"}
        for name, value in values.items():
            yield case.compare(name, value, "other")
    quantizer.train()
    for step in range(case.setting("steps")):
        values = training_values(quantizer, case, f"step{step}.", is_map)
        inputs = {f"step{step}.{name}" for name in ("x", "v_quantize", "kmeans_sampled", "dead_code_samples")}
        compared |= values.keys() | inputs
        for name, value in values.items():
            yield case.compare(name, value, "other")
    for name in case.tensors.keys() - compared:
        yield out(name, "unknown here")


def evaluation_values(quantizer: Quantizer, x: Tensor, is_map: bool) -> dict[str, Tensor]:
    quantized = quantizer(as_vectors(x, is_map))
    return {
        "eval.quantize": like(quantized.features, x, is_map),
        "eval.indices": indices_like(quantized.indices, x, is_map),
        "eval.loss": quantized.commitment.reshape(1),
    }


def training_values(quantizer: Quantizer, case: GaussianTokenCase, step: str, is_map: bool) -> dict[str, Tensor]:
    codebook = quantizer._codebook
    for sampler, choices in (("sample_fn", "kmeans_sampled"), ("replace_sample_fn", "dead_code_samples")):
        setattr(codebook, sampler, lambda samples, count, name=step + choices: case[name][None, :count])
    x = case[f"{step}x"].clone().requires_grad_()
    quantized = quantizer(as_vectors(x, is_map))
    features = like(quantized.features, x, is_map)
    ((features * case[f"{step}v_quantize"]).sum() + quantized.commitment).backward()
    assert x.grad is not None
    return {
        f"{step}quantize": features,
        f"{step}indices": indices_like(quantized.indices, x, is_map),
        f"{step}commit_loss": quantized.commitment.reshape(1),
        f"{step}grad_x": x.grad,
    } | {f"{step}after.{PREFIX}{name}": value.clone() for name, value in quantizer.state_dict().items()}


def as_vectors(x: Tensor, is_map: bool) -> Tensor:
    """A feature map as a row of its cells; vectors as they are."""
    return x.flatten(2).mT if is_map else x


def like(features: Tensor, x: Tensor, is_map: bool) -> Tensor:
    """Vectors in the layout of what they were made from."""
    return features.mT.reshape(x.shape) if is_map else features


def indices_like(indices: Tensor, x: Tensor, is_map: bool) -> Tensor:
    """Indices in the layout of what they were made from."""
    return indices.view(len(x), *x.shape[2:]) if is_map else indices
