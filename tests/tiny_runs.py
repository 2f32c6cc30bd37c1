"""Whole training runs of the smallest network, through nerfstudio's own `ns-train`, in this process."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from nerfstudio.configs.method_configs import all_methods
from nerfstudio.scripts import train
from nerfstudio.utils import writer

from token_methods.multiscene.trainer import FeedForwardTrainerConfig

SMALLEST: dict[str, Any] = {
    "dec_patch_size": 2,
    "enc_depth": 1,
    "dec_depth": 1,
    "enc_embed_dim": 24,
    "enc_num_heads": 2,
    "mlp_ratio": 2,
    "num_gs_tokens": 8,
}


def tiny_config(data: Path | None, output_dir: Path, steps: int = 6, name: str = "run", **architecture: Any) -> FeedForwardTrainerConfig:
    """`tokengs-tiny`, smaller still, on 16 x 16 images; the run's folder is OUTPUT_DIR/scenes/tokengs-tiny/NAME."""
    config: FeedForwardTrainerConfig = copy.deepcopy(all_methods["tokengs-tiny"])
    config.data, config.output_dir, config.experiment_name, config.timestamp = data, output_dir, "scenes", name
    config.machine.device_type = "cpu"
    config.pipeline.initial_weights = None
    config.max_num_iterations = steps
    config.steps_per_save = config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 0
    config.logging.local_writer.enable = False
    config.logging.profiler = "none"
    for group in config.optimizers.values():
        group["scheduler"].warmup_steps = 2
    manager = config.pipeline.datamanager
    manager.image_height = manager.image_width = 16
    manager.num_context_views = manager.num_target_views = 2
    manager.batch_size = 2
    manager.num_workers = 0
    manager.cache_gigabytes = 0.01
    manager.eval_scene_fraction = 0.25
    model = config.pipeline.model
    model.architecture = replace(model.architecture, **{**SMALLEST, **architecture})
    return config


def run(config: FeedForwardTrainerConfig) -> Path:
    """Train as `ns-train` does; returns the run's folder."""
    writer.EVENT_WRITERS.clear()
    train.main(config)
    return config.get_base_dir()
