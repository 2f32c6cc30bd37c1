"""A trained run, loaded for a command."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from nerfstudio.utils.rich_utils import CONSOLE

from token_methods.multiscene.checkpoints import newest_readable
from token_methods.multiscene.pipeline import FeedForwardPipeline
from token_methods.multiscene.run_options import RunOptions, given
from token_methods.multiscene.trainer_config import FeedForwardTrainerConfig

CONFIG_NAME = "config.yml"


def config_file(run: Path) -> Path:
    """The `config.yml` of a run, named by itself or by its folder.

    Raises:
        ValueError: there is none.
    """
    run = run.expanduser()
    path = run / CONFIG_NAME if run.is_dir() else run
    if not path.is_file():
        raise ValueError(f"no run at {run}: --load-config takes a run's config.yml or its folder")
    return path


def read_config(run: Path) -> FeedForwardTrainerConfig:
    """The configuration of a run, which finds its checkpoints from any working directory, also when the run was moved.

    Raises:
        ValueError: there is none, it cannot be read, or it belongs to a method that is not ours.
    """
    path = config_file(run)
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.Loader)  # as nerfstudio reads its runs
    except Exception as error:  # it holds Python objects: building them may fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} cannot be read as the configuration of a run ({reason}): train or import again") from error
    if not isinstance(config, FeedForwardTrainerConfig):
        owner = getattr(config, "method_name", None)
        whose = "is no configuration of a run" if owner is None else f"is a run of {owner}"
        raise ValueError(f"{path} {whose}: --load-config takes a run of a method of nerfstudio-tokens")
    config.run_folder = path.parent.resolve()
    return config


def open_run(run: Path, options: RunOptions) -> tuple[FeedForwardTrainerConfig, FeedForwardPipeline]:
    """Configuration and pipeline of a run, whose scene was found but not encoded: weights are not loaded yet.

    Raises:
        ValueError: the run cannot be used, or the data, or what the options say.
    """
    config = read_config(run)
    with given(options):
        pipeline = config.pipeline.setup(device="cuda" if torch.cuda.is_available() else "cpu", test_mode="inference")
    pipeline.eval()
    return config, pipeline


def load_weights(config: FeedForwardTrainerConfig, pipeline: FeedForwardPipeline) -> None:
    """Load the newest checkpoint, and encode the scene in hand.

    Raises:
        CheckpointError: there is none that can be read.
        WeightsError: it is of another architecture.
    """
    path, state = newest_readable(config.get_base_dir() / config.relative_model_dir)
    pipeline.load_pipeline(state["pipeline"], state["step"])
    CONSOLE.print(f"Loaded {path}")


def load_run(run: Path, options: RunOptions) -> tuple[FeedForwardTrainerConfig, FeedForwardPipeline]:
    """Configuration and pipeline of a run with `options` applied; the scene that they name is encoded already.

    Raises:
        ValueError: see `open_run`.
        CheckpointError, WeightsError: see `load_weights`.
    """
    config, pipeline = open_run(run, options)
    load_weights(config, pipeline)
    return config, pipeline
