"""What can be said about the data of a feed-forward method."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from token_methods.core.crops import CropConvention
from token_methods.multiscene.batch_datamanager_config import BatchDataManagerConfig
from token_methods.multiscene.sampling import SAMPLERS, AnySampler, NearestSampler, sampler_from_text, sampler_to_text

SamplerOption = Annotated[
    AnySampler,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(SAMPLERS)}}}[:OPTION=VALUE,...]",
        instance_from_str=lambda text: sampler_from_text(text[0]),
        is_instance=lambda value: isinstance(value, tuple(SAMPLERS.values())),
        str_from_instance=lambda sampler: [sampler_to_text(sampler)],
    ),
]


def _data_manager() -> type:
    from token_methods.multiscene.datamanager import MultiSceneDataManager

    return MultiSceneDataManager


@dataclass
class MultiSceneDataManagerConfig(BatchDataManagerConfig):
    """Many scenes from any nerfstudio dataparser. `--data` is one scene, a folder of scenes, or a list of scene folders."""

    _target: type = field(default_factory=_data_manager)
    dataparser: AnnotatedDataParserUnion = field(default_factory=NerfstudioDataParserConfig)
    """How one scene is read."""
    crop_convention: CropConvention = "exact"
    """How the principal point follows the centre crop: "published" keeps the half-pixel mismatch of the TokenGS publication."""
    num_context_views: int = 4
    """Views that the method looks at."""
    num_target_views: int = 4
    """Views that it must render."""
    batch_size: int = 1
    """Scenes per step of each process."""
    train_sampler: SamplerOption = field(default_factory=NearestSampler)
    """How context and target views are drawn in training."""
    evaluation_sampler: SamplerOption = field(default_factory=NearestSampler)
    """How they are drawn, once and for all, in scenes that the evaluation index does not name."""
    eval_scene_fraction: float = 0.1
    """Share of the scenes that is held out for evaluation; one scene alone is always trained on (see held_out_frame_interval)."""
    train_scenes: tuple[str, ...] | None = None
    """Names of the scenes to train on; the others are held out unless eval_scenes says which."""
    eval_scenes: tuple[str, ...] | None = None
    """Names of the scenes to hold out."""
    scene_split: Path | None = None
    """The two lists as a JSON file: {"train": [...], "test": [...]}."""
    held_out_frame_interval: int = 0
    """Keep every n-th frame of the training scenes out of training, to be evaluated as new views; 0 keeps none (8 for one scene alone)."""
    evaluation_index: Path | None = None
    """JSON file of context and target frames per scene (pixelSplat's form); its scenes are held out when no list says otherwise."""
    evaluate: Literal["held-out-scenes", "held-out-frames"] | None = None
    """What is evaluated; by default held-out scenes if there are any, else held-out frames of the training scenes."""
    mirror_probability: float = 0.0
    """Share of training samples that are reflected left to right."""
    scene: str | None = None
    """The scene that viewer, renderer and exporter show and ns-eval measures: its name, its number or its folder.
    By default the first held-out one is shown, and all are measured."""
