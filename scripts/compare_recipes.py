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
from typing import Optional

import tyro
import yaml

ARCHITECTURE = "--pipeline.model.architecture."
PUBLISHED = f"{ARCHITECTURE}anchor-depth None {ARCHITECTURE}gs-token-std 0.01 {ARCHITECTURE}clip-head-readout-std 0.002 {ARCHITECTURE}dec-init-values None"
SPREAD = f"{ARCHITECTURE}anchor-depth None {ARCHITECTURE}gs-token-std 1.0 {ARCHITECTURE}clip-head-readout-std 0.03 {ARCHITECTURE}dec-init-values 0.1"
ANCHORED = f"{ARCHITECTURE}anchor-depth 1.5"
LEARNING_RATE = "--optimizers.decayed.optimizer.lr {0} --optimizers.undecayed.optimizer.lr {0}"

BEST = f"{ANCHORED} {ARCHITECTURE}num-gs-tokens 1024 --pipeline.model.camera-normalization-method mean_cam"

VARIANTS: dict[str, str] = {
    "published start": PUBLISHED,
    "spread start": SPREAD,
    "anchored start": ANCHORED,
    "anchored, mean camera": f"{ANCHORED} --pipeline.model.camera-normalization-method mean_cam",
    "anchored, lr 1e-3": f"{ANCHORED} {LEARNING_RATE.format(1e-3)}",
    "anchored, LayerScale 1": f"{ANCHORED} {ARCHITECTURE}dec-init-values 1.0 {ARCHITECTURE}enc-init-values 1.0",
    "anchored, 1024 tokens": f"{ANCHORED} {ARCHITECTURE}num-gs-tokens 1024",
    "best: anchored, mean camera, 1024 tokens": BEST,
    "best, lr 8e-4": f"{BEST} {LEARNING_RATE.format(8e-4)}",
    "best, LayerScale 0.3 and encoder 0.1": f"{BEST} {ARCHITECTURE}dec-init-values 0.3 {ARCHITECTURE}enc-init-values 0.1",
    "best, opacity 0.8 and overlap 0.7": f"{BEST} {ARCHITECTURE}anchor-opacity 0.8 {ARCHITECTURE}anchor-overlap 0.7",
    "best, 2048 tokens of 16 Gaussians": f"{BEST} {ARCHITECTURE}num-gs-tokens 2048 {ARCHITECTURE}dec-patch-size 4",
}
"""Flags that make each variant; later rounds build on the best of the one before."""


@dataclass
class Compare:
    """Train and evaluate each variant."""

    data: Path
    """Folder of scenes with split.json and evaluation_test_4views.json."""
    output_dir: Path = Path("outputs/recipes")
    """Runs and reports."""
    train_data: Optional[Path] = None
    """Another folder of scenes (with its split.json) to train on; evaluation stays on --data."""
    select: str = ""
    """Variants whose name begins with this."""
    only: Optional[str] = None
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
                print(f"| {row['variant']} | {row['forward']:.2f} | {row['tuned']:.2f} | {row['tuned_fast']:.2f} | {row['frames']:.2f} | {row['minutes']:.1f} |")

    def spawn(self, variant: str) -> dict[str, float] | None:
        """One variant in a process of its own; the last line it prints is its result."""
        flags = [f"--{name}={getattr(self, name.replace('-', '_'))}" for name in ("data", "output-dir", "steps", "size", "common", "tuning-steps")]
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
        words = ["tokengs-small", "--data", str(data), "--experiment-name", "recipes", "--output-dir", str(self.output_dir), "--timestamp", name, "--logging.profiler", "none"]
        words += ["--max-num-iterations", str(self.steps), "--steps-per-eval-image", "0", "--steps-per-eval-all-images", "0"]
        words += ["--steps-per-save", "100000", "--logging.local-writer.enable", "False"]
        options = {"image-height": self.size, "image-width": self.size, "held-out-frame-interval": 8, "num-workers": 3}
        options |= {"scene-split": data / "split.json", "evaluation-index": self.data / "evaluation_test_4views.json"}
        words += [word for option, value in options.items() for word in (f"--pipeline.datamanager.{option}", str(value))]
        words += shlex.split(self.common) + shlex.split(VARIANTS[variant])
        config = tyro.cli(AnnotatedBaseConfigUnion, args=words)
        started = time.perf_counter()
        train(config)
        minutes = (time.perf_counter() - started) / 60
        run = config.get_base_dir() / "evaluation.yml"
        config.pipeline.datamanager.data = config.pipeline.datamanager.dataparser.data = self.data
        config.pipeline.datamanager.scene_split = self.data / "split.json"
        run.write_text(yaml.dump(config), encoding="utf-8")
        results = {
            "forward": load_run(run, RunOptions())[1].get_average_eval_image_metrics(),
            "tuned": load_run(run, RunOptions(tuning_steps=self.tuning_steps))[1].get_average_eval_image_metrics(),
            "tuned_fast": load_run(run, RunOptions(tuning_steps=self.tuning_steps, tuning_learning_rate=3e-2))[1].get_average_eval_image_metrics(),
            "frames": load_run(run, RunOptions(evaluate="held-out-frames"))[1].get_average_eval_image_metrics(),
        }
        row: dict[str, object] = {"variant": variant, "minutes": minutes}
        row |= {kind: result["psnr"] for kind, result in results.items()}
        row |= {f"{kind}_nearest": result["nearest_context_psnr"] for kind, result in results.items()}
        return row


if __name__ == "__main__":
    tyro.cli(Compare).main()
