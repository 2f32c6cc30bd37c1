"""Time the rasterisers: forward and backward, by number of Gaussians, on one CPU core and on CUDA where there is one.

    python scripts/benchmark_rendering.py            # the table of docs/results/rendering.md
    python scripts/benchmark_rendering.py --counts 4096 --repeats 15

Two scenes, both random with a stated seed. "spread": what a trained model gives, small Gaussians (median standard
deviation 0.008 at median depth 2, opacity around 0.5). "untrained": what the head of TokenGS gives before training
(standard deviation 0.0276, opacity 0.119), but spread over the view.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn.functional import normalize

from token_methods.core.views import Views
from token_methods.rendering.gaussians3d import Gaussians3D
from token_methods.rendering.rasterize import gsplat_notice, render

SEED = 0


def spread_gaussians(count: int, generator: torch.Generator) -> Gaussians3D:
    """Small Gaussians of mixed opacity at a median depth of 2, spread over the view."""
    place = torch.randn(count, 3, generator=generator) * torch.tensor([0.7, 0.7, 0.3]) + torch.tensor([0.0, 0.0, math.log(2.0)])
    means = place.sign() * place.abs().expm1()
    means[:, 2] += 1
    return Gaussians3D(
        means=means[None],
        quats=normalize(torch.randn(count, 4, generator=generator), dim=-1)[None],
        scales=(0.0079 * (0.5 * torch.randn(count, 3, generator=generator)).exp()).clamp_max(0.075)[None],
        opacities=torch.randn(count, generator=generator).sigmoid()[None],
        colors=torch.rand(count, 3, generator=generator)[None],
    )


def untrained_gaussians(count: int, generator: torch.Generator) -> Gaussians3D:
    """Large faint Gaussians of one size, at depths of 1 to 3, spread over the view."""
    depth = 1 + 2 * torch.rand(count, generator=generator)
    # The camera sees |x| / z up to 1 / 1.2.
    slope = (2 * torch.rand(count, 2, generator=generator) - 1) / 1.2
    return Gaussians3D(
        means=torch.cat([slope * depth[:, None], depth[:, None]], dim=-1)[None],
        quats=normalize(torch.randn(count, 4, generator=generator), dim=-1)[None],
        scales=torch.full((1, count, 3), 0.0276),
        opacities=torch.full((1, count), 0.119),
        colors=torch.rand(count, 3, generator=generator)[None],
    )


SCENES: dict[str, Callable[[int, torch.Generator], Gaussians3D]] = {"spread": spread_gaussians, "untrained": untrained_gaussians}


def front_view(size: int) -> Views:
    """One camera at the origin that looks along +z, with a field of view of 80 degrees."""
    return Views(size, size, camera_to_world=torch.eye(4)[None, None], intrinsics=torch.tensor([[[0.6, 0.6, 0.5, 0.5]]]) * size)


def time_render(gaussians: Gaussians3D, views: Views, repeats: int) -> tuple[float, float]:
    """Median milliseconds of the forward and of the backward pass, after two warm-up rounds."""
    leaves = gaussians.map(lambda value: value.detach().clone().requires_grad_())
    cotangent = torch.randn(1, 1, 5, views.height, views.width, generator=torch.Generator().manual_seed(SEED)).to(gaussians.device)

    def now() -> float:
        if gaussians.device.type == "cuda":
            torch.cuda.synchronize()
        return 1e3 * time.perf_counter()

    forward, backward = [], []
    for _ in range(repeats + 2):
        started = now()
        drawn = render(leaves, views)
        done = now()
        torch.cat([drawn.images, drawn.depths, drawn.alphas], dim=2).backward(cotangent)
        forward.append(done - started)
        backward.append(now() - done)
    return statistics.median(forward[2:]), statistics.median(backward[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1024, 4096, 16384, 65536], help="numbers of Gaussians")
    parser.add_argument("--size", type=int, default=256, help="height and width of the image in pixels")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds; their median is printed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    jobs = [(device, scene, count) for device in devices for scene in SCENES for count in options.counts]
    table = Table(title=f"render(), {options.size}x{options.size}, one view, seed {SEED}, median of {options.repeats}")
    for heading in ("backend", "scene", "Gaussians", "forward ms", "backward ms"):
        table.add_column(heading, justify="left" if heading in ("backend", "scene") else "right")
    for device, scene, count in track(jobs, description="rendering"):
        gaussians = SCENES[scene](count, torch.Generator().manual_seed(SEED)).to(device)
        forward, backward = time_render(gaussians, front_view(options.size).to(device), options.repeats)
        backend = "gsplat" if device == "cuda" else f"tiles, {options.threads} thread" + "s" * (options.threads > 1)
        table.add_row(backend, scene, f"{count}", f"{forward:.1f}", f"{backward:.1f}")
    console = Console()
    console.print(table)
    console.print(f"torch {torch.__version__}; {gsplat_notice() if 'cuda' in devices else 'gsplat not used'}")


if __name__ == "__main__":
    main()
