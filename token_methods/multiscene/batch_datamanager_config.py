"""What can be said about the data of every feed-forward method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tyro
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig


@dataclass
class BatchDataManagerConfig(VanillaDataManagerConfig):
    """Images of one size and how they are loaded, without the flags of nerfstudio's ray-based data manager."""

    image_height: int = 256
    """Height of the images that the network sees."""
    image_width: int = 256
    """Width of the images that the network sees."""
    num_workers: int = 4
    """Threads that load images ahead of training; 0 loads them when they are needed."""
    cache_gigabytes: float | None = None
    """Memory for images per process; by default a quarter of what is free at the start, over all processes."""
    seed: int = 42
    """Of all draws, and of the split where one is made."""

    # What nerfstudio's ray-based data manager has and these do not use.
    masks_on_gpu: tyro.conf.Suppress[bool] = False
    images_on_gpu: tyro.conf.Suppress[bool] = False
    train_num_rays_per_batch: tyro.conf.Suppress[int] = 1024
    train_num_images_to_sample_from: tyro.conf.Suppress[int] = -1
    train_num_times_to_repeat_images: tyro.conf.Suppress[int] = -1
    eval_num_rays_per_batch: tyro.conf.Suppress[int] = 1024
    eval_num_images_to_sample_from: tyro.conf.Suppress[int] = -1
    eval_num_times_to_repeat_images: tyro.conf.Suppress[int] = -1
    eval_image_indices: tyro.conf.Suppress[tuple[int, ...] | None] = None
    collate_fn: tyro.conf.Suppress[Any] = None
    camera_res_scale_factor: tyro.conf.Suppress[float] = 1.0
    patch_size: tyro.conf.Suppress[int] = 1
    pixel_sampler: tyro.conf.Suppress[Any] = None
