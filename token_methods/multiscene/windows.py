"""Evaluation windows: fixed sets of context and target frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.evaluation_index import IndexEntry, scene_of_entry
from token_methods.multiscene.sampling import Frames, ViewSampler, camera_distances, farthest_first
from token_methods.multiscene.scenes import Scene


@dataclass(frozen=True)
class EvaluationWindow:
    """What one evaluation of one scene looks at, and what it must render."""

    name: str
    """Unique: the scene, or the scene with what tells its windows apart."""
    scene: str
    context: tuple[int, ...]
    target: tuple[int, ...]


def held_out_frames(num_frames: int, interval: int) -> Frames:
    """Frames that are never trained on: every `interval`-th from the middle of the first interval on (0: none).

    A scene too short for that gives its middle frame, if it has three.
    """
    if interval <= 0:
        return np.arange(0)
    frames = np.arange(num_frames)
    chosen = frames[frames % interval == interval // 2]
    return chosen if len(chosen) or num_frames < 3 else frames[[num_frames // 2]]


def training_frames(num_frames: int, interval: int) -> Frames:
    """The frames that are trained on."""
    return np.setdiff1d(np.arange(num_frames), held_out_frames(num_frames, interval))


def drawn_window(scene: Scene, sampler: ViewSampler, num_context: int, num_target: int, seed: int) -> EvaluationWindow:
    """One window of a scene by a sampler, always the same one.

    Raises:
        SceneError: the scene has too few images.
    """
    rng = np.random.default_rng([seed, scene.num_frames])
    try:
        poses = scene.camera_to_world.numpy()
        context, target = sampler.draw(np.arange(scene.num_frames), num_context, num_target, rng, 0, cameras=poses)
    except ValueError as error:
        raise SceneError(f"scene {scene.path}: {error}") from error
    return EvaluationWindow(scene.name, scene.name, tuple(context), tuple(sorted(target)))


def held_out_frame_windows(scene: Scene, interval: int, num_context: int) -> list[EvaluationWindow]:
    """One window for each held-out frame of a training scene: context are training frames spread around it.

    Raises:
        SceneError: the scene has too few images.
    """
    trained = training_frames(scene.num_frames, interval)
    if len(trained) < num_context:
        raise SceneError(f"scene {scene.path}: {len(trained)} images may be seen, {num_context} context views are wanted; give more images")
    distance = camera_distances(scene.camera_to_world.numpy())
    windows = []
    for frame in held_out_frames(scene.num_frames, interval):
        near = trained[np.argsort(distance[frame][trained], kind="stable")[: 2 * num_context]]
        context = near[farthest_first(distance[np.ix_(near, near)], num_context, first=0)]
        windows.append(EvaluationWindow(f"{scene.name}_{frame:05d}", scene.name, tuple(sorted(map(int, context))), (int(frame),)))
    return windows


def indexed_windows(entries: Sequence[IndexEntry], names: Iterable[str], num_frames: Callable[[str], int]) -> list[EvaluationWindow]:
    """The windows that an evaluation index gives for the scenes of `names`, in the order of the index."""
    names = set(names)
    windows = []
    for entry in entries:
        scene = scene_of_entry(entry.key, names)
        if scene is not None:
            target = entry.target if entry.target is not None else tuple(range(num_frames(scene)))
            windows.append(EvaluationWindow(entry.key, scene, entry.context, target))
    return windows


def in_turns(windows_of_scenes: Sequence[Sequence[EvaluationWindow]]) -> list[EvaluationWindow]:
    """One window of each scene after the other, so that the first few windows show many scenes."""
    longest = max(map(len, windows_of_scenes), default=0)
    return [windows[turn] for turn in range(longest) for windows in windows_of_scenes if turn < len(windows)]


def spread_context(scene: Scene, frames: Frames, num_context: int) -> list[int]:
    """Context views over the whole of a scene: farthest-camera sampling, in frame order.

    Raises:
        SceneError: the scene has too few images.
    """
    if len(frames) < num_context:
        raise SceneError(
            f"scene {scene.path} has {len(frames)} images to look at, {num_context} context views are wanted; "
            "give more images or fewer context views"
        )
    distance = camera_distances(scene.camera_to_world.numpy()[frames])
    centre = int(distance.sum(axis=1).argmin())
    chosen = farthest_first(distance, num_context, first=int(distance[centre].argmax()))
    return sorted(int(frames[index]) for index in chosen)
