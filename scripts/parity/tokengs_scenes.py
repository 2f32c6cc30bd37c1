"""The scenes of a case, from their zip archives on, through the dataparser, data manager and normalisation of the product."""

from __future__ import annotations

import dataclasses

from dataparsers.dl3dv import DL3DVDataParserConfig
from scripts.parity.comparison import NotACase
from scripts.parity.tokengs_case import ParityCase
from scripts.parity.tokengs_options import case_path, dataset_of
from token_methods.core.cameras import normalise_batch
from token_methods.core.views import SceneBatch, Views, collate_scenes, concatenate_views
from token_methods.multiscene.datamanager import MultiSceneDataManager
from token_methods.multiscene.datamanager_config import MultiSceneDataManagerConfig
from token_methods.multiscene.errors import SceneError
from token_methods.tokengs.normalisation import network_frame

CACHE_GIGABYTES = 0.25


def read_batch(case: ParityCase) -> SceneBatch:
    """The first scenes of the evaluation index as one batch, in the frame of the dataset.

    Raises:
        NotACase: scenes or index are missing or damaged, or do not fit the options.
    """
    options = case.options
    num_context = options["num_input_views"]
    index = case_path(options, "evaluation_json", case.folder, "<case>/evaluation_index.json")
    scenes = case_path(options, "root_path", case.folder, "<case>/scenes")
    config = MultiSceneDataManagerConfig(
        dataparser=DL3DVDataParserConfig(data=scenes),
        evaluation_index=index,
        evaluate="held-out-scenes",
        image_height=case.height,
        image_width=case.width,
        crop_convention="published",
        num_context_views=num_context,
        num_target_views=max(1, options["num_views"] - num_context),
        cache_gigabytes=CACHE_GIGABYTES,
    )
    try:
        data = MultiSceneDataManager(config, test_mode="test")
        windows = data.evaluation_windows()[: options["batch_size"]]
        named = [entry.key for entry in data.index_entries][: options["batch_size"]]
        if len(named) < options["batch_size"] or [window.name for window in windows] != named:
            raise NotACase(f"{index} and {scenes} must both have the first {options['batch_size']} scenes, the index begins with {named}")
        for window in windows:
            if len(window.context) != num_context:
                raise NotACase(f"{index}: {window.name} has {len(window.context)} context frames, num_input_views is {num_context}")
        return collate_scenes([data.load_window(window) for window in windows])
    except (SceneError, FileNotFoundError, ValueError) as error:
        raise error if isinstance(error, NotACase) else NotACase(f"{case.folder}: {error}") from error


def network_views(case: ParityCase) -> tuple[Views, Views]:
    """Context and target views of the case's scenes in the frame of the network, with the case's masks if it has any.

    Raises:
        NotACase: see `read_batch`; or the masks are of another size than the targets.
    """
    options, batch = case.options, read_batch(case)
    scene_scale = dataset_of(options, str(case.folder))[1]
    frame = network_frame(batch, options["camera_normalization_method"], options["camera_scale_method"], scene_scale)
    batch = normalise_batch(batch, frame)
    context, target = batch.context, batch.target
    if options["use_input_supervision"]:
        target = concatenate_views([context, target], dim=1)
    if "batch/masks_output" in case.tensors:
        try:
            target = dataclasses.replace(target, masks=case.tensors["batch/masks_output"])
        except ValueError as error:
            raise NotACase(f"{case.folder}: batch/masks_output does not fit the targets ({error})") from None
    return context, target
