"""ImageDataManager: batches of single pictures for training and evaluation, and one picture in hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from nerfstudio.data.datamanagers.base_datamanager import DataManager
from nerfstudio.data.dataparsers.base_dataparser import DataParser
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from token_methods.core.views import SceneBatch
from token_methods.multiscene.batch_datamanager import BatchDataManager
from token_methods.multiscene.errors import ImageError, SceneError
from token_methods.multiscene.image_augmentation import augment, evaluation_picture
from token_methods.multiscene.image_batches import (
    ImageDraws,
    ImageLoader,
    NamedPicture,
    collate_pictures,
    loaded_ahead,
    picture_batch,
    pinned_pictures,
)
from token_methods.multiscene.image_datamanager_config import ImageDataManagerConfig as ImageDataManagerConfig
from token_methods.multiscene.image_sets import ImageSet, PictureDataset, PictureMemory
from token_methods.multiscene.images import split_archive_path
from token_methods.multiscene.processes import process_rank
from token_methods.multiscene.scene_discovery import with_data
from token_methods.multiscene.training_batches import Prefetcher
from token_methods.multiscene.windows import EvaluationWindow

LARGEST_ON_DEVICE = 2 * 2**30
"""Bytes of pictures that are kept where the network is; CIFAR has a tenth of that."""

FIRST_ATTEMPTS = 8
"""Pictures that are tried until one can be shown in training; where none of these can, something else is wrong."""


@dataclass(frozen=True)
class PictureInHand:
    """The picture that viewer, renderer and exporter look at."""

    name: str
    """By which it can be selected again."""
    path: Path
    pixels: UInt8[Tensor, "3 height width"]
    """At the size of the network, cut as for evaluation."""


class ImageDataManager(BatchDataManager):
    """Pictures of an image dataparser (or the frames of any other) for methods that take single images.

    Training reads `next_train_batch`, evaluation `evaluation_images` or, one by one, `evaluation_windows` and `load_window`. In every
    batch context and target are the same views, which have images [batch, 1, 3, height, width] in [0, 1] and no cameras. For
    nerfstudio's commands `train_dataset` holds the picture in hand and `eval_dataset` all pictures to evaluate, with nominal cameras.

    Raises:
        SceneError: the dataparser does not read `--data`, there is no picture, or the one in hand cannot be read.
    """

    config: ImageDataManagerConfig
    train_dataset: PictureDataset
    eval_dataset: PictureDataset

    def __init__(
        self,
        config: ImageDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        self._begin(config, device, test_mode, world_size, local_rank)
        self.data = Path(config.dataparser.data)
        self.dataparser: DataParser = with_data(config.dataparser, self.data).setup()
        self.dataparser_config = config.dataparser
        self.includes_time = False
        self.memory = PictureMemory(self._budget())
        self.images = self._image_set(config.evaluation_split)
        self._one_scene = config.scene is not None and test_mode != "val"
        size = config.image_height, config.image_width
        self.eval_dataset = PictureDataset([self.images.path(i) for i in range(len(self.images))], self._evaluated, *size)
        self.eval_dataloader = RandIndicesEvalDataloader(self.eval_dataset, device=device)
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(self.eval_dataset, device=device)
        self._open_first()
        DataManager.__init__(self)

    # Training.

    @cached_property
    def train_images(self) -> ImageSet:
        """The pictures to train on; listed when first asked for.

        Raises:
            SceneError: there is none.
        """
        return self._image_set("train")

    def setup_train(self) -> None:
        """Begin to load the first batches; only when training."""
        if self.test_mode == "val" and self._gathered is None:
            self._batches().start(0)

    def next_train_batch(self, step: int) -> SceneBatch:
        """The batch of a step, on the device. It depends on seed, step and process alone, not on earlier calls.

        Raises:
            SceneError: no picture can be used.
        """
        if self._gathered is None:
            return picture_batch(*self._batches().batch(step), self.device)
        numbers = self.draws.images(step)
        pixels = self._gathered.index_select(0, torch.from_numpy(numbers).to(self._gathered.device))
        return picture_batch(tuple(self.train_images.name(int(number)) for number in numbers), pixels, self.device)

    @cached_property
    def draws(self) -> ImageDraws:
        """Which pictures each step of training sees."""
        return ImageDraws(len(self.train_images), self.config.batch_size, self.rank, self.world_size, self.config.seed)

    @cached_property
    def updates_per_epoch(self) -> int:
        """Steps after which all processes together have seen every training picture."""
        return self.draws.steps_per_epoch

    def get_train_rays_per_batch(self) -> int:
        """Pixels supervised per step and process."""
        return self.config.batch_size * self.config.image_height * self.config.image_width

    def get_eval_rays_per_batch(self) -> int:
        return self.config.image_height * self.config.image_width

    # Evaluation.

    def evaluation_images(self, max_images: int | None = None) -> Iterator[SceneBatch]:
        """The pictures to evaluate in batches of `eval_batch_size`, on the device; of several processes each gets every n-th batch.

        Args:
            max_images: take the first of them only.

        Raises:
            SceneError: a picture cannot be used.
        """
        if self._one_scene:
            yield self.scene_batch()
            return
        size, (rank, processes) = self.config.eval_batch_size, process_rank()
        count = len(self.images) if max_images is None else min(max_images, len(self.images))
        starts = range(rank * size, count, processes * size)
        chunks = [range(start, min(start + size, count)) for start in starts]
        for names, pixels in loaded_ahead(chunks, self._evaluation_picture, self.config.num_workers):
            yield picture_batch(names, pixels, self.device)

    def evaluation_windows(self) -> Sequence[EvaluationWindow]:
        """The pictures to evaluate one by one; the one in hand alone where a command on a trained run names it."""
        if self._one_scene:
            return [EvaluationWindow(self.current.name, self.current.name, (0,), (0,))]
        names = self.scene_names[: len(self.images)]
        return [EvaluationWindow(name, name, (number,), (number,)) for number, name in enumerate(names)]

    def load_window(self, window: EvaluationWindow) -> SceneBatch:
        """The picture of a window on the device, a batch of one.

        Raises:
            SceneError: it cannot be used.
        """
        if window.scene == self.current.name:
            return self.scene_batch()
        name, pixels = self._evaluation_picture(window.context[0])
        return picture_batch((name,), pixels[None], self.device)

    # The picture in hand.

    @cached_property  # many names: the viewer's scan of attributes leaves it alone
    def scene_names(self) -> list[str]:
        """The pictures to evaluate, and the one that was in hand at first where it is none of them. Those trained on can be selected too,
        by their names."""
        names = [self.images.name(number) for number in range(len(self.images))]
        return names if self.scene_index >= 0 else [*names, self.current.name]

    @property
    def scene_index(self) -> int:
        """Number of the picture in hand among those to evaluate; -1 if it is none of them."""
        number = self.images.index(self.current.name)
        return -1 if number is None else number

    def select_scene(self, scene: int | str | Path) -> None:
        """Take a picture in hand by its number or name among those to evaluate, as a file, or by its name among those trained on.

        Raises:
            SceneError: there is no such picture, or it cannot be used.
        """
        self._open(*self._find(scene))
        self.config.scene = self.current.name

    def scene_batch(self) -> SceneBatch:
        """The picture in hand, a batch of one."""
        return picture_batch((self.current.name,), self.current.pixels[None], self.device)

    def get_datapath(self) -> Path:
        """Folder of the data: camera paths drawn in the viewer are stored there."""
        return self.data if self.data.is_dir() else self.data.parent

    def _find(self, scene: int | str | Path) -> tuple[ImageSet, int]:
        text = str(scene)
        number = self.images.index(text)
        if number is None and text.isdigit():
            number = int(text)
            if number >= len(self.images):
                raise SceneError(f"there is no picture number {text}: {len(self.images)} are evaluated, counted from 0")
        if number is not None:
            return self.images, number
        path = Path(text)
        if path.is_file() or split_archive_path(path) is not None:
            return ImageSet([path.resolve()], Path(), background=self.images.background), 0
        number = None if path.is_dir() else self.train_images.index(text)
        if number is None:
            some = ", ".join(self.images.name(i) for i in range(min(8, len(self.images))))
            what = "is a folder, not a picture" if path.is_dir() else "is neither a picture of the data nor a file"
            raise SceneError(f"{text} {what}; there are {some}{' ...' if len(self.images) > 8 else ''}")
        return self.train_images, number

    def _open(self, images: ImageSet, number: int) -> None:
        name, pixels = self._fitted(images, number)
        self.current = PictureInHand(name, images.path(number), pixels)
        self.train_dataset = PictureDataset([self.current.path], lambda _: pixels, self.config.image_height, self.config.image_width)
        self.train_dataparser_outputs = self.train_dataset._dataparser_outputs

    def _open_first(self) -> None:
        if self.config.scene is not None:
            return self._open(*self._find(self.config.scene))
        attempts = min(FIRST_ATTEMPTS, len(self.images))
        for number in range(attempts):
            try:
                return self._open(self.images, number)
            except SceneError as error:
                if self.test_mode != "val" or number == attempts - 1:
                    raise
                CONSOLE.print(f"[bold yellow]Picture {self.images.name(number)} is not shown: {error}")

    # Loading.

    def _image_set(self, split: str) -> ImageSet:
        """The pictures of a split.

        Raises:
            SceneError: the dataparser cannot read the data or finds nothing.
        """
        try:
            outputs = self.dataparser.get_dataparser_outputs(split)
        except (Exception, SystemExit) as error:  # a dataparser may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
        else:
            if outputs.image_filenames:
                return ImageSet.from_outputs(outputs, self.data, self.memory)
            reason = f"there are none to {'train on' if split == 'train' else 'evaluate'}"
        remedy = (
            "pictures in folders and archives are read by image-folder-data, CIFAR by cifar-data, named behind all other options"
            if self.test_mode == "val"
            else 'other data for this run can be named with NERFSTUDIO_TOKENS="--data FOLDER"'
        )
        raise SceneError(f"{type(self.config.dataparser).__name__} finds no pictures in {self.data}: {reason.rstrip('.')}; {remedy}")

    @cached_property
    def _gathered(self) -> Tensor | None:
        """All training pictures as one tensor [images, 3, height, width], where they are in memory and need no change.

        On the device if they are not too many."""
        pixels = self.train_images.pixels
        size = self.config.image_height, self.config.image_width
        if pixels is None or pixels.shape[1:3] != size or self.config.train_augmentation != "none":
            return None
        device = self.device if pixels.nbytes <= LARGEST_ON_DEVICE else "cpu"
        return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).contiguous()

    def _batches(self) -> Prefetcher[NamedPicture, tuple[tuple[str, ...], Tensor]]:
        if self.prefetcher is None:
            collate = pinned_pictures if torch.device(self.device).type == "cuda" else collate_pictures
            self.prefetcher = Prefetcher(ImageLoader(self.draws, self._augmented), collate, self.config.batch_size, self.config.num_workers)
        return self.prefetcher

    def _augmented(self, number: int, rng: np.random.Generator) -> NamedPicture:
        config = self.config
        return self._changed(
            self.train_images,
            number,
            lambda picture: augment(picture, config.image_height, config.image_width, config.train_augmentation, rng),
        )

    def _evaluation_picture(self, number: int) -> NamedPicture:
        return self._fitted(self.images, number)

    def _evaluated(self, number: int) -> UInt8[Tensor, "3 height width"]:
        return self._evaluation_picture(number)[1]

    def _fitted(self, images: ImageSet, number: int) -> NamedPicture:
        config = self.config
        return self._changed(
            images, number, lambda picture: evaluation_picture(picture, config.image_height, config.image_width, config.evaluation_crop)
        )

    @staticmethod
    def _changed(images: ImageSet, number: int, change: Callable[[Tensor], Tensor]) -> NamedPicture:
        picture = torch.from_numpy(images.read(number)).permute(2, 0, 1)
        try:
            return images.name(number), change(picture).contiguous()
        except ValueError as error:
            raise ImageError(f"{images.path(number)} {error}") from error
