"""Pictures that tests make, and training of the smallest image tokenizer on them."""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from nerfstudio.configs.method_configs import all_methods
from PIL import Image

from dataparsers.cifar import CifarDataParserConfig
from dataparsers.image_folder import ImageFolderDataParserConfig
from token_methods.multiscene.trainer_config import FeedForwardTrainerConfig

SIZE = 32
"""Rows and columns of a picture that `gaussiantoken-tiny` takes."""


def tiny_pictures(count: int, seed: int = 0) -> UInt8[np.ndarray, "count 32 32 3"]:
    """Smooth ones, no two alike."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for pixels in small])


def write_folder(folder: Path, trained: int = 8, held_out: int = 5) -> Path:
    """Pictures in ImageNet's layout, `train/000.png` and so on, then `val/`."""
    for number, pixels in enumerate(tiny_pictures(trained + held_out)):
        path = folder / ("train" if number < trained else "val") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def write_zip(path: Path, folder: Path) -> Path:
    """A folder's pictures in an archive, under the same names."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return path


def write_arrays(path: Path, trained: int = 8, held_out: int = 5) -> Path:
    """The same pictures as arrays, in the form that `cifar-data` reads."""
    pixels = tiny_pictures(trained + held_out)
    labels = np.zeros(trained + held_out, dtype=np.int64)
    np.savez(
        path,
        x_train=pixels[:trained],
        y_train=labels[:trained],
        x_test=pixels[trained:],
        y_test=labels[trained:],
        classes=np.array(["picture"]),
    )
    return path


def tiny_picture_config(data: Path, output_dir: Path, steps: int = 4, name: str = "run") -> FeedForwardTrainerConfig:
    """`gaussiantoken-tiny` on few pictures at a time; the run's folder is OUTPUT_DIR/pictures/gaussiantoken-tiny/NAME."""
    config: FeedForwardTrainerConfig = copy.deepcopy(all_methods["gaussiantoken-tiny"])
    config.output_dir, config.experiment_name, config.timestamp = output_dir, "pictures", name
    config.machine.device_type = "cpu"
    config.max_num_iterations = steps
    config.steps_per_save = config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 0
    config.logging.local_writer.enable, config.logging.profiler = False, "none"
    for group in config.optimizers.values():
        group["scheduler"].warmup_steps = 2
    manager = config.pipeline.datamanager
    # As `--data` would, for tests that take a trainer without nerfstudio's loop.
    config.data = manager.data = data
    manager.dataparser = (CifarDataParserConfig if data.suffix == ".npz" else ImageFolderDataParserConfig)()
    manager.batch_size, manager.eval_batch_size = 4, 3
    manager.num_workers, manager.cache_gigabytes = 0, 0.01
    return config
