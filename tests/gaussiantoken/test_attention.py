"""Reading a map at points: by hand, and the kernels, interpreted, against PyTorch's operators in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.gaussiantoken.interpreter import interpreted
from token_methods.gaussiantoken.attention import DeformableAttention, cell_centres, read_map

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs_of(batch: int, queries: int, heads: int, channels: int, points: int, height: int, width: int, own: bool) -> Inputs:
    """Values, references, fixed offset, offsets of up to three cells (some reach over the edge), logits."""
    g = torch.Generator().manual_seed(0)
    leading = (batch, queries) if own else (queries,)
    return (
        torch.randn(batch, height * width, heads * channels, generator=g),
        torch.rand(*leading, 2, generator=g),
        torch.randn(1, 2, generator=g),
        3 * torch.randn(batch, queries, heads * (points - 1) * 2, generator=g),
        torch.randn(batch, queries, heads * points, generator=g),
    )


def test_points_between_cells_by_hand() -> None:
    height, width = 3, 4
    values = torch.arange(12.0).view(1, 12, 1)
    where = torch.tensor([[[2.0, 1.0], [1.25, 0.5], [-0.5, 0.0], [9.0, 0.0]]])  # column and row, from the middle of the first cell
    references = (where + 0.5) / torch.tensor([width, height])
    logits = torch.full((1, 4, 2), 0.0)
    seen = read_map(values, references, torch.zeros(1, 2), torch.zeros(1, 4, 2), logits, 1, (height, width))
    assert seen.flatten().tolist() == pytest.approx([6.0, 1.25 + 2.0, 0.0, 0.0], abs=1e-5)
    # The second point one cell to the right, with three times the weight of the first.
    logits[..., 1] = torch.log(torch.tensor(3.0))
    seen = read_map(values, references[:, :1], torch.zeros(1, 2), torch.tensor([[[1.0, 0.0]]]), logits[:, :1], 1, (height, width))
    assert seen.item() == pytest.approx(0.25 * 6 + 0.75 * 7)


def test_a_layer_reads_the_cell_itself_where_nothing_moves_the_points() -> None:
    torch.manual_seed(0)
    layer = DeformableAttention(8, 2, 3)
    with torch.no_grad():
        layer.sampling_offsets.bias.zero_()
        layer.fixed_offsets.zero_()
    values = torch.randn(2, 20, 8)
    seen = layer(torch.randn(2, 20, 8), cell_centres(4, 5), values, (4, 5))
    torch.testing.assert_close(seen, layer.output_proj(layer.value_proj(values)))


@interpreted
@pytest.mark.parametrize(
    ("batch", "queries", "heads", "channels", "points", "height", "width", "own"),
    [(2, 20, 4, 8, 5, 4, 5, False), (3, 7, 2, 16, 4, 6, 3, True), (1, 33, 1, 4, 1, 2, 2, True), (1, 3, 4, 128, 2, 3, 5, False)],
)
def test_the_kernels_are_exact(
    batch: int, queries: int, heads: int, channels: int, points: int, height: int, width: int, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from token_methods.gaussiantoken import attention_triton

    monkeypatch.setattr(attention_triton, "NUMBERS", 256)
    values, references, fixed, offsets, logits = inputs_of(batch, queries, heads, channels, points, height, width, own)
    cotangent = torch.randn(batch, queries, heads * channels, generator=torch.Generator().manual_seed(1))
    results = []
    for read, dtype in ((attention_triton.fused_read_map, torch.float32), (read_map, torch.float64)):
        trained = [value.to(dtype).requires_grad_() for value in (values, references, offsets, logits)]
        seen = read(*trained[:2], fixed.to(dtype), *trained[2:], heads, (height, width))
        # One point has no offsets and one weight, 1.
        results.append([seen, *torch.autograd.grad(seen, trained, cotangent.to(dtype), materialize_grads=True, allow_unused=True)])
    for ours, exact in zip(*results, strict=True):
        assert ours.shape == exact.shape
        assert exact.numel() == 0 or (ours - exact).abs().max() <= 1e-5 * max(exact.abs().max().item(), 1e-3)


@interpreted
def test_what_the_kernels_take() -> None:
    from token_methods.gaussiantoken.attention_triton import fits

    assert fits(torch.zeros(1, 4, 64), 4)
    assert not any(fits(values, 4) for values in (torch.zeros(1, 4, 64).double(), torch.zeros(1, 4, 48), torch.zeros(0, 4, 64)))
