"""A trained run, loaded for a command."""

from __future__ import annotations

from pathlib import Path

from nerfstudio.utils.eval_utils import eval_setup

from token_methods.multiscene.pipeline import FeedForwardPipeline
from token_methods.multiscene.run_options import RunOptions
from token_methods.multiscene.trainer import FeedForwardTrainerConfig


def config_file(run: Path) -> Path:
    """The `config.yml` of a run, named by itself or by its folder.

    Raises:
        ValueError: there is none.
    """
    path = run / "config.yml" if run.is_dir() else run
    if not path.is_file():
        raise ValueError(f"no run at {run}: --load-config takes a run's config.yml or its folder")
    return path


def load_run(run: Path, options: RunOptions) -> tuple[FeedForwardTrainerConfig, FeedForwardPipeline]:
    """Configuration and pipeline of a run with `options` applied; the scene that they name is encoded already.

    Raises:
        ValueError: the run belongs to a method that is not ours.
    """

    def with_options(config: FeedForwardTrainerConfig) -> FeedForwardTrainerConfig:
        if not isinstance(config, FeedForwardTrainerConfig):
            raise ValueError(f"{run} is a run of {config.method_name}, not of a feed-forward method of nerfstudio-tokens")
        options.apply(config.pipeline)
        return config

    config, pipeline, _, _ = eval_setup(config_file(run), test_mode="inference", update_config_callback=with_options)  # type: ignore[arg-type]
    assert isinstance(config, FeedForwardTrainerConfig) and isinstance(pipeline, FeedForwardPipeline)
    return config, pipeline
