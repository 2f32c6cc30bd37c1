"""Pictures of any size to the size of a network: at random for training, always the same for evaluation.

Pictures stay 8-bit, as torchvision's transforms of 8-bit pictures do: what they deliver for the same window is what is delivered here.
Resizing is bilinear and antialiased, with pixel centres at +0.5.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

TrainAugmentation = Literal["none", "random-resized-crop"]
EvaluationCrop = Literal["centre", "resize-centre", "none"]

AREA = (0.08, 1.0)
"""Share of the picture that a random window covers (torchvision's default, which the GaussianToken publication uses)."""
ASPECT = (3 / 4, 4 / 3)
"""Width over height of a random window, before it is resized."""
WINDOW_ATTEMPTS = 10
FLIP_PROBABILITY = 0.5
LARGEST_ASPECT = 100
"""More elongated pictures cannot be resized by their shorter side within reasonable memory."""

Picture = UInt8[Tensor, "3 height width"]


def augment(picture: Picture, height: int, width: int, augmentation: TrainAugmentation, rng: np.random.Generator) -> Picture:
    """A training picture at the size of the network.

    `"random-resized-crop"` cuts a random window, resizes it, and reflects every other picture left to right. `"none"` leaves nothing to
    chance: a picture of the network's size stays as it is, others are treated as `"resize-centre"` does in evaluation.

    Raises:
        ValueError: the picture is too elongated to be resized.
    """
    if augmentation == "none":
        return resized_centre_crop(picture, height, width)
    top, left, window_height, window_width = random_window(picture.shape[1], picture.shape[2], rng)
    window = resized(picture[:, top : top + window_height, left : left + window_width], height, width)
    return window.flip(-1) if rng.random() < FLIP_PROBABILITY else window


def evaluation_picture(picture: Picture, height: int, width: int, crop: EvaluationCrop) -> Picture:
    """A picture to be evaluated on at the size of the network.

    - `"centre"`: the middle of the picture, not resized; black where the picture is smaller (the published GaussianToken validation).
    - `"resize-centre"`: resized until it just covers the size, then its middle (the usual protocol).
    - `"none"`: pixels are not touched.

    Raises:
        ValueError: with `"none"`, the picture has another size; or it is too elongated to be resized.
    """
    if crop == "centre":
        return centre_crop(picture, height, width)
    if crop == "resize-centre":
        return resized_centre_crop(picture, height, width)
    if tuple(picture.shape[1:]) != (height, width):
        raise ValueError(
            f"has {picture.shape[1]} x {picture.shape[2]} pixels, the network sees {height} x {width}: "
            "set --pipeline.datamanager.evaluation-crop to resize-centre or centre"
        )
    return picture


def random_window(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a window for a random resized crop (Szegedy et al. 2015, as torchvision draws it).

    Where no window of the drawn proportions fits, the largest one in the middle that has bearable proportions.
    """
    for _ in range(WINDOW_ATTEMPTS):
        area = height * width * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        window_height, window_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < window_height <= height and 0 < window_width <= width:
            return int(rng.integers(height - window_height + 1)), int(rng.integers(width - window_width + 1)), window_height, window_width
    window_height = min(height, round(width / ASPECT[0]))
    window_width = min(width, round(height * ASPECT[1]))
    return (height - window_height) // 2, (width - window_width) // 2, window_height, window_width


def centre_crop(picture: Picture, height: int, width: int) -> Picture:
    """The middle of a picture, with a black border where it is smaller."""
    missing_height, missing_width = max(0, height - picture.shape[1]), max(0, width - picture.shape[2])
    if missing_height or missing_width:
        left, top = missing_width // 2, missing_height // 2
        picture = torch.nn.functional.pad(picture, (left, missing_width - left, top, missing_height - top))
    top, left = round((picture.shape[1] - height) / 2), round((picture.shape[2] - width) / 2)
    return picture[:, top : top + height, left : left + width]


def resized_centre_crop(picture: Picture, height: int, width: int) -> Picture:
    """Resize a picture until it just covers the size (for a square: by its shorter side), then take its middle.

    Raises:
        ValueError: the picture is too elongated.
    """
    source_height, source_width = picture.shape[1:]
    if max(source_height, source_width) > LARGEST_ASPECT * min(source_height, source_width):
        raise ValueError(f"has {source_height} x {source_width} pixels: too elongated to be resized; cut it, or remove it")
    if source_height * width <= source_width * height:
        size = height, max(width, int(source_width * height / source_height))
    else:
        size = max(height, int(source_height * width / source_width)), width
    return centre_crop(resized(picture, *size), height, width)


def resized(picture: Picture, height: int, width: int) -> Picture:
    """A picture at another size."""
    if tuple(picture.shape[1:]) == (height, width):
        return picture
    enlarged = torch.nn.functional.interpolate(picture[None].float(), size=(height, width), mode="bilinear", antialias=True)[0]
    return enlarged.round().to(torch.uint8)
