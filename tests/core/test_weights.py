"""Weight files: whole or not at all, never executed, and every refusal names file, key and fix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from token_methods.core.weights import WeightsError, compare_keys, read_safetensors, require_finite, write_safetensors


def test_round_trip_leaves_no_other_file(tmp_path: Path) -> None:
    weights = {"a.weight": torch.randn(3, 2), "b": torch.randn(4, 5).t()}
    write_safetensors(weights, tmp_path / "new" / "w.safetensors")
    read = read_safetensors(tmp_path / "new" / "w.safetensors")
    assert read.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(read[key], value)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["w.safetensors"]


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors({"a": torch.randn(100)}, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsError, match=r"w\.safetensors is damaged.*download it again"):
        read_safetensors(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_never_opened(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="pickled checkpoint"):
        read_safetensors(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights at .*absent\.safetensors"):
        read_safetensors(tmp_path / "absent.safetensors")


def test_an_old_file_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors({"a": torch.ones(1)}, path)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("token_methods.core.weights.save_file", full_disk)
    with pytest.raises(WeightsError, match=r"w\.safetensors cannot be written .*No space left"):
        write_safetensors({"a": torch.zeros(1)}, path)
    monkeypatch.undo()
    assert read_safetensors(path)["a"].item() == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_all_differences_are_told_at_once() -> None:
    found = {"kept": torch.zeros(2), "left": torch.zeros(1), "bent": torch.zeros(3, 2)}
    expected = {"kept": torch.zeros(2), "gone": torch.zeros(1), "bent": torch.zeros(2, 3)}
    with pytest.raises(WeightsError) as refused:
        compare_keys(found, expected, "file.safetensors", "do this")
    message = str(refused.value)
    assert "1 missing: gone" in message
    assert "1 unexpected: left" in message
    assert "1 misshapen: bent [3, 2] instead of [2, 3]" in message
    assert message.startswith("file.safetensors does not fit")
    assert message.endswith("do this.")


def test_long_lists_are_cut_and_counted() -> None:
    with pytest.raises(WeightsError, match=r"14 missing: k0, k1, .*k9 and 4 more"):
        compare_keys({}, {f"k{index}": torch.zeros(1) for index in range(14)}, "file")


def test_nan_is_refused_by_name() -> None:
    with pytest.raises(WeightsError, match="1 tensors: bad"):
        require_finite({"good": torch.zeros(2), "bad": torch.tensor([0.0, float("nan")]), "count": torch.tensor(3)}, "file")
