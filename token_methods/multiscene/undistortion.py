"""Distorted photographs to pinhole views, through nerfstudio's own undistortion.

The pinhole camera of a view depends on its camera alone, so it is known before any image is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.datamanagers.full_images_datamanager import _undistort_image

from token_methods.multiscene.errors import ImageError, SceneError


@dataclass(frozen=True)
class Pinhole:
    """The pinhole camera that a view has once it is undistorted; pixels, centres at +0.5."""

    fx: float
    fy: float
    cx: float
    cy: float
    height: int
    width: int


def pinhole_cameras(cameras: Cameras) -> list[Pinhole]:
    """The undistorted camera of each view of [n] cameras, found on blank images, once for each distinct lens.

    Raises:
        SceneError: a camera model that has no pinhole equivalent.
    """
    known: dict[tuple[float, ...], Pinhole] = {}
    result = []
    for index in range(len(cameras)):
        camera = cameras[index : index + 1]
        key = _lens(camera)
        if key not in known:
            height, width = int(camera.height), int(camera.width)
            blank = np.zeros((height, width, 3), dtype=np.uint8) if is_distorted(camera) else None
            known[key] = _pinhole(camera, height, width) if blank is None else undistort(camera, blank)[0]
        result.append(known[key])
    return result


def is_distorted(camera: Cameras) -> bool:
    """Whether the one camera differs from a pinhole."""
    distortion = camera.distortion_params
    return int(camera.camera_type) != CameraType.PERSPECTIVE.value or (distortion is not None and bool((distortion != 0).any()))


def undistort(
    camera: Cameras, image: UInt8[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"] | None = None
) -> tuple[Pinhole, UInt8[np.ndarray, "new_height new_width 3"], Bool[np.ndarray, "new_height new_width"] | None]:
    """Undistort the image of one camera ([1]) and its mask.

    Raises:
        ImageError: the image has another size than its camera says.
        SceneError: a camera model that has no pinhole equivalent.
    """
    height, width = int(camera.height), int(camera.width)
    if image.shape[:2] != (height, width):
        raise ImageError(
            f"the image is {image.shape[1]} x {image.shape[0]} pixels, its camera says {width} x {height}; "
            "correct w and h of the camera, or the dataparser's downscale factor"
        )
    if mask is not None and mask.shape != (height, width):
        raise ImageError(f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels, its image {width} x {height}; make the mask anew")
    if not is_distorted(camera):
        return _pinhole(camera, height, width), image, mask
    single = camera.reshape(())
    data = {} if mask is None else {"mask": torch.from_numpy(mask[..., None])}
    distortion = single.distortion_params
    parameters = np.zeros(6) if distortion is None else distortion.double().numpy()
    try:
        matrix, image, new_mask = _undistort_image(
            single, parameters, data, image, single.get_intrinsics_matrices().double().numpy().copy()
        )
    except (AssertionError, NotImplementedError) as error:
        model = CameraType(int(single.camera_type)).name.lower()
        raise SceneError(f"a {model} camera cannot be undistorted to a pinhole ({error}); undistort the images first") from error
    fx, fy, cx, cy = (float(matrix[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    pinhole = Pinhole(fx, fy, cx, cy, height=int(image.shape[0]), width=int(image.shape[1]))
    return pinhole, image, None if new_mask is None else new_mask[..., 0].numpy()


def _pinhole(camera: Cameras, height: int, width: int) -> Pinhole:
    return Pinhole(float(camera.fx), float(camera.fy), float(camera.cx), float(camera.cy), height, width)


def _lens(camera: Cameras) -> tuple[float, ...]:
    values = [camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height, camera.camera_type]
    distortion = camera.distortion_params
    return tuple(float(value) for value in values) + (() if distortion is None else tuple(distortion.flatten().tolist()))
