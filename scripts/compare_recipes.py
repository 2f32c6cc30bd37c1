"""Short recipes compared, one change at a time: the table of docs/results/short_recipe.md.

    python scripts/compare_recipes.py --data SCENES --concurrent 6

SCENES holds `split.json` and `evaluation_test_4views.json` beside the scenes. Each variant is a line of flags for `ns-train`; it is
trained, then evaluated on the held-out scenes with and without tuning, and on held-out frames of the training scenes.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro
import yaml

ANCHORED = {"anchor-depth": 1.5, "anchor-opacity": 0.5, "anchor-overlap": 1.0, "gs-token-std": 1.0, "dec-init-values": 0.1}
SPREAD = {"anchor-depth": None, "gs-token-std": 1.0, "clip-head-readout-std": 0.03, "dec-init-values": 0.1}
PUBLISHED = {"anchor-depth": None, "gs-token-std": 0.01, "clip-head-readout-std": 0.002, "dec-init-values": None}
FIRST_ROUND = {"num-gs-tokens": 512, "dec-depth": 6, "frame": "first_cam", "rate": 4e-4}
BEST = {**FIRST_ROUND, **ANCHORED, "num-gs-tokens": 1024, "frame": "mean_cam"}

VARIANTS: dict[str, dict[str, object]] = {
    "published start": {**FIRST_ROUND, **PUBLISHED},
    "spread start": {**FIRST_ROUND, **SPREAD},
    "anchored start": {**FIRST_ROUND, **ANCHORED},
    "anchored, mean camera": {**FIRST_ROUND, **ANCHORED, "frame": "mean_cam"},
    "anchored, lr 1e-3": {**FIRST_ROUND, **ANCHORED, "rate": 1e-3},
    "anchored, LayerScale 1": {**FIRST_ROUND, **ANCHORED, "dec-init-values": 1.0, "enc-init-values": 1.0},
    "anchored, 1024 tokens": {**FIRST_ROUND, **ANCHORED, "num-gs-tokens": 1024},
    "best: anchored, mean camera, 1024 tokens": BEST,
    "best, lr 8e-4": {**BEST, "rate": 8e-4},
    "best, LayerScale 0.3 and encoder 0.1": {**BEST, "dec-init-values": 0.3, "enc-init-values": 0.1},
    "best, opacity 0.8 and overlap 0.7": {**BEST, "anchor-opacity": 0.8, "anchor-overlap": 0.7},
    "best, 2048 tokens of 16 Gaussians": {**BEST, "num-gs-tokens": 2048, "dec-patch-size": 4},
}
"""What makes each variant; the second round builds on the best of the first."""


def flags_of(variant: dict[str, object]) -> list[str]:
    """A variant as flags of `ns-train tokengs-small`."""
    words: list[str] = []
    for name, value in variant.items():
        if name == "rate":
            words += [w for group in ("decayed", "undecayed") for w in (f"--optimizers.{group}.optimizer.lr", str(value))]
        elif name == "frame":
            words += ["--pipeline.model.camera-normalization-method", str(value)]
        else:
            words += [f"--pipeline.model.architecture.{name}", str(value)]
    return words


@dataclass
class Compare:
    """Train and evaluate each variant."""

    data: Path
    """Folder of scenes with split.json and evaluation_test_4views.json."""
    output_dir: Path = Path("outputs/recipes")
    """Runs and reports."""
    train_data: Path | None = None
    """Another folder of scenes (with its split.json) to train on; evaluation stays on --data."""
    select: str = ""
    """Variants whose name begins with this."""
    only: str | None = None
    """One variant, in this process."""
    concurrent: int = 1
    """Variants at a time on one device."""
    steps: int = 1000
    """Optimisation steps of each."""
    size: int = 128
    """Side of the square images."""
    common: str = ""
    """Flags for all variants."""
    tuning_steps: int = 50
    """Test-time tuning steps, at the method's own learning rate."""

    def main(self) -> None:
        if self.only is not None:
            print(json.dumps(self.run(self.only)), flush=True)
            return
        with ThreadPoolExecutor(self.concurrent) as pool:
            rows = list(pool.map(self.spawn, [name for name in VARIANTS if name.startswith(self.select)]))
        print("| variant | forward | tuned at 1e-2 | tuned at 3e-2 | held-out frames | minutes |\n|---|---|---|---|---|---|")
        for row in rows:
            if row is not None:
                figures = " | ".join(f"{row[name]:.2f}" for name in ("forward", "tuned", "tuned_fast", "frames", "minutes"))
                print(f"| {row['variant']} | {figures} |")

    def spawn(self, variant: str) -> dict[str, float] | None:
        """One variant in a process of its own; the last line it prints is its result."""
        flags = [
            f"--{name}={getattr(self, name.replace('-', '_'))}"
            for name in ("data", "output-dir", "steps", "size", "common", "tuning-steps")
        ]
        flags += [f"--train-data={self.train_data}"] if self.train_data else []
        result = subprocess.run([sys.executable, __file__, *flags, f"--only={variant}"], capture_output=True, text=True, check=False)
        line = result.stdout.strip().splitlines()[-1:] or [""]
        if result.returncode or not line[0].startswith("{"):
            print(f"{variant} failed:\n{result.stdout[-1500:]}\n{result.stderr[-1500:]}", file=sys.stderr)
            return None
        print(line[0], file=sys.stderr, flush=True)
        return json.loads(line[0])

    def run(self, variant: str) -> dict[str, object]:
        from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
        from nerfstudio.scripts.train import main as train

        from token_methods.commands.runs import load_run
        from token_methods.multiscene.run_options import RunOptions

        name = "".join(character if character.isalnum() else "_" for character in variant)
        data = self.train_data or self.data
        words = [
            "tokengs-small",
            "--data",
            str(data),
            "--experiment-name",
            "recipes",
            "--output-dir",
            str(self.output_dir),
            "--timestamp",
            name,
            "--logging.profiler",
            "none",
        ]
        words += ["--max-num-iterations", str(self.steps), "--steps-per-eval-image", "0", "--steps-per-eval-all-images", "0"]
        words += ["--steps-per-save", "100000", "--logging.local-writer.enable", "False"]
        options = {"image-height": self.size, "image-width": self.size, "held-out-frame-interval": 8, "num-workers": 3}
        options |= {"scene-split": data / "split.json", "evaluation-index": self.data / "evaluation_test_4views.json"}
        words += [word for option, value in options.items() for word in (f"--pipeline.datamanager.{option}", str(value))]
        words += shlex.split(self.common) + flags_of(VARIANTS[variant])
        config = tyro.cli(AnnotatedBaseConfigUnion, args=words)
        started = time.perf_counter()
        train(config)
        minutes = (time.perf_counter() - started) / 60
        run = config.get_base_dir() / "evaluation.yml"
        config.pipeline.datamanager.data = config.pipeline.datamanager.dataparser.data = self.data
        config.pipeline.datamanager.scene_split = self.data / "split.json"
        run.write_text(yaml.dump(config), encoding="utf-8")
        steps = self.tuning_steps
        cases = {
            "forward": RunOptions(),
            "tuned": RunOptions(tuning_steps=steps, tuning_learning_rate=1e-2),
            "tuned_fast": RunOptions(tuning_steps=steps, tuning_learning_rate=3e-2),
            "frames": RunOptions(evaluate="held-out-frames"),
        }
        results = {kind: load_run(run, options)[1].get_average_eval_image_metrics() for kind, options in cases.items()}
        row: dict[str, object] = {"variant": variant, "minutes": minutes}
        row |= {kind: result["psnr"] for kind, result in results.items()}
        row |= {f"{kind}_nearest": result["nearest_context_psnr"] for kind, result in results.items()}
        return row


if __name__ == "__main__":
    tyro.cli(Compare).main()
