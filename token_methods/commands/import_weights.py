"""`ns-tokens import`: published weights become a run that every ns-* command works on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch
import yaml
from nerfstudio.utils.rich_utils import CONSOLE

from token_methods.core.weights import read_safetensors
from token_methods.multiscene.checkpoints import write_checkpoint
from token_methods.multiscene.trainer import FeedForwardTrainerConfig

HUB_PREFIX = "hf://"


@dataclass
class ImportWeights:
    """Write a run folder from published weights."""

    preset: str
    """Method whose architecture the weights have, such as tokengs-6view."""
    weights: str
    """A safetensors file, or hf://OWNER/REPOSITORY/PATH/IN/IT.safetensors."""
    output_dir: Path
    """Folder of the new run."""
    data: Optional[Path] = None
    """Scenes that the run looks at by default; any other can be named later."""

    def main(self) -> None:
        from nerfstudio.configs.method_configs import all_methods

        config = all_methods.get(self.preset)
        if not isinstance(config, FeedForwardTrainerConfig):
            ours = sorted(name for name, other in all_methods.items() if isinstance(other, FeedForwardTrainerConfig))
            raise ValueError(f"--preset {self.preset} is not a method of nerfstudio-tokens; choose from {', '.join(ours)}")
        if (self.output_dir / "config.yml").exists():
            raise ValueError(f"{self.output_dir} holds a run already: name another --output-dir")
        config = copy.deepcopy(config)
        config.run_folder = self.output_dir.resolve()
        config.timestamp, config.experiment_name = "imported", self.output_dir.name
        config.data = config.pipeline.datamanager.data = None if self.data is None else self.data.resolve()
        path = local_file(self.weights)
        weights = config.pipeline.model.check_weights(read_safetensors(path), source=str(path))
        state = {f"_model.network.{key}": value for key, value in weights.items()} | {"_model.device_indicator_param": torch.empty(0)}
        checkpoint = {"step": 0, "pipeline": state, "optimizers": {}, "schedulers": {}, "scalers": {}}
        write_checkpoint(config.get_checkpoint_dir(), 0, checkpoint, keep=1)
        (self.output_dir / "config.yml").write_text(yaml.dump(config), encoding="utf-8")
        CONSOLE.print(f"{len(weights)} tensors of {path.name} are now the run {self.output_dir / 'config.yml'}")


def local_file(address: str) -> Path:
    """The file that an address names, downloaded if it is on the Hugging Face hub.

    Raises:
        ValueError: it is not there, or the address is malformed.
    """
    if not address.startswith(HUB_PREFIX):
        path = Path(address).expanduser()
        if not path.is_file():
            raise ValueError(f"no weights at {path}: --weights takes a safetensors file or {HUB_PREFIX}OWNER/REPOSITORY/FILE")
        return path
    parts = address.removeprefix(HUB_PREFIX).split("/")
    if len(parts) < 3 or not all(parts):
        raise ValueError(f"--weights {address}: write {HUB_PREFIX}OWNER/REPOSITORY/PATH/IN/IT.safetensors")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id="/".join(parts[:2]), filename="/".join(parts[2:])))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{address} cannot be downloaded ({error}): download it by hand and name the file") from error
