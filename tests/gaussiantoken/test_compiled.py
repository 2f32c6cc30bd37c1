"""The option that compiles the convolutional networks: on a GPU only, after the average was copied, the same weights and numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nerfstudio.data.scene_box import SceneBox
from torch import nn

from token_methods.core.views import Views
from token_methods.gaussiantoken.config import PRESETS
from token_methods.gaussiantoken.model import GaussianTokenModel, GaussianTokenModelConfig


def model_of(device: str = "cpu", **options: Any) -> GaussianTokenModel:
    torch.manual_seed(0)
    config = GaussianTokenModelConfig(architecture=PRESETS["tiny"].architecture, **options)
    model: GaussianTokenModel = config.setup(scene_box=SceneBox(torch.ones(2, 3)), num_train_data=1, metadata={}, device=device)
    return model


def compiled_parts(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if module._compiled_call_impl is not None}


LIVE, AVERAGED = ({f"{network}.img_{end}coder" for end in ("en", "de")} for network in ("network", "average.module"))


def test_only_a_gpu_compiles_and_the_average_too() -> None:
    assert not compiled_parts(model_of(compiled=True))
    assert not compiled_parts(model_of(device="cuda"))
    # Nothing is compiled before the networks are called, so that no device is needed here.
    assert compiled_parts(model_of(device="cuda", compiled=True)) == LIVE | AVERAGED
    assert compiled_parts(model_of(device="cuda", compiled=True, average_decay=None)) == LIVE


@pytest.mark.parametrize("training", [True, False])
def test_compiled_networks_keep_their_weights_names_and_numbers(training: bool) -> None:
    height, width = PRESETS["tiny"].architecture.image_size
    views = Views(height, width, images=torch.rand(2, 1, 3, height, width, generator=torch.Generator().manual_seed(0)))
    plain, compiled = model_of(), model_of()
    compiled.compile_convolutions(backend="eager")
    state = compiled.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items()) and len(state) == len(plain.state_dict())
    compiled.load_state_dict(copy.deepcopy(plain.state_dict()))
    images = []
    for model in (plain.train(training), compiled.train(training)):
        torch.manual_seed(1)
        with torch.no_grad():
            images.append(model.decode(model.encode(views)).images)
    assert torch.equal(*images)
