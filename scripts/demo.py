"""The main job, end to end, on data that it makes itself: train, evaluate, export, render.

Run through `bash scripts/demo.sh`. Every step is a command that a user would type; it is printed before it runs.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

BIN = Path(sys.executable).parent


@dataclass
class Demo:
    """Train TokenGS on procedural scenes, compare it with two baselines on scenes that it never saw, export and render one."""

    output_dir: Path = Path("outputs/demo")
    """Where the run, the report, the .ply and the video go."""
    steps: int = 60
    """Optimisation steps on top of the shipped weights."""
    from_scratch: bool = False
    """Leave the shipped weights out."""
    scenes: int = 24
    """Procedural scenes that are made; one in six is held out."""
    seed: int = 0
    """Of training; the scenes have their own."""

    def main(self) -> None:
        started = time.perf_counter()
        name = time.strftime("%Y-%m-%d_%H%M%S")
        run = self.output_dir / "procedural" / "tokengs-tiny" / name
        train = ["ns-train", "tokengs-tiny", "--output-dir", self.output_dir, "--experiment-name", "procedural", "--timestamp", name]
        train += ["--max-num-iterations", self.steps, "--machine.seed", self.seed, "--machine.device-type", "cpu"]
        train += ["--pipeline.datamanager.eval-scene-fraction", 1 / 6]
        if self.from_scratch:
            train += ["--pipeline.initial-weights", "None"]
        execute(*train, "procedural-data", "--num-scenes", self.scenes, "--seed", 7_000)
        config = run / "config.yml"
        report = run / "evaluation.json"
        execute("ns-eval", "--load-config", config, "--output-path", report, "--render-output-path", run / "evaluation")
        execute("ns-export", "gaussian-splat", "--load-config", config, "--output-dir", run / "export")
        execute("ns-render", "interpolate", "--load-config", config, "--output-path", run / "fly_through.mp4", "--pose-source", "train")
        results = json.loads(report.read_text())["results"]
        print_table(results)
        print(f"Gaussians:  {run / 'export' / 'splat.ply'}")
        print(f"video:      {run / 'fly_through.mp4'}")
        print(f"pictures:   {run / 'evaluation'}")
        print(f"look at it: ns-viewer --load-config {config}")
        print(f"{time.perf_counter() - started:.0f} s in all")
        margin = results["psnr"] - max(results["mean_colour_psnr"], results["nearest_context_psnr"])
        if margin < 0:
            sys.exit("the model is below a baseline")


def execute(*words: object) -> None:
    """Show a command, run it, and stop the demo where it fails."""
    command = [str(word) for word in words]
    print(f"\n$ {shlex.join(command)}", flush=True)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    code = subprocess.run([str(BIN / command[0]), *command[1:]], env=environment, check=False).returncode
    if code:
        sys.exit(f"{command[0]} ended with code {code}")


def print_table(results: dict[str, float]) -> None:
    """PSNR and SSIM beside the baselines on the same targets."""
    print(f"\nheld-out scenes: {results['num_scenes']:.0f}")
    print(f"{'':<26}{'PSNR':>8}{'SSIM':>8}")
    for title, prefix in (("tokengs-tiny", ""), ("nearest context view", "nearest_context_"), ("mean colour", "mean_colour_")):
        print(f"{title:<26}{results[prefix + 'psnr']:>8.2f}{results[prefix + 'ssim']:>8.3f}")


if __name__ == "__main__":
    tyro.cli(Demo).main()
