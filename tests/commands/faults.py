"""Ways in which a folder of photographs can be unusable."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One way to spoil a scene, and what the user must be told."""

    spoil: Callable[[Path], None]
    named: tuple[str, ...]
    """The file and the key, as they stand in the message."""
    fix: str
    """Part of the sentence that says what to do."""
    whole_folder: bool = False
    """The folder is no scene any more, so nothing more than its name can be told."""


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Change transforms.json."""

    def spoil(scene: Path) -> None:
        path = scene / "transforms.json"
        meta = json.loads(path.read_text())
        change(meta)
        path.write_text(json.dumps(meta))

    return spoil


def rewrite(text: str) -> Callable[[Path], None]:
    return lambda scene: (scene / "transforms.json").write_text(text)  # type: ignore[return-value]


def spoil_images(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """Change every image: whichever is drawn first meets the fault."""

    def spoil(scene: Path) -> None:
        for path in sorted((scene / "images").iterdir()):
            change(path)

    return spoil


def claim_huge_size(path: Path) -> None:
    """A PNG whose header says 100000 x 100000."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def keep_one_frame(meta: dict[str, Any]) -> None:
    meta["frames"] = meta["frames"][:1]


def remove_intrinsics(meta: dict[str, Any]) -> None:
    for key in ("fl_x", "fl_y"):
        del meta[key]


def set_pose(value: Any, row: int = 0, column: int = 3) -> Callable[[Path], None]:
    def change(meta: dict[str, Any]) -> None:
        meta["frames"][3]["transform_matrix"][row][column] = value

    return edit(change)


def mirror_pose(meta: dict[str, Any]) -> None:
    for row in meta["frames"][3]["transform_matrix"]:
        row[0] = -row[0]


FAULTS: dict[str, Fault] = {
    "not JSON": Fault(rewrite('{"frames": ['), ("transforms.json", "line 1, column"), "write the file again"),
    "no object": Fault(rewrite("[]"), ("transforms.json", "'frames'"), "must hold a JSON object"),
    "no frames key": Fault(edit(lambda meta: meta.pop("frames")), ("transforms.json", "'frames'"), "write it with ns-process-data"),
    "no images": Fault(edit(lambda meta: meta["frames"].clear()), ("transforms.json",), "'frames' is empty"),
    "no file name": Fault(
        edit(lambda meta: meta["frames"][3].pop("file_path")), ("transforms.json", "frames[3]", "'file_path'"), "lacks the key"
    ),
    "no pose": Fault(
        edit(lambda meta: meta["frames"][3].pop("transform_matrix")),
        ("transforms.json", "frames[3] (images/frame_003.png)", "'transform_matrix'"),
        "remove the frame or compute its pose",
    ),
    "misshapen pose": Fault(
        edit(lambda meta: meta["frames"][3]["transform_matrix"].clear()),
        ("transforms.json", "frames[3] (images/frame_003.png)", "'transform_matrix'"),
        "remove the frame or compute its pose",
    ),
    "NaN in a pose": Fault(
        set_pose(float("nan")),
        ("transforms.json", "frames[3] (images/frame_003.png)", "'transform_matrix'"),
        "remove the frame or compute its pose",
    ),
    "text in a pose": Fault(set_pose("x"), ("transforms.json", "frames[3]", "'transform_matrix'"), "remove the frame or compute its pose"),
    "pose that is no rotation": Fault(set_pose(7.0, column=1), ("frame_003.png",), "remove the frame or compute its pose again"),
    "mirrored pose": Fault(edit(mirror_pose), ("frame_003.png", "left-handed"), "remove the frame or compute its pose again"),
    "no focal length": Fault(edit(remove_intrinsics), ("transforms.json", "'fl_x'"), "add"),
    "no width": Fault(edit(lambda meta: meta.pop("w")), ("transforms.json", "'w'"), "add"),
    "no principal point": Fault(edit(lambda meta: meta.pop("cx")), ("transforms.json", "'cx'"), "add"),
    "NaN in the focal length": Fault(edit(lambda meta: meta.update(fl_x=float("nan"))), ("transforms.json", "'fl_x'"), "finite"),
    "fewer images than views": Fault(edit(keep_one_frame), ("photos", "1 image"), "give more images"),
    "image that is none": Fault(
        spoil_images(lambda path: path.write_text("no image") and None), ("images/frame_0",), "replace the file or remove it from the data"
    ),
    "truncated image": Fault(
        spoil_images(lambda path: path.write_bytes(path.read_bytes()[:200]) and None),
        ("images/frame_0",),
        "copy it again or remove it from the data",
    ),
    "empty image": Fault(spoil_images(lambda path: path.write_bytes(b"") and None), ("images/frame_0",), "remove it from the data"),
    "oversized image": Fault(spoil_images(claim_huge_size), ("images/frame_0",), "scale it down or remove it"),
    "missing image": Fault(spoil_images(Path.unlink), ("images/frame_0",), "restore the file or remove it from the data"),
    "other size than said": Fault(edit(lambda meta: meta.update(w=64, h=48)), ("images/frame_0",), "32 x 24"),
    "no camera file": Fault(
        lambda scene: (scene / "transforms.json").unlink(), ("photos", "transforms.json"), "check --data", whole_folder=True
    ),
}
