"""Presets field by field against the published options."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts.parity.tokengs_case import BACKGROUNDS, architecture_from_options, loss_weights_from_options
from token_methods.tokengs.config import PRESETS, TokenGSArchitecture, TokenGSPreset, TrainingRecipe, TuningRecipe

TUNING_MODES = {"token-tuning": "tokens", "scene-latent-tuning": "scene_latents"}
NOT_A_PRESETS_AFFAIR = {
    *("workspace", "resume", "use_wandb", "experiment_name", "out_dir", "project_name", "print_freq", "log_image_freq"),
    *("eval_n_media_dumps", "num_workers", "seed", "strict_checkpoint_loading", "use_ttt_for_eval", "model_type", "evaluating"),
}
"""Where files go, what is printed, switches of the published program."""
ALWAYS = {
    "gradient_accumulation_steps": 1,
    "mixed_precision": "bf16",
    "deferred_bp": False,
    "use_input_supervision": False,
    "mean_of_grads": "none",
    "mean_of_grads_scene_chunk_size": 1,
    "mean_of_grads_view_chunk_size": None,
    "random_reflect": True,
    "pointmap_trim_lo": 0.0,
    "pointmap_trim_hi": 1.0,
    "num_dynamic_gs_tokens": 0,
    "init_dynamic_tokens_from_static": False,
    "time_embedding": False,
    "time_embedding_dim": 2,
    "lambda_dyn_aux": 0.0,
    "lambda_dyn_aux_warmup_steps": 0,
    "lambda_dyn_aux_decay_steps": 0,
    "lambda_dyn_aux_min": 0.0,
}
"""What no preset but the dynamic ones changes; defaults of the code, not fields of a preset."""
DATA = {"data_mode", "dataset_kwargs", "use_interp_target"}


def published_options(reference: Path) -> dict[str, dict[str, Any]]:
    presets = json.loads((reference / "parity" / "tokengs" / "presets.json").read_text())["presets"]
    return {name: options for name, options in presets.items() if options["num_dynamic_gs_tokens"] == 0}


def preset_from_options(options: dict[str, Any]) -> TokenGSPreset:
    training = TrainingRecipe(
        lr=options["lr"],
        num_steps=options["num_epochs"] * options["max_iters_per_epoch"],
        warmup_steps=options["pct_start_steps"],
        final_div_factor=options["final_div_factor"],
        batch_size=options["batch_size"],
        gradient_clip=options["gradient_clip"],
        init_tokens_from_existing=options["init_tokens_from_existing"],
        init_latents_from_existing=options["init_latents_from_existing"],
    )
    evaluating = options["evaluating"]
    scale = float(options["data_mode"][0][0].rsplit("_", 1)[1])
    return TokenGSPreset(
        architecture=architecture_from_options(options),
        loss=loss_weights_from_options(options),
        training=None if evaluating else training,
        tuning=TuningRecipe(TUNING_MODES[options["ttt_mode"]], options["ttt_n_steps"], options["ttt_lr"]),  # type: ignore[arg-type]
        image_height=options["img_size"][0],
        image_width=options["img_size"][1],
        num_context_views=options["num_input_views"],
        # An evaluation's targets come from the benchmark's index: 50 in every scene.
        num_target_views=50 if evaluating else options["num_views"] - options["num_input_views"],
        camera_normalization_method=options["camera_normalization_method"],
        camera_scale_method=options["camera_scale_method"],
        scene_scale=scale,
        background=(BACKGROUNDS[options["bg_color"]],) * 3,
        near=options["znear"],
        far=options["zfar"],
    )


def test_every_preset_equals_the_published_one(reference: Path) -> None:
    published = published_options(reference)
    assert PRESETS.keys() == published.keys()
    for name, options in published.items():
        assert PRESETS[name] == preset_from_options(options), name


def test_no_published_option_is_forgotten(reference: Path) -> None:
    """Every option is a field of the presets, or stays at the default that the code has, or is none of their affair."""
    read: set[str] = set()

    class Recorded(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            read.add(key)
            return super().__getitem__(key)

    for name, options in published_options(reference).items():
        preset_from_options(Recorded(options))
        assert {key: options[key] for key in ALWAYS} == ALWAYS, name
        assert options["token_dim"] == options["enc_embed_dim"]
        assert options.keys() - read - NOT_A_PRESETS_AFFAIR - ALWAYS.keys() - DATA - {"token_dim"} == set()


def test_impossible_architectures_are_refused() -> None:
    with pytest.raises(ValueError, match="enc_embed_dim 30 is not a multiple of enc_num_heads 4"):
        TokenGSArchitecture(enc_embed_dim=30, enc_num_heads=4)
    with pytest.raises(ValueError, match="names block 11, but enc_depth is 3"):
        replace(PRESETS["eval_dl3dv_latent_2view_ssim"].architecture, enc_depth=3, multiscale_encoder_layers=(1, 11))
