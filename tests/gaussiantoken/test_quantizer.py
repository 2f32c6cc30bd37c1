"""The quantiser: published numbers, the gradient of the rotation trick, dead codes at any batch size, and several processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from scripts.parity.gaussiantoken_case import GaussianTokenCase
from scripts.parity.gaussiantoken_quantizer import compare
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.quantizer import Quantizer

SMALL = replace(PRESETS["tiny"].architecture, code_dim=3, codebook_size=12, dead_code_threshold=0.0, dead_code_vectors=48)


def vectors_of(seed: int, num_images: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(num_images, 12, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def started(threshold: float = 0.0, seed: int = 0) -> Quantizer:
    """A quantiser whose codebook has seen a batch."""
    torch.manual_seed(seed)
    quantizer = Quantizer(replace(SMALL, dead_code_threshold=threshold))
    quantizer.train()(vectors_of(seed))
    return quantizer


def test_published_numbers(reference: Path) -> None:
    cases = sorted((reference / "parity" / "gaussiantoken" / "cases").glob("quantizer_*.safetensors"))
    assert cases
    for path in cases:
        for comparison in compare(GaussianTokenCase(path)):
            assert comparison.passed, f"{path.stem}: {comparison}"


def test_evaluation_finds_the_nearest_code_and_learns_nothing() -> None:
    quantizer = started().eval()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    vectors = vectors_of(1).requires_grad_()
    quantized = quantizer(vectors)
    assert torch.equal(quantized.indices, torch.cdist(vectors.double(), quantizer.codebook.double()).argmin(dim=-1))
    assert torch.equal(quantized.features, quantizer.codebook[quantized.indices])
    assert quantized.commitment.shape == () and quantized.commitment == 0
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_evaluation_does_not_start_the_codebook() -> None:
    quantizer = Quantizer(SMALL).eval()
    assert not quantizer(vectors_of(0)).features.any()
    quantizer.train()(vectors_of(0))
    assert quantizer.state_dict()["_codebook.initted"].tolist() == [1.0]
    assert quantizer.codebook.any(dim=-1).all()


def test_the_gradient_turns_and_scales_as_the_code_does() -> None:
    """Rotation trick (arXiv 2410.06424, section 4.2): what takes a vector to its code takes the gradient along."""
    quantizer = started()
    vectors, cotangent = vectors_of(2).requires_grad_(), vectors_of(3)
    codes = quantizer.codebook.clone()
    quantized = quantizer(vectors)
    torch.testing.assert_close(quantized.features, codes[quantized.indices])
    (quantized.features * cotangent).sum().backward()

    x, q = vectors.detach().double(), codes[quantized.indices].double()
    u, v = F.normalize(x, dim=-1), F.normalize(q, dim=-1)
    w = F.normalize(u + v, dim=-1)
    outer = torch.eye(3) - 2 * w[..., :, None] * w[..., None, :] + 2 * v[..., :, None] * u[..., None, :]
    scale = q.norm(dim=-1) / x.norm(dim=-1)
    expected = scale[..., None] * (outer.mT @ cotangent.double()[..., None])[..., 0]
    assert vectors.grad is not None
    torch.testing.assert_close(vectors.grad.double(), expected, rtol=1e-4, atol=1e-5)


def test_commitment_is_the_mean_squared_distance_and_pulls_at_the_vectors() -> None:
    quantizer = started()
    vectors, codes = vectors_of(2).requires_grad_(), quantizer.codebook.clone()
    quantized = quantizer(vectors)
    distance = vectors.detach() - codes[quantized.indices]
    torch.testing.assert_close(quantized.commitment, distance.square().mean())
    (gradient,) = torch.autograd.grad(quantized.commitment, vectors)
    torch.testing.assert_close(gradient, 2 * distance / distance.numel())


def test_autocast_does_not_reach_it() -> None:
    quantizer = started().eval()
    vectors = vectors_of(4)
    with torch.autocast("cpu", torch.bfloat16):
        quantized = quantizer(vectors.bfloat16())
        assert torch.equal(quantizer(vectors).indices, quantizer.nearest(vectors))
        quantizer.train()
        trained = quantizer(vectors.bfloat16().requires_grad_())
    assert quantized.features.dtype == trained.features.dtype == trained.commitment.dtype == torch.float32
    torch.testing.assert_close(quantized.features, trained.features, rtol=1e-6, atol=1e-6)


def test_codes_that_are_not_hit_are_replaced_by_vectors_of_the_batch() -> None:
    quantizer = started(threshold=1.0)
    with torch.no_grad():
        quantizer._codebook.embed[0, :5] = 100.0
        quantizer._codebook.embed_avg[0, :5] = 0.0
        quantizer._codebook.cluster_size[0, :5] = 0.0
    vectors = vectors_of(5)
    quantizer(vectors)
    distance = torch.cdist(quantizer.codebook[:5], vectors.flatten(0, 1)).amin(dim=-1)
    assert (distance < 1e-5).all()
    assert (quantizer._codebook.cluster_size[0, :5] == 1.0).all()


@pytest.mark.parametrize("num_images", [1, 4, 16])
def test_a_small_batch_does_not_kill_codes(num_images: int) -> None:
    """Codes that all get their share of the hits live on, however few the hits of one step are."""
    quantizer = Quantizer(replace(SMALL, dead_code_threshold=2.0)).train()
    assert quantizer.threshold(48) == quantizer.threshold(1000) == 2.0
    assert quantizer.threshold(12) == 0.5
    even = torch.randn(12, 3, generator=torch.Generator().manual_seed(8)) * 5  # one vector per code and image
    quantizer.load_state_dict(
        {"_codebook.initted": torch.ones(1), "_codebook.cluster_size": torch.full((1, 12), float(num_images))}
        | {"_codebook.embed": even[None], "_codebook.embed_avg": even[None] * num_images}
    )
    for _ in range(3):
        quantized = quantizer(even.expand(num_images, -1, -1))
        assert torch.equal(quantized.indices, torch.arange(12).expand(num_images, -1))


def process(rank: int, folder: Path, state: dict[str, Tensor]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", world_size=2, rank=rank)
    torch.manual_seed(rank)
    quantizer = Quantizer(replace(SMALL, dead_code_threshold=2.0)).train()
    found = {"threshold": torch.tensor(quantizer.threshold(24 * 2))}
    for step in range(3):
        quantizer(vectors_of(10 + 2 * step + rank, num_images=2))
        found |= {f"{step}.{key}": value.clone() for key, value in quantizer.state_dict().items()}
    quantizer = Quantizer(SMALL).train()
    quantizer.load_state_dict(state)
    quantizer(vectors_of(20 + rank, num_images=2))
    torch.save(found | {f"together.{key}": value for key, value in quantizer.state_dict().items()}, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the processes are forked, which CUDA does not survive")
def test_processes_learn_one_codebook_from_all_their_vectors(tmp_path: Path) -> None:
    alone = started()
    mp.start_processes(process, (tmp_path, alone.state_dict()), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, msg=lambda text, key=key: f"{key}: {text}")
    alone(torch.cat([vectors_of(20, num_images=2), vectors_of(21, num_images=2)]))
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(first[f"together.{key}"], value, msg=lambda text, key=key: f"{key}: {text}")
