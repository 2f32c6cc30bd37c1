"""`ns-tokens import`: published weights become a run that every ns-* command works on."""

from __future__ import annotations

import collections
import copy
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from token_methods.commands.runs import CONFIG_NAME
from token_methods.core.weights import WeightsError
from token_methods.multiscene.checkpoints import write_checkpoint
from token_methods.multiscene.model import FeedForwardModelConfig
from token_methods.multiscene.network_files import MODEL_PREFIX
from token_methods.multiscene.trainer_config import FeedForwardTrainerConfig

HUB_PREFIX = "hf://"
HUB_FORM = f"{HUB_PREFIX}OWNER/REPOSITORY[@REVISION]/PATH/IN/IT.safetensors"


@dataclass
class ImportWeights:
    """Write a run folder from published weights."""

    preset: str
    """Method whose architecture the weights have, such as tokengs-6view."""
    weights: str
    """A safetensors file (GaussianToken: also a Lightning .ckpt), or hf://OWNER/REPOSITORY[@REVISION]/PATH/IN/IT.safetensors."""
    output_dir: Path
    """Folder of the new run."""
    data: Path | None = None
    """Scenes that the run looks at by default; any other can be named later."""

    def main(self) -> None:
        methods = our_methods()
        if self.preset not in methods:
            raise ValueError(f"--preset {self.preset} is not a method of nerfstudio-tokens; choose from {', '.join(sorted(methods))}")
        if (self.output_dir / CONFIG_NAME).exists():
            raise ValueError(f"{self.output_dir} holds a run already: name another --output-dir")
        if self.data is not None and not self.data.exists():
            raise ValueError(f"--data {self.data} does not exist; leave it out to name the scenes later")
        path = local_file(self.weights)
        with CONSOLE.status(f"Importing {path.name}"):
            weights, state = fitting_weights(methods, self.preset, path)
            unread = _model(methods[self.preset]).unread_weights(weights)
            run = write_run(methods[self.preset], state, self.output_dir.resolve(), self.data)
        if unread:
            groups = collections.Counter(".".join(key.split(".")[:-1][:2]) or key for key in unread)
            listed = ", ".join(f"{group} ({count})" for group, count in groups.most_common(6)) + (" ..." if len(groups) > 6 else "")
            CONSOLE.print(f"{len(unread)} tensors that nothing here reads are left out: {listed}", soft_wrap=True)
        CONSOLE.print(f"{len(weights) - len(unread)} tensors of {path.name} are now the run {run}", soft_wrap=True)


def our_methods() -> dict[str, FeedForwardTrainerConfig]:
    """The methods of this package, by name, as nerfstudio has registered them."""
    from nerfstudio.configs.method_configs import all_methods

    return {name: config for name, config in all_methods.items() if isinstance(config, FeedForwardTrainerConfig)}


def fitting_weights(methods: dict[str, FeedForwardTrainerConfig], preset: str, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a file, when they are exactly those of a method, and the model's state that they make.

    Raises:
        WeightsError: they are not; the difference, and the methods that they would fit.
    """
    weights = _model(methods[preset]).read_weights(path)
    try:
        return weights, _model(methods[preset]).imported_state(weights, source=str(path))
    except WeightsError as error:
        fitting = [name for name, method in methods.items() if _model(method).accepts(weights)]
        advice = f" Import them with --preset {' or '.join(fitting)}." if fitting and preset not in fitting else ""
        raise WeightsError(f"{error}{advice}") from error


def _model(method: FeedForwardTrainerConfig) -> FeedForwardModelConfig:
    assert isinstance(method.pipeline.model, FeedForwardModelConfig)
    return method.pipeline.model


def write_run(method: FeedForwardTrainerConfig, state: dict[str, Tensor], folder: Path, data: Path | None) -> Path:
    """A run of `method` at step 0 with this state of its model; its `config.yml`, which appears last, is returned.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    config = copy.deepcopy(method)
    config.run_folder, config.timestamp, config.experiment_name = folder, "imported", folder.name
    config.data = config.pipeline.datamanager.data = None if data is None else data.resolve()
    config.pipeline.initial_weights = None
    pipeline = {MODEL_PREFIX + key: value for key, value in (state | {"device_indicator_param": torch.empty(0)}).items()}
    checkpoint = {"step": 0, "pipeline": pipeline, "optimizers": {}, "schedulers": {}, "scalers": {}}
    write_checkpoint(config.get_checkpoint_dir(), 0, checkpoint, keep=1)
    unfinished = folder / f".{CONFIG_NAME}.{os.getpid()}"
    unfinished.write_text(yaml.dump(config), encoding="utf-8")
    os.replace(unfinished, folder / CONFIG_NAME)
    return folder / CONFIG_NAME


def local_file(address: str) -> Path:
    """The file that an address names, downloaded if it is on the Hugging Face hub.

    Raises:
        ValueError: it is not there, or the address is malformed.
    """
    if not address.startswith(HUB_PREFIX):
        path = Path(address).expanduser()
        if not path.is_file():
            raise ValueError(f"no weights at {path}: --weights takes a safetensors file or {HUB_FORM}")
        return path
    parts = address.removeprefix(HUB_PREFIX).split("/")
    if len(parts) < 3 or not all(parts) or not address.endswith((".safetensors", ".ckpt")):
        raise ValueError(f"--weights {address} is no address of weights: write {HUB_FORM}")
    owner, (repository, _, revision) = parts[0], parts[1].partition("@")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(repo_id=f"{owner}/{repository}", filename="/".join(parts[2:]), revision=revision or None))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{address} cannot be downloaded ({reason}): check the address, or download the file and give its path") from error
