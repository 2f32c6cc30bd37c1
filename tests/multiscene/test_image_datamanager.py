"""Batches of single pictures: every one once per epoch, the same with any number of workers; evaluation; the picture in hand."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
import yaml
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image

from dataparsers.cifar import CifarDataParserConfig
from dataparsers.image_folder import ImageFolderDataParserConfig
from tests.tiny_scenes import write_tiny_scene
from token_methods.core.views import SceneBatch
from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.image_augmentation import centre_crop, resized_centre_crop
from token_methods.multiscene.image_batches import ImageDraws
from token_methods.multiscene.image_datamanager import ImageDataManager, ImageDataManagerConfig
from token_methods.multiscene.image_sets import PictureMemory
from token_methods.multiscene.windows import EvaluationWindow

SMALL: dict[str, Any] = {
    "image_height": 16,
    "image_width": 16,
    "batch_size": 4,
    "eval_batch_size": 4,
    "num_workers": 0,
    "cache_gigabytes": 0.01,
}
PIXELS = np.random.default_rng(0).integers(0, 256, (31, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cifar") / "c.npz"
    labels = np.zeros(31, dtype=np.int64)
    np.savez(path, x_train=PIXELS[:21], y_train=labels[:21], x_test=PIXELS[21:], y_test=labels[21:], classes=np.array(["x"]))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's layout: 13 pictures of two sizes to train on, 5 to evaluate."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(18):
        path = root / ("train/n01" if number < 13 else "val") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (20 + number % 2, 30, 3), dtype=np.uint8)).save(path)
    return root


def manager(parser: Any, test_mode: str = "val", rank: int = 0, world_size: int = 1, **options: Any) -> ImageDataManager:
    if isinstance(parser, Path):
        parser = (CifarDataParserConfig if parser.suffix == ".npz" else ImageFolderDataParserConfig)(data=parser)
    options = {"train_augmentation": "none"} | options if isinstance(parser, CifarDataParserConfig) else options
    config = ImageDataManagerConfig(dataparser=parser, **{**SMALL, **options})
    return config.setup(device="cpu", test_mode=test_mode, world_size=world_size, local_rank=rank)


def images(batch: SceneBatch) -> torch.Tensor:
    assert batch.context.images is not None
    return batch.context.images


def assert_same(one: SceneBatch, other: SceneBatch) -> None:
    assert one.names == other.names
    assert torch.equal(images(one), images(other))


# Training.


def test_a_batch_is_what_the_files_hold(arrays: Path, folder: Path) -> None:
    batch = manager(arrays).next_train_batch(0)
    assert batch.target is batch.context and batch.context.camera_to_world is None
    assert images(batch).shape == (4, 1, 3, 16, 16) and images(batch).dtype == torch.float32
    for name, image in zip(batch.names, images(batch)):
        expected = torch.from_numpy(PIXELS[int(Path(name).stem)]).permute(2, 0, 1) / 255
        assert torch.equal(image[0], expected)
    batch = manager(folder, train_augmentation="none").next_train_batch(0)
    for name, image in zip(batch.names, images(batch)):
        source = torch.from_numpy(np.array(Image.open(folder / name))).permute(2, 0, 1)
        assert torch.equal(image[0], resized_centre_crop(source, 16, 16) / 255)


@pytest.mark.parametrize("kind", ["arrays", "folder"])
@pytest.mark.parametrize("processes", [1, 3])
def test_an_epoch_shows_every_picture_once_over_all_processes(kind: str, processes: int, request: pytest.FixtureRequest) -> None:
    """Also where an epoch ends within a batch."""
    managers = [manager(request.getfixturevalue(kind), rank=rank, world_size=processes, batch_size=2) for rank in range(processes)]
    count = len(managers[0].train_images)
    steps = 2 * count
    seen = [name for step in range(steps) for made in managers for name in made.next_train_batch(step).names]
    epochs = [seen[start : start + count] for start in range(0, len(seen) - count + 1, count)]
    assert all(Counter(epoch) == Counter(epochs[0]) and len(set(epoch)) == count for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert managers[0].updates_per_epoch == -(-count // (2 * processes))


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_workers_or_on_earlier_steps(folder: Path, workers: int) -> None:
    alone, threaded = manager(folder), manager(folder, num_workers=workers)
    expected = [alone.next_train_batch(step) for step in range(6)]
    for step, batch in enumerate(expected):
        assert_same(threaded.next_train_batch(step), batch)
    resumed = manager(folder, num_workers=workers)
    for step in (4, 5, 1):
        assert_same(resumed.next_train_batch(step), expected[step])
    again = alone.next_train_batch(3)
    other = next(b for step in range(4, 10) for b in [alone.next_train_batch(step)] if set(b.names) & set(again.names))
    name = (set(again.names) & set(other.names)).pop()
    assert not torch.equal(images(again)[again.names.index(name)], images(other)[other.names.index(name)]), "another epoch, another window"
    assert manager(folder, seed=1).next_train_batch(0).names != expected[0].names
    for made in (threaded, resumed):
        made.close()
        assert made.prefetcher is None


@pytest.mark.parametrize("kind", ["arrays", "folder"])
def test_two_processes_together_draw_what_one_draws(kind: str, request: pytest.FixtureRequest) -> None:
    data = request.getfixturevalue(kind)
    joint = manager(data, batch_size=4).next_train_batch(5)
    parts = [manager(data, batch_size=2, rank=rank, world_size=2).next_train_batch(5) for rank in range(2)]
    assert joint.names == parts[0].names + parts[1].names
    assert torch.equal(images(joint), torch.cat([images(part) for part in parts]))


def test_gathered_batches_are_those_that_are_loaded_one_by_one(arrays: Path) -> None:
    gathered, loaded = manager(arrays), manager(arrays)
    loaded.__dict__["_gathered"] = None
    for step in range(8):
        assert_same(gathered.next_train_batch(step), loaded.next_train_batch(step))
    assert gathered.prefetcher is None and loaded.prefetcher is not None


def test_pixels_in_memory_can_be_augmented_and_resized(arrays: Path) -> None:
    batch = manager(arrays, train_augmentation="random-resized-crop", image_height=24, num_workers=2).next_train_batch(3)
    assert images(batch).shape == (4, 1, 3, 24, 16)


def test_a_broken_file_is_named_once_and_replaced(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shutil.copytree(folder, tmp_path / "pictures")
    (data / "train/n01/04.png").write_bytes(b"broken")
    made, whole = manager(data), manager(folder)
    capsys.readouterr()
    batches = [made.next_train_batch(step) for step in range(8)]
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("Training passes over a picture") == 1 and "04.png" in said
    threaded, replaced = manager(data, num_workers=3), 0
    for step, batch in enumerate(batches):
        assert_same(threaded.next_train_batch(step), batch)
        assert "train/n01/04.png" not in batch.names
        places = [a != b for a, b in zip(batch.names, whole.next_train_batch(step).names)]
        replaced += sum(places)
    assert replaced in (2, 3), "once per epoch, and nothing else changes"
    for path in (data / "train/n01").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(SceneError, match=r"none of 100 pictures drawn in a row can be used; the first problem was: .*png is not an image"):
        manager(data, cache_gigabytes=0.0).next_train_batch(0)


def test_many_pictures_are_drawn_quickly() -> None:
    draws = ImageDraws(1_281_167, 384, 1, 8, seed=0)
    assert len(set(draws.images(3).tolist())) == 384 and draws.steps_per_epoch == 418
    assert [next(draws.candidates(3, index)) for index in range(384)] == draws.images(3).tolist()


def test_memory_is_filled_up_to_its_budget_and_not_beyond() -> None:
    memory = PictureMemory(2 * 300)
    for name in "abcab":
        assert memory.get(name, lambda: np.full((10, 10, 3), 7, dtype=np.uint8)).shape == (10, 10, 3)
    assert memory.num_bytes == 600
    memory.get("a", lambda: pytest.fail("it is kept"))


# Evaluation.


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_takes_every_picture_in_order(arrays: Path, workers: int) -> None:
    made = manager(arrays, "test", num_workers=workers)
    batches = list(made.evaluation_images())
    assert [batch.batch_size for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([images(batch)[:, 0] for batch in batches]), torch.from_numpy(PIXELS[21:]).permute(0, 3, 1, 2) / 255)
    assert [name for batch in batches for name in batch.names] == made.scene_names == [f"test/{number:05d}.png" for number in range(10)]
    assert [batch.batch_size for batch in made.evaluation_images(max_images=5)] == [4, 1]
    next(made.evaluation_images())  # and no more


def test_windows_are_the_same_pictures_one_by_one(folder: Path) -> None:
    made = manager(folder, evaluation_crop="centre", image_height=32)
    windows = made.evaluation_windows()
    assert [window.name for window in windows] == [f"val/{number}.png" for number in range(13, 18)] == made.scene_names
    for window in windows:
        batch = made.load_window(window)
        source = torch.from_numpy(np.array(Image.open(folder / window.scene))).permute(2, 0, 1)
        assert batch.names == (window.scene,) and torch.equal(images(batch)[0, 0], centre_crop(source, 32, 16) / 255)


def test_a_broken_picture_stops_evaluation(folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(folder, tmp_path / "pictures")
    (data / "val/15.png").write_bytes(b"broken")
    with pytest.raises(SceneError, match=r"val/15\.png is not an image"):
        list(manager(data, "test", num_workers=2).evaluation_images())
    with pytest.raises(SceneError, match=r"val/13\.png has 21 x 30 pixels, the network sees 16 x 16"):
        list(manager(folder, "test", evaluation_crop="none").evaluation_images())


# The picture in hand.


def test_a_picture_is_chosen_by_name_number_or_file(folder: Path, tmp_path: Path) -> None:
    made = manager(folder, "test")
    assert made.current.name == "val/13.png" and made.scene_index == 0
    made.select_scene("val/16.png")
    assert made.scene_index == 3 and made.config.scene == "val/16.png"
    made.select_scene(1)
    assert made.current.name == "val/14.png"
    made.select_scene("train/n01/02.png")
    assert made.current.name == "train/n01/02.png" and made.scene_index == -1
    outside = tmp_path / "own.png"
    Image.new("L", (50, 40), 51).save(outside)
    made.select_scene(outside)
    assert made.scene_batch().names == (str(outside),) == (made.current.name,)
    assert images(made.scene_batch()).unique().tolist() == pytest.approx([0.2])
    assert manager(folder, "test", scene=made.config.scene).current.name == str(outside)
    for wrong, said in (("val/99.png", "neither a picture of the data nor a file"), (5, "5 are evaluated"), (tmp_path, "is a folder")):
        with pytest.raises(SceneError, match=said):
            made.select_scene(wrong)
    assert made.current.name == str(outside), "an error leaves the one before in hand"


def test_a_command_that_names_a_picture_measures_it_alone(folder: Path) -> None:
    made = manager(folder, "test", scene="val/15.png")
    (window,) = made.evaluation_windows()
    (batch,) = made.evaluation_images()
    assert made.load_window(window).names == batch.names == ("val/15.png",)
    assert len(manager(folder, "val", scene="val/15.png").evaluation_windows()) == 5


def test_datasets_show_what_the_network_sees(folder: Path) -> None:
    made = manager(folder, "test")
    assert len(made.train_dataset) == 1 and len(made.eval_dataset) == 5
    for dataset in (made.train_dataset, made.eval_dataset):
        assert isinstance(dataset, InputDataset)
        camera = dataset.cameras[0]
        assert (int(camera.height), int(camera.width)) == (16, 16) and camera.camera_to_worlds[:, 3].tolist() == [0, 0, 1]
        torch.testing.assert_close(dataset[0]["image"].permute(2, 0, 1), images(made.scene_batch())[0, 0])
    assert [path.name for path in made.eval_dataset.image_filenames] == [f"{number}.png" for number in range(13, 18)]
    camera, item = made.eval_dataloader.get_camera(image_idx=0)
    assert camera.shape == (1,) and item["image"].shape == (16, 16, 3)
    assert len(list(made.fixed_indices_eval_dataloader)) == 5
    assert made.get_datapath() == folder and made.get_train_rays_per_batch() == 4 * 16 * 16


def test_ns_render_dataset_can_build_its_own(folder: Path, tmp_path: Path) -> None:
    from nerfstudio.scripts.render import _disable_datamanager_setup

    config = ImageDataManagerConfig(dataparser=ImageFolderDataParserConfig(data=folder), scene="val/15.png", **SMALL)
    for split in ("test", "val"):
        with _disable_datamanager_setup(config._target):
            made = config.setup(test_mode=split, device="cpu")
        assert made.current.name == "val/15.png" and len(made.eval_dataset) == 5 and made.world_size * 4 == 4
    made.train_dataparser_outputs.save_dataparser_transform(tmp_path / "t.json")
    assert (tmp_path / "t.json").exists()


def test_nothing_is_loaded_ahead_or_listed_for_training_outside_of_it(folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(folder / "val", tmp_path / "only")
    options: dict[str, Any] = {"parser": ImageFolderDataParserConfig(data=data, eval_fraction=1.0), "num_workers": 2}
    made = manager(test_mode="test", **options)
    assert made.prefetcher is None and len(made.images) == 5
    with pytest.raises(SceneError, match="there are none to train on"):
        manager(test_mode="val", **options)
    started = manager(folder, "val", num_workers=2)
    assert started.prefetcher is not None
    started.close()


def test_a_broken_first_picture_does_not_stop_training(folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(folder, tmp_path / "pictures")
    (data / "val/13.png").write_bytes(b"broken")
    assert manager(data).current.name == "val/14.png"
    with pytest.raises(SceneError, match=r"13\.png"):
        manager(data, "test")


# Data.


def test_the_frames_of_a_scene_are_pictures_too(tmp_path: Path) -> None:
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    scene = write_tiny_scene(tmp_path / "scene", num_frames=20)
    made = manager(NerfstudioDataParserConfig(data=scene))
    assert len(made.train_images) == 18 and len(made.images) == 2
    batch = made.next_train_batch(0)
    assert batch.context.camera_to_world is None and batch.names[0].startswith("images/frame_")


@pytest.mark.parametrize("test_mode", ["val", "test"])
def test_wrong_data_get_one_sentence(test_mode: str, tmp_path: Path) -> None:
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    scene = write_tiny_scene(tmp_path / "scene", num_frames=3)
    remedy = "image-folder-data" if test_mode == "val" else "NERFSTUDIO_TOKENS"
    for parser in (
        CifarDataParserConfig(data=scene),
        NerfstudioDataParserConfig(data=tmp_path),
        ImageFolderDataParserConfig(data=tmp_path / "x"),
    ):
        with pytest.raises(SceneError, match=rf"{type(parser).__name__} finds no pictures in .*; .*{remedy}") as caught:
            manager(parser, test_mode)
        assert "\n" not in str(caught.value)


def test_data_may_be_named_for_the_manager_or_for_the_parser(folder: Path, arrays: Path) -> None:
    config = ImageDataManagerConfig(data=folder, dataparser=ImageFolderDataParserConfig(data=arrays), **SMALL)
    assert len(config.setup(device="cpu", test_mode="test").images) == 5
    config = ImageDataManagerConfig(dataparser=ImageFolderDataParserConfig(data=folder), **SMALL)
    config.setup(device="cpu", test_mode="test")
    assert config.data == folder


def test_real_pictures(reference: Path) -> None:
    parser = ImageFolderDataParserConfig(data=reference / "data/images/kodak")
    made = manager(parser, image_height=64, image_width=64, num_workers=2)
    batch = made.next_train_batch(0)
    assert images(batch).shape == (4, 1, 3, 64, 64) and 0.1 < float(images(batch).mean()) < 0.9
    made.close()
    made = manager(ImageFolderDataParserConfig(data=reference / "data/images/imagenet1k_sample_64.zip"), image_height=64, image_width=64)
    assert images(made.next_train_batch(0)).std() > 0.1 and made.current.name.startswith("0012_n")


def test_options_on_the_command_line_and_in_a_saved_run() -> None:
    arguments = "--data x --train-augmentation none --evaluation-crop centre --scene 3 --eval-batch-size 8 nerfstudio-data"
    config = tyro.cli(ImageDataManagerConfig, args=arguments.split())
    assert config.train_augmentation == "none" and config.evaluation_crop == "centre" and config.eval_batch_size == 8
    saved = yaml.load(yaml.dump(config), Loader=yaml.Loader)
    assert saved == config and saved._target is ImageDataManager


def test_a_window_of_another_run_is_read_by_its_number(folder: Path) -> None:
    made = manager(folder, "test")
    batch = made.load_window(EvaluationWindow("val/17.png", "val/17.png", (4,), (4,)))
    assert batch.names == ("val/17.png",)
