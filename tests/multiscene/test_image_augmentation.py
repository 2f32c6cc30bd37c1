"""Pictures to the size of a network, beside torchvision's own transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as torchvision

from token_methods.multiscene.image_augmentation import (
    augment,
    centre_crop,
    evaluation_picture,
    random_window,
    resized,
    resized_centre_crop,
)

SIZES = [(40, 60), (61, 33), (32, 32), (20, 70), (9, 11), (31, 200)]


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
def test_a_window_is_resized_as_torchvision_does(size: tuple[int, int]) -> None:
    source = picture(*size)
    for seed in range(4):
        top, left, height, width = random_window(*size, np.random.default_rng(seed))
        mine = resized(source[:, top : top + height, left : left + width], 32, 32)
        assert torch.equal(mine, torchvision.resized_crop(source, top, left, height, width, [32, 32], antialias=True))


@pytest.mark.parametrize("size", SIZES)
def test_crops_of_evaluation_are_torchvisions(size: tuple[int, int]) -> None:
    source = picture(*size)
    for wanted in ((32, 32), (33, 32), (12, 45)):
        assert torch.equal(centre_crop(source, *wanted), torchvision.center_crop(source, list(wanted)))
    usual = torchvision.center_crop(torchvision.resize(source, [32], antialias=True), [32, 32])
    assert torch.equal(resized_centre_crop(source, 32, 32), usual)
    assert resized_centre_crop(source, 24, 40).shape == (3, 24, 40)


def test_small_pictures_get_a_black_border() -> None:
    cropped = centre_crop(torch.full((3, 4, 4), 255, dtype=torch.uint8), 8, 9)
    assert cropped.shape == (3, 8, 9) and int(cropped.sum()) == 3 * 16 * 255 and int(cropped[:, 2:6, 2:6].min()) == 255


def test_windows_are_distributed_as_torchvisions() -> None:
    """Area and proportions, over many draws, of the same picture."""
    rng, source = np.random.default_rng(0), torch.empty(1, 100, 140)
    mine = np.array([random_window(100, 140, rng) for _ in range(4000)], dtype=float)
    theirs = np.array([RandomResizedCrop.get_params(source, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], dtype=float)
    assert (mine[:, 0] + mine[:, 2]).max() <= 100 and (mine[:, 1] + mine[:, 3]).max() <= 140 and mine[:, :2].min() >= 0
    for measure in (
        lambda w: w[:, 2] * w[:, 3] / 14000,
        lambda w: np.log(w[:, 3] / w[:, 2]),
        lambda w: w[:, 0] / 100,
        lambda w: w[:, 1] / 140,
    ):
        ours, expected = measure(mine), measure(theirs)
        assert abs(ours.mean() - expected.mean()) < 0.02 and abs(ours.std() - expected.std()) < 0.02


@pytest.mark.parametrize("size", [(5, 500), (500, 5)])
def test_elongated_pictures_get_the_window_in_the_middle(size: tuple[int, int]) -> None:
    expected = RandomResizedCrop.get_params(torch.empty(1, *size), [0.08, 1.0], [3 / 4, 4 / 3])
    assert random_window(*size, np.random.default_rng(0)) == tuple(expected)


def test_training_pictures_are_random_and_repeatable() -> None:
    source = picture(40, 50)
    same = [augment(source, 16, 24, "random-resized-crop", np.random.default_rng(7)) for _ in range(2)]
    assert torch.equal(*same) and same[0].shape == (3, 16, 24)
    assert not torch.equal(same[0], augment(source, 16, 24, "random-resized-crop", np.random.default_rng(8)))
    gradient = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64)
    left_to_right = [
        bool(augment(gradient, 8, 8, "random-resized-crop", np.random.default_rng(s))[0, 0].int().diff().sum() > 0) for s in range(200)
    ]
    assert 70 < sum(left_to_right) < 130


def test_nothing_is_left_to_chance_without_augmentation() -> None:
    source, rng = picture(32, 32), np.random.default_rng(0)
    assert torch.equal(augment(source, 32, 32, "none", rng), source)
    assert torch.equal(augment(picture(64, 48), 32, 32, "none", rng), resized_centre_crop(picture(64, 48), 32, 32))
    assert rng.random() == np.random.default_rng(0).random()


def test_sizes_that_cannot_be_taken_are_named() -> None:
    assert torch.equal(evaluation_picture(picture(32, 32), 32, 32, "none"), picture(32, 32))
    with pytest.raises(ValueError, match=r"has 20 x 30 pixels, the network sees 32 x 32: set --pipeline\.datamanager\.evaluation-crop"):
        evaluation_picture(picture(20, 30), 32, 32, "none")
    with pytest.raises(ValueError, match="1 x 5000 pixels: too elongated"):
        evaluation_picture(picture(1, 5000), 256, 256, "resize-centre")
