"""The viewer's part of a feed-forward run: which scene, its cameras, and tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO
from nerfstudio.viewer.viewer_elements import ViewerButton, ViewerControl, ViewerDropdown, ViewerSlider
from viser import transforms

if TYPE_CHECKING:
    from nerfstudio.viewer.viewer import Viewer

    from token_methods.multiscene.pipeline import FeedForwardPipeline

CONTEXT_COLOUR = (255, 140, 0)
"""Orange: the views that the network saw."""
OTHER_COLOUR = (90, 130, 200)
"""Blue: the scene's other views."""


class SceneViewer(ViewerControl):
    """Draws the cameras of the scene in hand, starts clients at its first context camera, and swaps scenes."""

    def __init__(self, pipeline: FeedForwardPipeline) -> None:
        self._pipeline = pipeline
        self._frusta: list[Any] = []

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        self._draw_cameras()
        self.viser_server.on_client_connect(self._place_client)

    def controls(self) -> dict[str, Any]:
        """Elements for the viewer's control panel; nerfstudio finds them as attributes of the pipeline."""
        names = self._pipeline.datamanager.scene_names
        current = names[self._pipeline.datamanager.scene_index]
        return {
            "scene_dropdown": ViewerDropdown("Scene", current, names, cb_hook=lambda element: self.show(element.value)),
            "tuning_slider": ViewerSlider("Tuning steps", 0, 0, 200, 10, hint="Test-time tuning on the context views"),
            "encode_button": ViewerButton("Encode", cb_hook=lambda _: self.encode()),
        }

    def show(self, scene: str) -> None:
        """Take another scene in hand and draw its cameras; a scene that cannot be read leaves the current one."""
        try:
            self._pipeline.select_scene(scene)
        except (ValueError, RuntimeError, OSError) as error:
            CONSOLE.print(f"[red]scene {scene} cannot be shown: {error}[/red]")
            return
        viewer, data = self.viewer, self._pipeline.datamanager
        for handle in viewer.camera_handles.values():
            handle.remove()
        viewer.init_scene(train_dataset=data.train_dataset, train_state=viewer.train_state, eval_dataset=data.eval_dataset)
        self._draw_cameras()
        for client in self.viser_server.get_clients().values():
            self._place_client(client)

    def encode(self) -> None:
        """Encode the scene in hand again, tuned as the slider says."""
        self._pipeline.model.config.tuning_steps = int(self._pipeline.tuning_slider.value)
        self._pipeline.refresh_scene()

    def _draw_cameras(self) -> None:
        for handle in self._frusta:
            handle.remove()
        data = self._pipeline.datamanager
        self._frusta = [
            handle
            for folder, dataset, colour in (
                ("context", data.train_dataset, CONTEXT_COLOUR),
                ("other_views", data.eval_dataset, OTHER_COLOUR),
            )
            for handle in self._draw(folder, dataset, colour)
        ]

    def _draw(self, folder: str, dataset: InputDataset, colour: tuple[int, int, int]) -> list[Any]:
        handles = []
        for index in range(len(dataset)):
            camera = dataset.cameras[index]
            wxyz, position = _viser_pose(camera.camera_to_worlds.cpu().numpy())
            handles.append(
                self.viser_server.scene.add_camera_frustum(
                    name=f"/{folder}/{index:05d}",
                    fov=float(2 * np.arctan(camera.height.item() / (2 * camera.fy.item()))),
                    aspect=float(camera.width.item() / camera.height.item()),
                    scale=self.viewer.config.camera_frustum_scale * 1.05,
                    color=colour,
                    wxyz=wxyz,
                    position=position,
                )
            )
        return handles

    def _place_client(self, client: Any) -> None:
        camera = self._pipeline.datamanager.train_dataset.cameras[0]
        wxyz, position = _viser_pose(camera.camera_to_worlds.cpu().numpy())
        with client.atomic():
            client.camera.up_direction = tuple(camera.camera_to_worlds[:3, 1].tolist())
            client.camera.wxyz = wxyz
            client.camera.position = position


def _viser_pose(camera_to_world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orientation (wxyz) and position of an OpenGL camera-to-world [3, 4] in the viewer's world."""
    turned = transforms.SO3.from_matrix(camera_to_world[:3, :3]) @ transforms.SO3.from_x_radians(np.pi)
    return turned.wxyz, camera_to_world[:3, 3] * VISER_NERFSTUDIO_SCALE_RATIO
