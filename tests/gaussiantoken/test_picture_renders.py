"""`ns-render dataset` on a tiny run: every camera shows its own picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.scripts.render import DatasetRender
from PIL import Image

from tests.gaussiantoken.picture_runs import NUM_HELD_OUT, loaded
from token_methods.gaussiantoken.pipeline import ImagePipeline

pytestmark = pytest.mark.usefixtures("same_everywhere")


def reconstructions(pipeline: ImagePipeline) -> Iterator[tuple[str, torch.Tensor]]:
    for batch in pipeline.datamanager.evaluation_images():
        with torch.no_grad():
            images = pipeline.model.decode(pipeline.model.encode(batch.context)).images
        yield from zip(batch.names, images.permute(0, 2, 3, 1))


@pytest.mark.parametrize("split", ["test", "val"])
def test_ns_render_dataset_writes_the_reconstruction_of_every_picture(run: Path, tmp_path: Path, split: str) -> None:
    command = DatasetRender(load_config=run / "config.yml", output_path=tmp_path, split=split, image_format="png")  # type: ignore[arg-type]
    command.rendered_output_names = ["rgb", "gt-rgb"]
    command.main()
    expected = dict(reconstructions(loaded(run)))
    assert len(expected) == NUM_HELD_OUT
    written = {}
    for name, image in expected.items():
        seen = np.asarray(Image.open(tmp_path / split / "rgb" / Path(name).name))
        assert np.abs(seen.astype(int) - (image.numpy() * 255)).max() <= 1
        written[name] = seen.tobytes()
    assert len(set(written.values())) == NUM_HELD_OUT, "each camera its own picture"


def test_all_layers_of_a_data_set_can_be_rendered(run: Path, tmp_path: Path) -> None:
    DatasetRender(load_config=run / "config.yml", output_path=tmp_path, split="test", image_format="png").main()
    for layer in ("rgb", "input", "error", "ellipses", "token", "depth", "accumulation", "gt-rgb"):
        assert len(list((tmp_path / "test" / layer).iterdir())) == NUM_HELD_OUT
    inputs, truths = (tmp_path / "test" / layer for layer in ("input", "gt-rgb"))
    for path in inputs.iterdir():
        assert np.abs(np.asarray(Image.open(path)).astype(int) - np.asarray(Image.open(truths / path.name))).max() <= 1
