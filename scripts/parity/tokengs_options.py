"""The published options of a TokenGS run in the words of this project; what is not known is refused."""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path
from typing import Any

from scripts.parity.comparison import NotACase
from token_methods.tokengs.config import LossWeights, TokenGSArchitecture

BACKGROUNDS = {"grey": 0.5, "white": 1.0, "black": 0.0}
TUNING_MODES = {"token-tuning": "tokens", "tokens": "tokens", "scene-latent-tuning": "scene_latents", "latents": "scene_latents"}
CHOICES: dict[str, tuple[Any, ...]] = {
    "model_type": ("tokengs",),
    "bg_color": tuple(BACKGROUNDS),
    "camera_normalization_method": ("first_cam", "mean_cam"),
    "camera_scale_method": ("constant", "distance", "bound"),  # "pointmap" needs depth maps
    "mean_of_grads": ("none", "per-scene", "per-view"),
    "rgb_loss_type": ("l1", "l2"),
    "ttt_mode": tuple(TUNING_MODES),
    "gradient_accumulation_steps": (1,),
}
COUNTS = {
    *("patch_size", "enc_depth", "dec_depth", "enc_embed_dim", "enc_num_heads", "mlp_ratio", "num_gs_tokens"),
    *("num_views", "num_input_views", "batch_size", "latent_cross_attn_depth", "num_latents", "mean_of_grads_scene_chunk_size"),
    *("min_gap", "max_gap", "num_repeat"),
}
"""Whole numbers from 1 on."""
COUNTS_OR_NONE = {"dec_patch_size", "mean_of_grads_view_chunk_size"}
NUMBERS = {
    *("gaussian_scale_cap", "opacity_bias", "gaussian_z_offset", "znear", "zfar", "visibility_distance_threshold", "final_div_factor"),
    *("lambda_rgb", "lambda_lpips", "lambda_mask", "lambda_ssim", "lambda_visibility", "lambda_opacity", "scene_scale"),
}
SWITCHES = {"use_multiscale_encoder", "use_latent_bottleneck", "use_input_supervision", "random_reflect"}
DYNAMIC = {"num_dynamic_gs_tokens": 0, "time_embedding": False, "lambda_dyn_aux": 0}
"""What the static architectures have here."""
SAMPLER_OPTIONS = {
    *("img_size", "num_input_views", "num_views", "batch_size", "scene_scale", "camera_normalization_method", "camera_scale_method"),
    *("seed", "random_reflect", "min_gap", "max_gap"),
}
ONLY_OF_SAMPLERS = {"min_gap", "max_gap", "num_repeat", "scene_scale"}
MODEL_OPTIONS = {
    *(CHOICES.keys() | COUNTS | COUNTS_OR_NONE | NUMBERS | SWITCHES) - ONLY_OF_SAMPLERS,
    *("img_size", "token_dim", "multiscale_encoder_layers", "data_mode", "dataset_kwargs"),
}
WITHOUT_EFFECT = {
    *("workspace", "resume", "use_wandb", "experiment_name", "out_dir", "project_name", "print_freq", "log_image_freq"),
    *("eval_n_media_dumps", "num_workers", "seed", "strict_checkpoint_loading", "evaluating", "mixed_precision", "deferred_bp"),
    *("num_epochs", "max_iters_per_epoch", "lr", "pct_start_steps", "gradient_clip", "use_ttt_for_eval", "ttt_n_steps", "ttt_lr"),
    *("clip_head_readout_std", "clip_head_z_init", "dec_init_values", "gs_token_std", "init_dynamic_tokens_from_static"),
    *("init_tokens_from_existing", "init_latents_from_existing", "pointmap_trim_lo", "pointmap_trim_hi"),
    *("time_embedding_dim", "use_interp_target", "lambda_dyn_aux_warmup_steps", "lambda_dyn_aux_decay_steps", "lambda_dyn_aux_min"),
}
"""What a model case does not depend on: paths, how weights started, what the blocks `ttt` and `train` of case.json say themselves."""


def check_options(options: dict[str, Any], where: str) -> None:
    """Refuse the options of a model case that this project has no counterpart for.

    Raises:
        NotACase: the first option that is dynamic, unknown, missing or makes no sense.
    """
    for name, static in DYNAMIC.items():
        if options.get(name, static) != static:
            raise NotACase(f"{where}: the dynamic architecture is not supported yet ({name} is {options[name]})")
    _check_values(options, MODEL_OPTIONS, WITHOUT_EFFECT | DYNAMIC.keys(), where)
    if options["token_dim"] != options["enc_embed_dim"]:
        raise NotACase(f"{where}: token_dim {options['token_dim']} is not enc_embed_dim {options['enc_embed_dim']}")
    dataset_of(options, where)
    try:
        architecture_from_options(options)
    except (ValueError, TypeError) as error:
        raise NotACase(f"{where}: {error}") from None


def check_sampler_options(options: dict[str, Any], where: str) -> None:
    """The same for a case of the training sampler.

    Raises:
        NotACase: see `check_options`.
    """
    _check_values(options, SAMPLER_OPTIONS, {"num_repeat"}, where)


def _check_values(options: dict[str, Any], required: Set[str], optional: Set[str], where: str) -> None:
    for name in options:
        if name not in required | optional:
            raise NotACase(f"{where}: the option {name} is not known")
    for name in sorted(required):
        if name not in options:
            raise NotACase(f"{where}: the option {name} is missing")
    for name, value in options.items():
        if name in CHOICES and value not in CHOICES[name]:
            choices = " or ".join(map(str, CHOICES[name]))
            raise NotACase(f"{where}: the option {name} must be {choices}, {value!r} is not supported")
        if name in COUNTS or (name in COUNTS_OR_NONE and value is not None):
            _require_count(value, name, where)
        if name in NUMBERS and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise NotACase(f"{where}: the option {name} must be a number, not {value!r}")
        if name in SWITCHES and not isinstance(value, bool):
            raise NotACase(f"{where}: the option {name} must be true or false, not {value!r}")
    image_size(options, where)


def image_size(options: dict[str, Any], where: str) -> tuple[int, int]:
    """Height and width."""
    size = options.get("img_size")
    if not isinstance(size, list) or len(size) != 2:
        raise NotACase(f"{where}: the option img_size must be [height, width], not {size!r}")
    for length in size:
        _require_count(length, "img_size", where)
    return size[0], size[1]


def dataset_of(options: dict[str, Any], where: str) -> tuple[str, float]:
    """Dataset and scene scale of the one data mode `NAME_scaled_SCALE`."""
    modes = options["data_mode"]
    if not isinstance(modes, list) or len(modes) != 1:
        raise NotACase(f"{where}: the option data_mode must name one dataset, not {modes!r}")
    match = re.fullmatch(r"(\w+?)_scaled_((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", str(modes[0][0]))
    if match is None or match[1] not in ("dl3dv", "dl3dv_eval"):
        raise NotACase(f"{where}: the dataset must be dl3dv_scaled_S or dl3dv_eval_scaled_S, {modes[0][0]!r} is not supported")
    return match[1], float(match[2])


def case_path(options: dict[str, Any], key: str, folder: Path, default: str) -> Path:
    """A path among the `dataset_kwargs`, where `<case>` stands for the case folder."""
    return Path(str((options["dataset_kwargs"] or {}).get(key, default)).replace("<case>", str(folder)))


def architecture_from_options(options: dict[str, Any]) -> TokenGSArchitecture:
    """The published options' network."""
    special = {
        "dec_patch_size": options["dec_patch_size"] or options["patch_size"],
        "num_latents": options["num_latents"] if options["use_latent_bottleneck"] else None,
        "multiscale_encoder_layers": tuple(options["multiscale_encoder_layers"]) if options["use_multiscale_encoder"] else (),
    }
    known = {name: options[name] for name in TokenGSArchitecture.__dataclass_fields__ if name in options}
    return TokenGSArchitecture(**known | special)


def loss_weights_from_options(options: dict[str, Any]) -> LossWeights:
    """The published options' loss."""
    names = {name: name if name in options else f"lambda_{name}" for name in LossWeights.__dataclass_fields__}
    return LossWeights(**{name: options[published] for name, published in names.items()})


def _require_count(value: Any, name: str, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise NotACase(f"{where}: the option {name} must be a whole number from 1 on, not {value!r}")
