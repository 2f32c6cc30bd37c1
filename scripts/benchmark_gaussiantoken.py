"""Time GaussianToken: reconstruction and training steps, peak memory, beside the matrix-product rate of the same run.

    python scripts/benchmark_gaussiantoken.py                                  # ImageNet preset on CUDA; a tiny one on a CPU
    python scripts/benchmark_gaussiantoken.py --preset cifar --train-batch 384 --profile
    python scripts/benchmark_gaussiantoken.py --calls graphs eager --norms fused torch

Weights and images are random (seed 0), which changes no time. LPIPS has the network's shape and random weights.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

import torch
import tyro
from torchmetrics.functional.image.lpips import _LPIPS

from token_methods.core.averaging import WeightAverage
from token_methods.core.perceptual import Lpips
from token_methods.gaussiantoken import group_norm
from token_methods.gaussiantoken.autoencoder import NORM_GROUPS
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.discriminator import PatchDiscriminator
from token_methods.gaussiantoken.losses import LecamAverages, LossWeights, discriminator_losses, generator_losses
from token_methods.gaussiantoken.network import GaussianTokenNetwork

SIZE = 8192
"""Rows and columns of the matrices that the device's rate is measured with."""
RowName = Literal["reconstruction", "training"]
AIMS = {"imagenet": "350 reconstructed images/s with 2 048 MiB, in batches of 8 on one H100"}
Norm = Literal["fused", "torch"]
Calls = Literal["graphs", "eager"]


@dataclass
class Benchmark:
    """Measure one preset."""

    preset: str = ""
    """By default imagenet on CUDA, tiny elsewhere."""
    batch: int = 8
    """Images reconstructed at a time."""
    train_batch: int = 16
    """Images of a training step."""
    recomputed_levels: tuple[int, ...] = (0, 2)
    """Training is measured with each."""
    rows: tuple[RowName, ...] = ("reconstruction", "training")
    """What is measured."""
    calls: tuple[Calls, ...] = ("graphs",)
    """Networks replayed as CUDA graphs, as commands do on one GPU, or started kernel by kernel."""
    norms: tuple[Norm, ...] = ("fused",)
    """The norms' kernels: fused with what follows where they can run, or PyTorch's operators."""
    repeats: int = 15
    """Timed calls of a row; the median counts."""
    profile: bool = False
    """Also list where a reconstruction and a training step spend their time."""
    output: Path | None = None
    """JSON file for the figures."""

    def main(self) -> None:
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cpu":
            self.calls = ("eager",)
        self.preset = self.preset or ("imagenet" if self.device == "cuda" else "tiny")
        self.table: list[dict[str, object]] = []
        rate = self.matrix_rate()
        print(f"{self.preset} on {torch.cuda.get_device_name() if self.device == 'cuda' else 'a CPU'}, torch {torch.__version__}")
        print(f"matrix product {SIZE if self.device == 'cuda' else SIZE // 8} squared, bfloat16: {rate:.1f} TFLOP/s")
        if self.preset in AIMS:
            print(f"aim: {AIMS[self.preset]}")
        print("| what | calls | norms | batch | ms | images/s | peak MiB | kept MiB |\n|---|---|---|---|---|---|---|---|", flush=True)
        for row, calls, norm in itertools.product(self.rows, self.calls, self.norms):
            with contextlib.nullcontext() if norm == "fused" else mock.patch.object(group_norm, "_kernels", no_kernels):
                for levels in (0,) if row == "reconstruction" else self.recomputed_levels:
                    measure = self.reconstruction if row == "reconstruction" else self.training
                    measure(calls, self.norm_that_runs(norm), levels)
        if self.output is not None:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.output.write_text(json.dumps({"preset": self.preset, "matrix_tflops": rate, "rows": self.table}, indent=2))

    def norm_that_runs(self, asked: Norm) -> Norm:
        """PyTorch's on a CPU, or where Triton is missing."""
        channels = PRESETS[self.preset].architecture.channels
        values = torch.zeros(1, channels, 1, 1, device=self.device)
        return asked if group_norm.is_fused(values, NORM_GROUPS) else "torch"

    def matrix_rate(self) -> float:
        """TFLOP/s of a large bfloat16 matrix product."""
        size = SIZE if self.device == "cuda" else SIZE // 8
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        return float(2 * size**3 / self.median(lambda: a @ b) / 1e12)

    def network(self, calls: Calls, levels: int) -> GaussianTokenNetwork:
        network = GaussianTokenNetwork(PRESETS[self.preset].architecture, levels).to(self.device)
        network.replay_graphs(calls == "graphs")
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def images(self, batch: int) -> torch.Tensor:
        height, width = PRESETS[self.preset].architecture.image_size
        images = torch.rand(batch, 3, height, width, device=self.device) * 2 - 1
        return images.contiguous(memory_format=torch.channels_last)

    def reconstruction(self, calls: Calls, norm: Norm, levels: int) -> None:
        network, images = self.network(calls, levels).eval(), self.images(self.batch)

        def call() -> None:
            with torch.inference_mode(), torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda"):
                network.reconstruct(images)

        self.row("reconstruction", calls, norm, self.batch, call)

    def training(self, calls: Calls, norm: Norm, levels: int) -> None:
        network = self.network(calls, levels).train()
        discriminator, lecam = PatchDiscriminator().to(self.device), LecamAverages().to(self.device)
        perceptual = Lpips(_LPIPS(pretrained=False, net="vgg", pnet_rand=True)).to(self.device)
        if self.device == "cuda":
            perceptual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = WeightAverage(network, 0.999)
        images, weights = self.images(self.train_batch), LossWeights()
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizers = [torch.optim.AdamW(parameters, lr=1e-6, fused=True) for parameters in (trained, list(discriminator.parameters()))]

        def call() -> None:
            with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda"):
                tokens, commitment = network.tokenize(images)
                reconstruction = network.decode(tokens)
                losses = generator_losses(
                    reconstruction,
                    images,
                    commitment,
                    discriminator=discriminator,
                    perceptual=perceptual,
                    weights=weights,
                    epoch=10,
                )
            losses["loss"].backward()
            optimizers[0].step()
            optimizers[0].zero_grad()
            with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda"):
                judged = discriminator_losses(images, reconstruction, discriminator=discriminator, lecam=lecam, weights=weights, epoch=10)
            judged["loss"].backward()
            optimizers[1].step()
            optimizers[1].zero_grad()
            average.update_parameters(network)

        self.row(f"training step, {levels} levels recomputed", calls, norm, self.train_batch, call)

    def row(self, name: str, calls: Calls, norm: Norm, batch: int, call: Callable[[], None]) -> None:
        """Peak: of tensors, while graphs are recorded too. Kept: what stays taken, most of it by recorded activations."""
        call()
        self.synchronise()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = self.median(call)
        memory = torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else float("nan")
        kept = float("nan")
        if self.device == "cuda":
            torch.cuda.empty_cache()
            kept = torch.cuda.memory_reserved() / 2**20
        speed = f"{1000 * seconds:.1f} | {batch / seconds:.1f}"
        print(f"| {name} | {calls} | {norm} | {batch} | {speed} | {memory:.0f} | {kept:.0f} |", flush=True)
        figures = {"ms": 1000 * seconds, "images_per_second": batch / seconds, "peak_mib": memory, "kept_mib": kept}
        self.table.append({"name": name, "calls": calls, "norms": norm, "batch": batch, **figures})
        if self.profile:
            self.show_profile(call)

    def median(self, call: Callable[[], object]) -> float:
        """Seconds of a call, after warming up."""
        for _ in range(3):
            call()
        times = []
        for _ in range(self.repeats):
            self.synchronise()
            started = time.perf_counter()
            call()
            self.synchronise()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def synchronise(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def show_profile(self, call: Callable[[], None]) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if self.device == "cuda" else []
        with torch.profiler.profile(activities=activities) as profile:
            call()
            self.synchronise()
        key = "self_device_time_total" if self.device == "cuda" else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=key, row_limit=18, max_name_column_width=60))


def no_kernels(x: torch.Tensor, groups: int) -> None:
    """Has every norm take PyTorch's operators."""


if __name__ == "__main__":
    tyro.cli(Benchmark).main()
