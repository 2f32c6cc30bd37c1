"""Evaluation of image tokenizers: each picture against its reconstruction, sets of them, and what the tokens cost.

Two protocols stand side by side. Ours takes images as they are, picture by picture. The published one (GaussianToken, Dong et al. 2025,
arXiv 2501.15619, released evaluation code), under `published_`, cuts both images off to 8 bits, takes one PSNR of all pixels of a
batch, and means over batches: figures of papers are to be compared with that, at the published batch size of 64.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from token_methods.core.feature_distances import VGG16_FEATURES, frechet_distance, kernel_distance, vgg16_features
from token_methods.core.inception import InceptionFeatures
from token_methods.core.metrics import joint_psnr, truncated_to_bytes, uniform_structural_similarity
from token_methods.core.perceptual import Lpips
from token_methods.core.views import SceneBatch
from token_methods.gaussiantoken.config import GaussianTokenArchitecture
from token_methods.gaussiantoken.geometry_quantization import EXACT, GeometryBits
from token_methods.gaussiantoken.model import GaussianTokenModel
from token_methods.gaussiantoken.panels import comparison
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.evaluation import HIGHEST_PSNR, view_metrics, write_json
from token_methods.multiscene.panels import save_image
from token_methods.multiscene.processes import process_rank

MAX_PICTURES = 16
"""Pictures that are shown beside their reconstructions."""
Images = Float[Tensor, "batch 3 height width"]


@dataclass(frozen=True)
class Instruments:
    """Networks that compare pictures; what is None is not measured."""

    lpips: Lpips | None = None
    """LPIPS (vgg), which also gives the features of VGG16-FD and VGG16-KD."""
    lpips_alex: Lpips | None = None
    inception: InceptionFeatures | None = None
    """Gives the features of rFID."""


@dataclass(frozen=True)
class BatchReport:
    """What was measured on one batch; on the CPU."""

    names: tuple[str, ...]
    per_image: dict[str, list[float]]
    """Metrics of every picture."""
    per_batch: dict[str, float]
    """Metrics that the published protocol knows for batches only."""
    code_counts: Int64[Tensor, " codes"]
    """How often each code was used."""
    features: dict[str, tuple[Float[Tensor, "batch channels"], Float[Tensor, "batch channels"]]]
    """By network, of the pictures and of their reconstructions."""
    seconds: float
    """To encode and decode the batch."""


def evaluate_images(
    model: GaussianTokenModel,
    batches: Iterable[SceneBatch],
    num_images: int,
    instruments: Instruments,
    protocol: Mapping[str, str],
    output_path: Path | None = None,
    with_std: bool = False,
) -> dict[str, float]:
    """Reconstruct pictures and compare them.

    With several processes each takes its own batches, and all return the figures over all pictures. With `output_path`,
    `per_image.json` and `comparison.png` (rows: pictures, reconstructions, errors) are written there.

    Args:
        model: in evaluation mode.
        batches: those of this process.
        num_images: of all processes, for the progress bar.
        instruments: networks to compare with.
        protocol: how pictures were prepared, in words; goes into the report.
        output_path: folder for the report.
        with_std: add the standard deviation over pictures of every metric of single pictures, as `NAME_std`.

    Returns:
        - psnr, ssim, lpips, lpips_alex: means over pictures. mean_colour_psnr and mean_colour_ssim are those of pictures of one colour,
          their own mean: what knowing nothing else achieves.
        - published_psnr, published_ssim: see above.
        - rfid; vgg16_fd (from more than 512 pictures) and vgg16_kd: distances between all pictures and all reconstructions.
        - code_usage, code_perplexity: share of the codes that were used, and how many equally frequent ones would be as diverse.
        - bits_per_image of the codes alone; for Gaussians also with their geometry, see `bits_per_image`.
        - images_per_second: encoded and decoded by one process. num_images.

    Raises:
        SceneError: a picture cannot be used (in every process, whichever met it), or there is none.
    """
    rank, processes = process_rank()
    reports: dict[int, BatchReport] = {}
    shown: list[tuple[Images, Images]] = []
    problem: SceneError | None = None
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=CONSOLE, transient=True, disable=rank != 0) as progress:
        task = progress.add_task("Evaluating", total=num_images)
        try:
            for turn, batch in enumerate(batches):
                if turn == 0 and batch.context.device.type == "cuda":
                    _reconstructed(model, batch)  # the first use of a device compiles and tunes kernels: not what the times are to tell
                report, reconstruction = _evaluate_batch(model, batch, instruments)
                reports[turn * processes + rank] = report
                if output_path is not None and rank == 0 and sum(len(images) for images, _ in shown) < MAX_PICTURES:
                    shown.append((_pictures(batch).cpu(), reconstruction.cpu()))
                progress.advance(task, processes * batch.batch_size)
        except SceneError as error:
            problem = error
    if processes > 1:
        gathered: list[Any] = [None] * processes
        dist.all_gather_object(gathered, (reports, problem))
        reports = {number: report for part, _ in gathered for number, report in part.items()}
        problem = next((error for _, error in gathered if error is not None), None)
    if problem is not None:
        raise problem
    ordered = [reports[number] for number in sorted(reports)]
    summary = summarise(ordered, model.config.architecture, model.device, with_std)
    if output_path is not None and rank == 0:
        write_json(output_path / "per_image.json", {**protocol, "mean": summary, "images": image_reports(ordered)})
        pictures, reconstructions = (torch.cat(part)[:MAX_PICTURES] for part in zip(*shown))
        save_image(comparison(pictures, reconstructions), output_path / "comparison.png")
    return summary


def _evaluate_batch(model: GaussianTokenModel, batch: SceneBatch, instruments: Instruments) -> tuple[BatchReport, Images]:
    """What is measured on a batch, and its reconstruction."""
    images = _pictures(batch)
    indices, reconstruction, seconds = _reconstructed(model, batch)
    per_image = view_metrics(reconstruction, images, instruments.lpips)
    if instruments.lpips_alex is not None:
        per_image["lpips_alex"] = view_metrics(reconstruction, images, instruments.lpips_alex)["lpips"]
    mean_colour = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    per_image |= {f"mean_colour_{name}": values for name, values in view_metrics(mean_colour, images).items()}
    features = {}
    if instruments.lpips is not None:
        features["vgg16"] = vgg16_features(instruments.lpips, images).cpu(), vgg16_features(instruments.lpips, reconstruction).cpu()
    if instruments.inception is not None:
        features["inception"] = instruments.inception(images).cpu(), instruments.inception(reconstruction).cpu()
    report = BatchReport(
        names=batch.names,
        per_image={name: values.tolist() for name, values in per_image.items()},
        per_batch=published_metrics(reconstruction, images),
        code_counts=torch.bincount(indices.flatten(), minlength=model.config.architecture.codebook_size).cpu(),
        features=features,
        seconds=seconds,
    )
    return report, reconstruction


@torch.no_grad()
def _reconstructed(model: GaussianTokenModel, batch: SceneBatch) -> tuple[Int64[Tensor, "batch n"], Images, float]:
    """Codes, reconstructions in [0, 1] (black where they are not finite), and the seconds that both took."""
    _synchronise(batch)
    start = time.perf_counter()
    decoded = model.decode(model.encode(batch.context))
    _synchronise(batch)
    return decoded.tokens.indices, decoded.images.float().nan_to_num(0.0).clamp(0, 1), time.perf_counter() - start


def published_metrics(reconstruction: Images, images: Images) -> dict[str, float]:
    """PSNR of a batch as a whole and mean SSIM of its pictures, as the released evaluation takes them. Images in [0, 1]."""
    # There the pictures come back from -1..1, which is what the network takes: 63 of the 256 levels return a little darker and fall
    # to the level below when they are cut off.
    original, ours = truncated_to_bytes(((2 * images - 1) + 1) / 2), truncated_to_bytes(reconstruction)
    return {
        "published_psnr": min(float(joint_psnr(ours, original)), HIGHEST_PSNR),
        "published_ssim": float(uniform_structural_similarity(ours, original).mean()),
    }


def summarise(
    reports: Sequence[BatchReport], architecture: GaussianTokenArchitecture, device: torch.device | str = "cpu", with_std: bool = False
) -> dict[str, float]:
    """The figures of `evaluate_images` over batches; distances between sets are computed on `device`.

    Raises:
        SceneError: there are no pictures.
    """
    if not reports:
        raise SceneError("there are no pictures to evaluate: name data that have some")
    summary: dict[str, float] = {}
    for name in reports[0].per_image:
        values = [value for report in reports for value in report.per_image[name]]
        summary[name] = _mean(values)
        if with_std:
            summary[f"{name}_std"] = math.sqrt(_mean([(value - summary[name]) ** 2 for value in values]))
    # Batches count the same, also the last one, which may have fewer pictures.
    summary |= {name: _mean([report.per_batch[name] for report in reports]) for name in reports[0].per_batch}
    count = sum(len(report.names) for report in reports)
    if count > 1:
        for network in reports[0].features:
            summary |= _set_distances(network, *(torch.cat(part).to(device) for part in zip(*(r.features[network] for r in reports))))
    summary |= code_statistics(torch.stack([report.code_counts for report in reports]).sum(dim=0))
    summary |= bits_per_image(architecture)
    summary["images_per_second"] = count / max(sum(report.seconds for report in reports), 1e-9)
    summary["num_images"] = float(count)
    return summary


def _set_distances(network: str, images: Float[Tensor, "n channels"], reconstructions: Float[Tensor, "n channels"]) -> dict[str, float]:
    if network == "inception":
        return {"rfid": frechet_distance(images, reconstructions)}
    distances = {"vgg16_kd": kernel_distance(images, reconstructions)}
    if len(images) > VGG16_FEATURES:
        distances["vgg16_fd"] = frechet_distance(images, reconstructions)
    return distances


def code_statistics(counts: Int64[Tensor, " codes"]) -> dict[str, float]:
    """Share of the codes that were used at least once, and perplexity: exp of the entropy of their frequencies."""
    shares = counts.double() / counts.sum()
    return {
        "code_usage": float((counts > 0).double().mean()),
        "code_perplexity": float(torch.special.entr(shares).sum().exp()),
    }


def bits_per_image(architecture: GaussianTokenArchitecture) -> dict[str, float]:
    """Size of an image's tokens: of the codes alone, and with geometry as float32 and in the bits of token files (8/6/6).

    An opacity, which no published architecture has, is a further float32.
    """
    code, tokens = max(1, (architecture.codebook_size - 1).bit_length()), architecture.num_tokens
    bits = {"bits_per_image": float(code * tokens)}
    if architecture.embedder is not None:
        opacity = 32 * architecture.embedder.has_opacity
        bits["bits_per_image_float_geometry"] = float((code + EXACT.per_token + opacity) * tokens)
        bits["bits_per_image_quantized_geometry"] = float((code + GeometryBits().per_token + opacity) * tokens)
    return bits


def image_reports(reports: Sequence[BatchReport]) -> list[dict[str, Any]]:
    """Name and metrics of every picture."""
    return [
        {"name": name} | {metric: values[index] for metric, values in report.per_image.items()}
        for report in reports
        for index, name in enumerate(report.names)
    ]


def _pictures(batch: SceneBatch) -> Images:
    assert batch.context.images is not None
    return batch.context.images[:, 0]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _synchronise(batch: SceneBatch) -> None:
    if batch.context.device.type == "cuda":
        torch.cuda.synchronize(batch.context.device)
