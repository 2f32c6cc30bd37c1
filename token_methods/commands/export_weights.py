"""`ns-tokens export-weights`: a run's network as a safetensors file with the published names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nerfstudio.utils.rich_utils import CONSOLE

from token_methods.commands.runs import config_file
from token_methods.core.weights import write_safetensors
from token_methods.multiscene.network_files import read_network


@dataclass
class ExportWeights:
    """Write the network of a run as safetensors, under the names that the publication uses."""

    load_config: Path
    """A run's config.yml, or its folder."""
    output: Path
    """File to write (.safetensors)."""

    def main(self) -> None:
        import yaml

        config = yaml.load(config_file(self.load_config).read_text(), Loader=yaml.Loader)  # noqa: S506 - as nerfstudio reads its own runs
        weights = read_network(config.get_checkpoint_dir())
        write_safetensors(weights, self.output)
        CONSOLE.print(f"{len(weights)} tensors: {self.output}")
