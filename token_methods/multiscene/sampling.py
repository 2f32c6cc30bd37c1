"""Which frames of a scene are context, and which are targets.

A sampler is a small frozen object; `draw` is a function of its arguments alone, so that a draw can be repeated anywhere.
On a command line a sampler is written `NAME` or `NAME:option=value,option=value`, for example `gap:max_gap=20`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from jaxtyping import Float, Int

Draw = tuple[list[int], list[int]]
"""Context frames, target frames."""
Frames = Int[np.ndarray, " frames"]
"""Frame numbers that may be drawn, ascending."""
Poses = Float[np.ndarray, "all_frames 4 4"]
"""Camera-to-world of every frame of the scene, OpenCV."""


class ViewSampler(Protocol):
    """Draws the views of one training sample."""

    def draw(
        self, frames: Frames, num_context: int, num_target: int, rng: np.random.Generator, step: int, cameras: Poses | None = None
    ) -> Draw:
        """Frame numbers out of `frames`. `step` counts training steps, for samplers that change with time.

        Raises:
            ValueError: the scene has too few frames for this many views.
        """
        ...


@dataclass(frozen=True)
class GapSampler:
    """The training sampler published with TokenGS, call for call, for videos.

    A stretch of `gap` frames is drawn; its ends are context, further context and the targets lie anywhere in it, and a
    target may be a context frame.
    """

    name: ClassVar[str] = "gap"
    min_gap: int = 10
    max_gap: int = 40

    def draw(
        self, frames: Frames, num_context: int, num_target: int, rng: np.random.Generator, step: int, cameras: Poses | None = None
    ) -> Draw:
        _require(len(frames), max(num_context, num_target))
        gap = int(rng.integers(self.min_gap, self.max_gap + 1))
        gap = max(min(len(frames) - 1, gap), num_context - 1)
        start = int(rng.integers(0, len(frames) - gap))
        if num_context > 1:
            inner = sorted(rng.permutation(np.arange(start + 1, start + gap))[: num_context - 2])
            context = [start, *inner, start + gap]
        else:
            context = [start]
        target = rng.permutation(np.arange(start, start + gap + 1))[:num_target]
        return _numbers(frames, context), _numbers(frames, target)


@dataclass(frozen=True)
class NearestSampler:
    """A random camera and those nearest to it in place and direction: for sets of photographs and short scenes.

    Context views are spread over this neighbourhood, targets lie among them; a target is a context view only where the
    scene has too few frames.
    """

    name: ClassVar[str] = "nearest"
    min_spacing: int = 2
    """The neighbourhood holds about this many frames for each context view, at least ..."""
    max_spacing: int = 4
    """... and at most."""

    def draw(
        self, frames: Frames, num_context: int, num_target: int, rng: np.random.Generator, step: int, cameras: Poses | None = None
    ) -> Draw:
        spacing = int(rng.integers(self.min_spacing, self.max_spacing + 1))
        anchor = int(rng.integers(0, len(frames)))
        return self.around(anchor, frames, num_context, num_target, rng, spacing, _cameras_of(frames, cameras))

    def around(
        self,
        anchor: int,
        frames: Frames,
        num_context: int,
        num_target: int,
        rng: np.random.Generator,
        spacing: int,
        cameras: Poses,
    ) -> Draw:
        """The draw around position `anchor` of `frames`; `cameras` are those of `frames`."""
        _require(len(frames), max(num_context, num_target))
        size = min(len(frames), max((num_context - 1) * spacing + 1, num_context + num_target))
        distance = camera_distances(cameras)
        near = np.argsort(distance[anchor], kind="stable")[:size]
        context = near[farthest_first(distance[np.ix_(near, near)], num_context, first=int(distance[anchor][near].argmax()))]
        others = rng.permutation(np.setdiff1d(near, context))
        target = np.concatenate([others, rng.permutation(context)])[:num_target]
        return _numbers(frames, np.sort(context)), _numbers(frames, target)


@dataclass(frozen=True)
class RandomSampler:
    """Any frames of the scene; targets are other frames than the context as far as there are enough."""

    name: ClassVar[str] = "random"

    def draw(
        self, frames: Frames, num_context: int, num_target: int, rng: np.random.Generator, step: int, cameras: Poses | None = None
    ) -> Draw:
        _require(len(frames), max(num_context, num_target))
        order = rng.permutation(len(frames))
        context, others = order[:num_context], order[num_context:]
        return _numbers(frames, np.sort(context)), _numbers(frames, np.concatenate([others, context])[:num_target])


@dataclass(frozen=True)
class UniformSampler:
    """Context evenly over the whole frame list, targets evenly over the rest: the same at every draw."""

    name: ClassVar[str] = "uniform"

    def draw(
        self, frames: Frames, num_context: int, num_target: int, rng: np.random.Generator, step: int, cameras: Poses | None = None
    ) -> Draw:
        _require(len(frames), max(num_context, num_target))
        context = _evenly(np.arange(len(frames)), num_context)
        others = np.setdiff1d(np.arange(len(frames)), context)
        if len(others) < num_target:
            others = np.arange(len(frames))
        return _numbers(frames, context), _numbers(frames, _evenly(others, num_target))


AnySampler = GapSampler | NearestSampler | RandomSampler | UniformSampler
SAMPLERS: dict[str, type[AnySampler]] = {sampler.name: sampler for sampler in (GapSampler, NearestSampler, RandomSampler, UniformSampler)}


def sampler_from_text(text: str) -> AnySampler:
    """`NAME` or `NAME:option=value,...` to a sampler.

    Raises:
        ValueError: no such sampler or option, with those that there are.
    """
    name, _, options = text.partition(":")
    if name not in SAMPLERS:
        raise ValueError(f"no view sampler {name!r}; there are {', '.join(SAMPLERS)}")
    known = [field.name for field in dataclasses.fields(SAMPLERS[name])]
    values: dict[str, int] = {}
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        if key not in known:
            raise ValueError(f"sampler {name!r} has no option {key!r}; it has {', '.join(known) or 'none'}")
        values[key] = int(value)
    return SAMPLERS[name](**values)


def sampler_to_text(sampler: AnySampler) -> str:
    """The text that `sampler_from_text` reads."""
    options = ",".join(f"{key}={value}" for key, value in dataclasses.asdict(sampler).items())
    return f"{sampler.name}:{options}" if options else sampler.name


def camera_distances(cameras: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n n"]:
    """How far cameras are from each other: distance of places plus angle of view directions, each over its median.

    So the measure has no unit, and works for walks (places differ), pans (directions differ) and orbits (both do).
    """
    places, directions = cameras[:, :3, 3].astype(np.float64), cameras[:, :3, 2].astype(np.float64)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    angle = np.arccos(np.clip(directions @ directions.T, -1, 1))
    np.fill_diagonal(angle, 0)
    return _over_median(apart, negligible=1e-9) + _over_median(angle, negligible=1e-3)


def farthest_first(distance: Float[np.ndarray, "n n"], count: int, first: int) -> list[int]:
    """`count` of n points, each the farthest from those taken before it (Gonzalez 1985)."""
    chosen = [first]
    nearest = distance[first].copy()
    while len(chosen) < count:
        nearest[chosen[-1]] = -1
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance[chosen[-1]])
    return chosen


def _over_median(distance: Float[np.ndarray, "n n"], negligible: float) -> Float[np.ndarray, "n n"]:
    pairs = distance[np.triu_indices(len(distance), 1)]
    median = float(np.median(pairs)) if len(pairs) else 0.0
    return distance / median if median > negligible else np.zeros_like(distance)


def _cameras_of(frames: Frames, cameras: Poses | None) -> Poses:
    if cameras is None:
        raise ValueError("the nearest sampler needs the cameras of the scene; use random or uniform for images without cameras")
    return cameras[frames]


def _evenly(frames: Frames, count: int) -> Frames:
    return frames[np.linspace(0, len(frames) - 1, count).round().astype(int)] if count > 1 else frames[[len(frames) // 2]]


def _numbers(frames: Frames, positions: object) -> list[int]:
    return [int(number) for number in frames[np.asarray(positions, dtype=int)]]


def _require(frames: int, needed: int) -> None:
    if frames < needed:
        raise ValueError(f"{frames} images may be drawn, {needed} views are wanted; give more images or fewer context and target views")
