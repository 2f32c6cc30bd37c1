"""`ns-viewer` on a tiny run: nerfstudio's own viewer in this process, and a client that speaks to it as a browser does."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import viser
from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig, ViewerConfig
from nerfstudio.utils import writer
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio.viewer.render_state_machine import RenderStateMachine
from nerfstudio.viewer.utils import get_camera
from nerfstudio.viewer.viewer import Viewer
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.tiny_runs import run, tiny_config
from tests.tiny_scenes import write_tiny_scenes
from token_methods.multiscene import viewer as viewer_module
from token_methods.multiscene.message_picture import message_picture

pytestmark = pytest.mark.skipif(hasattr(viser, "__version__"), reason="the client below speaks the protocol of viser 0.2")

FULL_RESOLUTION = 96
"""Longer side of the pictures at rest; the viewer's 512 would take a processor long."""


class Browser:
    """Receives what the viewer sends, and sends what a page sends: its camera, and changes of controls."""

    def __init__(self, port: int) -> None:
        self.messages: list[dict[str, Any]] = []
        self._connection = connect(f"ws://127.0.0.1:{port}", max_size=None)
        threading.Thread(target=self._listen, daemon=True).start()
        pose = {"wxyz": (1.0, 0.0, 0.0, 0.0), "position": (3.0, 3.0, 3.0), "look_at": (0.0, 0.0, 0.0), "up_direction": (0.0, 0.0, 1.0)}
        self._send("ViewerCameraMessage", fov=1.3, aspect=1.0, **pose)

    def change(self, element: Any, value: Any = True) -> None:
        """Choose, slide or press a control."""
        self._send("GuiUpdateMessage", id=element.gui_handle._impl.id, updates={"value": value})

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in list(self.messages) if message["type"] == kind]

    def close(self) -> None:
        self._connection.close()

    def _send(self, kind: str, **fields: Any) -> None:
        self._connection.send(msgspec.msgpack.encode({"type": kind, **fields}))

    def _listen(self) -> None:
        try:
            for packet in self._connection:
                self.messages += msgspec.msgpack.decode(packet)
        except ConnectionClosed:
            pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("viewer")
    write_tiny_scenes(folder / "scenes", 3)
    return run(tiny_config(folder / "scenes", folder / "outputs", steps=2))


@contextmanager
def open_viewer(trained: Path) -> Iterator[tuple[Viewer, Browser]]:
    """What `ns-viewer` opens, at scene_0, and a browser that has its first picture."""
    _, pipeline, _, step = eval_setup(trained / "config.yml", test_mode="test")
    pipeline.select_scene("scene_0")
    viewer = Viewer(
        ViewerConfig(websocket_host="127.0.0.1", websocket_port=free_port()),
        log_filename=trained / "viewer.log",
        datapath=pipeline.datamanager.get_datapath(),
        pipeline=pipeline,
        train_lock=threading.Lock(),
    )
    viewer.control_panel._max_res.value = FULL_RESOLUTION
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


@pytest.fixture(scope="module")
def untouched(trained: Path) -> Iterator[tuple[Viewer, Browser]]:
    """For tests that only look."""
    with open_viewer(trained) as both:
        yield both


@pytest.fixture
def opened(trained: Path) -> Iterator[tuple[Viewer, Browser]]:
    """For tests that press and choose."""
    with open_viewer(trained) as both:
        yield both


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(ready: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.02)


def element(viewer: Viewer, name: str) -> Any:
    return next(element for _, element in viewer.viewer_elements if element.name == name)


def wait_for_full_picture(viewer: Viewer) -> None:
    """Until every client's render thread rests at its high resolution."""
    machines = viewer.render_statemachines
    wait_until(lambda: all(machine.state == "high" and machine.next_action is None for machine in machines.values()))
    with viewer.train_lock:  # type: ignore[union-attr]
        pass
    time.sleep(0.3)


def test_controls_are_in_the_panel_in_the_order_of_their_use(untouched: tuple[Viewer, Browser]) -> None:
    viewer, _ = untouched
    names = [element.name for _, element in viewer.viewer_elements]
    assert names == ["Scene", "Tuning steps", "Encode", "Photographs"]
    assert element(viewer, "Scene").options == viewer.pipeline.datamanager.scene_names
    assert element(viewer, "Scene").value == "scene_0"
    assert element(viewer, "Tuning steps").value == 0


def test_cameras_are_drawn_in_the_colour_of_their_role_and_without_photographs(untouched: tuple[Viewer, Browser]) -> None:
    viewer, browser = untouched
    data = viewer.pipeline.datamanager
    frusta = {message["name"]: message for message in browser.all("CameraFrustumMessage")}
    context = [message for name, message in frusta.items() if name.startswith("/context/")]
    other = [message for name, message in frusta.items() if name.startswith("/other_views/")]
    assert len(context) == len(data.train_dataset) == 2
    assert len(other) == len(data.eval_dataset) == 10
    assert len(frusta) == 12  # none of nerfstudio's own beside them
    assert {message["color"] for message in context} == {0xFF8C00}
    assert {message["color"] for message in other} == {0x5A82C8}
    assert all(message["image_binary"] is None for message in frusta.values())
    places = {message["name"]: message["position"] for message in browser.all("SetPositionMessage")}
    expected = data.train_dataset.cameras.camera_to_worlds[:, :3, 3].numpy() * 10
    np.testing.assert_allclose([places["/context/00000"], places["/context/00001"]], expected, atol=1e-5)


def test_photographs_appear_in_context_frusta_when_asked_for(opened: tuple[Viewer, Browser]) -> None:
    viewer, browser = opened
    browser.messages.clear()
    browser.change(element(viewer, "Photographs"))
    wait_until(lambda: len(browser.all("CameraFrustumMessage")) == 12)
    shown = [message for message in browser.all("CameraFrustumMessage") if message["image_binary"] is not None]
    assert {message["name"] for message in shown} == {"/context/00000", "/context/00001"}
    photograph = np.asarray(Image.open(io.BytesIO(shown[0]["image_binary"])).resize((32, 24))).astype(float)
    truth = viewer.pipeline.datamanager.train_dataset.get_numpy_image(0)
    assert np.abs(photograph - truth).mean() < 8


def test_hide_train_cams_hides_the_cameras_of_later_scenes_too(opened: tuple[Viewer, Browser]) -> None:
    viewer, browser = opened
    viewer.hide_images.value = True  # viser calls the button's callbacks
    wait_until(lambda: len([m for m in browser.all("SetSceneNodeVisibilityMessage") if not m["visible"]]) >= 12)
    browser.messages.clear()
    browser.change(element(viewer, "Scene"), "scene_1")
    wait_until(lambda: len(browser.all("CameraFrustumMessage")) == 12)
    last = {}
    wait_until(lambda: last.update({m["name"]: m["visible"] for m in browser.all("SetSceneNodeVisibilityMessage")}) or len(last) >= 12)
    assert not any(visible for name, visible in last.items() if name.startswith(("/context", "/other_views")))


def test_a_client_starts_behind_the_first_context_camera_and_looks_its_way(untouched: tuple[Viewer, Browser]) -> None:
    viewer, browser = untouched
    camera = viewer.pipeline.datamanager.train_dataset.cameras[0]
    state = viewer.get_camera_state(next(iter(viewer.viser_server.get_clients().values())))
    pose, seen_from = camera.camera_to_worlds, state.c2w.float()
    torch.testing.assert_close(seen_from[:, :3], pose[:, :3], atol=1e-4, rtol=0)
    behind = (seen_from[:, 3] - pose[:, 3]) @ pose[:, 2]
    assert 0 < behind < 0.5
    torch.testing.assert_close(seen_from[:, 3], pose[:, 3] + behind * pose[:, 2], atol=1e-4, rtol=0)
    assert state.fov == pytest.approx(2 * np.arctan(12 / camera.fy.item()), abs=1e-5)
    positions = browser.all("SetCameraPositionMessage")
    np.testing.assert_allclose(positions[-1]["position"], seen_from[:, 3].numpy() * 10, atol=1e-4)


def test_the_picture_in_the_browser_is_the_render_of_the_scene_in_hand(untouched: tuple[Viewer, Browser]) -> None:
    viewer, browser = untouched
    wait_for_full_picture(viewer)
    shown = np.asarray(Image.open(io.BytesIO(browser.all("BackgroundImageMessage")[-1]["rgb_bytes"]))) / 255
    state = viewer.get_camera_state(next(iter(viewer.viser_server.get_clients().values())))
    expected = viewer.pipeline.model.get_outputs_for_camera(get_camera(state, *shown.shape[:2]))["rgb"].numpy()
    assert max(shown.shape) == FULL_RESOLUTION
    assert np.abs(shown - expected).mean() < 0.02
    assert expected.std() > 0.02  # something is there


def test_choosing_a_scene_replaces_picture_cameras_and_pose(opened: tuple[Viewer, Browser]) -> None:
    viewer, browser = opened
    wait_for_full_picture(viewer)
    pipeline = viewer.pipeline
    before, picture = pipeline.model.scene, browser.all("BackgroundImageMessage")[-1]["rgb_bytes"]
    browser.messages.clear()
    browser.change(element(viewer, "Scene"), "scene_1")
    wait_until(lambda: browser.all("BackgroundImageMessage"))
    wait_for_full_picture(viewer)
    assert pipeline.datamanager.current.name == "scene_1"
    assert pipeline.model.scene is not before
    assert len(browser.all("CameraFrustumMessage")) == 12
    assert browser.all("BackgroundImageMessage")[-1]["rgb_bytes"] != picture
    state = viewer.get_camera_state(next(iter(viewer.viser_server.get_clients().values())))
    first = pipeline.datamanager.train_dataset.cameras[0].camera_to_worlds
    torch.testing.assert_close(state.c2w[:, :3].float(), first[:, :3], atol=1e-4, rtol=0)


def test_a_scene_that_cannot_be_read_leaves_the_one_before_and_says_why(opened: tuple[Viewer, Browser]) -> None:
    viewer, browser = opened
    pipeline = viewer.pipeline
    before = pipeline.model.scene
    images = pipeline.datamanager.config.data / "scene_2" / "images"
    images.rename(images.with_name("elsewhere"))
    try:
        browser.change(element(viewer, "Scene"), "scene_2")
        wait_until(lambda: [m for m in browser.all("NotificationMessage") if "scene_2 cannot be shown" in m["title"]])
    finally:
        images.with_name("elsewhere").rename(images)
    assert "frame_" in browser.all("NotificationMessage")[-1]["body"]
    assert pipeline.model.scene is before
    assert pipeline.datamanager.current.name == "scene_0"
    wait_until(lambda: element(viewer, "Scene").value == "scene_0")
    browser.change(element(viewer, "Scene"), "scene_2")  # mended: it can be shown now
    wait_until(lambda: pipeline.datamanager.current.name == "scene_2")
    wait_until(lambda: pipeline.model.scene is not before)


def test_encode_tunes_for_as_many_steps_as_the_slider_says(opened: tuple[Viewer, Browser], monkeypatch: pytest.MonkeyPatch) -> None:
    viewer, browser = opened
    monkeypatch.setattr(viewer_module, "SECONDS_BETWEEN_NOTES", 0.0)
    model = viewer.pipeline.model
    before = model.scene
    browser.change(element(viewer, "Tuning steps"), 10)
    wait_until(lambda: element(viewer, "Tuning steps").value == 10)
    browser.change(element(viewer, "Encode"))
    wait_until(lambda: model.scene is not before)
    wait_until(lambda: browser.all("RemoveNotificationMessage"))
    assert "step 10 of 10" in browser.all("NotificationMessage")[-1]["body"]
    moved = (model.scene.tokens.tokens - before.tokens.tokens).abs().max()
    assert 0.5 < moved / model.config.tuning_learning_rate < 15  # ten steps of Adam
    assert model.config.tuning_steps == 0  # training and evaluation go on as configured


def test_a_picture_that_fails_is_replaced_by_its_reason(opened: tuple[Viewer, Browser], capsys: pytest.CaptureFixture[str]) -> None:
    viewer, browser = opened
    wait_for_full_picture(viewer)
    machine: RenderStateMachine = next(iter(viewer.render_statemachines.values()))
    viewer.pipeline.model.scene = None
    browser.messages.clear()
    viewer._trigger_rerender()
    wait_until(lambda: len(browser.all("BackgroundImageMessage")) >= 2)
    wait_for_full_picture(viewer)
    assert machine.is_alive()
    shown = np.asarray(Image.open(io.BytesIO(browser.all("BackgroundImageMessage")[-1]["rgb_bytes"]))) / 255
    reason = "no scene is in hand: the pipeline encodes one before anything is rendered"
    assert np.abs(shown - message_picture(reason, *shown.shape[:2])["rgb"].numpy()).mean() < 0.02
    assert capsys.readouterr().out.count("cannot draw this scene") == 1


def test_without_a_viewer_a_picture_that_fails_is_an_error(trained: Path) -> None:
    _, pipeline, _, _ = eval_setup(trained / "config.yml", test_mode="test")
    pipeline.model.scene = None
    with pytest.raises(RuntimeError, match="no scene is in hand"):
        pipeline.model.get_outputs_for_camera(pipeline.datamanager.train_dataset.cameras[0:1])


def test_training_refreshes_the_scene_in_the_viewer_only_if_there_is_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer_module, "STEPS_BETWEEN_REFRESHES", 2)
    data = trained.parents[2].parent / "scenes"
    for vis, refreshed in (("viewer+tensorboard", [0, 2, 4]), ("tensorboard", [])):
        config = tiny_config(data, tmp_path, steps=5, name=vis)
        config.pipeline.datamanager.data, config.vis = data, vis
        config.viewer.websocket_host, config.viewer.websocket_port = "127.0.0.1", free_port()
        config.viewer.quit_on_train_completion = True
        writer.EVENT_WRITERS.clear()
        config.save_config()
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
        steps: list[int] = []
        encode = trainer.pipeline.refresh_scene
        monkeypatch.setattr(trainer.pipeline, "refresh_scene", lambda: (steps.append(trainer.step), encode()))  # noqa: B023
        trainer.train()
        if trainer.viewer_state is not None:
            trainer.viewer_state.viser_server.stop()
        assert steps == refreshed
        assert (trainer.pipeline.model.scene is not None) == bool(refreshed)
        assert trainer.pipeline.model.training
