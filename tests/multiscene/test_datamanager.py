"""Batches over many scenes: drawn without state, the same with any number of workers; evaluation windows; the scene in hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
import yaml
from nerfstudio.data.datasets.base_dataset import InputDataset

from tests.tiny_scenes import write_tiny_scene, write_tiny_scenes
from token_methods.core.cameras import mirror
from token_methods.core.views import SceneBatch
from token_methods.multiscene.datamanager import MultiSceneDataManager, MultiSceneDataManagerConfig
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.sampling import GapSampler, RandomSampler
from token_methods.multiscene.training_batches import SceneDraws
from token_methods.multiscene.windows import EvaluationWindow

SMALL: dict[str, Any] = {
    "image_height": 16,
    "image_width": 16,
    "num_context_views": 2,
    "num_target_views": 3,
    "batch_size": 2,
    "num_workers": 0,
    "cache_gigabytes": 0.01,
    "eval_scene_fraction": 0.25,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_tiny_scenes(folder, 5, num_frames=10, with_points=True)
    return folder


def manager(data: Path, test_mode: str = "val", rank: int = 0, world_size: int = 1, **options: Any) -> MultiSceneDataManager:
    config = MultiSceneDataManagerConfig(data=data, **{**SMALL, **options})
    return config.setup(device="cpu", test_mode=test_mode, world_size=world_size, local_rank=rank)


def assert_same(one: SceneBatch, other: SceneBatch) -> None:
    assert one.names == other.names
    for name in ("images", "camera_to_world", "intrinsics", "frame_indices"):
        for a, b in ((one.context, other.context), (one.target, other.target)):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0)


# Training.


def test_a_batch_holds_what_it_says(data: Path) -> None:
    made = manager(data)
    batch = made.next_train_batch(0)
    assert batch.context.images is not None and batch.context.images.shape == (2, 2, 3, 16, 16)
    assert batch.target.num_views == 3 and len(set(batch.names)) == 2 and set(batch.names) <= set(made.split.train)
    assert batch.unit is not None and batch.sparse_depth is not None
    for index, name in enumerate(batch.names):
        scene = made.scene(name)
        for views in (batch.context, batch.target):
            assert views.frame_indices is not None and views.camera_to_world is not None
            torch.testing.assert_close(views.camera_to_world[index], scene.camera_to_world[views.frame_indices[index]])
        assert float(batch.unit[index]) == pytest.approx(scene.unit)
        assert 2.5 < float(batch.sparse_depth[index]) / scene.unit < 6, "the walls are 3 to 5 away"


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_workers_or_on_earlier_steps(data: Path, workers: int) -> None:
    alone, threaded = manager(data, mirror_probability=0.5), manager(data, mirror_probability=0.5, num_workers=workers)
    expected = [alone.next_train_batch(step) for step in range(6)]
    for step, batch in enumerate(expected):
        assert_same(threaded.next_train_batch(step), batch)
    resumed = manager(data, mirror_probability=0.5, num_workers=workers)
    for step in (4, 5):
        assert_same(resumed.next_train_batch(step), expected[step])
    assert_same(threaded.next_train_batch(1), expected[1])
    assert any(a.names != expected[0].names for a in expected[1:])
    other_seed = manager(data, seed=1)
    assert any(other_seed.next_train_batch(step).names != batch.names for step, batch in enumerate(expected))


def test_processes_share_a_step_without_repeats() -> None:
    for step in range(20):
        drawn = [next(SceneDraws(8, 2, rank, 4, seed=3).candidates(step, index)) for rank in range(4) for index in range(2)]
        assert sorted(drawn) == list(range(8))
        scarce = [next(SceneDraws(3, 2, rank, 4, seed=3).candidates(step, index)) for rank in range(4) for index in range(2)]
        assert max(map(scarce.count, range(3))) - min(map(scarce.count, range(3))) <= 1
        assert sorted(SceneDraws(8, 2, 1, 4, seed=3).candidates(step, 1)) == list(range(8)), "the others stand by"


def test_two_processes_together_draw_what_one_draws(data: Path) -> None:
    """So the gradients of one step agree, however many processes share it."""
    joint = manager(data, batch_size=2).next_train_batch(5)
    parts = [manager(data, batch_size=1, rank=rank, world_size=2).next_train_batch(5) for rank in range(2)]
    assert joint.names == parts[0].names + parts[1].names
    assert joint.context.images is not None
    torch.testing.assert_close(joint.context.images, torch.cat([part.context.images for part in parts]), rtol=0, atol=0)  # type: ignore[misc]


def test_mirrored_samples_are_the_mirror_image_of_the_same_draw(data: Path) -> None:
    plain, mirrored = manager(data).next_train_batch(2), manager(data, mirror_probability=1.0).next_train_batch(2)
    torch.testing.assert_close(mirror(plain.context).images, mirrored.context.images)
    torch.testing.assert_close(mirror(plain.target).camera_to_world, mirrored.target.camera_to_world)


def test_held_out_frames_and_scenes_are_never_trained_on(data: Path) -> None:
    made = manager(data, held_out_frame_interval=4, train_sampler=RandomSampler(), num_target_views=4)
    assert made.split.evaluation and not set(made.split.train) & set(made.split.evaluation)
    seen = set()
    for step in range(30):
        batch = made.next_train_batch(step)
        assert set(batch.names) <= set(made.split.train)
        for views in (batch.context, batch.target):
            assert views.frame_indices is not None
            seen |= set(views.frame_indices.flatten().tolist())
    assert seen == set(range(10)) - {2, 6}


def test_scenes_of_all_sizes_and_with_masks_come_in_one_batch(tmp_path: Path) -> None:
    for number, (width, height, masks) in enumerate([(40, 20, False), (20, 40, True), (64, 64, False)]):
        write_tiny_scene(tmp_path / f"scene_{number}", seed=number, num_frames=6, width=width, height=height, with_masks=masks)
    batch = manager(tmp_path, batch_size=3, eval_scene_fraction=0.0, image_height=16, image_width=24).next_train_batch(0)
    masks = batch.context.masks
    assert masks is not None and masks.shape == (3, 2, 1, 16, 24)
    for index, name in enumerate(batch.names):
        assert bool((masks[index] < 0.5).any()) == (name == "scene_1")


def test_the_cache_keeps_to_its_budget_and_changes_nothing(data: Path) -> None:
    tight, loose = manager(data, cache_gigabytes=10 * 3 * 16 * 16 * 4 / 2**30), manager(data)
    for step in range(8):
        assert_same(tight.next_train_batch(step), loose.next_train_batch(step))
        assert tight.view_loader.cache.num_bytes <= tight.view_loader.cache.budget
    assert tight.view_loader.cache.num_bytes > 0


def test_a_scene_that_vanishes_is_named_once_and_training_goes_on(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(data, tmp_path / "scenes")
    options: dict[str, Any] = {"cache_gigabytes": 0.0, "eval_scene_fraction": 0.0}
    made, undisturbed = manager(folder, **options), manager(data, **options)
    made.next_train_batch(0)
    shutil.rmtree(folder / "scene_2" / "images")
    capsys.readouterr()
    batches = [(made.next_train_batch(step), undisturbed.next_train_batch(step)) for step in range(1, 12)]
    said = capsys.readouterr().out
    assert said.count("Training passes over a scene") == 1 and "scene_2" in said
    for batch, expected in batches:
        assert "scene_2" not in batch.names
        if "scene_2" not in expected.names:
            assert_same(batch, expected)
    again = manager(folder, num_workers=2, **options)
    assert_same(again.next_train_batch(11), batches[-1][0])
    for number in (0, 1, 3, 4):
        shutil.rmtree(folder / f"scene_{number}")
    with pytest.raises(SceneError, match="none of the 5 training scenes"):
        made.next_train_batch(12)


def test_one_broken_image_changes_the_draws_that_need_it_and_no_others(data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data, tmp_path / "scenes")
    (folder / "scene_1/images/frame_004.png").write_bytes(b"broken")
    alone, threaded, resumed, whole = manager(folder), manager(folder, num_workers=3), manager(folder), manager(data)
    expected = [alone.next_train_batch(step) for step in range(12)]
    for step, batch in enumerate(expected):
        assert_same(threaded.next_train_batch(step), batch)
    for step in (11, 9, 5):
        assert_same(resumed.next_train_batch(step), expected[step])
    unbroken = [whole.next_train_batch(step) for step in range(12)]
    assert any("scene_1" in batch.names for batch in expected)
    assert 0 < sum(batch.names != other.names for batch, other in zip(expected, unbroken)) < 12


def test_a_scene_with_too_few_images_is_named(tmp_path: Path) -> None:
    write_tiny_scene(tmp_path / "short", num_frames=3)
    assert manager(tmp_path / "short", num_context_views=3).context_frames == [0, 1, 2]
    with pytest.raises(SceneError, match="short has 3 images to look at, 4 context views"):
        manager(tmp_path / "short", num_context_views=4).next_train_batch(0)


# Evaluation.


def test_held_out_scenes_are_evaluated_and_one_scene_alone_on_its_held_out_frames(data: Path) -> None:
    made = manager(data, "test")
    windows = made.evaluation_windows()
    assert [window.scene for window in windows] == list(made.split.evaluation) == [made.scene_names[0]]
    assert windows == manager(data, "test").evaluation_windows()
    batch = made.load_window(windows[0])
    assert batch.context.frame_indices is not None and tuple(batch.context.frame_indices[0].tolist()) == windows[0].context
    alone = manager(data / "scene_3")
    (window,) = alone.evaluation_windows()
    assert window.target == (4,) and 4 not in window.context
    assert alone.split.train == ("scene_3",)


def test_an_evaluation_index_decides_frames_and_scenes(data: Path, tmp_path: Path) -> None:
    index = {
        "scene_1": {"context": [7, 2], "target": [3, 4]},
        "scene_4_0": {"context": [0, 9], "target": [5]},
        "scene_0": None,
        "other": None,
    }
    (tmp_path / "index.json").write_text(json.dumps(index))
    made = manager(data, "test", evaluation_index=tmp_path / "index.json")
    assert [(w.scene, w.context, w.target) for w in made.evaluation_windows()] == [("scene_1", (7, 2), (3, 4)), ("scene_4", (0, 9), (5,))]
    assert set(made.split.train) == {"scene_0", "scene_2", "scene_3"}
    made.select_scene("scene_1")
    assert made.context_frames == [7, 2]
    (tmp_path / "index.json").write_text(json.dumps({"scene_1": {"context": [1, 10], "target": [3]}}))
    wrong = manager(data, "test", evaluation_index=tmp_path / "index.json")
    with pytest.raises(SceneError, match=r"frame 10 of scene scene_1.*10 frames"):
        wrong.load_window(wrong.evaluation_windows()[0])


def test_scenes_may_be_split_by_lists_and_by_file(data: Path, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(json.dumps({"train": ["scene_0", "scene_1"], "test": ["scene_4"]}))
    assert manager(data, scene_split=tmp_path / "split.json").split.evaluation == ("scene_4",)
    assert manager(data, eval_scenes=("scene_1",)).split.train == ("scene_0", "scene_2", "scene_3", "scene_4")
    with pytest.raises(SceneError, match="no scene 'scene_9'"):
        manager(data, train_scenes=("scene_9",))
    with pytest.raises(SceneError, match="no scene is left to train on"):
        manager(data, eval_scene_fraction=1.0).next_train_batch(0)


def test_evaluation_stops_at_a_broken_scene(data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data, tmp_path / "scenes")
    made = manager(folder, "test", eval_scenes=("scene_0", "scene_1"))
    (folder / "scene_0" / "images" / "frame_005.png").write_bytes(b"broken")
    with pytest.raises(SceneError, match=r"scene_0.*frame_005\.png"):
        made.load_window(EvaluationWindow("scene_0", "scene_0", context=(1, 2), target=(5,)))
    shutil.rmtree(folder / "scene_1")
    with pytest.raises(SceneError, match="scene_1"):
        made.evaluation_windows()


# Of `family` with six views the nearest view of one target is a matter of the measure, so it is left out.
KNOWN_BASELINES = {
    2: ({"family": 8.74, "ramen": 14.56, "vrkitchen": 17.01, "dtu106": 15.92}, 13.93),
    4: ({"family": 10.31, "ramen": 14.17, "vrkitchen": 18.22, "dtu106": 17.02}, 14.30),
    6: ({"ramen": 14.03, "vrkitchen": 18.80, "dtu106": 17.90}, 14.48),
}


@pytest.mark.parametrize("views", KNOWN_BASELINES)
def test_baselines_on_real_scenes_are_the_known_ones(reference: Path, views: int) -> None:
    """PSNR at 256 x 256 centre crops of the nearest context view and of the mean colour, measured independently."""
    nearest, mean_colour = KNOWN_BASELINES[views]
    scenes = reference / "data/scenes"
    index = scenes / f"evaluation_test_{views}views.json"
    made = manager(scenes, "test", image_height=256, image_width=256, scene_split=scenes / "split.json", evaluation_index=index)
    found: dict[str, float] = {}
    means = []
    for window in made.evaluation_windows():
        batch = made.load_window(window)
        context, target = batch.context.images, batch.target.images
        poses = batch.target.camera_to_world, batch.context.camera_to_world
        assert context is not None and target is not None and poses[0] is not None and poses[1] is not None
        closest = torch.cdist(poses[0][0, :, :3, 3], poses[1][0, :, :3, 3]).argmin(dim=1)
        mean = context[0].mean(dim=(0, 2, 3))[:, None, None]
        found[window.scene], colour = (_psnr(guess, target[0]) for guess in (context[0][closest], mean))
        means.append(colour)
    assert {name: found[name] for name in nearest} == pytest.approx(nearest, abs=0.03)
    assert sum(means) / len(means) == pytest.approx(mean_colour, abs=0.02)


def _psnr(guess: torch.Tensor, target: torch.Tensor) -> float:
    return float((-10 * torch.log10((guess - target).square().mean(dim=(1, 2, 3)))).mean())


# The scene in hand, as nerfstudio's commands see it.


def test_the_scene_in_hand_is_chosen_by_name_number_or_folder(data: Path, tmp_path: Path) -> None:
    made = manager(data, "test")
    assert made.scene_index == 0 and made.current.name == made.split.evaluation[0]
    made.select_scene("scene_3")
    assert made.scene_names[made.scene_index] == "scene_3" and made.get_datapath() == data / "scene_3"
    made.select_scene(1)
    assert made.scene_index == 1
    outside = write_tiny_scene(tmp_path / "elsewhere", num_frames=5)
    made.select_scene(outside)
    assert made.current.name == "elsewhere" and made.scene_names[-1] == "elsewhere"
    for wrong, said in (("scene_7", "scene_0"), (99, "6 scenes")):
        with pytest.raises(SceneError, match=said):
            made.select_scene(wrong)
    assert manager(data, "test", scene="scene_3").current.name == "scene_3"


def test_datasets_hold_context_and_other_views_undistorted(tmp_path: Path) -> None:
    folder = write_tiny_scene(tmp_path / "s", num_frames=9, width=64, height=48, with_masks=True)
    meta = json.loads((folder / "transforms.json").read_text())
    (folder / "transforms.json").write_text(json.dumps({**meta, "k1": -0.1}))
    made = manager(folder, "test")
    for dataset, frames in ((made.train_dataset, made.context_frames), (made.eval_dataset, made.other_frames)):
        assert isinstance(dataset, InputDataset) and len(dataset) == len(frames)
        assert [path.name for path in dataset.image_filenames] == [f"frame_{frame:03d}.png" for frame in frames]
        item, camera = dataset[0], dataset.cameras[0]
        assert item["image"].shape == (int(camera.height), int(camera.width), 3) and item["mask"].shape[:2] == item["image"].shape[:2]
        assert int(camera.width) < 64 and camera.distortion_params is None
        assert dataset.get_image_uint8(0).dtype == torch.uint8
    assert sorted(made.context_frames + made.other_frames) == list(range(9)) and len(made.context_frames) == 2
    batch = made.scene_batch()
    assert batch.target.num_views == 7 and made.scene_batch(max_targets=3).target.num_views == 3
    camera, item = made.eval_dataloader.get_camera(image_idx=0)
    assert camera.shape == (1,) and "image" in item
    assert len(list(made.fixed_indices_eval_dataloader)) == 7
    camera, _ = made.next_eval_image(0)
    assert camera.shape == (1,)
    original = made.scene_frame().inverse().poses(made.current.camera_to_world.double()[None])
    assert original[0, 0, :3, 3].numpy() == pytest.approx([row[3] for row in meta["frames"][0]["transform_matrix"][:3]], abs=1e-5)
    made.train_dataparser_outputs.save_dataparser_transform(tmp_path / "out" / "dataparser_transforms.json")
    assert (tmp_path / "out" / "dataparser_transforms.json").exists()


def test_ns_render_dataset_can_build_its_own(data: Path) -> None:
    from nerfstudio.scripts.render import _disable_datamanager_setup

    config = MultiSceneDataManagerConfig(data=data, scene="scene_2", **SMALL)
    for split in ("test", "val"):
        with _disable_datamanager_setup(config._target):
            made = config.setup(test_mode=split, device="cpu")
        assert made.current.name == "scene_2" and made.world_size * 4 == 4
        assert made.eval_dataset._dataparser_outputs.dataparser_scale == pytest.approx(made.current.unit)


def test_nothing_is_loaded_ahead_outside_training(data: Path) -> None:
    assert manager(data, "test", num_workers=2).prefetcher is None
    assert manager(data, "inference", num_workers=2).prefetcher is None
    assert manager(data, "val", num_workers=2).prefetcher is not None


def test_a_broken_first_scene_does_not_stop_training_but_evaluation(data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data, tmp_path / "scenes")
    (folder / "scene_0" / "transforms.json").write_text("oops")
    lists: dict[str, Any] = {"eval_scenes": ("scene_0",)}
    assert manager(folder, "val", **lists).current.name == "scene_1"
    with pytest.raises(SceneError, match="not JSON"):
        manager(folder, "test", **lists)


# The configuration.


def test_options_on_the_command_line_and_in_a_saved_run() -> None:
    arguments = "--data x --train-sampler gap:max_gap=20 --eval-scenes a b --crop-convention published nerfstudio-data --eval-mode all"
    config = tyro.cli(MultiSceneDataManagerConfig, args=arguments.split())
    assert config.train_sampler == GapSampler(max_gap=20) and config.eval_scenes == ("a", "b")
    assert config.dataparser.eval_mode == "all"  # type: ignore[attr-defined]
    saved = yaml.load(yaml.dump(config), Loader=yaml.Loader)
    assert saved == config and saved._target is MultiSceneDataManager


def test_consecutive_frames_of_a_walk_are_an_ordered_video_and_others_are_a_set(tmp_path: Path) -> None:
    from dataparsers.procedural.parser import ProceduralDataParserConfig

    parser = ProceduralDataParserConfig(
        data=tmp_path, num_scenes=1, frames_per_scene=4, image_height=16, image_width=16, samples_per_pixel=1
    )
    config = MultiSceneDataManagerConfig(dataparser=parser, **SMALL)
    made = config.setup(device="cpu", test_mode="test", world_size=1, local_rank=0)
    (scene,) = made.scene_names
    batch = made.load_window(EvaluationWindow("walk", scene, context=(0, 3), target=(1, 2)))
    assert batch.target.is_ordered
    assert not batch.context.is_ordered
