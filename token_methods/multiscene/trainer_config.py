"""What can be said about a training run, checked before any process starts."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils.rich_utils import CONSOLE
from tyro.conf import Suppress

from token_methods.multiscene import checkpoints
from token_methods.multiscene.batch_datamanager_config import BatchDataManagerConfig
from token_methods.multiscene.model import FeedForwardModelConfig
from token_methods.multiscene.pipeline import FeedForwardPipelineConfig
from token_methods.multiscene.plain_errors import SettingsError, speak_plainly


def _trainer() -> type:
    from token_methods.multiscene.trainer import FeedForwardTrainer

    return FeedForwardTrainer


@dataclass
class FeedForwardTrainerConfig(TrainerConfig):
    """nerfstudio's trainer settings, and what feed-forward training adds."""

    _target: type = field(default_factory=_trainer)
    pipeline: FeedForwardPipelineConfig = field(default_factory=FeedForwardPipelineConfig)
    """Data and model."""
    max_gradient_norm: float | None = 1.0
    """Clip the gradient's norm over all parameters together; None turns clipping off."""
    accumulated_batches: int = 1
    """Batches whose mean gradient makes one optimisation step."""
    kept_checkpoints: int = 2
    """Newest checkpoints that are kept: when the newest is damaged, the one before serves. 0 keeps all."""
    run_folder: Path | None = None
    """Folder of this run, in the place of OUTPUT_DIR/EXPERIMENT/METHOD/TIMESTAMP."""

    # What nerfstudio's trainer has and this one does in another way, or not at all.
    prompt: Suppress[str | None] = None
    mixed_precision: Suppress[bool] = False
    use_grad_scaler: Suppress[bool] = False
    log_gradients: Suppress[bool] = False
    gradient_accumulation_steps: Suppress[dict[str, int]] = field(default_factory=dict)
    save_only_latest_checkpoint: Suppress[bool] = False

    def get_base_dir(self) -> Path:
        return super().get_base_dir() if self.run_folder is None else self.run_folder

    def get_checkpoint_dir(self) -> Path:
        """The run's checkpoint folder. nerfstudio's commands ask for it and then load `load_step`, or the newest name in there:
        `load_step` is set to the newest checkpoint that can be read.

        Raises:
            CheckpointError: there are checkpoints, and none can be read.
        """
        speak_plainly()
        folder = super().get_checkpoint_dir()
        if self.load_dir is None and any(folder.glob(checkpoints.PATTERN)):
            self.load_step = checkpoints.step_of(checkpoints.newest_readable(folder, mapped=True)[0])
        return folder

    def save_config(self) -> None:
        """Check what can be checked before processes start, and write `config.yml` whole or not at all.

        Raises:
            SettingsError: the machine or the data that the settings ask for are not there, or the folder cannot be written.
            CheckpointError: `load_dir` holds no checkpoint that can be read.
        """
        speak_plainly()
        self.check()
        self.find_checkpoint()
        path = self.get_base_dir() / "config.yml"
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(yaml.dump(self), encoding="utf8")
            os.replace(unfinished, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise SettingsError(f"cannot write {path} ({error.strerror}): make room, or name another --output-dir") from error
        CONSOLE.log(f"Saving config to: {path}")

    def check(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            SettingsError: which, and what to give instead.
        """
        machine, data = self.machine, self.pipeline.datamanager
        dataparser = getattr(data, "dataparser", None)
        devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if machine.device_type == "cuda" and not devices:
            raise SettingsError("no CUDA device is available: add --machine.device-type cpu, or install a CUDA build of torch")
        if machine.num_devices * machine.num_machines > 1 and (machine.device_type != "cuda" or machine.num_devices > devices):
            raise SettingsError(
                f"--machine.num-devices {machine.num_devices} needs as many CUDA devices, and there are {devices}: "
                "nerfstudio starts several processes on CUDA only; name fewer"
            )
        if isinstance(data, BatchDataManagerConfig) and isinstance(self.pipeline.model, FeedForwardModelConfig):
            try:
                self.pipeline.model.check_image_size(data.image_height, data.image_width)
            except ValueError as error:
                raise SettingsError(str(error)) from error
        if self.accumulated_batches < 1:
            raise SettingsError(f"--accumulated-batches {self.accumulated_batches}: at least 1 batch makes a step")
        if self.data is None and data.data is None and dataparser is not None and dataparser.data in (None, Path()):
            raise SettingsError(
                f"no data: write `ns-train {self.method_name} --data FOLDER` (one scene, or a folder of scenes), "
                f"or `ns-train {self.method_name} procedural-data` for scenes that are made here"
            )

    def find_checkpoint(self) -> Path | None:
        """The checkpoint to resume from; `load_dir` and `load_step` are replaced by it in `load_checkpoint`.

        (Left in `config.yml`, they would lead other commands on the new run to the steps of the old one.)

        Raises:
            CheckpointError: `load_dir` holds none that can be read.
        """
        if self.load_dir is not None:
            folder = checkpoints.checkpoint_folder(self.load_dir)
            if self.load_step is None:
                self.load_checkpoint = checkpoints.newest_readable(folder, mapped=True)[0]
            else:
                self.load_checkpoint = checkpoints.checkpoint_path(folder, self.load_step)
            self.load_dir = self.load_step = None
        return self.load_checkpoint
