"""Everything that can be wrong in a transforms.json is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataparsers.transforms import parse_transforms, split_frames

VALID = {
    "w": 64,
    "h": 48.0,
    "fl_x": 50.0,
    "fl_y": 51.0,
    "cx": 32.0,
    "cy": 24.0,
    "frames": [{"file_path": f"images/{i}.png", "transform_matrix": np.eye(4).tolist()} for i in range(3)],
}


def without(key: str) -> dict:
    return {name: value for name, value in VALID.items() if name != key}


def with_frame(**changes: object) -> dict:
    frame = {name: value for name, value in {**VALID["frames"][1], **changes}.items() if value is not None}
    return {**VALID, "frames": [VALID["frames"][0], frame]}


def pose(**entries: float) -> list:
    matrix = np.eye(4)
    for place, value in entries.items():
        matrix[int(place[1]), int(place[2])] = value
    return matrix.tolist()


def test_a_valid_file_is_read_in_its_own_order() -> None:
    transforms = parse_transforms(json.dumps({**VALID, "frames": VALID["frames"][::-1]}), "transforms.json")
    assert [frame["file_path"] for frame in transforms.frames] == ["images/2.png", "images/1.png", "images/0.png"]
    assert (transforms.width, transforms.height, transforms.fx, transforms.fy, transforms.cx, transforms.cy) == (64, 48, 50, 51, 32, 24)
    assert transforms.poses.shape == (3, 4, 4) and transforms.poses.dtype == np.float64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        ([], "must hold a JSON object"),
        ({}, "lacks the keys w, h, fl_x, fl_y, cx, cy, frames"),
        (without("fl_x"), "lacks the key fl_x"),
        ({**VALID, "w": "64"}, "w must be a number"),
        ({**VALID, "cx": None}, "cx must be a number"),
        ({**VALID, "cx": True}, "cx must be a number"),
        ({**VALID, "fl_y": float("nan")}, "fl_y must be a finite number"),
        ({**VALID, "fl_y": 10**400}, "fl_y must be a finite number"),
        ({**VALID, "h": 0}, "h must be positive"),
        ({**VALID, "frames": []}, "frames must be a list with at least one frame"),
        ({**VALID, "frames": {}}, "frames must be a list"),
        ({**VALID, "frames": [3]}, r"frames\[0\] must be an object"),
        (with_frame(file_path=None), r"frames\[1\] lacks the key file_path"),
        (with_frame(file_path=""), r"frames\[1\].file_path must be the name"),
        (with_frame(transform_matrix=None), r"frames\[1\] lacks the key transform_matrix"),
        (with_frame(transform_matrix=[]), r"frames\[1\] \(images/1.png\): transform_matrix must be 4x4"),
        (with_frame(transform_matrix=np.eye(4)[:3].tolist()), r"images/1.png.*must be 4x4 .*3x4"),
        (with_frame(transform_matrix=[[1], [1, 2]]), r"images/1.png.*must be 4x4 numbers"),
        (with_frame(transform_matrix=pose(m03=float("nan"))), r"images/1.png.*NaN"),
        (with_frame(transform_matrix=pose(m13=float("inf"))), r"images/1.png.*NaN or infinity"),
        (with_frame(transform_matrix=pose(m00=2.0)), r"images/1.png.*without scale or reflection"),
        (with_frame(transform_matrix=pose(m00=-1.0)), r"images/1.png.*without scale or reflection"),
        (with_frame(transform_matrix=pose(m30=1.0)), r"images/1.png.*row 0 0 0 1"),
    ],
)
def test_what_is_wrong_is_named(content: object, message: str) -> None:
    text = content if isinstance(content, bytes) else json.dumps(content)
    with pytest.raises(ValueError, match=message) as caught:
        parse_transforms(text, "some/transforms.json")
    assert str(caught.value).startswith("some/transforms.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*VALID, "file_path", "transform_matrix"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(key=st.sampled_from([*VALID, "file_path", "transform_matrix"]), value=json_values)
def test_any_value_anywhere_is_read_or_named(key: str, value: object) -> None:
    content = {**VALID, key: value} if key in VALID else with_frame(**{key: value})
    message, transforms = "", None
    try:
        transforms = parse_transforms(json.dumps(content), "transforms.json")
    except ValueError as error:
        message = str(error)
    if transforms is None:
        assert message.startswith("transforms.json") and len(message) < 600
    else:
        assert np.isfinite(transforms.poses).all()
        assert all(isinstance(frame["file_path"], str) for frame in transforms.frames)


def test_splits_hold_every_frame_for_training_and_some_for_testing() -> None:
    assert split_frames(24, "train") == list(range(24))
    assert split_frames(24, "test") == split_frames(24, "val") == [4, 12, 20]
    for frames in range(1, 40):
        chosen = split_frames(frames, "test")
        assert len(chosen) >= min(2, frames) and len(set(chosen)) == len(chosen) and max(chosen) < frames
