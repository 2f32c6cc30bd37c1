"""Options for one call of any ns-* command on a trained run, read from one environment variable.

nerfstudio's commands know a run by its `config.yml` and have no flag for the scene. So

    NERFSTUDIO_TOKENS="--scene family --tuning-steps 50" ns-render interpolate --load-config RUN/config.yml

serves ns-eval, ns-viewer, ns-render and ns-export alike, and `NERFSTUDIO_TOKENS=--help ns-eval ...` prints what can be said.
`ns-tokens` has flags for the same things; they come before what the variable says.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import shlex
import sys
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from token_methods.multiscene.plain_errors import SettingsError

VARIABLE = "NERFSTUDIO_TOKENS"
DESCRIPTION = f"""\
What an ns-* command on a run of nerfstudio-tokens looks at, beyond what its own flags can say:

    {VARIABLE}="--scene family --tuning-steps 50" ns-render interpolate --load-config RUN/config.yml
"""


def _about(metavar: str | None, text: str) -> dict[str, Any]:
    return {"metavar": metavar, "help": text}


@dataclass(frozen=True)
class RunOptions:
    """What a command may be told about the scene that it looks at; None leaves the run's own setting.

    Raises:
        ValueError: a value that makes no sense, by the name of its option.
    """

    scene: str | None = field(
        default=None, metadata=_about("SCENE", "a scene of the run's data by its name or number, or the folder of any other scene")
    )
    data: Path | None = field(
        default=None, metadata=_about("PATH", "a scene or a folder of scenes to look at in the place of the run's own data")
    )
    dataparser: str | None = field(
        default=None,
        metadata=_about(
            "NAME", "what reads --data, as ns-train names it; by default the run's own, else nerfstudio-data, colmap or blender-data"
        ),
    )
    evaluation_index: Path | None = field(
        default=None, metadata=_about("JSON", "context and target frames of each scene, for ns-eval (pixelSplat's form)")
    )
    evaluate: Literal["held-out-scenes", "held-out-frames"] | None = field(
        default=None,
        metadata=_about(None, "what ns-eval measures: scenes that were not trained on, or new views of those that were"),
    )
    context_views: int | None = field(default=None, metadata=_about("N", "number of views that the network looks at"))
    tuning_steps: int | None = field(default=None, metadata=_about("N", "test-time tuning steps on the context views; 0 turns tuning off"))
    tuning_learning_rate: float | None = field(default=None, metadata=_about("RATE", "learning rate of test-time tuning"))
    lpips_weights: Path | None = field(
        default=None, metadata=_about("FILE", "LPIPS weights (.safetensors), where they are in no cache folder")
    )

    def __post_init__(self) -> None:
        for name, least in (("context_views", 1), ("tuning_steps", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{_flag(name)} must be {least} or more, not {value}")
        if self.tuning_learning_rate is not None and not self.tuning_learning_rate > 0:
            raise ValueError(f"--tuning-learning-rate must be above 0, not {self.tuning_learning_rate}")
        for name in ("data", "evaluation_index", "lpips_weights"):
            path = getattr(self, name)
            if path is not None and not path.expanduser().exists():
                raise ValueError(f"{_flag(name)} {path} does not exist")
        if self.dataparser is not None and self.data is None:
            raise ValueError("--dataparser says what reads --data: name both")

    def before(self, others: RunOptions) -> RunOptions:
        """These options, and `others` where nothing is said here."""
        return dataclasses.replace(others, **{name: value for name, value in vars(self).items() if value is not None})

    def apply(self, pipeline: Any) -> None:
        """Put what is said here in the place of a pipeline configuration's own settings.

        Raises:
            SettingsError: there is no such dataparser.
            SceneError: none reads the data.
        """
        from token_methods.multiscene.datamanager_config import MultiSceneDataManagerConfig

        data = pipeline.datamanager
        if self.data is not None:
            data.data = self.data.expanduser()
            has_scenes = isinstance(data, MultiSceneDataManagerConfig)
            data.dataparser = self._dataparser(data.data, data.dataparser, has_scenes)
            # What the run says of its own scenes does not hold for others: all of them are new.
            data.scene = None
            if has_scenes:
                data.train_scenes = data.eval_scenes = data.scene_split = data.evaluation_index = data.evaluate = None
                data.eval_scene_fraction = 1.0
            elif hasattr(data.dataparser, "eval_fraction"):
                data.dataparser.eval_fraction = 1.0
        settings = (
            (data, "scene", self.scene),
            (data, "evaluation_index", self.evaluation_index),
            (data, "evaluate", self.evaluate),
            (data, "num_context_views", self.context_views),
            (pipeline.model, "tuning_steps", self.tuning_steps),
            (pipeline.model, "tuning_learning_rate", self.tuning_learning_rate),
            (pipeline, "lpips_weights", self.lpips_weights),
        )
        for config, name, value in settings:
            if value is not None:
                setattr(config, name, value)

    def _dataparser(self, data: Path, own: Any, has_scenes: bool) -> Any:
        from nerfstudio.configs.dataparser_configs import all_dataparsers

        from token_methods.multiscene.scene_discovery import dataparser_that_reads

        if self.dataparser is None:
            return dataparser_that_reads(data, own) if has_scenes else _picture_dataparser(data, own, all_dataparsers)
        if self.dataparser not in all_dataparsers:
            raise SettingsError(f"--dataparser {self.dataparser} is not one of {', '.join(sorted(all_dataparsers))}")
        named = all_dataparsers[self.dataparser]
        return own if type(own) is type(named) else copy.deepcopy(named)


def _picture_dataparser(data: Path, own: Any, registered: dict[str, Any]) -> Any:
    """A run's own dataparser where it reads other pictures too, else the one for folders of pictures."""
    named = copy.deepcopy(own)
    named.data = data
    try:
        named.setup().get_dataparser_outputs(split="val")
    except (OSError, ValueError, AssertionError):
        return copy.deepcopy(registered.get("image-folder-data", own))
    return own


_given: ContextVar[RunOptions | None] = ContextVar("given", default=None)


@contextmanager
def given(options: RunOptions) -> Iterator[None]:
    """Within this context `options` come before what the environment says: a command's own flags are nearer to the user."""
    token = _given.set(options)
    try:
        yield
    finally:
        _given.reset(token)


def run_options() -> RunOptions:
    """The options of this call. What cannot be understood in the environment ends the command with one sentence."""
    text = os.environ.get(VARIABLE, "").strip()
    try:
        return (_given.get() or RunOptions()).before(_parse(shlex.split(text)))
    except ValueError as error:
        sys.exit(f'{VARIABLE}="{text}": {error}. {VARIABLE}=--help lists what can be said.')


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parse(arguments: list[str]) -> RunOptions:
    parser = _Parser(
        prog=VARIABLE,
        usage=argparse.SUPPRESS,
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = typing.get_type_hints(RunOptions)
    for option in dataclasses.fields(RunOptions):
        kind = next(part for part in typing.get_args(kinds[option.name]) if part is not type(None))
        choices = typing.get_args(kind) or None
        parser.add_argument(_flag(option.name), type=str if choices else kind, choices=choices, **option.metadata)
    return RunOptions(**vars(parser.parse_args(arguments)))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
