"""A case of the published training reader: which frames it draws, when it mirrors them, and the tensors that come out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataparsers.dl3dv import DL3DVDataParserConfig
from scripts.parity.comparison import Comparison, NotACase, compare_number, compare_tensor, read_report
from scripts.parity.tokengs_case import read_tensors
from scripts.parity.tokengs_options import check_sampler_options, image_size
from token_methods.core.cameras import normalise_batch, rigid_inverse
from token_methods.core.views import SceneBatch, concatenate_views
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.sampling import GapSampler
from token_methods.multiscene.scene_discovery import SceneSource
from token_methods.multiscene.scenes import Scene, parse_scene
from token_methods.multiscene.training_batches import SampleLoader, SceneDraws
from token_methods.multiscene.view_loading import ViewCache, ViewLoader
from token_methods.tokengs.network import network_inputs
from token_methods.tokengs.normalisation import network_frame

EPOCH_SEED = 42
"""The published reader seeds itself anew in each epoch, with the number of the epoch and this."""
REPEATS = 6
"""How often the published presets go through the list of DL3DV scenes in one epoch."""
CACHE_BYTES = 2**28


class PublishedGenerator(np.random.Generator):
    """The two random streams of the published reader as one: numpy's draws the frames, torch's decides about the mirror image."""

    def __init__(self, seed: int) -> None:
        super().__init__(np.random.PCG64(seed))
        self._torch = torch.Generator().manual_seed(seed)
        self.mirrored = False

    def random(self, *_: Any, **__: Any) -> Any:
        """0 for a mirrored sample, 1 for another: below and above any probability between."""
        self.mirrored = bool(torch.rand((), generator=self._torch) >= 0.5)
        return 0.0 if self.mirrored else 1.0


@dataclass(frozen=True)
class PublishedDraws(SceneDraws):
    """One process that asks for the first entry of its list again and again, with generators that run on from draw to draw."""

    stream: PublishedGenerator = field(default_factory=lambda: PublishedGenerator(EPOCH_SEED))

    def candidates(self, step: int, index: int) -> Iterator[int]:
        yield 0

    def generator(self, step: int, index: int, scene: int) -> np.random.Generator:
        return self.stream


def compare_sampler(folder: Path) -> Iterator[Comparison]:
    """Draws of every epoch in the order made, and the stored tensors.

    Raises:
        NotACase: something is missing in the folder, or an option has no counterpart here.
    """
    report, tensors = read_report(folder), read_tensors(folder)
    options, where = report.get("options") or {}, f"{folder / 'case.json'}"
    check_sampler_options(options, where)
    try:
        scenes = DL3DVDataParserConfig(data=folder / "scenes").scene_folders()
        scene = parse_scene(SceneSource(scenes[0].stem, scenes[0], DL3DVDataParserConfig(data=scenes[0])))
        entries = options.get("num_repeat", REPEATS) * len(scenes) - options["batch_size"]
        if "len_after_holding_out_batch" in report:
            yield compare_number("len_after_holding_out_batch", entries, report["len_after_holding_out_batch"], 0)
        for epoch in dict.fromkeys(draw["epoch"] for draw in report["draws"]):
            told = [draw for draw in report["draws"] if draw["epoch"] == epoch]
            stream = PublishedGenerator(epoch + _seed(options, report["draws"][0], scene))
            load = _sample_loader(scene, options, stream, where)
            for step, draw in enumerate(told):
                name, sample = f"draws/{epoch}/{draw['draw']}", load(step, 0)
                views = concatenate_views([sample.context, sample.target], dim=1)
                assert views.frame_indices is not None
                yield compare_tensor(f"{name}/frame_indices", views.frame_indices[0], torch.tensor(draw["frame_indices"]), 0)
                yield compare_number(f"{name}/reflected", options["random_reflect"] and stream.mirrored, draw["reflected"], 0)
                for key, value in _published_tensors(sample, options).items():
                    stored = f"draw_{epoch}_{draw['draw']}/{key}"
                    if stored in tensors:
                        yield compare_tensor(stored, value, tensors[stored])
    except (SceneError, FileNotFoundError, ValueError) as error:
        raise error if isinstance(error, NotACase) else NotACase(f"{folder}: {error}") from error


def _sample_loader(scene: Scene, options: dict[str, Any], stream: PublishedGenerator, where: str) -> SampleLoader:
    return SampleLoader(
        draws=PublishedDraws(num_scenes=1, batch_size=1, rank=0, world_size=1, seed=0, stream=stream),
        scene=lambda _: scene,
        allowed_frames=lambda chosen: np.arange(chosen.num_frames),
        sampler=GapSampler(options["min_gap"], options["max_gap"]),
        loader=ViewLoader(*image_size(options, where), "published", ViewCache(CACHE_BYTES)),
        num_context=options["num_input_views"],
        num_target=options["num_views"] - options["num_input_views"],
        mirror_probability=0.5 if options["random_reflect"] else 0.0,
    )


def _seed(options: dict[str, Any], first: dict[str, Any], scene: Scene) -> int:
    """What the epoch is added to: 42, which is also the usual value of the option `seed`. Where they differ the first draw decides."""
    sampler, views = GapSampler(options["min_gap"], options["max_gap"]), options["num_input_views"]
    for base in (EPOCH_SEED, options["seed"]):
        rng = np.random.default_rng(first["epoch"] + base)
        context, target = sampler.draw(np.arange(scene.num_frames), views, options["num_views"] - views, rng, 0)
        if context + target == first["frame_indices"]:
            return base
    return EPOCH_SEED


def _published_tensors(sample: SceneBatch, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A sample under the published names: what the network is fed, world-to-camera transposed, intrinsics."""
    frame = network_frame(sample, options["camera_normalization_method"], options["camera_scale_method"], options["scene_scale"])
    sample = normalise_batch(sample, frame)
    views = concatenate_views([sample.context, sample.target], dim=1)
    assert views.camera_to_world is not None and views.intrinsics is not None
    return {
        "input": torch.cat(network_inputs(views), dim=2)[0],
        "cam_view_all": rigid_inverse(views.camera_to_world).transpose(-1, -2)[0],
        "intrinsics_all": views.intrinsics[0],
    }
