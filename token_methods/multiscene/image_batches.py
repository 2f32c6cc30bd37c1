"""Training batches of single pictures as a function of (seed, step): every picture once per epoch, over all processes.

The pictures of all epochs form one endless sequence, cut into batches: the last batch of an epoch takes its missing pictures from the
next one. Nothing is remembered from one step to the next, so a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from token_methods.core.views import SceneBatch, Views
from token_methods.multiscene.errors import SceneError

ATTEMPTS = 100
"""Pictures drawn for one place of a batch before training gives up."""

NamedPicture = tuple[str, UInt8[Tensor, "3 height width"]]


@dataclass(frozen=True)
class ImageDraws:
    """Which picture each place of each batch gets."""

    num_images: int
    batch_size: int
    """Pictures per step of one process."""
    rank: int
    world_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every picture was seen."""
        return math.ceil(self.num_images / (self.batch_size * self.world_size))

    def images(self, step: int) -> Int[np.ndarray, " batch"]:
        """Numbers of the pictures of this process's batch."""
        places = self._place(step, 0) + np.arange(self.batch_size)
        epochs, offsets = np.divmod(places, self.num_images)
        return np.array([_epoch_order(self.num_images, self.seed, int(epoch))[offset] for epoch, offset in zip(epochs, offsets)])

    def candidates(self, step: int, index: int) -> Iterator[int]:
        """The picture for place `index` of this process's batch, then pictures to take where that one cannot be used."""
        epoch, offset = divmod(self._place(step, index), self.num_images)
        yield int(_epoch_order(self.num_images, self.seed, epoch)[offset])
        yield from map(int, _generator(self.seed, 1, self._place(step, index)).integers(self.num_images, size=ATTEMPTS - 1))

    def generator(self, step: int, index: int) -> np.random.Generator:
        """Random numbers for the augmentation of place `index` of this process's batch."""
        return _generator(self.seed, 2, self._place(step, index))

    def _place(self, step: int, index: int) -> int:
        """In the sequence of all epochs and processes."""
        return (step * self.world_size + self.rank) * self.batch_size + index


@functools.lru_cache(maxsize=4)
def _epoch_order(num_images: int, seed: int, epoch: int) -> Int[np.ndarray, " images"]:
    return _generator(seed, 0, epoch).permutation(num_images)


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


class ImageLoader:
    """Loads one place of a batch; pictures that cannot be used are named once and passed over."""

    def __init__(self, draws: ImageDraws, picture: Callable[[int, np.random.Generator], NamedPicture]) -> None:
        """`picture` gives name and pixels of a picture at the size of the network, or raises `SceneError`."""
        self.draws = draws
        self.picture = picture
        self._named: set[int] = set()
        self._lock = threading.Lock()

    def __call__(self, step: int, index: int) -> NamedPicture:
        """The picture of place `index` in the batch of `step`.

        Raises:
            SceneError: none of many pictures can be used.
        """
        reasons = []
        for number in self.draws.candidates(step, index):
            # A picture that failed before is tried again: what is drawn must not depend on what other draws met.
            try:
                return self.picture(number, self.draws.generator(step, index))
            except (SceneError, OSError) as error:
                reasons.append(str(error))
                self._name_once(number, reasons[-1])
        raise SceneError(f"none of {ATTEMPTS} pictures drawn in a row can be used; the first problem was: {reasons[0]}")

    def _name_once(self, number: int, reason: str) -> None:
        with self._lock:
            if number not in self._named:
                self._named.add(number)
                CONSOLE.print(f"[bold yellow]Training passes over a picture: {reason}")


def collate_pictures(pictures: list[NamedPicture]) -> tuple[tuple[str, ...], UInt8[Tensor, "batch 3 height width"]]:
    """Names and pixels of pictures of one size."""
    names, pixels = zip(*pictures)
    return names, torch.stack(pixels)


def pinned_pictures(pictures: list[NamedPicture]) -> tuple[tuple[str, ...], UInt8[Tensor, "batch 3 height width"]]:
    """The same in memory from which a GPU copies while it computes."""
    names, pixels = collate_pictures(pictures)
    return names, pixels.pin_memory()


def picture_batch(names: tuple[str, ...], pixels: UInt8[Tensor, "batch 3 height width"], device: torch.device | str) -> SceneBatch:
    """Pictures as scenes of one view without a camera, which is context and target at once; in [0, 1] on the device."""
    images = pixels.to(device, non_blocking=True).float().div_(255)[:, None]
    views = Views(height=pixels.shape[2], width=pixels.shape[3], images=images)
    return SceneBatch(context=views, target=views, names=names)


def loaded_ahead(
    chunks: Sequence[range], load: Callable[[int], NamedPicture], num_workers: int
) -> Iterator[tuple[tuple[str, ...], UInt8[Tensor, "batch 3 height width"]]]:
    """The batches of pictures that `chunks` number, in order; threads load one of them ahead."""
    if num_workers == 0:
        yield from (collate_pictures([load(number) for number in chunk]) for chunk in chunks)
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="load-images")
    pending: deque[list[Future[NamedPicture]]] = deque()
    try:
        for chunk in chunks:
            pending.append([pool.submit(load, number) for number in chunk])
            if len(pending) > 1:
                yield collate_pictures([picture.result() for picture in pending.popleft()])
        for batch in pending:
            yield collate_pictures([picture.result() for picture in batch])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
