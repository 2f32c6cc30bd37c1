"""View samplers, evaluation index files, and the split of scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.evaluation_index import read_evaluation_index, scene_of_entry
from token_methods.multiscene.sampling import (
    SAMPLERS,
    AnySampler,
    GapSampler,
    NearestSampler,
    UniformSampler,
    sampler_from_text,
    sampler_to_text,
)
from token_methods.multiscene.scene_split import read_split_file, split_by_fraction, split_by_lists


def orbit(count: int, turn: float = 6.2) -> np.ndarray:
    """Cameras on a circle, looking at its centre."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    for pose, angle in zip(poses, np.linspace(0, turn, count)):
        forward = -np.array([np.cos(angle), np.sin(angle), 0])
        pose[:3] = np.stack([np.cross([0, 0, -1], forward), [0, 0, -1], forward, -3 * forward], axis=1)
    return poses


def test_published_training_sampler_draws_the_published_frames(reference: Path) -> None:
    case = json.loads((reference / "parity/tokengs/cases/data_training_sampler/case.json").read_text())
    for epoch in {draw["epoch"] for draw in case["draws"]}:
        rng = np.random.default_rng(epoch + 42)
        for draw in (draw for draw in case["draws"] if draw["epoch"] == epoch):
            context, target = GapSampler().draw(np.arange(14), 2, 3, rng, 0)
            assert context + target == draw["frame_indices"]


@pytest.mark.parametrize("sampler", [cls() for cls in SAMPLERS.values()])
@pytest.mark.parametrize(("count", "num_context", "num_target"), [(9, 2, 3), (9, 4, 4), (5, 4, 4), (66, 6, 8), (4, 4, 2), (3, 1, 1)])
def test_draws_are_allowed_repeatable_and_of_the_right_size(sampler: AnySampler, count: int, num_context: int, num_target: int) -> None:
    frames = np.setdiff1d(np.arange(count + 2), [1, 3])
    cameras = orbit(count + 2)
    for seed in range(20):
        draws = [sampler.draw(frames, num_context, num_target, np.random.default_rng(seed), 7, cameras=cameras) for _ in range(2)]
        context, target = draws[0]
        assert draws[0] == draws[1]
        assert len(context) == len(set(context)) == num_context and len(target) == len(set(target)) == num_target
        assert set(context) | set(target) <= set(frames.tolist())
        if num_context + num_target <= count and not isinstance(sampler, GapSampler):
            assert not set(context) & set(target)


@pytest.mark.parametrize("sampler", [cls() for cls in SAMPLERS.values()])
def test_too_few_frames_are_refused_with_both_numbers(sampler: AnySampler) -> None:
    with pytest.raises(ValueError, match=r"3 images .* 4 views"):
        sampler.draw(np.arange(3), 4, 2, np.random.default_rng(0), 0, cameras=orbit(3))


def test_nearest_windows_stay_together_in_an_orbit_photographed_in_any_order() -> None:
    shuffled = np.random.default_rng(5).permutation(60)
    cameras = orbit(60)[shuffled]
    for seed in range(30):
        context, target = NearestSampler().draw(np.arange(60), 4, 4, np.random.default_rng(seed), 0, cameras=cameras)
        place = np.sort(shuffled[context + target])
        widest_gap = int(np.max(np.diff([*place, place[0] + 60])))
        assert widest_gap >= 60 - 14, "all views lie within a stretch of 14 neighbouring cameras"
        context_places = (np.sort(shuffled[context]) - place[0]) % 60
        assert np.min(np.diff(np.sort(context_places))) >= 1 and np.ptp(context_places) < 60


def test_nearest_windows_work_for_a_camera_that_only_turns_and_one_that_only_moves() -> None:
    turning, moving = orbit(20), np.tile(np.eye(4), (20, 1, 1))
    turning[:, :3, 3] = 0
    moving[:, 0, 3] = np.arange(20) * 1e-4
    for cameras in (turning, moving):
        context, target = NearestSampler().draw(np.arange(20), 2, 2, np.random.default_rng(0), 0, cameras=cameras)
        assert np.ptp(context + target) <= 5


def test_uniform_covers_the_whole_scene() -> None:
    context, target = UniformSampler().draw(np.arange(10), 2, 2, np.random.default_rng(0), 0)
    assert context == [0, 9] and target == [1, 8]


def test_samplers_can_be_written_on_a_command_line() -> None:
    for cls in SAMPLERS.values():
        assert sampler_from_text(sampler_to_text(cls())) == cls()
    assert sampler_from_text("gap:max_gap=20") == GapSampler(max_gap=20)
    for text, said in (("close", "gap, nearest"), ("gap:gap=1", "min_gap, max_gap")):
        with pytest.raises(ValueError, match=said):
            sampler_from_text(text)


def test_every_published_index_form_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        json.dumps({"x": {"context": [5, 2], "target": [3]}, "gone": None, "y_1": [{"context": [0], "target": [1, 2]}] * 2})
    )
    entries = read_evaluation_index(tmp_path / "a.json")
    assert [(e.key, e.context, e.target) for e in entries] == [("x", (5, 2), (3,)), ("y_1", (0,), (1, 2)), ("y_1", (0,), (1, 2))]
    assert scene_of_entry("y_1", ["x", "y"]) == "y" and scene_of_entry("y_1", ["y_1", "y"]) == "y_1" and scene_of_entry("z", ["x"]) is None
    folds = {"scene_name": "s", "fold_8_kmeans_2_input": [4, 1], "fold_8_kmeans_3_input": [7, 0, 2]}
    (tmp_path / "b.json").write_text(json.dumps([folds]))
    (entry,) = read_evaluation_index(tmp_path / "b.json", num_context=3)
    assert (entry.key, entry.context, entry.target) == ("s", (7, 0, 2), None)
    with pytest.raises(SceneError, match="kmeans_2"):
        read_evaluation_index(tmp_path / "b.json", num_context=4)


@pytest.mark.parametrize("content", ["{", "3", "{}", '{"x": {"context": [1]}}', '{"x": {"context": [1], "target": ["a"]}}', "[{}]"])
def test_a_wrong_index_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(SceneError, match=r"index\.json"):
        read_evaluation_index(tmp_path / "index.json")


def test_published_index_files_are_read_whole(reference: Path) -> None:
    counts = {"re10k_pixelsplat_2v_3t": 1660 - 158, "scenetok_re10k_c12_70": 50, "dl3dv_depthsplat_6v_50t": 140}
    for name, count in counts.items():
        assert len(read_evaluation_index(reference / f"data/indices/{name}.json")) == count


def test_split_by_fraction_has_no_leak_and_hardly_moves_when_scenes_are_added() -> None:
    names = [f"scene_{i}" for i in range(40)]
    split, larger = split_by_fraction(names, 0.25, seed=1), split_by_fraction([*names, "new"], 0.25, seed=1)
    assert len(split.evaluation) == 10 and not set(split.train) & set(split.evaluation)
    assert set(split.train) | set(split.evaluation) == set(names)
    assert len(set(split.evaluation) - set(larger.evaluation)) <= 1
    assert split_by_fraction(names, 0.25, seed=2) != split
    assert split_by_fraction(["one"], 0.1, seed=0).train == ("one",) and split_by_fraction(["one"], 1.0, seed=0).evaluation == ("one",)
    assert len(split_by_fraction(["a", "b"], 0.01, seed=0).evaluation) == 1


def test_split_by_lists_refuses_leaks_and_unknown_names(tmp_path: Path) -> None:
    assert split_by_lists(["a", "b", "c"], None, ["b"]).train == ("a", "c")
    with pytest.raises(SceneError, match=r"\['a'\] are in both"):
        split_by_lists(["a", "b"], ["a"], ["a"])
    with pytest.raises(SceneError, match=r"'kitchn'.*kitchen"):
        split_by_lists(["kitchen", "b"], ["kitchn"], None)
    (tmp_path / "split.json").write_text('{"train": ["a"], "test": ["b"]}')
    assert read_split_file(tmp_path / "split.json") == (["a"], ["b"])
    (tmp_path / "split.json").write_text('{"training": []}')
    with pytest.raises(SceneError, match='"train"'):
        read_split_file(tmp_path / "split.json")
