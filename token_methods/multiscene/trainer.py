"""FeedForwardTrainer: nerfstudio's trainer with exact resume, whole checkpoints and the optimisation step of feed-forward training."""

from __future__ import annotations

import contextlib
import copy
import functools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Type

import torch
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tyro.conf import Suppress

from token_methods.multiscene import checkpoints
from token_methods.multiscene.guard import CollapseGuard
from token_methods.multiscene.optimisation import OneCycleSchedulerConfig


@dataclass
class FeedForwardTrainerConfig(TrainerConfig):
    """nerfstudio's trainer settings, and what feed-forward training adds."""

    _target: Type = field(default_factory=lambda: FeedForwardTrainer)
    max_gradient_norm: Optional[float] = 1.0
    """Clip the gradient's norm over all parameters together; None turns clipping off."""
    accumulated_batches: int = 1
    """Batches whose mean gradient makes one optimisation step."""
    kept_checkpoints: int = 2
    """Newest checkpoints that are kept: when the newest is torn, the one before serves."""
    run_folder: Optional[Path] = None
    """Folder of this run, in the place of OUTPUT_DIR/EXPERIMENT/METHOD/TIMESTAMP."""

    # What nerfstudio's trainer has and this one does in another way, or not at all.
    prompt: Suppress[Optional[str]] = None
    mixed_precision: Suppress[bool] = False
    use_grad_scaler: Suppress[bool] = False
    log_gradients: Suppress[bool] = False
    gradient_accumulation_steps: Suppress[dict[str, int]] = field(default_factory=dict)
    save_only_latest_checkpoint: Suppress[bool] = False

    def get_base_dir(self) -> Path:
        return super().get_base_dir() if self.run_folder is None else self.run_folder

    def get_checkpoint_dir(self) -> Path:
        """The run's checkpoint folder; truncated files in it are set aside, because nerfstudio would load the newest name."""
        folder = super().get_checkpoint_dir()
        checkpoints.set_aside_torn(folder)
        return folder


class FeedForwardTrainer(Trainer):
    """Runs `max_num_iterations` optimisation steps in all, over however many interruptions."""

    config: FeedForwardTrainerConfig

    def __init__(self, config: FeedForwardTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        if config.machine.device_type == "cuda" and not torch.cuda.is_available():
            raise SystemExit("no CUDA device is available: add --machine.device-type cpu, or install a CUDA build of torch")
        super().__init__(config, local_rank, world_size)
        self.guard = CollapseGuard()
        self.step_seconds: list[float] = []

    def setup_optimizers(self) -> Optimizers:
        """One optimiser per parameter group; a schedule without a length of its own spans the whole training."""
        settings: dict[str, Any] = copy.deepcopy(dict(self.config.optimizers))
        for group in settings.values():
            if isinstance(group["scheduler"], OneCycleSchedulerConfig) and group["scheduler"].total_steps is None:
                group["scheduler"].total_steps = self.config.max_num_iterations
        return Optimizers(settings, self.pipeline.get_param_groups())

    def train(self) -> None:
        """Run the iterations that are left, then report throughput and peak memory."""
        left = self.config.max_num_iterations - self._start_step
        if left <= 0:
            CONSOLE.print(f"Nothing left to train: the checkpoint is at step {self._start_step} of {self.config.max_num_iterations}")
            return
        self._announce(left)
        started = time.perf_counter()
        # nerfstudio runs `max_num_iterations` more steps after a resume; it is told the remainder.
        total, self.config.max_num_iterations = self.config.max_num_iterations, left
        try:
            super().train()
        finally:
            self.config.max_num_iterations = total
            self.pipeline.datamanager.close()
        self._report(time.perf_counter() - started)

    def train_iteration(self, step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """One optimisation step: mean gradient of the accumulated batches, clipped over all parameters."""
        started = time.perf_counter()
        self.optimizers.zero_grad_all()
        count = self.config.accumulated_batches
        loss = torch.zeros((), device=self.device)
        for index in range(count):
            with self._gradients_synchronised(index == count - 1):
                outputs, loss_dict, metrics = self.pipeline.get_train_loss_dict(step=step * count + index)
                batch_loss = functools.reduce(torch.add, loss_dict.values()) / count
                batch_loss.backward()
            loss = loss + batch_loss.detach()
        parameters = [parameter for group in self.optimizers.parameters.values() for parameter in group]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_gradient_norm or float("inf"), foreach=True)
        self.guard.observe(step, loss, norm, outputs.health)
        for optimizer in self.optimizers.optimizers.values():
            optimizer.step()
        self.optimizers.scheduler_step_all(step)
        self.step_seconds.append(time.perf_counter() - started)
        return loss, loss_dict, {**metrics, "gradient_norm": norm}

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Model, optimisers, schedules and random states; refused after a collapse, so that the last good one stays."""
        self.guard.check()
        state = {
            "step": step,
            "pipeline": self.pipeline.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
            "random_states": checkpoints.random_states(),
        }
        checkpoints.write_checkpoint(self.checkpoint_dir, step, state, keep=self.config.kept_checkpoints)

    def _load_checkpoint(self) -> None:
        folder, path = self.config.load_dir, self.config.load_checkpoint
        if folder is None and path is None:
            CONSOLE.print("Training from scratch: no checkpoint was named")
            return
        if folder is not None and self.config.load_step is None:
            path, state = checkpoints.newest_readable(folder)
        else:
            path = path if folder is None else checkpoints.checkpoint_path(folder, self.config.load_step or 0)
            assert path is not None
            state = checkpoints.read_checkpoint(path)
        self._start_step = state["step"] + 1
        self.pipeline.load_pipeline(state["pipeline"], state["step"])
        self.optimizers.load_optimizers(state["optimizers"])
        if self.config.load_scheduler:
            self.optimizers.load_schedulers(state["schedulers"])
        self.grad_scaler.load_state_dict(state["scalers"])
        if "random_states" in state:
            checkpoints.restore_random_states(state["random_states"])
        CONSOLE.print(f"Resuming after step {state['step']} from {path}")

    def _gradients_synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients once per optimisation step, on its last batch."""
        model = self.pipeline._model
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else contextlib.nullcontext()  # type: ignore[return-value]

    @check_main_thread
    def _announce(self, left: int) -> None:
        parameters = sum(parameter.numel() for parameter in self.pipeline.model.parameters())
        CONSOLE.print(f"Training {self.config.method_name}: {parameters / 1e6:.1f} M parameters, {left} steps, {self.world_size} process(es) on {self.device}")
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()

    @check_main_thread
    def _report(self, seconds: float) -> None:
        # The device works behind the host's back between the guard's looks, so single steps say little and a mean says all.
        settled = self.step_seconds[len(self.step_seconds) // 2 :]
        memory = f", peak GPU memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB" if self.device.startswith("cuda") else ""
        CONSOLE.print(
            f"Trained {len(self.step_seconds)} steps in {seconds:.1f} s; {1000 * sum(settled) / max(len(settled), 1):.1f} ms a step "
            f"over the second half, without evaluation{memory}"
        )
