"""FeedForwardTrainer: nerfstudio's trainer with exact resume, whole checkpoints and the optimisation step of feed-forward training."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import resource
import time
from typing import Any, Literal

import torch
import torch.distributed as dist
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils import profiler, writer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.misc import step_check
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from token_methods.multiscene import checkpoints
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.guard import CollapseGuard, TrainingCollapsed
from token_methods.multiscene.model import TrainingOutputs
from token_methods.multiscene.pipeline import FeedForwardPipeline
from token_methods.multiscene.processes import process_rank
from token_methods.multiscene.trainer_config import FeedForwardTrainerConfig as FeedForwardTrainerConfig

FIRST_STEPS = 20
"""Steps after which throughput and memory are told for the first time; the earlier half of them warms up."""


class FeedForwardTrainer(Trainer):
    """Runs `max_num_iterations` optimisation steps in all, over however many interruptions."""

    config: FeedForwardTrainerConfig
    pipeline: FeedForwardPipeline

    def __init__(self, config: FeedForwardTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        config.find_checkpoint()
        super().__init__(config, local_rank, world_size)
        if self.device.startswith("cuda"):
            torch.cuda.set_device(self.device)  # collectives, peak memory and random states are those of the current device
            torch.backends.cudnn.benchmark = True  # images of a training have one size
        self.guard = CollapseGuard()
        self.step_seconds: list[float] = []
        self.said: set[str] = set()

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        if self.config.load_checkpoint is not None:
            self.config.pipeline.initial_weights = None  # the checkpoint replaces them, and their file may be gone
        super().setup(test_mode)

    def setup_optimizers(self) -> Optimizers:
        """One optimiser per parameter group; a schedule without a length of its own spans the whole training."""
        settings: dict[str, Any] = copy.deepcopy(dict(self.config.optimizers))
        for group in settings.values():
            if getattr(group["scheduler"], "total_steps", 0) is None:
                group["scheduler"].total_steps = self.config.max_num_iterations
        return Optimizers(settings, self.pipeline.get_param_groups())

    def train(self) -> None:
        """Run the iterations that are left, then report throughput and peak memory.

        Raises:
            TrainingCollapsed: what happened, what to change, and which checkpoint is the last good one.
        """
        left = self.config.max_num_iterations - self._start_step
        if left <= 0:
            CONSOLE.print(f"Nothing left to train: the checkpoint is at step {self._start_step} of {self.config.max_num_iterations}")
            self.pipeline.datamanager.close()
            return
        self._announce(left)
        started = time.perf_counter()
        # nerfstudio runs `max_num_iterations` more steps after a resume; it is told the remainder.
        total, self.config.max_num_iterations = self.config.max_num_iterations, left
        try:
            super().train()
        except TrainingCollapsed as collapse:
            written = sorted(self.checkpoint_dir.glob(checkpoints.PATTERN))
            good = [path for path in written if checkpoints.step_of(path) < collapse.began - 1]
            last = f"The last good checkpoint is {good[-1]} (resume with --load-checkpoint)" if good else "There is no good checkpoint yet"
            raise TrainingCollapsed(f"training collapsed at {collapse} {last}.", collapse.began) from collapse
        finally:
            self.config.max_num_iterations = total
            self.pipeline.datamanager.close()
        self._report(f"Trained {len(self.step_seconds)} steps in {time.perf_counter() - started:.1f} s, evaluation included")

    @profiler.time_function
    def train_iteration(self, step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """One optimisation step: for each of its parts the mean gradient of the accumulated batches, clipped over all parameters."""
        started = time.perf_counter()
        model = self.pipeline.model
        loss = torch.zeros((), device=self.device)
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        passes: list[TrainingOutputs] = []
        for number, names in enumerate(model.step_parts or (tuple(self.optimizers.optimizers),)):
            passes, part_loss, part_losses, part_metrics, norm = self._optimise(step, names, passes)
            loss = loss + part_loss
            losses |= part_losses
            metrics |= {**part_metrics, "gradient_norm" if number == 0 else f"gradient_norm/{names[0]}": norm}
            if number == 0:
                health, first_norm = passes[-1].health, norm
                scenes = tuple(name for outputs in passes for name in outputs.scenes)
        self.guard.observe(step, loss, first_norm, health, scenes)
        if model.average is not None:
            model.average.update_parameters(model.get_submodule("network"))
        self._log_betas(step)
        self.optimizers.scheduler_step_all(step)
        self.step_seconds.append(time.perf_counter() - started)
        if len(self.step_seconds) == FIRST_STEPS:
            self._report(f"First {FIRST_STEPS} steps")
        return loss, losses, metrics

    def _optimise(
        self, step: int, names: tuple[str, ...], previous: list[TrainingOutputs]
    ) -> tuple[list[TrainingOutputs], Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Move the optimisers of these names by the step's batches; `previous` is what the part before made of them, if there was one.

        Returns:
            The outputs of each batch, mean loss, losses and metrics of the last batch, and the gradient's norm before clipping.
        """
        optimizers = [self.optimizers.optimizers[name] for name in names]
        parameters = [parameter for name in names for parameter in self.optimizers.parameters[name]]
        for optimizer in optimizers:
            optimizer.zero_grad()
        count = self.config.accumulated_batches
        loss = torch.zeros((), device=self.device)
        passes = []
        for index in range(count):
            with self._gradients_synchronised(index == count - 1):
                if previous:
                    outputs, loss_dict, metrics = self.pipeline.get_following_loss_dict(previous[index])
                else:
                    outputs, loss_dict, metrics = self.pipeline.get_train_loss_dict(step=step * count + index)
                batch_loss = functools.reduce(torch.add, loss_dict.values()) / count
                batch_loss.backward()
            loss = loss + batch_loss.detach()
            # Only what is needed later is kept: the losses hold the graph of their batch.
            passes.append(dataclasses.replace(outputs, losses={}, metrics={}))
        limit = float("inf") if self.config.max_gradient_norm is None else self.config.max_gradient_norm
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
        for optimizer in optimizers:
            optimizer.step()
        return passes, loss, {name: value.detach() for name, value in loss_dict.items()}, metrics, norm

    def eval_iteration(self, step: int) -> None:
        """As nerfstudio's; but where scenes to evaluate on cannot be read (any more), that is said once and training goes on."""
        try:
            super().eval_iteration(step)
        except SceneError as error:
            self.pipeline.train()
            if str(error) not in self.said:
                self.said.add(str(error))
                CONSOLE.print(f"[bold yellow]Step {step} is not evaluated: {error}")

    def save_checkpoint(self, step: int) -> None:
        """Model, optimisers, schedules and every process's random states, written by one process.

        Refused after a collapse, and skipped while one may be under way, so that the last good one stays.
        """
        self.guard.check()
        rank, processes = process_rank()
        states: list[Any] = [checkpoints.random_states()]
        if processes > 1:
            states = [None] * processes
            dist.all_gather_object(states, checkpoints.random_states())
        if rank != 0:
            return
        if self.guard.doubt and any(self.checkpoint_dir.glob(checkpoints.PATTERN)):
            CONSOLE.print(f"[bold yellow]Step {step} is not saved, its {self.guard.doubt} being at zero: the checkpoint before it is kept")
            return
        state = {
            "step": step,
            "pipeline": self.pipeline.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
            "random_states": states,
        }
        checkpoints.write_checkpoint(self.checkpoint_dir, step, state, keep=self.config.kept_checkpoints)

    def _load_checkpoint(self) -> None:
        path = self.config.load_checkpoint
        if path is None:
            CONSOLE.print("Training from scratch: no checkpoint was named")
            return
        state = checkpoints.read_checkpoint(path)
        self._start_step = state["step"] + 1
        self.pipeline.load_pipeline(state["pipeline"], state["step"])
        try:
            self.optimizers.load_optimizers(state["optimizers"])
            if self.config.load_scheduler:
                self.optimizers.load_schedulers(state["schedulers"])
        except (KeyError, ValueError) as error:
            raise checkpoints.CheckpointError(
                f"the optimisers in {path} are not those of {self.config.method_name} ({error}): resume with the method it was "
                "trained with, or start a new training from it with --pipeline.initial-weights"
            ) from error
        rank, processes = process_rank()
        states = state.get("random_states", [])
        if len(states) == processes:
            checkpoints.restore_random_states(states[rank])
        CONSOLE.print(f"Resuming after step {state['step']} from {path}")

    def _gradients_synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients once per optimisation step, on its last batch."""
        model = self.pipeline._model
        return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else contextlib.nullcontext()

    def _log_betas(self, step: int) -> None:
        """The first beta, which the schedule cycles; nerfstudio logs the learning rates itself."""
        if step_check(step, self.config.logging.steps_per_log, run_at_zero=True):
            for name, optimizer in self.optimizers.optimizers.items():
                writer.put_scalar(name=f"beta1/{name}", scalar=optimizer.param_groups[0]["betas"][0], step=step)

    @check_main_thread
    def _announce(self, left: int) -> None:
        parameters = sum(parameter.numel() for group in self.pipeline.get_param_groups().values() for parameter in group)
        CONSOLE.print(
            f"Training {self.config.method_name}: {parameters / 1e6:.1f} M parameters, {left} steps, "
            f"{self.world_size} process(es) on {self.device.partition(':')[0]}"
        )
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()

    @check_main_thread
    def _report(self, subject: str) -> None:
        # The device works behind the host's back between the guard's looks, so single steps say little and a mean says all.
        settled = self.step_seconds[len(self.step_seconds) // 2 :]
        seconds = sum(settled) / len(settled)
        scenes = self.world_size * self.config.accumulated_batches * self.pipeline.datamanager.config.batch_size
        if self.device.startswith("cuda"):
            memory = f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"
        else:
            memory = f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB"  # Linux counts in KiB
        CONSOLE.print(f"{subject}: {1000 * seconds:.1f} ms a step, {scenes / seconds:.1f} scenes/s (over the second half), {memory}")
