"""tokengs-small on a folder of real scenes, from procedural ones on: train, evaluate, print the table of docs/results/real_scenes.md.

    python scripts/train_small.py --data SCENES --output-dir outputs/small

SCENES holds the scenes, `split.json` and `evaluation_test_{2,4,6}views.json`. Two phases: small images of real and procedural scenes,
then the full size. Each part can be repeated alone: what is there already is not made again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
import yaml


@dataclass
class TrainSmall:
    """Train and evaluate."""

    data: Path
    """Real scenes, with split.json and the evaluation windows."""
    output_dir: Path = Path("outputs/small")
    """Runs, report and pictures."""
    procedural_scenes: int = 168
    """Procedural scenes in the training mix."""
    repeats: int = 6
    """How often each real scene stands in the mix."""
    generators: int = os.cpu_count() or 1
    """Processes that make procedural scenes."""
    small_steps: int = 3000
    """Optimisation steps at 128x128."""
    steps: int = 900
    """Optimisation steps at 256x256."""
    workers: int = 8
    """Threads that load images."""
    seed: int = 42
    """Of initial values and draws."""
    lpips_weights: Path | None = None
    """LPIPS weights; by default the cache folders."""
    tuning: tuple[int, ...] = (50,)
    """Test-time tuning steps that are evaluated, besides none."""

    def main(self) -> None:
        started = time.perf_counter()
        mix = self.output_dir / "mix"
        if not (mix / "split.json").is_file():
            self.mix_scenes(mix)
        self.note("scenes made", started)
        first = self.train(
            "small-images",
            mix,
            self.small_steps,
            ["--pipeline.datamanager.image-height", "128", "--pipeline.datamanager.image-width", "128"],
        )
        self.note("first phase", started)
        second_rates = [
            word
            for group in ("decayed", "undecayed")
            for word in (f"--optimizers.{group}.optimizer.lr", "2e-4", f"--optimizers.{group}.scheduler.warmup-steps", "50")
        ]
        run = self.train("full-size", mix, self.steps, ["--pipeline.initial-weights", str(first), *second_rates])
        self.note("second phase", started)
        self.evaluate(run)
        self.note("evaluated", started)

    def mix_scenes(self, mix: Path) -> None:
        """Real training scenes (repeated), real test scenes and procedural ones in one folder with one split."""
        shutil.rmtree(mix, ignore_errors=True)
        mix.mkdir(parents=True)
        code = (
            "import sys; from pathlib import Path\n"
            "from dataparsers.procedural.parser import ProceduralDataParserConfig, generate_scenes\n"
            "root, count, first, stride = Path(sys.argv[1]), *map(int, sys.argv[2:])\n"
            "config = ProceduralDataParserConfig(data=root, num_scenes=count, frames_per_scene=16, seed=1)\n"
            "generate_scenes(config, range(first, count, stride))\n"
            "print(config.settings_folder())\n"
        )
        arguments = [str(self.output_dir / "procedural"), str(self.procedural_scenes)]
        parts = [
            subprocess.Popen([sys.executable, "-c", code, *arguments, str(part), str(self.generators)], stdout=subprocess.PIPE, text=True)
            for part in range(min(self.generators, self.procedural_scenes))
        ]
        outputs = [part.communicate()[0] for part in parts]
        made = sorted(Path(outputs[0].strip().splitlines()[-1]).glob("scene_*"))
        split = json.loads((self.data / "split.json").read_text())
        copies = [(folder, folder.name) for folder in made]
        copies += [(self.data / name, f"{name}_{turn}") for name in split["train"] for turn in range(self.repeats)]
        for folder, name in copies + [(self.data / name, name) for name in split["test"]]:
            shutil.copytree(folder, mix / name)
        (mix / "split.json").write_text(json.dumps({"train": [name for _, name in copies], "test": split["test"]}))

    def train(self, name: str, data: Path, steps: int, flags: list[str]) -> Path:
        """One phase; returns its run folder."""
        run = self.output_dir / name / "tokengs-small" / "run"
        if (run / "nerfstudio_models" / f"step-{steps - 1:09d}.ckpt").is_file():
            return run
        command = [sys.executable, "-m", "nerfstudio.scripts.train", "tokengs-small", "--output-dir", str(self.output_dir)]
        command += ["--experiment-name", name, "--timestamp", "run", "--data", str(data), "--max-num-iterations", str(steps)]
        command += ["--machine.seed", str(self.seed), "--pipeline.datamanager.seed", str(self.seed)]
        command += ["--pipeline.datamanager.scene-split", str(data / "split.json"), "--pipeline.datamanager.held-out-frame-interval", "8"]
        command += ["--pipeline.datamanager.num-workers", str(self.workers), "--logging.local-writer.enable", "False", *flags]
        command += ["--steps-per-eval-image", "0", "--steps-per-eval-all-images", "0", "--logging.profiler", "none"]
        subprocess.run(command, check=True)
        return run

    def evaluate(self, run: Path) -> None:
        """The test scenes with 2, 4 and 6 context views, and held-out frames of the training scenes."""
        from token_methods.commands.runs import load_run
        from token_methods.multiscene.run_options import RunOptions

        config = yaml.load((run / "config.yml").read_text(), Loader=yaml.Loader)
        data = config.pipeline.datamanager
        data.data = data.dataparser.data = self.data.resolve()
        data.scene_split = (self.data / "split.json").resolve()
        (run / "evaluation.yml").write_text(yaml.dump(config), encoding="utf-8")
        report: dict[str, dict[str, float]] = {}
        print("| context | tuning | PSNR | SSIM | LPIPS | nearest view | mean colour |\n|---|---|---|---|---|---|---|", flush=True)
        cases = [(4, 0), (2, 0), (6, 0), (0, 0)] + [(views, steps) for steps in self.tuning for views in (4, 2, 6)]
        for views, steps in cases:
            options = RunOptions(
                context_views=views or 4,
                evaluation_index=self.data / f"evaluation_test_{views}views.json" if views else None,
                evaluate="held-out-scenes" if views else "held-out-frames",
                tuning_steps=steps,
                lpips_weights=self.lpips_weights,
            )
            name = f"{views} views, {steps} tuning steps" if views else "held-out frames"
            pipeline = load_run(run / "evaluation.yml", options)[1]
            result = report[name] = pipeline.get_average_eval_image_metrics(
                output_path=self.output_dir / "pictures" / name.replace(" ", "_")
            )
            columns = [
                result["psnr"],
                result["ssim"],
                result.get("lpips", float("nan")),
                result["nearest_context_psnr"],
                result["mean_colour_psnr"],
            ]
            print(f"| {views or 'held-out frames'} | {steps} | " + " | ".join(f"{value:.3f}" for value in columns) + " |", flush=True)
            (self.output_dir / "report.json").write_text(json.dumps(report, indent=2))

    def note(self, what: str, started: float) -> None:
        print(f"[{time.perf_counter() - started:.0f} s] {what}", flush=True)


if __name__ == "__main__":
    tyro.cli(TrainSmall).main()
