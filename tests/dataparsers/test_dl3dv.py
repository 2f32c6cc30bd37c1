"""`dl3dv-data`: every layout, against the published reader's numbers, and everything that can be wrong with an archive."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
import tyro
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from dataparsers.archives import SceneArchive
from dataparsers.dl3dv import DL3DVDataParserConfig, dl3dv_data
from token_methods.core.cameras import first_camera_frame, mean_camera_frame, opencv_from_opengl

SIZE = (12, 8)
Result = TypeVar("Result")


def picture(size: tuple[int, int] = SIZE) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, (10, 20, 30)).save(content, "PNG")
    return content.getvalue()


def description(frames: int = 3, **changes: object) -> dict:
    entries: list[dict] = [
        {"file_path": f"images/frame_{frames - i:05d}.png", "transform_matrix": np.eye(4).tolist()} for i in range(frames)
    ]
    for i, entry in enumerate(entries):
        entry["transform_matrix"][0][3] = float(i)
    return {"w": 48, "h": 32, "fl_x": 40.0, "fl_y": 44.0, "cx": 23.0, "cy": 17.0, "frames": entries, **changes}


def members(base: str, images: str = "images_4", content: object = None) -> dict[str, bytes]:
    content = description() if content is None else content
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return {f"{base}transforms.json": text, **{f"{base}{images}/frame_{i:05d}.png": picture() for i in (1, 2, 3)}}


def pack(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def unpack(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def parse(path: Path, split: str = "train", **options: object):
    return DL3DVDataParserConfig(data=path, **options).setup().get_dataparser_outputs(split)  # type: ignore[arg-type]


def outcome(action: Callable[[], Result]) -> tuple[Result | None, str]:
    """What an action returns, or the message of an error that a user may be shown."""
    try:
        return action(), ""
    except (ValueError, FileNotFoundError) as error:
        return None, str(error)


@pytest.mark.parametrize("case", ["base_square", "base_wide_batch2", "latent_ssim", "latent_lpips_4v"])
def test_poses_and_intrinsics_equal_the_published_reader(reference: Path, case: str) -> None:
    folder = reference / "parity" / "tokengs" / "cases" / case
    options = json.loads((folder / "case.json").read_text())["options"]
    index = json.loads((folder / "evaluation_index.json").read_text())
    expected = load_file(folder / "tensors.safetensors")
    height, width = expected["batch/images_output"].shape[-2:]
    scenes = DL3DVDataParserConfig(data=folder / "scenes").scene_folders()
    assert [path.stem for path in scenes] == sorted(index)
    for b, path in enumerate(scenes):
        outputs = parse(path)
        context = index[path.stem]["context"]
        poses = opencv_from_opengl(outputs.cameras.camera_to_worlds[context])[None]
        frame = (first_camera_frame if options["camera_normalization_method"] == "first_cam" else mean_camera_frame)(poses)
        poses = frame.poses(poses)[0]
        poses[:, :3, 3] *= 0.15
        assert torch.allclose(poses, expected["batch/cam_to_world_input"][b], atol=1e-6)
        # centred crop to the network's aspect, then resize (half-pixel exact)
        stored_width, stored_height = 960, 540
        ratio = min(stored_height / height, stored_width / width)
        crop_height, crop_width = int(height * ratio), int(width * ratio)
        cameras = outputs.cameras[torch.tensor(context)]
        intrinsics = torch.cat(
            [
                cameras.fx * width / crop_width,
                cameras.fy * height / crop_height,
                (cameras.cx + (crop_width - stored_width) / 2) * width / crop_width,
                (cameras.cy + (crop_height - stored_height) / 2) * height / crop_height,
            ],
            dim=1,
        )
        assert torch.allclose(intrinsics, expected["batch/intrinsics_input"][b], rtol=1e-6)


@pytest.mark.parametrize(
    ("base", "images"),
    [
        ("scene/", "images"),
        ("scene/", "images_4"),
        ("scene/gaussian_splat/", "images_4"),
        ("scene/nerfstudio/", "images_8"),
        ("", "images"),
    ],
)
def test_every_layout_is_read_packed_and_unpacked(tmp_path: Path, base: str, images: str) -> None:
    archive = pack(tmp_path / "packed" / "scene.zip", members(base, images))
    unpack(tmp_path / "plain" / ("" if base else "scene"), members(base, images))
    packed, plain = parse(archive), parse(tmp_path / "plain" / "scene")
    assert packed.image_filenames == [archive / f"{base}{images}/frame_{i:05d}.png" for i in (3, 2, 1)]  # the order of `frames`
    assert [path.read_bytes() for path in plain.image_filenames] == [picture()] * 3
    for outputs in (packed, plain):
        cameras = outputs.cameras
        assert cameras.camera_to_worlds[:, 0, 3].tolist() == [0, 1, 2]
        # a quarter of the size that the intrinsics were written for
        assert [float(getattr(cameras, name)[0]) for name in ("fx", "fy", "cx", "cy", "width", "height")] == [10, 11, 5.75, 4.25, *SIZE]
        assert outputs.dataparser_scale == 1 and torch.equal(outputs.dataparser_transform, torch.eye(4)[:3])


def test_scenes_come_in_the_published_order(tmp_path: Path) -> None:
    for name in ("10K/a", "2K/b", "1K/d", "1K/c", "11K/e"):
        pack(tmp_path / "training" / f"{name}.zip", {})
    unpack(tmp_path / "training/2K/b", members(""))  # unpacked beside its archive: one scene all the same
    unpack(tmp_path / "training/2K/a", members(""))
    scenes = DL3DVDataParserConfig(data=tmp_path / "training").scene_folders()
    assert [str(path.relative_to(tmp_path / "training")) for path in scenes] == [
        "1K/c.zip",
        "1K/d.zip",
        "2K/a",
        "2K/b.zip",
        "10K/a.zip",
        "11K/e.zip",
    ]
    for name in ("z", "y"):
        pack(tmp_path / "benchmark" / f"{name}.zip", {})
    assert [path.name for path in DL3DVDataParserConfig(data=tmp_path / "benchmark").scene_folders()] == ["y.zip", "z.zip"]
    assert DL3DVDataParserConfig(data=tmp_path / "benchmark" / "z.zip").scene_folders() == [tmp_path / "benchmark" / "z.zip"]


def test_the_benchmark_copy_is_preferred_and_the_picture_folder_can_be_chosen(tmp_path: Path) -> None:
    files = members("scene/nerfstudio/", "images_8") | members("scene/gaussian_splat/", "images_4")
    files |= {name.replace("images_4", "images"): picture((48, 32)) for name in files if "gaussian_splat/images_4" in name}
    archive = pack(tmp_path / "scene.zip", files)
    assert parse(archive).image_filenames[0].parent.name == "images_4"
    assert "gaussian_splat" in str(parse(archive).image_filenames[0])
    full = parse(archive, image_folder="images")
    assert float(full.cameras.fx[0]) == 40 and full.image_filenames[0].parent.name == "images"
    with pytest.raises(FileNotFoundError, match="images_8"):
        parse(archive, image_folder="images_8")


def test_splits(tmp_path: Path) -> None:
    archive = pack(tmp_path / "scene.zip", members("scene/"))
    assert [len(parse(archive, split).image_filenames) for split in ("train", "val", "test")] == [3, 2, 2]
    with pytest.raises(ValueError, match="unknown split"):
        parse(archive, "holdout")


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        parse(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="neither scene archives"):
        parse(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no transforms\.json"):
        parse(pack(tmp_path / "empty.zip", {"readme.txt": b""}))
    files = members("scene/")
    del files["scene/images_4/frame_00002.png"]
    with pytest.raises(FileNotFoundError, match=r"frames\[1\] is missing.*images_4/frame_00002\.png"):
        parse(pack(tmp_path / "gap.zip", files))
    with pytest.raises(FileNotFoundError, match="no folder images_4"):
        parse(pack(tmp_path / "bare.zip", {"scene/transforms.json": json.dumps(description()).encode()}))
    files = members("scene/") | {"scene/images_4/frame_00003.png": b"not a picture"}
    with pytest.raises(ValueError, match=r"frame_00003\.png is not a picture"):
        parse(pack(tmp_path / "broken.zip", files))


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "scene/../../outside", "C:/x", "\\\\host\\x", "scene\\..\\..\\x"])
def test_members_outside_of_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / "scene.zip", members("scene/") | {name: b""})
    with pytest.raises(ValueError, match=r"scene\.zip: the member .* (absolute name|outside of the archive)"):
        parse(path)


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    path = pack(tmp_path / "bomb.zip", members("scene/") | {"scene/images_4/zeros.png": bytes(5 * 2**20)})
    with pytest.raises(ValueError, match=r"bomb\.zip: the member .*zeros\.png.* would grow \d+ times"):
        parse(path)
    path = pack(tmp_path / "liar.zip", members("scene/"))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (2**31).to_bytes(4, "little")  # the table of contents claims two gigabytes
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"liar\.zip.*would unpack to 2048 MiB"):
        parse(path)


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    whole = pack(tmp_path / "scene.zip", members("scene/")).read_bytes()
    for i, damaged in enumerate((b"", b"not a zip", whole[: len(whole) // 2], whole[:-10])):
        path = tmp_path / f"damaged{i}.zip"
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"damaged{i}\.zip is not a complete zip archive"):
            parse(path)
    start = whole.index(b"transforms.json") + len("transforms.json") + 8
    path.write_bytes(whole[:start] + b"\xff" * 8 + whole[start + 8 :])
    with pytest.raises(ValueError, match=r"member scene/transforms\.json is damaged"):
        parse(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6), cut=st.integers(0, 200))
@example(damage=[(944, 2)], cut=0)  # a header that is quoted as a whole
def test_any_damage_gives_outputs_or_one_error_that_names_the_archive(tmp_path: Path, damage: list[tuple[int, int]], cut: int) -> None:
    path = tmp_path / "scene.zip"
    content = bytearray(pack(path, members("scene/")).read_bytes())
    for at, value in damage:
        content[at % len(content)] = value
    path.write_bytes(content[: len(content) - cut])
    outputs, message = outcome(lambda: parse(path))
    if outputs is None:
        assert "scene.zip" in message and len(message) < 1000
    else:
        assert len(outputs.image_filenames) == 3 and torch.isfinite(outputs.cameras.camera_to_worlds).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=30))
def test_any_member_name_is_inside_or_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "names.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    archive, message = outcome(lambda: SceneArchive(path))
    if archive is None:
        assert "names.zip" in message
    else:
        base = (tmp_path / "out").resolve()
        assert all((base / member).resolve().is_relative_to(base) for member in archive.members)


def test_the_command_line_sets_every_field(tmp_path: Path) -> None:
    config = tyro.cli(DL3DVDataParserConfig, args=["--data", str(tmp_path), "--image-folder", "images_8"])
    assert (config.data, config.image_folder) == (tmp_path, "images_8")
    assert isinstance(dl3dv_data.config.setup().config, DL3DVDataParserConfig)
