"""The two types that travel through the house: `Views` and `SceneBatch`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """A group of views of each scene of a batch: what was seen, from where.

    Cameras are OpenCV (x right, y down, z forward), intrinsics are pixels at `height` x `width`,
    and pixel centres lie at +0.5. Everything but the size may be absent: a path to be rendered has
    cameras and no images, a lone picture has an image and no camera.
    """

    height: int
    width: int
    images: Float[Tensor, "batch views 3 height width"] | None = None
    """RGB in [0, 1]."""
    camera_to_world: Float[Tensor, "batch views 4 4"] | None = None
    """Camera-to-world, OpenCV camera axes."""
    intrinsics: Float[Tensor, "batch views 4"] | None = None
    """fx, fy, cx, cy in pixels."""
    masks: Float[Tensor, "batch views 1 height width"] | None = None
    """1 where a pixel counts, 0 where it does not; absent when every pixel counts."""
    times: Float[Tensor, "batch views"] | None = None
    """Capture time of each view, for dynamic scenes."""
    frame_indices: Int[Tensor, "batch views"] | None = None
    """Position of each view in its scene's frame list."""
    is_ordered: bool = False
    """True when the views are consecutive frames of a video, in order; False for a set of photographs."""

    def __post_init__(self) -> None:
        expected = {
            "images": (3, self.height, self.width),
            "camera_to_world": (4, 4),
            "intrinsics": (4,),
            "masks": (1, self.height, self.width),
            "times": (),
            "frame_indices": (),
        }
        leading: tuple[int, ...] | None = None
        for name, trailing in expected.items():
            value = getattr(self, name)
            if value is None:
                continue
            shape = tuple(value.shape)
            if len(shape) != 2 + len(trailing) or shape[2:] != trailing:
                raise ValueError(f"Views.{name} must be [batch, views, {', '.join(map(str, trailing))}], got {list(shape)}")
            if leading is not None and shape[:2] != leading:
                raise ValueError(f"Views.{name} has [batch, views] = {list(shape[:2])}, other fields have {list(leading)}")
            leading = shape[:2]
        if leading is None:
            raise ValueError("Views needs at least one of images, camera_to_world, intrinsics, masks, times, frame_indices")
        if (self.camera_to_world is None) != (self.intrinsics is None):
            raise ValueError("Views.camera_to_world and Views.intrinsics come together or not at all")

    def _tensors(self) -> dict[str, Tensor]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if isinstance(value, Tensor)}

    @property
    def batch_size(self) -> int:
        """Number of scenes."""
        return next(iter(self._tensors().values())).shape[0]

    @property
    def num_views(self) -> int:
        """Views per scene."""
        return next(iter(self._tensors().values())).shape[1]

    @property
    def device(self) -> torch.device:
        return next(iter(self._tensors().values())).device

    def to(self, device: torch.device | str) -> Views:
        """The same views on another device."""
        moved = {name: value.to(device, non_blocking=True) for name, value in self._tensors().items()}
        return dataclasses.replace(self, **moved)  # type: ignore[arg-type]

    def select(self, index: slice | list[int] | Tensor) -> Views:
        """Some of the views of every scene; indexes the view axis."""
        if isinstance(index, list):
            index = torch.tensor(index, device=self.device)
        return dataclasses.replace(self, **{name: value[:, index] for name, value in self._tensors().items()})  # type: ignore[arg-type]

    def scenes(self, index: slice) -> Views:
        """Some of the scenes of the batch; indexes the batch axis."""
        return dataclasses.replace(self, **{name: value[index] for name, value in self._tensors().items()})  # type: ignore[arg-type]


def concatenate_views(groups: list[Views], dim: int) -> Views:
    """Join groups along the batch axis (`dim=0`) or the view axis (`dim=1`).

    A field must be present in all groups or in none, except masks: a group without them counts every pixel.

    Raises:
        ValueError: groups differ in size or in the fields that they carry.
    """
    first = groups[0]
    if any((group.height, group.width) != (first.height, first.width) for group in groups):
        raise ValueError(f"cannot join views of sizes {sorted({(g.height, g.width) for g in groups})}")
    if any(group.masks is not None for group in groups):
        groups = [
            group
            if group.masks is not None
            else dataclasses.replace(
                group, masks=torch.ones(group.batch_size, group.num_views, 1, group.height, group.width, device=group.device)
            )
            for group in groups
        ]
        first = groups[0]
    joined: dict[str, Tensor] = {}
    for field in dataclasses.fields(Views):
        values = [getattr(group, field.name) for group in groups]
        if not any(isinstance(value, Tensor) for value in values):
            continue
        if any(value is None for value in values):
            raise ValueError(f"cannot join views: {field.name} is present in some groups only")
        joined[field.name] = torch.cat(values, dim=dim)
    return dataclasses.replace(first, is_ordered=all(g.is_ordered for g in groups), **joined)  # type: ignore[arg-type]


@dataclass(frozen=True)
class SceneBatch:
    """What one training or evaluation step sees of a batch of scenes.

    All cameras of a scene share one frame: that of its dataset as the dataparser delivers it.
    """

    context: Views
    """The views a method looks at."""
    target: Views
    """The views it must render."""
    names: tuple[str, ...]
    """One name per scene."""
    condition: Views | None = None
    """Further views that a generator is conditioned on."""
    unit: Float[Tensor, " batch"] | None = None
    """Length, in the frame of the cameras, of one unit of the scene's original files (what the dataparser scaled by)."""
    sparse_depth: Float[Tensor, " batch"] | None = None
    """Median depth of the scene's sparse points in the context cameras, in the frame of the cameras; NaN where unknown."""
    has_mask: tuple[bool, ...] = ()
    """Per scene: the masks cut out an object whose alpha may be supervised. Empty means none does."""

    def to(self, device: torch.device | str) -> SceneBatch:
        """The same batch on another device."""
        moved = {
            name: value.to(device)
            for name in ("context", "target", "condition", "unit", "sparse_depth")
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, **moved)

    @property
    def batch_size(self) -> int:
        """Number of scenes."""
        return len(self.names)


def collate_scenes(batches: list[SceneBatch]) -> SceneBatch:
    """Join single-scene batches into one batch."""

    def stack(name: str) -> Tensor | None:
        values = [getattr(batch, name) for batch in batches]
        if all(value is None for value in values):
            return None
        return torch.cat([value if value is not None else torch.full((b.batch_size,), float("nan")) for value, b in zip(values, batches)])

    conditions = [batch.condition for batch in batches if batch.condition is not None]
    return SceneBatch(
        context=concatenate_views([batch.context for batch in batches], dim=0),
        target=concatenate_views([batch.target for batch in batches], dim=0),
        condition=concatenate_views(conditions, dim=0) if conditions else None,
        names=tuple(name for batch in batches for name in batch.names),
        unit=stack("unit"),
        sparse_depth=stack("sparse_depth"),
        has_mask=tuple(flag for batch in batches for flag in (batch.has_mask or (False,) * batch.batch_size))
        if any(batch.has_mask for batch in batches)
        else (),
    )
