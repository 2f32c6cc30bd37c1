"""ImagePipeline: single pictures in, one tokenizer out, behind nerfstudio's pipeline interface."""

from __future__ import annotations

import random
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from tyro.conf import Suppress

from token_methods.core.views import SceneBatch, collate_scenes
from token_methods.gaussiantoken.model import GaussianTokenModel, GaussianTokenModelConfig
from token_methods.multiscene.image_datamanager import ImageDataManager
from token_methods.multiscene.image_datamanager_config import ImageDataManagerConfig
from token_methods.multiscene.pipeline import FeedForwardPipeline, FeedForwardPipelineConfig
from token_methods.multiscene.processes import process_rank

if typing.TYPE_CHECKING:
    from token_methods.gaussiantoken.evaluation import Instruments

MAX_PANEL_PICTURES = 8


@dataclass
class ImagePipelineConfig(FeedForwardPipelineConfig):
    """Data manager and model of an image tokenizer."""

    _target: type = field(default_factory=lambda: ImagePipeline)
    datamanager: DataManagerConfig = field(default_factory=ImageDataManagerConfig)
    """Which pictures, and how they come to the network's size."""
    model: ModelConfig = field(default_factory=GaussianTokenModelConfig)
    """The network and its losses."""
    max_evaluation_windows: Suppress[int | None] = None
    max_evaluation_images: int = 1000
    """Pictures evaluated during training, the first ones; ns-eval always takes all of them."""
    lpips_alex_weights: Path | None = None
    """LPIPS (alex) weights as safetensors; by default the cache folders are searched."""
    inception_weights: Path | None = None
    """Inception weights for rFID (pt_inception-2015-12-05-6726825d.pth); by default the cache folders are searched."""


class ImagePipeline(FeedForwardPipeline):
    """Trains and evaluates on batches of pictures, and keeps one picture in hand for the other commands."""

    config: ImagePipelineConfig
    datamanager: ImageDataManager  # type: ignore[assignment]

    @property
    def model(self) -> GaussianTokenModel:
        return typing.cast(GaussianTokenModel, super().model)

    def _renderer_notice(self) -> None:
        """Pictures need no renderer of 3D Gaussians."""

    @torch.no_grad()
    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Metrics and panels of a batch of held-out pictures, drawn by the step.

        Panels are rows of pictures, reconstructions, errors and Gaussians, and how often the batch uses each code.
        """
        from token_methods.gaussiantoken.panels import code_histogram, comparison
        from token_methods.multiscene.evaluation import view_metrics

        batch = self._drawn_window(step)
        assert batch.context.images is not None
        images = batch.context.images[:, 0]
        with self._evaluating():
            decoded = self.model.decode(self.model.encode(batch.context))
        metrics = {name: values.mean() for name, values in view_metrics(decoded.images, images).items()}
        tokens, shown = decoded.tokens, slice(0, MAX_PANEL_PICTURES)
        gaussians = None if tokens.gaussians is None else tokens.gaussians.map(lambda value: value[shown])
        panels = {
            "reconstructions": comparison(images[shown], decoded.images[shown].float(), gaussians, (tokens.height, tokens.width)),
            "code_usage": code_histogram(tokens.indices, self.model.config.architecture.codebook_size),
        }
        return {**metrics, "num_rays": len(images) * images.shape[2] * images.shape[3]}, panels

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, float]:
        """Metrics over the evaluation pictures, see `evaluate_images`.

        `step` is None when `ns-eval` asks, which takes every picture, every measure whose weights are there, and, as published,
        float32. During training it is the first pictures and what needs no further network.

        Raises:
            SceneError: a picture cannot be used.
            WeightsError: weights that were named cannot be used.
        """
        from token_methods.gaussiantoken.evaluation import Instruments, evaluate_images

        data, model, start = self.datamanager, self.model, time.perf_counter()
        limit = self.config.max_evaluation_images if step is not None else None
        instruments = Instruments() if step is not None else self._instruments()
        precision = model.config.precision if step is not None else "float32"
        protocol = {"crop": data.config.evaluation_crop, "precision": precision}
        with self._evaluating(precision):
            total = len(data.evaluation_windows())
            num_images = total if limit is None else min(limit, total)
            summary = evaluate_images(model, data.evaluation_images(limit), num_images, instruments, protocol, output_path, get_std)
        if process_rank()[0] == 0:
            CONSOLE.print(
                f"{f'Step {step}' if step is not None else 'Evaluation'}: PSNR {summary['psnr']:.2f} dB (mean colour "
                f"{summary['mean_colour_psnr']:.2f}), SSIM {summary['ssim']:.3f}, {100 * summary['code_usage']:.1f} % of the codes used, "
                f"over {summary['num_images']:.0f} picture(s) with crop {protocol['crop']}, in {time.perf_counter() - start:.1f} s"
            )
        return summary

    def _instruments(self) -> Instruments:
        """All that can be had; what cannot is said."""
        from token_methods.core.inception import InceptionUnavailable, load_inception
        from token_methods.core.perceptual import LpipsUnavailable, load_lpips
        from token_methods.gaussiantoken.evaluation import Instruments

        def loaded(measures: str, load: Callable[[], Any]) -> Any:
            try:
                return load().to(self.device)
            except (LpipsUnavailable, InceptionUnavailable) as missing:
                if process_rank()[0] == 0:
                    CONSOLE.print(f"{measures} not measured: {missing}")
                return None

        return Instruments(
            lpips=loaded("LPIPS (vgg), VGG16-FD and VGG16-KD are", lambda: load_lpips("vgg", self.config.lpips_weights)),
            lpips_alex=loaded("LPIPS (alex) is", lambda: load_lpips("alex", self.config.lpips_alex_weights)),
            inception=loaded("rFID is", lambda: load_inception(self.config.inception_weights)),
        )

    def _drawn_window(self, step: int) -> SceneBatch:
        """A batch of held-out pictures."""
        data = self.datamanager
        windows = data.evaluation_windows()
        drawn = random.Random(step).sample(windows, min(len(windows), data.config.eval_batch_size))
        return collate_scenes([data.load_window(window) for window in drawn])

    @contextmanager
    def _evaluating(self, precision: Literal["bfloat16", "float32"] | None = None) -> Iterator[None]:
        """Evaluation mode, and another precision if one is given; afterwards as before."""
        was_training, settings = self.training, self.model.config
        before = settings.precision
        self.eval()
        settings.precision = precision or before
        try:
            yield
        finally:
            settings.precision = before
            self.train(was_training)
