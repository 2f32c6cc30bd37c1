"""MultiSceneDataManager: batches over many scenes for training, windows for evaluation, and one scene in hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nerfstudio.data.datamanagers.base_datamanager import DataManager
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataparserOutputs
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader
from nerfstudio.utils.rich_utils import CONSOLE

from token_methods.core.cameras import Similarity
from token_methods.core.views import SceneBatch, collate_scenes
from token_methods.multiscene.batch_datamanager import BatchDataManager
from token_methods.multiscene.datamanager_config import MultiSceneDataManagerConfig as MultiSceneDataManagerConfig
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.evaluation_index import IndexEntry, read_evaluation_index, scene_of_entry
from token_methods.multiscene.sampling import Frames
from token_methods.multiscene.scene_dataset import SceneDataset
from token_methods.multiscene.scene_discovery import SceneSource, dataparser_that_reads, find_scenes
from token_methods.multiscene.scene_split import SceneSplit, decide_split
from token_methods.multiscene.scenes import ParsedScenes, Scene
from token_methods.multiscene.training_batches import Prefetcher, SampleLoader, SceneDraws, pinned_scenes
from token_methods.multiscene.view_loading import ViewCache, ViewLoader
from token_methods.multiscene.windows import (
    EvaluationWindow,
    drawn_window,
    held_out_frame_windows,
    in_turns,
    indexed_windows,
    spread_context,
    training_frames,
)


class MultiSceneDataManager(BatchDataManager):
    """Scenes of any dataparser for feed-forward methods.

    Training reads `next_train_batch`, evaluation `evaluation_windows` and `load_window`. For the commands that look at one
    scene, `train_dataset` holds its context views and `eval_dataset` its other views, both undistorted.

    Raises:
        SceneError: `--data` holds no scene, the lists of scenes contradict each other, or the scene in hand cannot be read.
    """

    config: MultiSceneDataManagerConfig
    train_dataset: SceneDataset
    eval_dataset: SceneDataset

    def __init__(
        self,
        config: MultiSceneDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        self._begin(config, device, test_mode, world_size, local_rank)
        self.sources: dict[str, SceneSource] = {source.name: source for source in self._find_scenes()}
        self.index_entries: list[IndexEntry] = (
            [] if config.evaluation_index is None else read_evaluation_index(config.evaluation_index, config.num_context_views)
        )
        self.split = self._split()
        self.held_out_interval = config.held_out_frame_interval or (8 if len(self.sources) == 1 else 0)
        self.parsed = ParsedScenes()
        self.view_loader = ViewLoader(config.image_height, config.image_width, config.crop_convention, ViewCache(self._budget()))
        self._one_scene = config.scene is not None and test_mode != "val"
        self._open_first_scene()
        DataManager.__init__(self)

    # Training.

    def setup_train(self) -> None:
        """Begin to load the first batches; only when training."""
        if self.test_mode == "val" and self.split.train:
            self._batches().start(0)

    def next_train_batch(self, step: int) -> SceneBatch:
        """The batch of a step, on the device. It depends on seed, step and process alone, not on earlier calls.

        Raises:
            SceneError: no scene is left that could be trained on.
        """
        return self._batches().batch(step).to(self.device)

    def get_train_rays_per_batch(self) -> int:
        """Pixels supervised per step and process."""
        return self.config.batch_size * self.config.num_target_views * self.config.image_height * self.config.image_width

    def get_eval_rays_per_batch(self) -> int:
        return self.config.num_target_views * self.config.image_height * self.config.image_width

    # Evaluation.

    def evaluation_windows(self) -> Sequence[EvaluationWindow]:
        """What `config.evaluate` names; by default held-out scenes if there are any, else held-out frames.

        A command on a trained run that names a scene gets the windows of that scene alone.

        Raises:
            SceneError: nothing is held out, or a scene cannot be read.
        """
        if self._one_scene:
            return self._windows_of(self.current)
        wanted = self.config.evaluate or ("held-out-scenes" if self.split.evaluation else "held-out-frames")
        windows = self._held_out_scenes if wanted == "held-out-scenes" else self._held_out_frames
        if not windows:
            raise SceneError(f"there are no {wanted} to evaluate: set --eval-scene-fraction, --eval-scenes or --held-out-frame-interval")
        return windows

    def load_window(self, window: EvaluationWindow) -> SceneBatch:
        """Context and targets of a window on the device, a batch of one.

        Raises:
            SceneError: an image cannot be read, or the window names a frame that the scene does not have.
        """
        scene = self.scene(window.scene)
        wrong = [frame for frame in (*window.context, *window.target) if frame >= scene.num_frames]
        if wrong:
            raise SceneError(
                f"the evaluation index names frame {wrong[0]} of scene {window.scene}, which has {scene.num_frames} frames "
                "(counted from 0, sorted by file name); check that it was made for these data"
            )
        return self.view_loader.batch(scene, list(window.context), list(window.target)).to(self.device)

    # The scene in hand.

    @property
    def scene_names(self) -> list[str]:
        """All scenes: those held out first, then those trained on."""
        listed = [*self.split.evaluation, *self.split.train]
        return listed + [name for name in self.sources if name not in set(listed)]

    @property
    def scene_index(self) -> int:
        """Number of the scene in hand in `scene_names`."""
        return self.scene_names.index(self.current.name)

    def select_scene(self, scene: int | str | Path) -> None:
        """Take a scene in hand by its number, its name, or the folder of a scene outside the data.

        Raises:
            SceneError: there is no such scene, or it cannot be read.
        """
        self._open(self._name_of(scene))
        self.config.scene = self.current.name

    def scene(self, name: str) -> Scene:
        """A scene by name, parsed when first asked for.

        Raises:
            SceneError: it cannot be read.
        """
        return self.parsed[self.sources[name]]

    def scene_batch(self, max_targets: int | None = 32) -> SceneBatch:
        """The scene in hand at the network's size: its context views, and its other views (evenly chosen if there are more)."""
        target = self.other_frames
        if max_targets is not None and len(target) > max_targets:
            target = [target[i] for i in np.linspace(0, len(target) - 1, max_targets).round().astype(int)]
        return self.view_loader.batch(self.current, self.context_frames, target).to(self.device)

    def scene_frame(self) -> Similarity:
        """Original world -> dataset frame of the scene in hand, float64, a batch of one."""
        return self.current.frame

    def get_datapath(self) -> Path:
        """Folder of the scene in hand: camera paths drawn in the viewer are stored there."""
        return self.current.path if self.current.path.is_dir() else self.current.path.parent

    def _open(self, name: str) -> None:
        scene = self.scene(name)
        context = self._context_of(scene)
        other = [frame for frame in range(scene.num_frames) if frame not in set(context)]
        if len(other) < 2:
            other = list(range(scene.num_frames))
        self.current: Scene = scene
        self.context_frames, self.other_frames = context, other
        self.train_dataset = SceneDataset(scene, context)
        self.eval_dataset = SceneDataset(scene, other)
        self.train_dataparser_outputs: DataparserOutputs = self.train_dataset._dataparser_outputs
        self.dataparser: DataParser = scene.parser
        self.dataparser_config = self.sources[name].dataparser
        self.includes_time = bool(scene.parser.includes_time)
        self.eval_dataloader = RandIndicesEvalDataloader(self.eval_dataset, device=self.device)
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)

    def _open_first_scene(self) -> None:
        if self.config.scene is not None:
            return self._open(self._name_of(self.config.scene))
        names = self.scene_names
        for name in names:
            try:
                return self._open(name)
            except SceneError as error:
                if self.test_mode != "val" or name == names[-1]:
                    raise
                CONSOLE.print(f"[bold yellow]Scene {name} is not shown: {error}")

    def _name_of(self, scene: int | str | Path) -> str:
        names = self.scene_names
        text = str(scene)
        if text in self.sources:
            return text
        if text.isdigit():
            if int(text) >= len(names):
                raise SceneError(f"there is no scene number {scene}: the data hold {len(names)} scenes, counted from 0")
            return names[int(text)]
        if not Path(text).exists():
            shown = ", ".join(names[:12]) + (" ..." if len(names) > 12 else "")
            raise SceneError(f"there is no scene {text!r} in the data, and no such folder; there are {shown}")
        source = find_scenes(Path(text), dataparser_that_reads(Path(text), self.config.dataparser))[0]
        known = self.sources.get(source.name)
        if known is not None and known.path.resolve() != source.path.resolve():
            source = SceneSource(source.path.resolve().as_posix(), source.path, source.dataparser)
        self.sources.setdefault(source.name, source)
        return source.name

    def _context_of(self, scene: Scene) -> list[int]:
        for entry in self.index_entries:
            if scene_of_entry(entry.key, self.sources) == scene.name and max(entry.context) < scene.num_frames:
                return list(entry.context)
        seen = self._frames_seen(scene)
        if len(seen) < self.config.num_context_views:  # a handful of photographs: all are needed
            seen = np.arange(scene.num_frames)
        return spread_context(scene, seen, self.config.num_context_views)

    # What is trained on and what is held out.

    def _find_scenes(self) -> list[SceneSource]:
        assert self.config.data is not None
        try:
            return find_scenes(Path(self.config.data), self.config.dataparser)
        except SceneError as error:
            if self.test_mode == "val":
                raise
            raise SceneError(f'{error}; other data for this run can be named with NERFSTUDIO_TOKENS="--data FOLDER"') from error

    def _split(self) -> SceneSplit:
        config, names = self.config, list(self.sources)
        indexed = {scene_of_entry(entry.key, names) for entry in self.index_entries}
        return decide_split(
            names,
            config.eval_scene_fraction,
            config.seed,
            train=config.train_scenes,
            evaluation=config.eval_scenes,
            split_file=config.scene_split,
            indexed=[name for name in names if name in indexed],
            must_exist=self.test_mode == "val",
        )

    def _frames_seen(self, scene: Scene) -> Frames:
        """Frames of a scene that may be looked at: all but those held out of training scenes."""
        return training_frames(scene.num_frames, self.held_out_interval if scene.name in self.split.train else 0)

    @cached_property
    def _held_out_scenes(self) -> list[EvaluationWindow]:
        config, names = self.config, self.split.evaluation
        if not self.index_entries:
            views = config.num_context_views, config.num_target_views
            return [drawn_window(self.scene(name), config.evaluation_sampler, *views, config.seed) for name in names]
        windows = indexed_windows(self.index_entries, names, lambda name: self.scene(name).num_frames)
        if not windows:
            raise SceneError(f"{config.evaluation_index} names none of the held-out scenes ({', '.join(names) or 'none'})")
        return windows

    def _windows_of(self, scene: Scene) -> list[EvaluationWindow]:
        """How one scene is measured, whether it was held out or not."""
        config = self.config
        indexed = indexed_windows(self.index_entries, [scene.name], lambda _: scene.num_frames)
        if indexed:
            return indexed
        if scene.name in self.split.train and self.held_out_interval:
            return held_out_frame_windows(scene, self.held_out_interval, config.num_context_views)
        return [drawn_window(scene, config.evaluation_sampler, config.num_context_views, config.num_target_views, config.seed)]

    @cached_property
    def _held_out_frames(self) -> list[EvaluationWindow]:
        views = self.config.num_context_views
        return in_turns([held_out_frame_windows(self.scene(name), self.held_out_interval, views) for name in self.split.train])

    # Loading.

    def _batches(self) -> Prefetcher:
        if self.prefetcher is None:
            config, names = self.config, list(self.split.train)
            if not names:
                raise SceneError("no scene is left to train on: all are held out; lower --eval-scene-fraction or name --train-scenes")
            load = SampleLoader(
                draws=SceneDraws(len(names), config.batch_size, self.rank, self.world_size, config.seed),
                scene=lambda number: self.scene(names[number]),
                allowed_frames=self._frames_seen,
                sampler=config.train_sampler,
                loader=self.view_loader,
                num_context=config.num_context_views,
                num_target=config.num_target_views,
                mirror_probability=config.mirror_probability,
            )
            collate = pinned_scenes if torch.device(self.device).type == "cuda" else collate_scenes
            self.prefetcher = Prefetcher(load, collate, config.batch_size, config.num_workers)
        return self.prefetcher
