"""FeedForwardPipeline: many scenes in, one model out, behind nerfstudio's pipeline interface."""

from __future__ import annotations

import random
import time
import typing
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.pipelines.base_pipeline import Pipeline, VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from token_methods.core.views import SceneBatch
from token_methods.core.weights import compare_keys, require_finite
from token_methods.multiscene.datamanager import MultiSceneDataManager
from token_methods.multiscene.datamanager_config import MultiSceneDataManagerConfig
from token_methods.multiscene.model import FeedForwardModel, FeedForwardModelConfig, GaussianSceneModel, Progress, TrainingOutputs
from token_methods.multiscene.processes import process_rank
from token_methods.multiscene.progress import tuning_progress
from token_methods.multiscene.run_options import run_options
from token_methods.multiscene.viewer import SceneViewer
from token_methods.rendering.rasterize import gsplat_notice


@dataclass
class FeedForwardPipelineConfig(VanillaPipelineConfig):
    """Data manager and model of a feed-forward method."""

    _target: type = field(default_factory=lambda: FeedForwardPipeline)
    datamanager: DataManagerConfig = field(default_factory=MultiSceneDataManagerConfig)
    """Which scenes, and how views are drawn from them."""
    model: ModelConfig = field(default_factory=FeedForwardModelConfig)
    """The network and its losses."""
    max_evaluation_windows: int | None = 8
    """Scenes evaluated during training; ns-eval always takes all of them."""
    lpips_weights: Path | None = None
    """LPIPS (vgg) weights as safetensors; by default the cache folders are searched."""
    initial_weights: Path | None = None
    """Start from the network of another run (`config.yml`'s folder, a checkpoint or a safetensors file) instead of from scratch."""


class FeedForwardPipeline(VanillaPipeline):
    """Trains over many scenes, evaluates on held-out ones, and keeps one scene in hand for the other commands."""

    config: FeedForwardPipelineConfig
    datamanager: MultiSceneDataManager
    seconds_to_reconstruct: float
    """From images to the Gaussians of the scene in hand, tuning included, without reading the images."""

    def __init__(
        self,
        config: FeedForwardPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        Pipeline.__init__(self)
        self.config = config
        self.test_mode = test_mode
        self.world_size = world_size
        if test_mode != "val":  # what a trained run is looked at with says nothing of a new training
            run_options().apply(config)
        self.datamanager = config.datamanager.setup(device=device, test_mode=test_mode, world_size=world_size, local_rank=local_rank)
        self.datamanager.to(device)
        self._model = typing.cast(
            Model,
            config.model.setup(
                scene_box=self.datamanager.train_dataset.scene_box,
                num_train_data=len(self.datamanager.train_dataset),
                metadata={},
                device=device,
                grad_scaler=grad_scaler,
            ),
        )
        self.model.to(device)
        notice = self._renderer_notice()
        if torch.device(device).type == "cuda" and notice is not None and process_rank()[0] == 0:
            CONSOLE.print(notice)
        self.scene_viewer = SceneViewer(self)
        for name, element in self.scene_viewer.controls.items():
            setattr(self, name, element)
        if config.initial_weights is not None and test_mode == "val":
            self.model.load_initial_weights(config.initial_weights)
            if self.model.average is not None:
                self.model.average.restart(self.model.get_submodule("network"))
        if world_size > 1:
            on_cuda = torch.device(device).type == "cuda"
            self._model = typing.cast(
                Model,
                DistributedDataParallel(self._model, device_ids=[local_rank] if on_cuda else None, find_unused_parameters=True),
            )

    @property
    def model(self) -> FeedForwardModel:
        return typing.cast(FeedForwardModel, super().model)

    def _renderer_notice(self) -> str | None:
        """What whoever renders on CUDA should know."""
        return gsplat_notice() if isinstance(self.model, GaussianSceneModel) else None

    # Training.

    def get_train_loss_dict(self, step: int) -> tuple[TrainingOutputs, dict[str, Tensor], dict[str, Tensor]]:
        """One batch through the (possibly data-parallel) model. `step` counts batches."""
        outputs: TrainingOutputs = self._model(self.datamanager.next_train_batch(step))
        return outputs, outputs.losses, outputs.metrics

    def get_following_loss_dict(self, previous: TrainingOutputs) -> tuple[TrainingOutputs, dict[str, Tensor], dict[str, Tensor]]:
        """The next part of the training step on the same batch, see `FeedForwardModel.step_parts`."""
        outputs: TrainingOutputs = self._model(previous)
        return outputs, outputs.losses, outputs.metrics

    def get_training_callbacks(self, training_callback_attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        callbacks = super().get_training_callbacks(training_callback_attributes)
        if self.scene_viewer.is_open:
            callbacks.append(TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self.scene_viewer.follow_training))
        return callbacks

    # The scene in hand.

    def select_scene(self, scene: int | str, tuning_steps: int | None = None, progress: Progress | None = None) -> None:
        """Take another scene in hand, encode and decode its context views once. After an error the one before is in hand."""
        before = self.datamanager.current.name
        try:
            self.datamanager.select_scene(scene)
            self.refresh_scene(tuning_steps, progress)
        except Exception:
            self.datamanager.select_scene(before)
            raise

    @torch.no_grad()
    def refresh_scene(self, tuning_steps: int | None = None, progress: Progress | None = None) -> None:
        """Encode the scene in hand anew: after loading weights, choosing a scene, or training on.

        Args:
            tuning_steps: steps of test-time tuning; by default as configured.
            progress: is told of each of them; by default a bar on the console is.
        """
        was_training = self.model.training
        self.model.eval()
        steps = self.model.config.tuning_steps if tuning_steps is None else tuning_steps
        batch = self.datamanager.scene_batch()
        started = time.perf_counter()
        try:
            with torch.enable_grad(), tuning_progress(steps) if progress is None else nullcontext(progress) as told:
                scene = self.model.reconstruct(batch, tuning_steps=steps, progress=told)
        finally:
            self.model.train(was_training)
        if batch.context.device.type == "cuda":
            torch.cuda.synchronize(batch.context.device)
        self.seconds_to_reconstruct = time.perf_counter() - started
        self.model.scene = scene

    # Evaluation.

    def get_eval_loss_dict(self, step: int) -> tuple[TrainingOutputs, dict[str, Tensor], dict[str, Tensor]]:
        """Losses of one held-out scene, drawn by the step."""
        batch = self._drawn_window(step)
        self.eval()
        with torch.no_grad():
            outputs: TrainingOutputs = self.model(batch)
        self.train()
        return outputs, outputs.losses, outputs.metrics

    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Panels (context, target, prediction, depth, error) and metrics of one held-out scene, drawn by the step."""
        from token_methods.multiscene.evaluation import view_metrics
        from token_methods.multiscene.panels import scene_panels

        batch = self._drawn_window(step)
        self.eval()
        scene = self.model.reconstruct(batch, tuning_steps=0)
        rendered = self.model.render_scene(scene, batch.target)
        assert batch.target.images is not None
        metrics = {name: values.mean() for name, values in view_metrics(rendered.images[0], batch.target.images[0]).items()}
        self.train()
        return {**metrics, "num_rays": batch.target.num_views * batch.target.height * batch.target.width}, scene_panels(batch, rendered)

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, float]:
        """Metrics over the evaluation scenes; `step` is None when `ns-eval` asks, which takes every scene."""
        from token_methods.core.perceptual import LpipsUnavailable, load_lpips
        from token_methods.multiscene.evaluation import evaluate

        windows = list(self.datamanager.evaluation_windows())
        lpips = None
        if step is not None:
            windows = windows[: self.config.max_evaluation_windows]
        else:
            try:
                lpips = load_lpips("vgg", self.config.lpips_weights).to(self.device)
            except LpipsUnavailable as missing:
                CONSOLE.print(f"LPIPS is not measured: {missing}")
        start = time.perf_counter()
        self.eval()
        summary = evaluate(
            self.model,
            windows,
            self.datamanager.load_window,
            lpips=lpips,
            output_path=output_path,
            with_std=get_std,
            tuning_steps=0 if step is not None else None,
        )
        self.train()
        if step is not None and process_rank()[0] == 0:
            CONSOLE.print(
                f"Step {step}: PSNR {summary['psnr']:.2f} dB (nearest context view {summary['nearest_context_psnr']:.2f}, mean colour "
                f"{summary['mean_colour_psnr']:.2f}) over {summary['num_scenes']:.0f} scene(s), in {time.perf_counter() - start:.1f} s"
            )
        return summary

    def _drawn_window(self, step: int) -> SceneBatch:
        # Steps of evaluation are multiples of a round number: counting through the windows by the step would meet few of them.
        windows = self.datamanager.evaluation_windows()
        return self.datamanager.load_window(random.Random(step).choice(windows))

    # Loading.

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a checkpoint strictly, then encode the scene in hand with the new weights."""
        self.load_state_dict(loaded_state)
        if self.test_mode != "val":
            self.refresh_scene()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool | None = True, assign: bool = False) -> None:
        """Every key must be there, none may be left over, and every shape must fit.

        Raises:
            WeightsError: the difference, key by key; or weights that are not finite.
        """
        prefixes = ("module.", "_model.", "module.")
        weights = {}
        for key, value in state_dict.items():
            for prefix in prefixes:
                key = key.removeprefix(prefix)
            weights[key] = value
        source, fix = "the checkpoint", "take the method and the options that it was trained with"
        compare_keys(weights, self.model.state_dict(), source, fix)
        require_finite(weights, source)
        self.model.load_state_dict(weights, strict=True)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The model alone, under nerfstudio's prefix: the same keys with and without data parallelism."""
        return {f"_model.{key}": value for key, value in self.model.state_dict().items()}
