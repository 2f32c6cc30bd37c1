"""Pictures of any size as tiles of tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.network import GaussianTokenNetwork
from token_methods.gaussiantoken.tokenizer import ImageTokenizer


def tiny_tokenizer(preset: str = "tiny") -> ImageTokenizer:
    """An untrained network with random codes."""
    torch.manual_seed(0)
    architecture = PRESETS[preset].architecture
    network = GaussianTokenNetwork(replace(architecture, channels=32, num_residual_blocks=1))
    network.quantize.codebook.copy_(torch.randn_like(network.quantize.codebook))
    return ImageTokenizer(network)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_tiles_are_coded_as_pictures_of_their_own() -> None:
    tokenizer = tiny_tokenizer()
    picture = noise(64, 32)
    whole, parts = tokenizer.tokenize(picture), [tokenizer.tokenize(picture[:32]), tokenizer.tokenize(picture[32:])]
    assert np.array_equal(whole.indices, np.concatenate([part.indices for part in parts]))
    back = tokenizer.detokenize(whole)
    assert back.shape == picture.shape and back.dtype == np.uint8
    difference = back.astype(int) - np.concatenate([tokenizer.detokenize(part) for part in parts]).astype(int)
    assert np.abs(difference).max() <= 1
    with torch.inference_mode():
        direct = tokenizer.network(torch.from_numpy(picture[:32]).permute(2, 0, 1)[None] / 127.5 - 1)[0].permute(1, 2, 0)
    assert np.abs(back[:32] - ((direct + 1) / 2).clamp(0, 1).mul(255).numpy()).max() <= 0.51


def test_odd_sizes_are_padded_with_their_border_and_cut_back() -> None:
    tokenizer = tiny_tokenizer()
    picture = noise(33, 40)
    padded = np.pad(picture, ((0, 31), (0, 24), (0, 0)), mode="edge")
    tokens, expected = tokenizer.tokenize(picture), tokenizer.tokenize(padded)
    assert tokens.indices.shape == (4, 16) and np.array_equal(tokens.indices, expected.indices)
    assert np.array_equal(tokenizer.detokenize(tokens), tokenizer.detokenize(expected)[:33, :40])


@pytest.mark.parametrize("preset", ["tiny", "vqgan-cifar"])
def test_pictures_share_batches_and_come_back_in_order(preset: str) -> None:
    tokenizer = tiny_tokenizer(preset)
    tokenizer.batch_size = 3
    pictures = [noise(20, 70, 1), noise(32, 32, 2), noise(65, 10, 3)]
    tokens = tokenizer.tokenize_all(pictures)
    for picture, own, back in zip(pictures, tokens, tokenizer.detokenize_all(tokens)):
        alone = tokenizer.tokenize(picture)
        assert np.array_equal(own.indices, alone.indices) and (own.height, own.width) == picture.shape[:2] == back.shape[:2]
        assert np.abs(back.astype(int) - tokenizer.detokenize(alone).astype(int)).max() <= 1
    assert tokenizer.tokenize_all([]) == [] and tokenizer.detokenize_all([]) == []


def test_what_is_no_picture_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    for picture in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"must be uint8 \[height, width, 3\]"):
            tokenizer.tokenize(picture)


def test_networks_are_told_apart() -> None:
    layout, other = tiny_tokenizer().layout, tiny_tokenizer("vqgan-cifar").layout
    assert not list(layout.differences(replace(layout, scale_range=(0.1, 3.5))))
    assert "the codebook 00000000 instead of" in next(replace(layout, codebook_sha256="0" * 64).differences(layout))
    assert "Gaussians for tokens instead of cells" in list(layout.differences(other))
