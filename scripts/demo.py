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
    steps: int = 150
    """Optimisation steps on top of the shipped weights."""
    from_scratch: bool = False
    """Leave the shipped weights out."""
    scenes: int = 16
    """Procedural scenes that are made; one in four is held out."""
    tuning_steps: int = 50
    """Test-time tuning steps in the tuned row of the table."""
    seed: int = 42
    """Of initial values, split and draws; the scenes have their own."""

    def main(self) -> None:
        started = time.perf_counter()
        name = time.strftime("%Y-%m-%d_%H%M%S")
        run = self.output_dir / "procedural" / "tokengs-tiny" / name
        config = run / "config.yml"
        train = ["ns-train", "tokengs-tiny", "--output-dir", self.output_dir, "--experiment-name", "procedural", "--timestamp", name]
        train += ["--max-num-iterations", self.steps, "--machine.seed", self.seed, "--pipeline.datamanager.seed", self.seed]
        train += ["--pipeline.datamanager.eval-scene-fraction", 0.25, "--steps-per-eval-all-images", 50]
        if self.from_scratch:
            train += ["--pipeline.initial-weights", "None"]
        size = ["--image-height", 96, "--image-width", 96, "--frames-per-scene", 16]
        execute(*train, "procedural-data", "--num-scenes", self.scenes, "--seed", 7_000, *size)
        forward = evaluate(config, run / "forward.json", "--render-output-path", run / "pictures")
        options = f"--tuning-steps {self.tuning_steps}"
        tuned = evaluate(config, run / "tuned.json", options=options)
        execute("ns-export", "gaussian-splat", "--load-config", config, "--output-dir", run / "export", options=options)
        video = run / "fly_through.mp4"
        execute("ns-render", "interpolate", "--load-config", config, "--output-path", video, "--pose-source", "train", options=options)
        print_table(forward, tuned, self.tuning_steps)
        print(f"Gaussians:  {run / 'export' / 'splat.ply'}")
        print(f"video:      {video}")
        print(f"pictures:   {run / 'pictures'}")
        print(f"look at it: NERFSTUDIO_TOKENS='{options}' ns-viewer --load-config {config}")
        print(f"{time.perf_counter() - started:.0f} s in all")


def evaluate(config: Path, report: Path, *flags: object, options: str = "") -> dict[str, float]:
    """Results of `ns-eval` on the held-out scenes."""
    execute("ns-eval", "--load-config", config, "--output-path", report, *flags, options=options)
    return json.loads(report.read_text())["results"]


def execute(*words: object, options: str = "") -> None:
    """Show a command, run it, and stop the demo where it fails."""
    command = [str(word) for word in words]
    setting = f"NERFSTUDIO_TOKENS={shlex.quote(options)} " if options else ""
    print(f"\n$ {setting}{shlex.join(command)}", flush=True)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"} | ({"NERFSTUDIO_TOKENS": options} if options else {})
    code = subprocess.run([str(BIN / command[0]), *command[1:]], env=environment, check=False).returncode
    if code:
        sys.exit(f"{command[0]} ended with code {code}")


def print_table(forward: dict[str, float], tuned: dict[str, float], tuning_steps: int) -> None:
    """PSNR and SSIM beside the baselines on the same targets."""
    print(f"\n{forward['num_scenes']:.0f} scenes that were never trained on")
    print(f"{'':<38}{'PSNR':>8}{'SSIM':>8}")
    rows = (
        ("tokengs-tiny, one forward pass", forward, ""),
        (f"tokengs-tiny, tuned for {tuning_steps} steps", tuned, ""),
        ("nearest context view", forward, "nearest_context_"),
        ("mean colour of the context", forward, "mean_colour_"),
    )
    for title, results, prefix in rows:
        print(f"{title:<38}{results[prefix + 'psnr']:>8.2f}{results[prefix + 'ssim']:>8.3f}")


if __name__ == "__main__":
    tyro.cli(Demo).main()
