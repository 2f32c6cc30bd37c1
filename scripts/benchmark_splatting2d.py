"""Time 2D feature splatting, beside the dense sum in plain torch that needs no kernels.

    python scripts/benchmark_splatting2d.py                          # a Markdown table
    python scripts/benchmark_splatting2d.py --output splatting.json  # and the same as JSON

Every case is drawn by `splat` and by its torch backend first, and nothing is timed where their maps or gradients differ. Medians
in milliseconds; forward under `no_grad`, forward + backward with the gradients of all fields. On CUDA everything is timed between
events. "call" is one eager call on an idle device, so that the host's work counts; "device" is one of many replays of the same work
captured in a CUDA graph, which the host only starts: what a call costs where the device has other work before it. "dense" is a call of
a plain sum over all pairs of pixel and Gaussian, without tiles or a cut; where all pairs at once would take too much memory it goes
through 16 rows after 16 rows and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from token_methods.rendering.gaussians2d import Gaussians2D, splat
from token_methods.rendering.gaussians2d_torch import splat_tiles

SEED = 0
DENSE_ROWS = 16
DENSE_PAIRS = 2**24
"""Pairs that the dense sum takes at once."""
REPLAYS = 20
"""Of a captured graph between two events."""
SLOW_MS = 50.0
"""A call that takes longer is repeated three times only."""


@dataclass(frozen=True)
class Case:
    """What is drawn: `count` Gaussians of about `sigma` pixels in each of `batch` maps."""

    batch: int
    count: int
    height: int
    width: int
    channels: int
    sigma: float
    aim_forward: float | None = None
    aim_both: float | None = None
    """Milliseconds that one H100 should need at most."""

    @property
    def pairs(self) -> int:
        return self.batch * self.count * self.height * self.width

    def __str__(self) -> str:
        return f"{self.batch} x {self.count} Gaussians of {self.sigma:g} px, {self.height}x{self.width}, {self.channels} channels"


NAMED = (
    Case(256, 64, 16, 16, 3, 1.5, 0.05, 0.2),
    Case(256, 64, 16, 16, 4, 1.5, 0.05, 0.2),
    Case(16, 256, 32, 32, 8, 1.5, 0.05, 0.2),
    Case(1, 10_000, 512, 768, 3, 4.0, 0.4, 0.4 + 1.25),
)
"""The tokenizer's maps, and a photograph as GaussianImage draws it (2500 maps a second, 800 backward passes a second)."""
BY_COUNT = tuple(Case(1, 4**power, 256, 256, 3, 2.0) for power in range(3, 9))
BY_SIZE = tuple(Case(1, 4096, 2**power, 2**power, 3, 2.0) for power in range(5, 11))


@dataclass
class Row:
    """Milliseconds of one case; None where it was not run."""

    case: str
    forward: float
    both: float
    aim_forward: float | None
    aim_both: float | None
    device_forward: float | None = None
    device_both: float | None = None
    dense_forward: float | None = None
    dense_both: float | None = None


def gaussians_of(case: Case, device: str) -> Gaussians2D:
    """Random Gaussians all over the map, scales from half to one and a half `sigma`."""
    g = torch.Generator().manual_seed(SEED)
    leading = case.batch, case.count
    gaussians = Gaussians2D(
        means=2 * torch.rand(*leading, 2, generator=g) - 1,
        scales=case.sigma * (0.5 + torch.rand(*leading, 2, generator=g)),
        rotations=torch.pi * torch.rand(*leading, 1, generator=g),
        features=0.1 * torch.randn(*leading, case.channels, generator=g),
    )
    return gaussians.to(device).map(lambda value: value.requires_grad_())


def dense_splat(gaussians: Gaussians2D, height: int, width: int) -> Tensor:
    """Every Gaussian at every pixel."""
    rows = height if len(gaussians.features) * gaussians.num_gaussians * height * width <= DENSE_PAIRS else DENSE_ROWS
    parts = range(0, height, rows)
    draw = partial(_dense_rows, gaussians.means, gaussians.scales, gaussians.rotations, gaussians.features, height, width)
    if len(parts) == 1:
        return draw(0, height)
    return torch.cat([checkpoint(draw, top, min(top + rows, height), use_reentrant=False) for top in parts], dim=2)


def _dense_rows(
    means: Tensor, scales: Tensor, rotations: Tensor, features: Tensor, height: int, width: int, top: int, bottom: int
) -> Tensor:
    cos, sin = rotations.cos(), rotations.sin()
    dx = 0.5 * width * (means[..., :1] + 1) - torch.arange(width, device=means.device)
    dy = 0.5 * height * (means[..., 1:] + 1) - torch.arange(top, bottom, device=means.device)
    first, second = scales.split(1, dim=-1)
    u = (cos / first * dx)[..., None, :] - (sin / first * dy)[..., None]
    v = (sin / second * dx)[..., None, :] + (cos / second * dy)[..., None]
    return torch.einsum("bnhw,bnc->bchw", torch.exp(-0.5 * (u * u + v * v)), features)


def inputs_of(gaussians: Gaussians2D) -> list[Tensor]:
    return [gaussians.means, gaussians.scales, gaussians.rotations, gaussians.features]


def check(case: Case, gaussians: Gaussians2D, cotangent: Tensor) -> None:
    """Raises where `splat` and its torch backend differ by more than rounding.

    Rounding may move an alpha across the cut at 1/255; so an entry in a thousand may differ by more than 1e-3 of the largest.
    """
    inputs = inputs_of(gaussians)
    results = []
    for image in (splat(gaussians, case.height, case.width), splat_tiles(*inputs, None, case.height, case.width)):
        results.append([image, *torch.autograd.grad(image, inputs, cotangent)])
    for ours, theirs in zip(*results):
        error = (ours - theirs).abs() / theirs.abs().max()
        if not (error <= 1e-3).float().mean() >= 0.999:
            raise RuntimeError(f"{case}: splat differs from its torch backend by up to {error.max().item():.2g} of the largest value")


def milliseconds(call: Callable[[], object], device: str, repeats: int) -> float:
    """Median of one call after three for warming up."""

    def once() -> float:
        if device == "cpu":
            begun = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - begun)
        started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        started.record()
        call()
        ended.record()
        torch.cuda.synchronize()
        return started.elapsed_time(ended)

    warm = [once() for _ in range(3)][-1]
    return statistics.median(once() for _ in range(repeats if warm < SLOW_MS else min(3, repeats)))


def device_milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Median over the means of replays of one captured call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replays() -> None:
        for _ in range(REPLAYS):
            graph.replay()

    return milliseconds(replays, "cuda", repeats) / REPLAYS


def time_case(case: Case, device: str, repeats: int, dense_pairs: int) -> Row:
    """Check, then time; the dense sum only up to `dense_pairs` pairs."""
    gaussians = gaussians_of(case, device)
    inputs = inputs_of(gaussians)
    generator = torch.Generator().manual_seed(SEED + 1)
    cotangent = torch.randn(case.batch, case.channels, case.height, case.width, generator=generator).to(device)
    check(case, gaussians, cotangent)

    def times(draw: Callable[[Gaussians2D, int, int], Tensor], timed: Callable[[Callable[[], object]], float]) -> tuple[float, float]:
        def both() -> None:
            torch.autograd.grad(draw(gaussians, case.height, case.width), inputs, cotangent)

        with torch.no_grad():
            forward = timed(lambda: draw(gaussians, case.height, case.width))
        return forward, timed(both)

    calls = partial(milliseconds, device=device, repeats=repeats)
    aims = (case.aim_forward, case.aim_both) if device == "cuda" else (None, None)
    row = Row(str(case), *times(splat, calls), *aims)
    if device == "cuda":
        row.device_forward, row.device_both = times(splat, partial(device_milliseconds, repeats=repeats))
    if case.pairs <= dense_pairs:
        row.dense_forward, row.dense_both = times(dense_splat, calls)
    return row


def markdown(rows: list[Row]) -> str:
    """The table; numbers in milliseconds."""

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"

    timed = ["forward: call", "device", "aim", "forward + backward: call", "device", "aim"]
    columns = ["case", *timed, "dense forward: call", "dense both: call"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        forward = row.forward, row.device_forward, row.aim_forward
        both = row.both, row.device_both, row.aim_both
        numbers = (*forward, *both, row.dense_forward, row.dense_both)
        lines.append(f"| {row.case} | " + " | ".join(shown(number) for number in numbers) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls; their median is printed")
    parser.add_argument("--output", type=Path, help="write the rows as JSON too")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; leave --device out to run on the CPU")
    torch.backends.cuda.matmul.allow_tf32 = False

    cases, dense_pairs = [*NAMED, *BY_COUNT, *BY_SIZE], 2**33
    if options.device == "cpu":
        # Dense sums of more pairs take seconds there.
        cases, dense_pairs = [case for case in cases if case.count <= 10_000 and case.height <= 512], 2**24
    rows = []
    with Console(stderr=True).status("") as status:
        for number, case in enumerate(cases):
            status.update(f"{number + 1} of {len(cases)}: {case}")
            rows.append(time_case(case, options.device, options.repeats, dense_pairs))
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, seed {SEED}, milliseconds, median of {options.repeats}\n\n{markdown(rows)}")
    if options.output:
        report = {"device": name, "torch": torch.__version__, "seed": SEED, "rows": [asdict(row) for row in rows]}
        unfinished = options.output.with_name(f"{options.output.name}.partial")
        unfinished.write_text(json.dumps(report, indent=1), encoding="utf-8")
        unfinished.replace(options.output)


if __name__ == "__main__":
    main()
