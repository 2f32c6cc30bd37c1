"""The embedder: published numbers, deformable attention against a plain loop, the scale schedule, and what it promises of Gaussians."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scripts.parity.gaussiantoken_case import GaussianTokenCase
from scripts.parity.gaussiantoken_embedder import compare
from token_methods.gaussiantoken.attention import DeformableAttention, cell_centres, sine_positions
from token_methods.gaussiantoken.config import EmbedderArchitecture
from token_methods.gaussiantoken.embedder import ContentStart, GaussianEmbedder, ScaleRange

SMALL = EmbedderArchitecture(num_gaussians=5, embed_dim=32, num_blocks=2, has_opacity=True)
MAP_SIZE = (4, 6)


def embedder_of(architecture: EmbedderArchitecture = SMALL, seed: int = 0) -> GaussianEmbedder:
    torch.manual_seed(seed)
    return GaussianEmbedder(architecture, code_dim=3, map_size=MAP_SIZE)


def test_published_numbers(reference: Path) -> None:
    cases = sorted((reference / "parity" / "gaussiantoken" / "cases").glob("embedder_*.safetensors"))
    assert cases
    for path in cases:
        for comparison in compare(GaussianTokenCase(path)):
            assert comparison.passed, f"{path.stem}: {comparison}"


def read_bilinearly(plane: Tensor, x: float, y: float) -> Tensor:
    """Value of a map [dim, height, width] at a position in cells, cell centres at half numbers; zero outside."""
    _, height, width = plane.shape
    column, row = x - 0.5, y - 0.5
    value = torch.zeros_like(plane[:, 0, 0])
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                value = value + (1 - abs(row - i)) * (1 - abs(column - j)) * plane[:, i, j]
    return value


def test_deformable_attention_is_what_the_formula_says() -> None:
    torch.manual_seed(1)
    (height, width), heads, points, dim = MAP_SIZE, 2, 3, 8
    attention = DeformableAttention(dim, heads, points).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    queries, references = torch.randn(2, 3, dim).double(), torch.rand(2, 3, 2).double()
    cells = torch.randn(2, height * width, dim).double()
    found = attention(queries, references, cells, MAP_SIZE)

    expected = torch.zeros(2, 3, dim).double()
    for image in range(2):
        planes = attention.value_proj(cells[image]).T.reshape(heads, dim // heads, height, width)
        for index in range(3):
            query, (x, y) = queries[image, index], references[image, index].tolist()
            weights = attention.attention_weights(query).view(heads, points + 1).softmax(dim=-1)
            chosen = attention.sampling_offsets(query).view(heads, points, 2)
            mixed = []
            for head in range(heads):
                offsets = [attention.fixed_offsets[0], *chosen[head]]
                read = [read_bilinearly(planes[head], x * width + dx.item(), y * height + dy.item()) for dx, dy in offsets]
                mixed.append(sum(weight * value for weight, value in zip(weights[head], read, strict=True)))
            expected[image, index] = attention.output_proj(torch.cat(mixed))
    torch.testing.assert_close(found, expected)


def test_deformable_attention_has_the_gradients_of_finite_differences() -> None:
    torch.manual_seed(2)
    attention = DeformableAttention(8, 2, 2).double()
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.1)
    inputs = (torch.randn(1, 2, 8), torch.rand(1, 2, 2), torch.randn(1, 24, 8))
    doubled = tuple(value.double().requires_grad_() for value in inputs)
    assert torch.autograd.gradcheck(lambda *values: attention(*values, MAP_SIZE), doubled)


def test_positions_tell_rows_and_columns() -> None:
    positions, centres = sine_positions(*MAP_SIZE, 16), cell_centres(*MAP_SIZE)
    assert torch.equal(centres[1], torch.tensor([1.5 / 6, 0.5 / 4])) and torch.equal(centres[6], torch.tensor([0.5 / 6, 1.5 / 4]))
    assert torch.equal(positions[0, :8], positions[5, :8]) and torch.equal(positions[0, 8:], positions[18, 8:])
    assert not torch.allclose(positions[0, :8], positions[6, :8])
    assert positions[7, 0].item() == pytest.approx(math.sin(2 * math.pi * 1.5 / 4), abs=1e-5)
    assert positions[7, 9].item() == pytest.approx(math.cos(2 * math.pi * 1.5 / 6), abs=1e-5)


@pytest.mark.parametrize("extreme", [0.0, 1e4, -1e4])
def test_gaussians_are_within_their_ranges(extreme: float) -> None:
    embedder = embedder_of().eval()
    with torch.no_grad():
        embedder.gaussian_lifter.anchor[:, :2] += extreme
        embedder.layers[-1].layers[10].bias += extreme
    gaussians = embedder(torch.randn(2, 32, *MAP_SIZE))
    assert gaussians.opacities is not None
    limits = {"means": (-1, 1), "scales": (0.1, 4.0), "rotations": (0, math.pi), "opacities": (0, 1)}
    for name, (low, high) in limits.items():
        value = getattr(gaussians, name)
        assert (value > low).all() and (value < high).all(), name
    assert torch.isfinite(gaussians.features).all()


def test_autocast_does_not_reach_it() -> None:
    embedder, feature_map = embedder_of().eval(), torch.randn(1, 32, *MAP_SIZE)
    expected = embedder(feature_map)
    with torch.autocast("cpu", torch.bfloat16):
        found = embedder(feature_map)
    for name in ("means", "scales", "rotations", "features", "opacities"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_everything_that_is_built_learns_except_the_constants() -> None:
    embedder = embedder_of().train()
    gaussians = embedder(torch.randn(2, 32, *MAP_SIZE))
    loss = sum(getattr(gaussians, name).sin().sum() for name in ("means", "scales", "rotations", "features", "opacities"))
    loss.backward()  # type: ignore[union-attr]
    without = {name for name, parameter in embedder.named_parameters() if parameter.grad is None}
    constants = {name for name in without if name.endswith("fixed_offsets")} | {"gaussian_lifter.instance_feature"}
    assert without == constants


def test_blocks_start_alike_with_one_random_fixed_point() -> None:
    state = embedder_of(EmbedderArchitecture(num_gaussians=2, embed_dim=32)).state_dict()
    for key, value in state.items():
        if key.startswith("layers.0."):
            assert torch.equal(value, state[key.replace("layers.0.", "layers.3.", 1)])
            assert torch.equal(value, state[key.replace("layers.0.", "layers.6.", 1)])
        if key.startswith("layers.2.layers."):
            assert torch.equal(value, state[key.replace("layers.2.", "layers.8.", 1)])
    fixed = state["layers.0.layers.0.cross_attn.fixed_offsets"]
    assert fixed.any() and fixed.abs().max() <= math.sqrt(2)
    assert torch.equal(fixed, state["layers.6.layers.1.cross_attn.fixed_offsets"])


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"feature map of \(8, 8\) cells, but the embedder was built for \(4, 6\)"):
        embedder_of()(torch.randn(1, 32, 8, 8))


@pytest.mark.parametrize(("mean_scale", "steps"), [(2.5, 1592), (3.0, 943)])
def test_the_scale_range_shrinks_at_the_published_pace(mean_scale: float, steps: int) -> None:
    scale_range, mean = ScaleRange(), torch.tensor(mean_scale)
    largest = []
    for _ in range(steps + 5):
        scale_range.update(mean)
        largest.append(scale_range.current_range_max.item())
    assert largest[steps - 10] > 3.0
    assert next(index for index, value in enumerate(largest) if value == 3.0) == pytest.approx(steps, abs=2)
    assert largest[-1] == 3.0


def test_the_scale_range_moves_in_training_only_and_resumes_exactly() -> None:
    shares = torch.rand(4, 3, 2, requires_grad=True)
    scale_range, resumed = ScaleRange(), ScaleRange()
    scale_range.eval()(shares)
    assert scale_range.current_range_max == 4.0 and scale_range.ema == pytest.approx(2.05)
    scales = scale_range.train()(shares)
    torch.testing.assert_close(scales, 0.1 + 3.9 * shares)
    assert 3.9 < scale_range.current_range_max < 4.0
    assert torch.autograd.grad(scales.sum(), shares)[0].unique().tolist() == pytest.approx([3.9])
    resumed.load_state_dict(scale_range.state_dict())
    for _ in range(3):
        assert torch.equal(scale_range(shares), resumed.train()(shares))
    assert torch.equal(scale_range.ema, resumed.ema)


def test_a_content_start_goes_where_something_happens() -> None:
    """A bright dot in an even map draws the Gaussian of its quarter; the others start in the middle of theirs."""
    start = ContentStart(4, (8, 8))
    cells = torch.zeros(1, 64, 6)
    cells[0, 8 * 1 + 6] = 1.0
    anchor, features = start(torch.zeros(1, 4, 5 + 6), cells, cell_centres(8, 8))
    places = anchor[0, :, :2].sigmoid() * 8
    assert places[1].tolist() == pytest.approx([6.5, 1.5], abs=0.15)
    assert places[2].tolist() == pytest.approx([2.0, 6.0], abs=0.01)
    assert features[0, 1].min() > 0.5
    assert features[0, 2].abs().max() == 0


@pytest.mark.parametrize(
    ("count", "size", "grid"), [(64, (16, 16), (8, 8)), (32, (16, 16), (4, 8)), (256, (32, 32), (16, 16)), (7, (4, 28), (1, 7))]
)
def test_a_content_start_parts_the_map_evenly(count: int, size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert ContentStart(count, size).grid in {grid, grid[::-1]}
