"""The Inception network of FID: weights only from files, features as pytorch-fid computes them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from token_methods.core import inception
from token_methods.core.inception import FILES, InceptionUnavailable, load_inception
from token_methods.core.weights import WeightsError


@pytest.fixture(scope="module")
def network() -> FeatureExtractorInceptionV3:
    """Of random numbers."""
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], empty)


@pytest.fixture(scope="module")
def folder(network: FeatureExtractorInceptionV3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.save({key: value for key, value in network.state_dict().items() if not key.endswith("batches_tracked")}, folder / FILES[0])
    return folder


def test_features_are_those_before_the_classifier(network: FeatureExtractorInceptionV3, folder: Path, monkeypatch: Any) -> None:
    """torch-fidelity takes bytes u as (u - 128) / 128, pytorch-fid numbers v as 2 v - 1: the same for v = u / 256."""
    monkeypatch.setattr(inception, "CACHE_FOLDER", folder)
    features = load_inception().train()
    levels = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(inception, "IMAGES_AT_ONCE", 1)
    found = features(levels.float() / 256)
    assert found.shape == (2, 2048)
    expected = network(levels)[0]
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.max().item())


def test_images_of_any_size_are_stretched_without_antialiasing(folder: Path) -> None:
    features = load_inception(folder / FILES[0])
    image = torch.rand(1, 3, 20, 31, generator=torch.Generator().manual_seed(2))
    enlarged = torch.nn.functional.interpolate(image, (299, 299), mode="bilinear", align_corners=False)
    torch.testing.assert_close(features(image), features(enlarged))


def test_without_weights_it_says_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "CACHE_FOLDER", tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InceptionUnavailable, match=rf"not at {tmp_path}/{FILES[0]} \(they are published at https://"):
        load_inception()


class Bomb:
    """What a pickle of an enemy does when it is opened."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('code from a file was run')",)


def test_wrong_files_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pth cannot be read .*FileNotFoundError"):
        load_inception(tmp_path / "absent.pth")
    (tmp_path / "enemy.pth").write_bytes(pickle.dumps({"fc.bias": Bomb()}, protocol=2))
    with pytest.raises(WeightsError, match=r"enemy\.pth cannot be read"):
        load_inception(tmp_path / "enemy.pth")
    (tmp_path / "short.pth").write_bytes((folder / FILES[0]).read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"short\.pth cannot be read"):
        load_inception(tmp_path / "short.pth")
    other: dict[str, Tensor] = {"conv1.weight": torch.zeros(3)}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth does not fit .* missing: .* and \d+ more; 1 unexpected: conv1\.weight"):
        load_inception(tmp_path / "other.pth")
