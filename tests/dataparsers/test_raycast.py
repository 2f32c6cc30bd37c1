"""The pictures of procedural scenes are exact: shapes, light, shadows, filtering, and independent of how the work is cut up."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataparsers.procedural.paths import find_path
from dataparsers.procedural.raycast import Raycaster, sample_pattern
from dataparsers.procedural.scenes import make_world
from dataparsers.procedural.solids import Assembly, Lamp, Material, Scene

FOCAL = (40.0, 40.0)
AHEAD = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""Camera at the origin that looks along +y, z up."""


def grey(value: float = 0.5, emission: float = 0.0) -> Material:
    return Material(np.full((16, 16, 3), value, np.float32), 1.0, emission)


def linear(value: float) -> float:
    return ((value + 0.055) / 1.055) ** 2.4


def shot(scene: Scene, pose: torch.Tensor = AHEAD, size: int = 33, samples: int = 4, display: bool = False):
    return Raycaster(scene).render(pose, (*FOCAL, size / 2, size / 2), size, size, samples, display)


def inside(shape: str, points: np.ndarray, half: np.ndarray, taper: float) -> np.ndarray:
    """The solids' definition, once more, in their own frames."""
    x, y, z = (points / half).T
    if shape == "box":
        return np.abs(points / half).max(1) <= 1
    if shape == "ball":
        return x * x + y * y + z * z <= 1
    radius = 1 + (taper - 1) * (z + 1) / 2
    return (np.abs(z) <= 1) & (np.hypot(x, y) <= radius)


@settings(max_examples=150, deadline=None)
@given(shape=st.sampled_from(["box", "ball", "drum"]), seed=st.integers(0, 10**6), taper=st.sampled_from([0.0, 0.3, 1.0]))
def test_the_first_hit_is_where_a_ray_enters_the_solid(shape: str, seed: int, taper: float) -> None:
    rng = np.random.default_rng(seed)
    half = rng.uniform(0.2, 1.5, 3)
    if shape == "drum":
        half[1] = half[0]
    scene, yaw, tilt, centre = Scene(), rng.uniform(0, 6), rng.uniform(-1, 1), rng.uniform(-1, 1, 3)
    a = Assembly(scene)
    if shape == "box":
        a.box(tuple(centre), tuple(2 * half), grey(), yaw=yaw, tilt=tilt)
    elif shape == "ball":
        a.ball(tuple(centre), tuple(half), grey(), yaw=yaw, tilt=tilt)
    else:
        a.drum((centre[0], centre[1], centre[2] - half[2]), half[0], 2 * half[2], grey(), taper=taper, yaw=yaw, tilt=tilt)
    origin = rng.normal(size=3)
    origin = centre + 5 * origin / np.linalg.norm(origin)
    direction = centre + rng.normal(0, 0.7, 3) - origin
    direction /= np.linalg.norm(direction)
    distance, _ = Raycaster(scene).first_hit(torch.tensor(origin).float()[:, None], torch.tensor(direction).float()[:, None])
    along = np.linspace(0, 10, 4001)
    local = (origin + along[:, None] * direction - centre) @ scene.solids[0].rotation
    within = inside(shape, local, half, taper)
    if not within.any():
        # a ray that only grazes may pass between two of the points
        assert math.isinf(distance) or inside(
            shape, (origin + float(distance) * direction - centre) @ scene.solids[0].rotation / 1.001, half, taper
        )
    else:
        assert float(distance) == pytest.approx(along[within.argmax()], abs=4e-3)


def test_depth_is_measured_along_the_optical_axis_through_pixel_centres() -> None:
    scene = Scene()
    Assembly(scene).box((0, 3.5, 0), (20, 1, 20), grey())
    _, depth = shot(scene)
    assert torch.allclose(depth, torch.tensor(3.0), atol=1e-5)  # a wall square to the axis: the same depth in every pixel
    scene = Scene()
    Assembly(scene).ball((0, 4, 0), 1.0, grey())
    _, depth = shot(scene)
    row, column = 14, 20
    direction = np.array([(column + 0.5 - 16.5) / 40, (row + 0.5 - 16.5) / 40, 1.0])
    a, b, c = direction @ direction, -8 * direction[2], 15.0
    assert float(depth[row, column]) == pytest.approx((-b - math.sqrt(b * b - 4 * a * c)) / (2 * a), abs=1e-5)
    assert float(depth[0, 0]) == pytest.approx(scene.sky_radius / math.sqrt(1 + 2 * (16 / 40) ** 2), rel=1e-4)


def test_colour_is_albedo_times_the_light_that_arrives() -> None:
    scene = Scene(ambient_above=(0.0, 0.0, 0.0), ambient_below=(0.0, 0.0, 0.0))
    Assembly(scene).box((0, 3.5, 0), (20, 1, 20), grey(0.6))
    scene.lamps.append(Lamp((0.5, 1.0, 0.0), (3.0, 2.0, 1.0), 0.0))
    light, _ = shot(scene, samples=1)
    # the middle pixel sees (0, 3, 0), the lamp is at a distance of 2 from the wall and 0.5 to the side
    square = 4.25
    expected = linear(0.6) * np.array([3.0, 2.0, 1.0]) * (2 / math.sqrt(square)) / square
    assert np.allclose(light[16, 16].numpy(), expected, rtol=1e-4)
    scene.lamps.clear()
    scene.ambient_above, scene.ambient_below = (0.8, 0.8, 0.8), (0.2, 0.2, 0.2)
    light, _ = shot(scene)
    assert np.allclose(light[16, 16].numpy(), linear(0.6) * 0.5, rtol=1e-4)  # an upright wall gets half of each


def test_solids_cast_shadows_and_shining_ones_do_not() -> None:
    for emission, factor in ((0.0, 0.0), (1.0, 1.0)):
        scene = Scene(ambient_above=(0.0, 0.0, 0.0), ambient_below=(0.0, 0.0, 0.0))
        a = Assembly(scene)
        a.box((0, 3.5, 0), (20, 1, 20), grey(0.6))
        scene.lamps.append(Lamp((0.0, 0.5, 2.0), (3.0, 3.0, 3.0), 0.0))
        open_light = shot(scene)[0][16, 16]
        a.box((0, 1.8, 1.0), (0.3, 0.3, 0.3), grey(0.6, emission))  # half way between lamp and wall, out of the camera's sight
        assert torch.allclose(shot(scene)[0][16, 16], factor * open_light, atol=1e-6)


def test_corners_are_darker_than_open_faces() -> None:
    scene = Scene()
    a = Assembly(scene)
    a.box((0, 3.5, 0), (20, 1, 20), grey(0.6))
    a.box((0, 0, -0.7), (20, 20, 0.4), grey(0.6))
    light = shot(scene, size=65)[0].mean(-1)
    corner = int(32.5 + 40 * 0.48 / 3)  # just above the floor at z = -0.5
    assert float(light[corner, 32]) < 0.8 * float(light[20, 32])


def test_more_pixels_averaged_are_more_samples() -> None:
    """Anti-aliasing: 4 samples at twice the size, box-filtered, agree with 16 samples; one sample does not."""
    world = make_world(np.random.default_rng([0, 11]))
    raycaster = Raycaster(world.scene)
    pose = torch.from_numpy(find_path(raycaster, world.stage, np.random.default_rng(0))(np.array([0.5])))[0]
    size = 32

    def picture(scale: int, samples: int) -> torch.Tensor:
        return raycaster.render(pose, (30.0 * scale, 30.0 * scale, 16.0 * scale, 16.0 * scale), size * scale, size * scale, samples, False)[
            0
        ]

    large = picture(2, 4).view(size, 2, size, 2, 3).mean((1, 3)).clamp_max(2)
    many, four, one = (picture(1, samples).clamp_max(2) for samples in (16, 4, 1))
    assert float((large - many).abs().mean()) < 0.015
    assert float((four - many).abs().mean()) < 0.6 * float((one - many).abs().mean())


def test_samples_fill_the_pixel_evenly() -> None:
    for count in (1, 4, 9, 16):
        points = sample_pattern(count)
        assert points.min() > 0 and points.max() < 1
        assert torch.allclose(points.mean(0), torch.tensor([0.5, 0.5]), atol=0.13 if count < 9 else 0.06)
        assert len({int(x * count) for x in points[:, 0]}) == count


@pytest.mark.parametrize("index", [0, 1])
def test_a_window_of_a_picture_is_the_picture_of_that_window(index: int) -> None:
    """Every tile leaves out solids that it thinks it cannot meet: other tiles, other solids, the same colours."""
    world = make_world(np.random.default_rng([0, index]))
    raycaster = Raycaster(world.scene)
    pose = torch.from_numpy(find_path(raycaster, world.stage, np.random.default_rng(0))(np.array([0.3])))[0]
    whole, depth = raycaster.render(pose, (50.0, 50.0, 32.0, 32.0), 64, 64, 4)
    part, part_depth = raycaster.render(pose, (50.0, 50.0, 32.0 - 13, 32.0 - 21), 30, 22, 4)
    # rounding may move a sample across an edge
    assert float(((part - whole[21:51, 13:35]).abs().amax(-1) > 1e-3).float().mean()) < 5e-3
    assert float(((part_depth - depth[21:51, 13:35]).abs() > 1e-3).float().mean()) < 5e-3


def test_textures_far_away_show_their_mean_colour() -> None:
    scene = Scene(ambient_above=(1.0, 1.0, 1.0), ambient_below=(1.0, 1.0, 1.0))
    fine = np.indices((16, 16)).sum(0)[..., None] % 2 * np.ones(3, np.float32)
    Assembly(scene).box((0, 30.5, 0), (60, 1, 60), Material(fine.astype(np.float32), 0.1))
    light, _ = shot(scene, samples=1)
    assert torch.allclose(light, torch.tensor(0.5), atol=0.01)


def test_a_scene_without_solids_is_its_sky() -> None:
    scene = Scene(sky=grey(0.5, 1.0))
    light, depth = shot(scene)
    assert torch.allclose(light, torch.tensor(linear(0.5)).float(), rtol=1e-4)
    assert float(depth[16, 16]) == pytest.approx(scene.sky_radius, rel=1e-4)


@pytest.mark.gpu
def test_the_gpu_sees_what_the_cpu_sees() -> None:
    world = make_world(np.random.default_rng([0, 11]))
    pose = torch.from_numpy(find_path(Raycaster(world.scene), world.stage, np.random.default_rng(0))(np.array([0.5])))[0]
    pictures = [Raycaster(world.scene, device).render(pose, (50.0, 50.0, 32.0, 32.0), 64, 64, 4)[0].cpu() for device in ("cpu", "cuda")]
    assert float((pictures[0] - pictures[1]).abs().mean()) < 1e-3
