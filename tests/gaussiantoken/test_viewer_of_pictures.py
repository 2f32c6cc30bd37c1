"""The viewer on a run on pictures: one camera, layers and controls of tokens, and a box for the name where there are many."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import viser
from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, ViewerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio.viewer.viewer import Viewer
from PIL import Image

from tests.gaussiantoken.picture_runs import trained, write_pictures
from tests.multiscene.test_viewer import Browser, element, free_port, wait_for_full_picture, wait_until
from token_methods.multiscene import viewer as viewer_module

pytestmark = pytest.mark.skipif(hasattr(viser, "__version__"), reason="the client speaks the protocol of viser 0.2")

Opened = tuple[Viewer, Browser]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    folder = tmp_path_factory.mktemp("viewer")
    write_pictures(folder / "pictures")
    made: dict[bool, Path] = {}

    def of(grid: bool) -> Path:
        if grid not in made:
            made[grid] = trained(folder / "pictures", folder / f"outputs {grid}", grid)
        return made[grid]

    return of


@contextmanager
def open_viewer(run: Path) -> Iterator[Opened]:
    _, pipeline, _, step = eval_setup(run / "config.yml", test_mode="test")
    viewer = Viewer(
        ViewerConfig(websocket_host="127.0.0.1", websocket_port=free_port()),
        log_filename=run / "viewer.log",
        datapath=pipeline.datamanager.get_datapath(),
        pipeline=pipeline,
        train_lock=threading.Lock(),
    )
    viewer.control_panel._max_res.value = 64
    writer.GLOBAL_BUFFER.clear()
    writer.setup_local_writer(LoggingConfig(local_writer=LocalWriterConfig(enable=False)), max_iter=1)
    viewer.init_scene(pipeline.datamanager.train_dataset, "completed", pipeline.datamanager.eval_dataset)
    viewer.update_scene(step=step)
    browser = Browser(viewer.viser_server.get_port())
    wait_until(lambda: browser.all("BackgroundImageMessage"))
    yield viewer, browser
    browser.close()
    wait_until(lambda: not viewer.render_statemachines)
    viewer.viser_server.stop()


def shown(browser: Browser) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(browser.all("BackgroundImageMessage")[-1]["rgb_bytes"]))).astype(float)


def test_layers_controls_and_one_frustum(runs: Callable[[bool], Path]) -> None:
    with open_viewer(runs(False)) as (viewer, browser):
        wait_for_full_picture(viewer)
        assert {control.name for _, control in viewer.viewer_elements} == {"Scene", "Encode", "Photographs", "Tokens kept", "Token"}
        assert [message["name"] for message in browser.all("CameraFrustumMessage")] == ["/context/00000"]
        assert not any(frustum.visible for frustum in viewer.pipeline.scene_viewer._frusta)
        assert viewer.show_images.visible and not viewer.hide_images.visible
        layers = ["rgb", "input", "error", "ellipses", "token", "depth", "accumulation"]
        assert [name for name in viewer.control_panel._output_render.options if name != "gl_z_buf_depth"] == layers
        rgb = shown(browser)
        viewer.control_panel._output_render.value = "ellipses"
        viewer._trigger_rerender()
        wait_for_full_picture(viewer)
        ellipses = shown(browser)
        assert np.abs(ellipses - rgb).mean() > 2
        browser.change(element(viewer, "Tokens kept"), 2)
        wait_until(lambda: element(viewer, "Tokens kept").value == 2)
        wait_for_full_picture(viewer)
        assert np.abs(shown(browser) - ellipses).mean() > 0.5


def test_a_picture_is_picked_from_the_list(runs: Callable[[bool], Path]) -> None:
    with open_viewer(runs(False)) as (viewer, browser):
        pipeline = viewer.pipeline
        assert element(viewer, "Scene").options == pipeline.datamanager.scene_names
        before = pipeline.model.scene
        browser.change(element(viewer, "Scene"), pipeline.datamanager.scene_names[2])
        wait_until(lambda: pipeline.model.scene is not before)
        wait_until(lambda: browser.all("RemoveNotificationMessage"))
        assert pipeline.datamanager.current.name == pipeline.datamanager.scene_names[2]
        wait_for_full_picture(viewer)
        assert not [message for message in browser.all("NotificationMessage") if "cannot" in message["title"]]


def test_of_many_pictures_one_is_named_in_a_box(runs: Callable[[bool], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_module, "LONGEST_LIST", 3)
    with open_viewer(runs(False)) as (viewer, browser):
        pipeline, box = viewer.pipeline, element(viewer, "Scene")
        names, before = pipeline.datamanager.scene_names, pipeline.model.scene
        assert box.value == names[0] and not hasattr(box, "options")
        browser.change(box, "3")
        wait_until(lambda: box.value == "3")
        assert pipeline.model.scene is before, "what is being typed is not looked for"
        browser.change(element(viewer, "Show"))
        wait_until(lambda: pipeline.model.scene is not before)
        assert pipeline.datamanager.current.name == names[3]
        browser.change(box, "nothing.png")
        wait_until(lambda: box.value == "nothing.png")
        browser.change(element(viewer, "Show"))
        wait_until(lambda: [message for message in browser.all("NotificationMessage") if "nothing.png cannot be shown" in message["title"]])
        assert pipeline.datamanager.current.name == names[3]


def test_a_run_on_a_grid_opens_too(runs: Callable[[bool], Path]) -> None:
    with open_viewer(runs(True)) as (viewer, browser):
        wait_for_full_picture(viewer)
        assert "ellipses" not in viewer.control_panel._output_render.options
        assert shown(browser).std() > 2
