"""Sets of pictures without cameras: files that are read when they are needed, or pixels in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor

from token_methods.multiscene.errors import SceneError
from token_methods.multiscene.images import read_image


class PictureMemory:
    """Decoded pictures, as many as fit under a byte budget. Safe to use from several threads.

    Nothing is pushed out: training sees every picture once per epoch, so keeping those used last would keep none for long enough.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.num_bytes = 0
        self._pictures: dict[str, UInt8[np.ndarray, "height width 3"]] = {}
        self._lock = threading.Lock()

    def get(self, path: str, read: Callable[[], UInt8[np.ndarray, "height width 3"]]) -> UInt8[np.ndarray, "height width 3"]:
        """The picture of a file, read if it is not kept."""
        kept = self._pictures.get(path)
        if kept is not None:
            return kept
        picture = read()
        with self._lock:
            if path not in self._pictures and self.num_bytes + picture.nbytes <= self.budget:
                self._pictures[path] = picture
                self.num_bytes += picture.nbytes
        return picture


class ImageSet:
    """Pictures by number. A name is the path below the data that were asked for.

    Raises:
        SceneError: `pixels` are not those of the names.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        data: Path,
        pixels: UInt8[np.ndarray, "images height width 3"] | None = None,
        background: Sequence[float] | None = None,
        memory: PictureMemory | None = None,
    ) -> None:
        """
        Args:
            paths: files, members of archives as `ARCHIVE.zip/MEMBER`, or names of the pixels.
            data: what names are relative to.
            pixels: all pictures, where they are in memory.
            background: what transparent pictures are laid over (RGB in [0, 1]; black if absent).
            memory: keeps pictures of files.
        """
        if pixels is not None and (pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or len(pixels) != len(paths)):
            raise SceneError(f"{data}: the dataparser gave pixels {pixels.dtype} {list(pixels.shape)} for {len(paths)} names; mend it")
        self.pixels = pixels
        self.background = background
        self.memory = memory or PictureMemory(0)
        self.data = data
        self._paths = [str(path) for path in paths]
        self._start = f"{data}/"

    @classmethod
    def from_outputs(cls, outputs: DataparserOutputs, data: Path, memory: PictureMemory | None = None) -> ImageSet:
        """The pictures of a dataparser: of an image set, or every frame of a scene, whose cameras then count for nothing."""
        background = None if outputs.alpha_color is None else outputs.alpha_color.tolist()
        pixels = outputs.metadata.get("pixels") if outputs.metadata.get("image_set") else None
        return cls(outputs.image_filenames, data, pixels, background, memory)

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """Path below the data, with slashes; the whole path of a picture that lies elsewhere."""
        path = self._paths[index]
        return path.removeprefix(self._start) if path != str(self.data) else Path(path).name

    def path(self, index: int) -> Path:
        """File or virtual name."""
        return Path(self._paths[index])

    def index(self, name: str) -> int | None:
        """Number of a picture by its name; None if it is not in this set."""
        wanted = {name, f"{self._start}{name}"} | ({str(self.data)} if name == self.data.name else set())
        return next((index for index, path in enumerate(self._paths) if path in wanted), None)

    def read(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels of a picture at its own size.

        Raises:
            ImageError: the file cannot be used.
        """
        if self.pixels is not None:
            return self.pixels[index]
        path = self._paths[index]
        return self.memory.get(path, lambda: read_image(Path(path), self.background))


class PictureDataset(InputDataset):
    """Pictures at the size that a network sees, in the form that nerfstudio's viewer and renderer know; read when asked for.

    A picture lies in the plane z = 0, one unit high, its middle in the origin; its nominal camera stands at (0, 0, 1), looks down the
    z axis, and is filled by it. Each camera carries its picture, by which a model can tell cameras apart that stand in one place:
    `metadata["pictures"]` is a function that gives it by its number `metadata["picture"]`.
    """

    def __init__(self, paths: list[Path], fitted: Callable[[int], UInt8[Tensor, "3 height width"]], height: int, width: int) -> None:
        """`fitted` gives a picture by its number."""
        self.fitted = fitted
        super().__init__(picture_outputs(paths, height, width))
        # A plain function: nerfstudio copies what is in the metadata with every camera that it takes, and a bound method's owner with it.
        self.cameras.metadata = {"picture": torch.arange(len(paths))[:, None], "pictures": lambda number: fitted(number)}

    def get_numpy_image(self, image_idx: int) -> UInt8[np.ndarray, "height width 3"]:
        """The picture as the network sees it.

        Raises:
            ImageError: it cannot be used.
        """
        return np.ascontiguousarray(self.fitted(image_idx).permute(1, 2, 0).numpy())


def picture_outputs(paths: list[Path], height: int, width: int) -> DataparserOutputs:
    """Names and one nominal camera for each, see `PictureDataset`."""
    poses = torch.eye(4)[None, :3].repeat(len(paths), 1, 1)
    poses[:, 2, 3] = 1.0
    focal, centre = float(height), (width / 2, height / 2)
    cameras = Cameras(poses, focal, focal, *centre, width=width, height=height, camera_type=CameraType.PERSPECTIVE)
    return DataparserOutputs(paths, cameras, scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])))
