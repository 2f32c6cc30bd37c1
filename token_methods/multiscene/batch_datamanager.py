"""What the data managers of feed-forward methods have in common: batches in the place of rays, loaded ahead by threads."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager

from token_methods.multiscene.batch_datamanager_config import BatchDataManagerConfig
from token_methods.multiscene.plain_errors import SettingsError
from token_methods.multiscene.processes import process_rank
from token_methods.multiscene.training_batches import Prefetcher
from token_methods.multiscene.view_loading import free_memory


class BatchDataManager(VanillaDataManager):
    """Gives batches by `next_train_batch(step)`; nerfstudio's way to ask for rays is closed."""

    config: BatchDataManagerConfig
    prefetcher: Prefetcher | None

    def _begin(
        self,
        config: BatchDataManagerConfig,
        device: torch.device | str,
        test_mode: Literal["test", "val", "inference"],
        world_size: int,
        local_rank: int,
    ) -> None:
        """Who this process is, and where the data are. Before `DataManager.__init__`: plain attributes only."""
        self.config = config
        self.device = device
        self.world_size = world_size
        self.local_rank = local_rank
        rank, processes = process_rank()
        self.rank = rank if processes > 1 else local_rank
        self.test_mode = test_mode
        self.test_split = "test" if test_mode in ("test", "inference") else "val"
        if config.data is not None:
            config.dataparser.data = Path(config.data)
        else:
            config.data = config.dataparser.data
        self.exclude_batch_keys_from_device = ["image", "mask"]
        self.prefetcher = None

    def close(self) -> None:
        """End the threads that load ahead."""
        if self.prefetcher is not None:
            self.prefetcher.close()
            self.prefetcher = None

    def setup_eval(self) -> None:
        """Nothing to prepare: what is evaluated is loaded when it is asked for."""

    @cached_property  # which the viewer's scan of attributes leaves alone
    def train_pixel_sampler(self) -> Any:  # type: ignore[override]
        """Draws no rays, which nerfstudio's exporters of point clouds and meshes ask for."""
        raise SettingsError(
            "point clouds and meshes cannot be exported from a feed-forward method, which has no rays to sample: "
            "export its Gaussians with `ns-export gaussian-splat` or `ns-tokens export`"
        )

    def next_train(self, step: int) -> Any:
        raise NotImplementedError("a data manager of feed-forward methods gives batches: call next_train_batch(step)")

    def next_eval(self, step: int) -> Any:
        raise NotImplementedError("a data manager of feed-forward methods gives batches: call load_window(window)")

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """A random view of `eval_dataset`."""
        return next(iter(self.eval_dataloader))

    def _budget(self) -> int:
        """Bytes of memory for images: as configured, else a quarter of what is free, shared by the processes of this machine."""
        if self.config.cache_gigabytes is not None:
            return int(self.config.cache_gigabytes * 2**30)
        sharing = max(1, min(self.world_size, torch.cuda.device_count() or self.world_size))
        return math.floor(free_memory() / 4 / sharing)
