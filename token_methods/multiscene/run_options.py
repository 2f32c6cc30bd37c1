"""Options for one call of any ns-* command on a trained run, read from one environment variable.

nerfstudio's commands know a run by its `config.yml` and have no flag for the scene. So

    NERFSTUDIO_TOKENS="--scene family --tuning-steps 50" ns-render interpolate --load-config RUN/config.yml

serves all of them alike; `NERFSTUDIO_TOKENS=--help ns-eval ...` prints what can be said.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

VARIABLE = "NERFSTUDIO_TOKENS"


@dataclass(frozen=True)
class RunOptions:
    """What a command may be told about the scene that it looks at."""

    scene: Optional[str] = None
    """Name or number of a scene of the run's data, or the path of any folder that the run's dataparser reads."""
    data: Optional[Path] = None
    """Other data to evaluate on, in the place of the run's own: a scene or a folder of scenes."""
    evaluation_index: Optional[Path] = None
    """JSON of context and target frames per scene (pixelSplat's form) for ns-eval."""
    evaluate: Optional[str] = None
    """"held-out-scenes" or "held-out-frames" (new views of the training scenes)."""
    context_views: Optional[int] = None
    """Number of context views."""
    tuning_steps: Optional[int] = None
    """Test-time tuning steps per scene; 0 turns tuning off."""
    tuning_learning_rate: Optional[float] = None
    """Learning rate of test-time tuning."""
    lpips_weights: Optional[Path] = None
    """LPIPS weights (safetensors), when they are not in a cache folder."""

    def apply(self, pipeline: Any) -> None:
        """Put what is said here in the place of a pipeline configuration's own settings."""
        data, model = pipeline.datamanager, pipeline.model
        if self.data is not None:
            data.data = self.data
            data.train_scenes = data.eval_scenes = data.scene_split = None
            data.eval_scene_fraction = 1.0
        targets = {
            "scene": data,
            "evaluation_index": data,
            "evaluate": data,
            "tuning_steps": model,
            "tuning_learning_rate": model,
            "lpips_weights": pipeline,
        }
        for name, target in targets.items():
            if getattr(self, name) is not None:
                setattr(target, name, getattr(self, name))
        if self.context_views is not None:
            data.num_context_views = self.context_views


def run_options() -> RunOptions:
    """The options that the environment gives; wrong ones end the command with tyro's own explanation."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return RunOptions()
    import tyro

    try:
        return tyro.cli(RunOptions, args=shlex.split(text), prog=f"{VARIABLE}=", description=__doc__)
    except ValueError as error:
        sys.exit(f"{VARIABLE}={text!r} cannot be read: {error}")
