"""Frames of a scene to `Views` at a network's size: decoded, undistorted, cut, resized, and kept under a byte budget."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from token_methods.core.crops import CropConvention
from token_methods.core.views import SceneBatch, Views
from token_methods.multiscene.errors import ImageError, SceneError
from token_methods.multiscene.images import read_image, read_mask
from token_methods.multiscene.scenes import Scene
from token_methods.multiscene.undistortion import undistort


def read_frame(scene: Scene, frame: int) -> tuple[UInt8[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"] | None]:
    """The undistorted image of a frame at its own size, and its mask if it has one.

    Raises:
        ImageError: the file is missing, broken, absurdly large, or of another size than its camera says.
    """
    outputs, path = scene.outputs, scene.image_filenames[frame]
    background = None if outputs.alpha_color is None else outputs.alpha_color.tolist()
    image = read_image(path, background)
    mask = None if outputs.mask_filenames is None else read_mask(outputs.mask_filenames[frame])
    try:
        _, image, mask = undistort(outputs.cameras[frame : frame + 1], image, mask)
    except SceneError as error:
        raise ImageError(f"{path}: {error}") from error
    return image, mask


@dataclass(frozen=True)
class PreparedView:
    """One view at a network's size."""

    image: Float[Tensor, "3 height width"]
    mask: Float[Tensor, "1 height width"] | None

    @property
    def num_bytes(self) -> int:
        return 4 * (self.image.numel() + (0 if self.mask is None else self.mask.numel()))


class ViewCache:
    """The views used last, under a byte budget. Safe to use from several threads."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.num_bytes = 0
        self._views: OrderedDict[Hashable, PreparedView] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, prepare: Callable[[], PreparedView]) -> PreparedView:
        """The view under `key`, prepared if it is not kept. Two threads may prepare the same view: the result is the same."""
        with self._lock:
            if key in self._views:
                self._views.move_to_end(key)
                return self._views[key]
        view = prepare()
        with self._lock:
            if key not in self._views and view.num_bytes <= self.budget:
                self._views[key] = view
                self.num_bytes += view.num_bytes
                while self.num_bytes > self.budget:
                    self.num_bytes -= self._views.popitem(last=False)[1].num_bytes
        return view


def free_memory() -> int:
    """Bytes of memory that this process may still take: what is free, or what its control group leaves."""
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return min(free, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):
        return free


@dataclass(frozen=True)
class ViewLoader:
    """Makes `Views` of any frames of any scene at one size."""

    height: int
    width: int
    convention: CropConvention
    cache: ViewCache

    def views(self, scene: Scene, frames: list[int], with_images: bool = True) -> Views:
        """Frames of one scene as views of a batch of one; cameras in the dataset frame, intrinsics at the network's size.

        Raises:
            ImageError: an image cannot be used.
        """
        prepared = [self._prepared(scene, frame) for frame in frames] if with_images else []
        masks = None
        if any(view.mask is not None for view in prepared):
            whole = torch.ones(1, self.height, self.width)
            masks = torch.stack([whole if view.mask is None else view.mask for view in prepared])[None]
        times = scene.times
        return Views(
            height=self.height,
            width=self.width,
            images=torch.stack([view.image for view in prepared])[None] if prepared else None,
            camera_to_world=scene.camera_to_world[frames][None],
            intrinsics=scene.intrinsics(frames, self.height, self.width, self.convention)[None],
            masks=masks,
            times=None if times is None else times[frames][None],
            frame_indices=torch.tensor([frames]),
            is_ordered=scene.is_ordered and all(after - before == 1 for before, after in pairwise(frames)),
        )

    def batch(self, scene: Scene, context: list[int], target: list[int]) -> SceneBatch:
        """Context and target frames of one scene as a batch of one.

        Raises:
            ImageError: an image cannot be used.
        """
        return SceneBatch(
            context=self.views(scene, context),
            target=self.views(scene, target),
            names=(scene.name,),
            unit=torch.tensor([scene.unit]),
            sparse_depth=scene.sparse_depth[context].nanmedian()[None],
        )

    def _prepared(self, scene: Scene, frame: int) -> PreparedView:
        return self.cache.get((scene.path, frame, self.height, self.width), lambda: self._prepare(scene, frame))

    def _prepare(self, scene: Scene, frame: int) -> PreparedView:
        image, mask = read_frame(scene, frame)
        crop = scene.crop(frame, self.height, self.width)
        pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        visible = None if mask is None else crop.image(torch.from_numpy(mask)[None].float())
        return PreparedView(crop.image(pixels), visible)
