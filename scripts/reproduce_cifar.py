"""GaussianToken on CIFAR: train variants one after the other, evaluate them on the test images, print a table.

    python scripts/reproduce_cifar.py --data cifar-10-python.tar.gz --output-dir outputs/cifar
    python scripts/reproduce_cifar.py --data CIFAR --steps 1000 --variants gaussians content-start

All variants see the same images in the same order. With fewer steps than the published 3 900 the whole schedule is compressed: warm-up,
first step of the adversarial term, and the span of the weights' average. What is there already is not made again, and a training that
was interrupted is resumed. Published beside them: PSNR and SSIM of Table 1 and of the ablations (CIFAR-100, 50 000 training images).
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

ARCHITECTURE = "--pipeline.model.architecture"
EMBEDDER = f"{ARCHITECTURE}.embedder"
OPTIMIZERS = ("--optimizers.generator", "--optimizers.discriminator")
PUBLISHED_STEPS, PUBLISHED_EPOCHS, PUBLISHED_DECAY = 3900, 30, 0.999
CONTENT_START = (f"{EMBEDDER}.start", "content")
WIDER_CODES = (f"{ARCHITECTURE}.code-dim", "8")
NO_DROPOUT = (f"{EMBEDDER}.dropout", "0")
HIGHER_RATE = tuple(word for group in OPTIMIZERS for word in (f"{group}.optimizer.lr", "5e-4"))


@dataclass(frozen=True)
class Variant:
    """One change of the published recipe."""

    method: str = "gaussiantoken-cifar"
    flags: tuple[str, ...] = ()
    published: str = "-"
    """PSNR and SSIM that the publication states for it."""
    published_splat: bool = False
    """Train with the published backward pass of the splat, which counts a cross term twice."""


VARIANTS = {
    "gaussians": Variant(published="25.84 / 0.90"),
    "vqgan": Variant("vqgan-cifar", published="23.59 / 0.81"),
    "gaussians-32": Variant(flags=(f"{EMBEDDER}.num-gaussians", "32"), published="23.01 / 0.80 (4 channels)"),
    "gaussians-128": Variant(flags=(f"{EMBEDDER}.num-gaussians", "128"), published="26.98 / 0.92 (4 channels)"),
    "gaussians-256": Variant(flags=(f"{EMBEDDER}.num-gaussians", "256"), published="28.23 / 0.95 (4 channels)"),
    "published-gradient": Variant(published_splat=True),
    "content-start": Variant(flags=CONTENT_START),
    "code-dim-8": Variant(flags=WIDER_CODES),
    "no-dropout": Variant(flags=NO_DROPOUT),
    "higher-rate": Variant(flags=HIGHER_RATE),
    "slow-codebook": Variant(flags=(f"{ARCHITECTURE}.codebook-decay", "0.99")),
    "together": Variant(flags=(*CONTENT_START, *WIDER_CODES, *NO_DROPOUT, *HIGHER_RATE)),
}
PUBLISHED_SPLAT = """
from token_methods.gaussiantoken import network
exact = network.splat
network.splat = lambda gaussians, height, width, published=False: exact(gaussians, height, width, True)
"""


@dataclass
class ReproduceCifar:
    """Train and evaluate."""

    data: Path
    """What the dataparser cifar-data reads."""
    output_dir: Path = Path("outputs/cifar")
    """Runs, pictures and report.json."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Which, in this order."""
    steps: int = PUBLISHED_STEPS
    """Optimisation steps of each; the published 30 epochs have 3900."""
    seed: int = 42
    """Of initial values and draws."""
    lpips_weights: Path | None = None
    """LPIPS weights; by default the cache folders."""
    flags: str = ""
    """Further flags of ns-train, for all, as one word: --flags="--steps-per-save 2000"."""

    def main(self) -> None:
        unknown = set(self.variants) - set(VARIANTS)
        if unknown:
            sys.exit(f"there is no variant {', '.join(sorted(unknown))}; choose from {', '.join(VARIANTS)}")
        path = self.output_dir / "report.json"
        report: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
        for name in self.variants:
            if report.get(name, {}).get("steps") == self.steps:
                continue
            started = time.perf_counter()
            log = self.train(name)
            report[name] = {"steps": self.steps, **speed(log), **self.evaluate(name), "seconds": time.perf_counter() - started}
            path.write_text(json.dumps(report, indent=2))
            print(f"{name}: {row(name, report[name])}", flush=True)
        print("\n".join(table({name: report[name] for name in self.variants})))

    def run_folder(self, name: str) -> Path:
        return self.output_dir / name / VARIANTS[name].method / f"{self.steps}"

    def train(self, name: str) -> str:
        """One training; returns what it printed."""
        variant, run = VARIANTS[name], self.run_folder(name)
        log = run.parent / f"{self.steps}.log"
        if (run / "nerfstudio_models" / f"step-{self.steps - 1:09d}.ckpt").is_file():
            return log.read_text(encoding="utf-8")
        code = (PUBLISHED_SPLAT if variant.published_splat else "") + "from nerfstudio.scripts.train import entrypoint\nentrypoint()"
        command = [sys.executable, "-c", code, variant.method, "--output-dir", str(self.output_dir), "--experiment-name", name]
        command += ["--timestamp", str(self.steps), "--max-num-iterations", str(self.steps), "--machine.seed", str(self.seed)]
        command += ["--pipeline.datamanager.seed", str(self.seed), "--data", str(self.data), *variant.flags, *shlex.split(self.flags)]
        command += self.schedule()
        command += ["--logging.local-writer.enable", "False", "--logging.profiler", "none", "--steps-per-eval-all-images", "1000"]
        if self.lpips_weights is not None:
            command += ["--pipeline.lpips-weights", str(self.lpips_weights), "--pipeline.model.lpips-weights", str(self.lpips_weights)]
        if any(run.glob("nerfstudio_models/*.ckpt")):
            command += ["--load-dir", str(run / "nerfstudio_models")]
        run.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as file:
            subprocess.run([*command, "cifar-data"], check=True, stdout=file, stderr=subprocess.STDOUT)
        return log.read_text(encoding="utf-8")

    def schedule(self) -> list[str]:
        """Flags that compress the published schedule to the steps there are."""
        if self.steps == PUBLISHED_STEPS:
            return []
        epoch = str(max(1, self.steps // PUBLISHED_EPOCHS))
        flags = ["--pipeline.model.steps-per-epoch", epoch]
        flags += ["--pipeline.model.average-decay", f"{PUBLISHED_DECAY ** (PUBLISHED_STEPS / self.steps):.6f}"]
        return flags + [word for group in OPTIMIZERS for word in (f"{group}.scheduler.warmup-steps", epoch)]

    def evaluate(self, name: str) -> dict[str, float]:
        run = self.run_folder(name)
        output = run / "evaluation.json"
        if not output.is_file():
            command = [
                sys.executable,
                "-m",
                "nerfstudio.scripts.eval",
                "--load-config",
                str(run / "config.yml"),
                "--output-path",
                str(output),
            ]
            command += ["--render-output-path", str(self.output_dir / "pictures" / name)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        results: dict[str, float] = json.loads(output.read_text())["results"]
        return results


def speed(log: str) -> dict[str, float]:
    """Milliseconds a step, images a second and peak memory, as the trainer printed them at its end."""
    text = " ".join(log.split("Trained ")[-1].split())
    found = re.search(r"([\d.]+) ms a step, ([\d.]+) scenes/s .*?memory (\d+)", text)
    return {} if found is None else dict(zip(("ms_per_step", "images_per_second_trained", "peak_mib"), map(float, found.groups())))


COLUMNS = {
    "PSNR": ("psnr", 2),
    "SSIM": ("ssim", 3),
    "PSNR per batch": ("published_psnr", 2),
    "SSIM 7x7": ("published_ssim", 3),
    "LPIPS vgg": ("lpips", 3),
    "VGG16-FD": ("vgg16_fd", 2),
    "codes used": ("code_usage", 3),
    "bits": ("bits_per_image", 0),
    "ms a step": ("ms_per_step", 1),
    "images/s": ("images_per_second_trained", 0),
    "peak MiB": ("peak_mib", 0),
}
"""Of the table: key in the report, decimals. "per batch" and "7x7" are the published ways."""


def row(name: str, result: dict[str, Any]) -> str:
    cells = [f"{result[key]:.{decimals}f}" if key in result else "-" for key, decimals in COLUMNS.values()]
    return " | ".join([name, str(result["steps"]), *cells, VARIANTS[name].published])


def table(report: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown."""
    head = ["variant", "steps", *COLUMNS, "published PSNR / SSIM"]
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *(f"| {row(name, result)} |" for name, result in report.items())]


if __name__ == "__main__":
    tyro.cli(ReproduceCifar).main()
