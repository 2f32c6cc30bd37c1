"""Tiny runs on pictures that the test makes, trained through nerfstudio's own `ns-train`."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
from nerfstudio.utils.eval_utils import eval_setup
from PIL import Image

from method_configs.gaussiantoken import gaussiantoken_tiny
from tests import tiny_runs
from token_methods.gaussiantoken.pipeline import ImagePipeline

NUM_TRAINED = 8
NUM_HELD_OUT = 5


def write_pictures(folder: Path) -> None:
    """Smooth ones, no two alike, in ImageNet's layout."""
    rng = np.random.default_rng(0)
    for number in range(NUM_TRAINED + NUM_HELD_OUT):
        path = folder / ("train" if number < NUM_TRAINED else "val") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        small.resize((40, 36), Image.Resampling.BICUBIC).save(path)


def trained(data: Path, folder: Path, grid: bool = False) -> Path:
    """Folder of a run of two steps; with Gaussians, or on a grid."""
    config = copy.deepcopy(gaussiantoken_tiny.config)
    config.data, config.output_dir, config.experiment_name, config.timestamp = data, folder, "pictures", "run"
    config.machine.device_type = "cpu"
    config.max_num_iterations, config.steps_per_save = 2, 0
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 0
    config.logging.local_writer.enable, config.logging.profiler = False, "none"
    manager, model = config.pipeline.datamanager, config.pipeline.model
    manager.batch_size, manager.eval_batch_size, manager.num_workers, manager.cache_gigabytes = 8, 4, 0, 0.01
    if grid:
        model.architecture = replace(model.architecture, embedder=None)
    return tiny_runs.run(config)


def loaded(run: Path) -> ImagePipeline:
    """The pipeline of a run, as nerfstudio's commands load it."""
    _, pipeline, _, _ = eval_setup(run / "config.yml", test_mode="inference")
    assert isinstance(pipeline, ImagePipeline)
    return pipeline
