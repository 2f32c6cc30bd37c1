"""Rotations and frames of Gaussians."""

from __future__ import annotations

import math

import pytest
import torch

from token_methods.rendering.gaussians3d import Gaussians3D, quaternion_from_matrix, quaternion_product, rotation_matrices


def test_quaternion_from_matrix_inverts_rotation_matrices():
    quats = torch.nn.functional.normalize(torch.randn(500, 4, dtype=torch.float64), dim=-1)
    half_turns = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0.6, 0.8, 0], [1, 0, 0, 0]], dtype=torch.float64)
    quats = torch.cat([quats, half_turns])
    back = quaternion_from_matrix(rotation_matrices(quats))
    assert ((back * quats).sum(-1).abs() - 1).abs().max() < 1e-12


def test_quaternion_product_is_the_product_of_rotations():
    left, right = torch.randn(2, 50, 4, dtype=torch.float64).unbind()
    expected = rotation_matrices(left) @ rotation_matrices(right)
    torch.testing.assert_close(rotation_matrices(quaternion_product(left, right)), expected)


def test_a_quarter_turn_about_z_takes_x_to_y():
    half = math.sqrt(0.5)
    turn = rotation_matrices(torch.tensor([half, 0, 0, half]))
    assert (turn @ torch.tensor([1.0, 0, 0])).tolist() == pytest.approx([0, 1, 0], abs=1e-6)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"Gaussians3D.opacities must be \[2, 5\]"):
        Gaussians3D(torch.zeros(2, 5, 3), torch.zeros(2, 5, 4), torch.zeros(2, 5, 3), torch.zeros(2, 5, 1), torch.zeros(2, 5, 3))


def test_keep_takes_one_scene_and_finite_marks_broken_gaussians(scene):
    gaussians, _ = scene(count=6, height=2, width=2, scenes=2)
    with pytest.raises(ValueError, match="one scene at a time"):
        gaussians.keep(torch.ones(6, dtype=torch.bool))
    gaussians.colors[0, 3, 1] = float("nan")
    gaussians.means[1, 0, 0] = float("inf")
    assert gaussians.finite().logical_not().nonzero().tolist() == [[0, 3], [1, 0]]
    first = gaussians.scenes(slice(0, 1))
    assert first.keep(first.finite()[0]).num_gaussians == 5
