"""Training batches as a function of (seed, step): drawn without state, loaded ahead by threads.

Nothing is remembered from one step to the next, so a resumed run sees the batches that the uninterrupted one would have
seen, with any number of workers.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
import torch
from nerfstudio.utils.rich_utils import CONSOLE

from token_methods.core.cameras import mirror
from token_methods.core.views import SceneBatch, Views, collate_scenes
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.sampling import Frames, ViewSampler
from token_methods.multiscene.scenes import Scene
from token_methods.multiscene.view_loading import ViewLoader

Sample = TypeVar("Sample")
Batch = TypeVar("Batch")


@dataclasses.dataclass(frozen=True)
class SceneDraws:
    """Which scene each place of each batch gets: over all processes, no scene twice in a step while there are enough."""

    num_scenes: int
    batch_size: int
    """Scenes per step of one process."""
    rank: int
    world_size: int
    seed: int

    def candidates(self, step: int, index: int) -> Iterator[int]:
        """The scene for place `index` of this process's batch, then the scenes to take where that one cannot be used."""
        place = self.rank * self.batch_size + index
        rounds = math.ceil(self.world_size * self.batch_size / self.num_scenes)
        rng = self._generator(0, step)
        order = np.concatenate([rng.permutation(self.num_scenes) for _ in range(rounds)])
        first = int(order[place])
        yield first
        for other in self._generator(1, step, place).permutation(self.num_scenes):
            if other != first:
                yield int(other)

    def generator(self, step: int, index: int, scene: int) -> np.random.Generator:
        """Random numbers for the views of `scene` in place `index` of this process's batch."""
        return self._generator(2, step, self.rank * self.batch_size + index, scene)

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, *key])))


class SampleLoader:
    """Loads one place of a batch; scenes that cannot be used are named once and passed over."""

    def __init__(
        self,
        draws: SceneDraws,
        scene: Callable[[int], Scene],
        allowed_frames: Callable[[Scene], Frames],
        sampler: ViewSampler,
        loader: ViewLoader,
        num_context: int,
        num_target: int,
        mirror_probability: float,
    ) -> None:
        self.draws = draws
        self.scene = scene
        self.allowed_frames = allowed_frames
        self.sampler = sampler
        self.loader = loader
        self.num_context = num_context
        self.num_target = num_target
        self.mirror_probability = mirror_probability
        self._named: set[int] = set()
        self._lock = threading.Lock()

    def __call__(self, step: int, index: int) -> SceneBatch:
        """The sample of place `index` in the batch of `step`, a batch of one.

        Raises:
            SceneError: no scene at all can be used.
        """
        reasons = []
        for number in self.draws.candidates(step, index):
            # A scene that failed before is tried again: what is drawn must not depend on what other draws met.
            try:
                return self._load(step, index, number)
            except (SceneError, OSError) as error:
                reasons.append(str(error))
                self._name_once(number, reasons[-1])
        raise SceneError(f"none of the {self.draws.num_scenes} training scenes can be used; the first problem was: {reasons[0]}")

    def _load(self, step: int, index: int, number: int) -> SceneBatch:
        scene = self.scene(number)
        rng = self.draws.generator(step, index, number)
        frames = self.allowed_frames(scene)
        try:
            poses = scene.camera_to_world.numpy()
            context, target = self.sampler.draw(frames, self.num_context, self.num_target, rng, step, cameras=poses)
        except ValueError as error:
            raise SceneError(f"scene {scene.path}: {error}") from error
        batch = self.loader.batch(scene, context, target)
        if rng.random() < self.mirror_probability:
            keep = self.loader.convention == "published"
            batch = dataclasses.replace(batch, context=mirror(batch.context, not keep), target=mirror(batch.target, not keep))
        return batch

    def _name_once(self, number: int, reason: str) -> None:
        with self._lock:
            if number not in self._named:
                self._named.add(number)
                CONSOLE.print(f"[bold yellow]Training passes over a scene: {reason}")


class Prefetcher(Generic[Sample, Batch]):
    """Batches loaded ahead by threads: decoding and resizing run outside Python's lock."""

    def __init__(
        self, load: Callable[[int, int], Sample], collate: Callable[[list[Sample]], Batch], batch_size: int, num_workers: int
    ) -> None:
        """`load` gives one place of the batch of a step, `collate` makes a batch of its places."""
        self.load = load
        self.collate = collate
        self.batch_size = batch_size
        self.ahead = math.ceil(2 * num_workers / batch_size)
        self._loaders = ThreadPoolExecutor(num_workers, thread_name_prefix="load-views") if num_workers else None
        self._collator = ThreadPoolExecutor(1, thread_name_prefix="collate-views") if num_workers else None
        self._pending: dict[int, Future[Batch]] = {}

    def start(self, step: int) -> None:
        """Begin to load the batches of `step` and of the steps after it; forget others."""
        wanted = range(step, step + self.ahead + 1)
        for stale in [other for other in self._pending if other not in wanted]:
            self._pending.pop(stale).cancel()
        if self._loaders is None or self._collator is None:
            return
        for other in wanted:
            if other not in self._pending:
                samples = [self._loaders.submit(self.load, other, index) for index in range(self.batch_size)]
                self._pending[other] = self._collator.submit(self._collate, samples)

    def batch(self, step: int) -> Batch:
        """The batch of `step`, on the CPU."""
        if self._loaders is None:
            return self.collate([self.load(step, index) for index in range(self.batch_size)])
        self.start(step)
        return self._pending.pop(step).result()

    def close(self) -> None:
        """End the threads; what is being loaded is dropped."""
        for pool in (self._loaders, self._collator):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    def _collate(self, samples: list[Future[Sample]]) -> Batch:
        return self.collate([sample.result() for sample in samples])


def pinned_scenes(samples: list[SceneBatch]) -> SceneBatch:
    """Samples as one batch whose images can be copied to a GPU while it computes."""
    batch = collate_scenes(samples)
    return dataclasses.replace(batch, context=_pinned(batch.context), target=_pinned(batch.target))


def _pinned(views: Views) -> Views:
    images: torch.Tensor | None = views.images
    return views if images is None else dataclasses.replace(views, images=images.pin_memory())
