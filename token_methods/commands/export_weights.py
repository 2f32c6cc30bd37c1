"""`ns-tokens export-weights`: a run's network as a safetensors file with the published names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nerfstudio.utils.rich_utils import CONSOLE

from token_methods.commands.runs import read_config
from token_methods.core.weights import write_safetensors
from token_methods.multiscene.model import FeedForwardModelConfig
from token_methods.multiscene.network_files import read_model_state


@dataclass
class ExportWeights:
    """Write the network of a run as safetensors, under the names that the publication uses."""

    load_config: Path
    """A run's config.yml, or its folder."""
    output: Path
    """File to write (.safetensors)."""

    def main(self) -> None:
        if self.output.suffix != ".safetensors":
            raise ValueError(f"--output {self.output} must end in .safetensors")
        config = read_config(self.load_config)
        with CONSOLE.status(f"Writing {self.output.name}"):
            model = config.pipeline.model
            assert isinstance(model, FeedForwardModelConfig)
            weights = model.exported_weights(read_model_state(config.get_base_dir() / config.relative_model_dir))
            write_safetensors(weights, self.output)
        CONSOLE.print(f"{len(weights)} tensors: {self.output}", soft_wrap=True)
