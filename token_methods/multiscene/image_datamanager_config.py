"""What can be said about the data of a method that takes single pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from token_methods.multiscene.batch_datamanager_config import BatchDataManagerConfig
from token_methods.multiscene.image_augmentation import EvaluationCrop, TrainAugmentation


def _data_manager() -> type:
    from token_methods.multiscene.image_datamanager import ImageDataManager

    return ImageDataManager


@dataclass
class ImageDataManagerConfig(BatchDataManagerConfig):
    """Pictures, as an image dataparser names them, or all frames of a scene. Each is a scene of one view without a camera."""

    _target: type = field(default_factory=_data_manager)
    dataparser: AnnotatedDataParserUnion = field(default_factory=NerfstudioDataParserConfig)
    """How `--data` is read: cifar-data and image-folder-data are made for pictures."""
    batch_size: int = 4
    """Pictures per step of each process."""
    eval_batch_size: int = 64
    """Pictures per batch of evaluation."""
    train_augmentation: TrainAugmentation = "random-resized-crop"
    """How training pictures come to the network's size: at random, or ("none") with nothing left to chance."""
    evaluation_crop: EvaluationCrop = "resize-centre"
    """How pictures to be evaluated come to it: "centre" cuts or pads without resizing (as published), "resize-centre" resizes by the
    shorter side before, "none" insists on that size."""
    evaluation_split: Literal["val", "test"] = "val"
    """The pictures that are evaluated, in training and by ns-eval (published figures: val)."""
    scene: str | None = None
    """The picture that viewer, renderer and exporter show and ns-eval measures: its name, its number or a file.
    By default the first held-out one is shown, and all are measured."""
