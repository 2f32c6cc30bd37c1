"""The viewer's part of a feed-forward run: which scene, its cameras, encoding and tuning it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO
from nerfstudio.viewer.viewer_elements import (
    ViewerButton,
    ViewerCheckbox,
    ViewerControl,
    ViewerDropdown,
    ViewerElement,
    ViewerSlider,
    ViewerText,
)
from PIL import Image
from viser import transforms

from token_methods.multiscene.image_sets import PictureDataset
from token_methods.multiscene.message_picture import pictures_or_messages
from token_methods.multiscene.model import FeedForwardModel

if TYPE_CHECKING:
    from nerfstudio.viewer.viewer import Viewer

    from token_methods.multiscene.pipeline import FeedForwardPipeline

CONTEXT_COLOUR = (255, 140, 0)
"""Orange: the views that the network saw."""
OTHER_COLOUR = (90, 130, 200)
"""Blue: the scene's other views."""
STEPS_BETWEEN_REFRESHES = 200
"""Training steps after which the scene in the viewer is encoded anew."""
SECONDS_BETWEEN_NOTES = 0.25
"""How often the progress of tuning is told."""
STEP_BACK = 0.2
"""A client starts this far behind the first context camera, as part of the cameras' reach: from inside its frustum nothing else is seen."""
PHOTOGRAPH_HEIGHT = 100
"""Pixels of a photograph in a frustum."""
LONGEST_LIST = 200
"""Scenes that are chosen from a list; of more, one is named in a box."""


class SceneViewer(ViewerControl):
    """Draws the cameras of the scene in hand, starts clients at its first context camera, swaps and tunes scenes.

    nerfstudio finds it and its `controls` as attributes of the pipeline; it wakes up when a viewer is opened. Its
    callbacks run one at a time, under the lock that the viewer shares with rendering and training.
    """

    def __init__(self, pipeline: FeedForwardPipeline) -> None:
        self.is_open = False
        self._pipeline = pipeline
        self._frusta: list[Any] = []
        self._frusta_visible = True
        names = pipeline.datamanager.scene_names
        steps = pipeline.model.config.tuning_steps
        self._scene: ViewerDropdown[str] | ViewerText
        self._show: ViewerButton | None = None
        if len(names) <= LONGEST_LIST:
            self._scene = ViewerDropdown("Scene", self._scene_name, names, cb_hook=lambda dropdown: self.show(dropdown.value))
        else:
            self._scene = ViewerText("Scene", self._scene_name, hint=f"Name or number (0 to {len(names) - 1}), then press Show")
            self._show = ViewerButton("Show", cb_hook=lambda _: self.show(self._scene.value.strip()))
        self._steps = ViewerSlider("Tuning steps", steps, 0, max(200, steps), 10, hint="Test-time tuning on the context views; 0: one pass")
        self._encode = ViewerButton("Encode", cb_hook=lambda _: self.encode())
        self._photographs = ViewerCheckbox("Photographs", False, cb_hook=lambda _: self.draw_again(), hint="In the orange frusta")

    @property
    def controls(self) -> dict[str, ViewerElement[Any]]:
        """Elements for the viewer's control panel. The viewer puts them in the alphabetical order of their names."""
        controls: dict[str, ViewerElement[Any] | None] = {
            "choose_scene": self._scene,
            "choose_scene_now": self._show,
            "choose_tuning_steps": self._steps if type(self._pipeline.model).tune is not FeedForwardModel.tune else None,
            "encode_scene": self._encode,
            "show_photographs": self._photographs,
        }
        return {name: element for name, element in controls.items() if element is not None}

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        self.is_open = True
        model = self._pipeline.model
        model.get_outputs_for_camera = pictures_or_messages(model.get_outputs_for_camera)  # type: ignore[method-assign]
        # nerfstudio would draw the photographs of one scene, where they hide the render from who looks through their cameras.
        self._max_frusta, viewer.config.max_num_display_images = viewer.config.max_num_display_images, 0
        viewer.hide_images.on_click(lambda _: self._set_frusta_visible(False))
        viewer.show_images.on_click(lambda _: self._set_frusta_visible(True))
        # The nominal camera of a picture would hang right in front of it.
        self._frusta_visible = not isinstance(self._pipeline.datamanager.train_dataset, PictureDataset)
        viewer.hide_images.visible, viewer.show_images.visible = self._frusta_visible, not self._frusta_visible
        self._draw_cameras()
        self.viser_server.on_client_connect(self._place_client)

    # What the controls do.

    def show(self, scene: str) -> bool:
        """Take another scene in hand and look at it; one that cannot be read leaves the current one. True if it is shown."""
        if scene == self._scene_name:
            return True
        if not self._take_in_hand(scene):
            if self._show is not None:  # what was typed can be mended
                return False
            # Not from here: viser still has to tell the choice to all browsers, and this thread holds the lock that the next one needs.
            threading.Timer(0.5, setattr, (self._scene, "value", self._scene_name)).start()
            return False
        self._draw_cameras()
        for client in self.viser_server.get_clients().values():
            self._place_client(client)
        return True

    def encode(self) -> bool:
        """Encode the scene in hand again, tuned as the slider says. True if that worked."""
        return self._take_in_hand(self._scene_name)

    def draw_again(self) -> None:
        """Draw the frusta with photographs or without, as the checkbox says."""
        with self._errors_said("The photographs cannot be shown"):
            self._draw_cameras()

    def follow_training(self, step: int) -> None:
        """Encode the scene in hand with the weights of this step, every now and then."""
        if self._pipeline.model.scene is None or step % STEPS_BETWEEN_REFRESHES == 0:
            with self._errors_said(f"Scene {self._scene_name} cannot be refreshed"):
                self._pipeline.refresh_scene()

    def _take_in_hand(self, scene: str) -> bool:
        steps = int(self._steps.value)
        with self._errors_said(f"Scene {scene} cannot be shown"), self._progress(f"Encoding {scene}", steps) as progress:
            self._pipeline.select_scene(scene, steps, progress)
            return True
        return False

    @property
    def _scene_name(self) -> str:
        return self._pipeline.datamanager.current.name

    # What is said.

    @contextmanager
    def _errors_said(self, what: str) -> Iterator[None]:
        """An error ends the block, not the viewer: whoever looks is told, and so is the console."""
        try:
            yield
        except Exception as error:  # a dataparser may raise anything
            CONSOLE.print(f"{what}: {error}", style="red", markup=False)
            for client in self.viser_server.get_clients().values():
                client.add_notification(what, str(error), color="red")

    @contextmanager
    def _progress(self, title: str, steps: int) -> Iterator[Callable[[int, float], None]]:
        """A note in every browser for the time of the block, with the step of the tuning."""
        body = f"tuning, step 0 of {steps}" if steps else "one forward pass"
        notes = [client.add_notification(title, body, loading=True) for client in self.viser_server.get_clients().values()]
        said = time.monotonic()

        def progress(step: int, loss: float) -> None:
            nonlocal said
            if step == steps or time.monotonic() - said > SECONDS_BETWEEN_NOTES:
                said = time.monotonic()
                for note in notes:
                    note.body = f"tuning, step {step} of {steps}, loss {loss:.4f}"

        try:
            yield progress
        finally:
            for note in notes:
                note.remove()

    # What is drawn.

    def _draw_cameras(self) -> None:
        for handle in self._frusta:
            handle.remove()
        data = self._pipeline.datamanager
        context, other = data.train_dataset, data.eval_dataset
        self._frusta = self._frusta_of("context", context, range(len(context)), CONTEXT_COLOUR, bool(self._photographs.value))
        self._frusta += self._frusta_of("other_views", other, _standing_elsewhere(other, context), OTHER_COLOUR, False)

    def _frusta_of(
        self, folder: str, dataset: InputDataset, views: Sequence[int], colour: tuple[int, int, int], with_photographs: bool
    ) -> list[Any]:
        count = len(views) if self._max_frusta < 0 else min(len(views), self._max_frusta)
        scale = self.viewer.config.camera_frustum_scale * self._reach() / 3
        handles = []
        for index in [views[place] for place in np.linspace(0, len(views) - 1, count).round().astype(int).tolist()]:
            camera = dataset.cameras[index]
            wxyz, position = _viser_pose(camera.camera_to_worlds.cpu().numpy())
            handle = self.viser_server.scene.add_camera_frustum(
                name=f"/{folder}/{index:05d}",
                fov=_field_of_view(camera),
                aspect=float(camera.width.item() / camera.height.item()),
                scale=scale,
                color=colour,
                image=_photograph(dataset, index) if with_photographs else None,
                wxyz=wxyz,
                position=position,
                visible=self._frusta_visible,
            )
            handle.on_click(partial(self._look_through_clicked, camera))
            handles.append(handle)
        return handles

    def _set_frusta_visible(self, visible: bool) -> None:
        self._frusta_visible = visible
        for handle in self._frusta:
            handle.visible = visible

    def _place_client(self, client: Any) -> None:
        self._look_through(client, self._pipeline.datamanager.train_dataset.cameras[0], STEP_BACK)

    def _look_through_clicked(self, camera: Cameras, event: Any) -> None:
        self._look_through(event.client, camera)

    def _look_through(self, client: Any, camera: Cameras, step_back: float = 0.0) -> None:
        """Put a client where a camera stands, or behind it; it turns around a point before it, upright as the context is."""
        _, position = _viser_pose(camera.camera_to_worlds.cpu().numpy())
        axes = camera.camera_to_worlds[:3, :3].cpu().numpy()
        position = position + axes[:, 2] * step_back * self._reach()
        up = _upright(self._poses())
        if np.linalg.norm(np.cross(up, axes[:, 2])) < 0.1:  # it looks straight up or down
            up = axes[:, 1]
        with client.atomic():
            client.camera.fov = _field_of_view(camera)
            client.camera.position = position
            client.camera.look_at = position - axes[:, 2] * self._reach()
            client.camera.up_direction = up

    def _reach(self) -> float:
        """How far the cameras of the scene in hand lie from their middle, in the viewer's unit: the measure of all that is drawn."""
        positions = self._poses()[:, :3, 3]
        reach = float(np.median(np.linalg.norm(positions - positions.mean(axis=0), axis=1)))
        return VISER_NERFSTUDIO_SCALE_RATIO * (reach if reach > 1e-6 else 1.0)

    def _poses(self) -> Float[np.ndarray, "views 3 4"]:
        """OpenGL camera-to-world of all views of the scene in hand."""
        data = self._pipeline.datamanager
        return np.concatenate([views.cameras.camera_to_worlds.cpu().numpy() for views in (data.train_dataset, data.eval_dataset)])


def _standing_elsewhere(dataset: InputDataset, context: InputDataset) -> list[int]:
    """The views of a dataset that no context camera stands in the place of, as all pictures without poses do."""
    poses, taken = (cameras.cameras.camera_to_worlds.flatten(1).cpu().numpy() for cameras in (dataset, context))
    standing: list[int] = np.flatnonzero(~(poses[:, None] == taken).all(axis=2).any(axis=1)).tolist()
    return standing


def _upright(poses: Float[np.ndarray, "views 3 4"]) -> Float[np.ndarray, "3"]:
    """The direction across which cameras held level look to the sides: most nearly orthogonal to their x axes, else their mean y axis."""
    sides, mean_up = poses[:, :, 0], poses[:, :, 1].mean(axis=0)
    _, directions = np.linalg.eigh(sides.T @ sides / len(sides) - 0.01 * np.outer(mean_up, mean_up))
    return directions[:, 0] * (1 if directions[:, 0] @ mean_up >= 0 else -1)


def _viser_pose(camera_to_world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orientation (wxyz) and position of an OpenGL camera-to-world [3, 4] in the viewer's world."""
    turned = transforms.SO3.from_matrix(camera_to_world[:3, :3]) @ transforms.SO3.from_x_radians(np.pi)
    return turned.wxyz, camera_to_world[:3, 3] * VISER_NERFSTUDIO_SCALE_RATIO


def _field_of_view(camera: Cameras) -> float:
    """Vertical, in radians."""
    return float(2 * np.arctan(camera.height.item() / (2 * camera.fy.item())))


def _photograph(dataset: InputDataset, index: int) -> np.ndarray:
    """Small uint8 [height, width, 3]."""
    image = Image.fromarray(dataset.get_numpy_image(index))
    return np.asarray(image.resize((max(1, round(image.width * PHOTOGRAPH_HEIGHT / image.height)), PHOTOGRAPH_HEIGHT)))
