"""What a viewer shows when a picture cannot be rendered: the reason. Its render thread would end with the first exception."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException
from PIL import Image, ImageDraw
from torch import Tensor

Pictures = Callable[..., dict[str, Tensor]]
"""A model's `get_outputs_for_camera`."""


def pictures_or_messages(get_outputs: Pictures) -> Pictures:
    """The same pictures, and one with the reason in the place of one that fails; each reason is printed once."""
    printed: set[str] = set()

    @functools.wraps(get_outputs)
    def guarded(camera: Cameras, obb_box: object = None) -> dict[str, Tensor]:
        try:
            return get_outputs(camera, obb_box=obb_box)
        except IOChangeException:  # the viewer interrupts a render because its camera moved
            raise
        except Exception as error:
            reason = str(error) or type(error).__name__
            if reason not in printed:
                printed.add(reason)
                CONSOLE.print(f"The viewer cannot draw this scene: {reason}", style="red", markup=False)
            return message_picture(reason, int(camera.height), int(camera.width), camera.device)

    return guarded


def message_picture(text: str, height: int, width: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Outputs of a model, each [height, width, channels], that show a text."""
    picture = Image.new("RGB", (width, height), (40, 20, 20))
    letters = max(8, (width - 16) // 7)
    ImageDraw.Draw(picture).multiline_text((8, 8), "\n".join(textwrap.wrap(text, letters)), fill=(255, 200, 160))
    whole = torch.ones(height, width, 1, device=device)
    return {"rgb": torch.from_numpy(np.array(picture)).to(device) / 255, "depth": whole, "accumulation": whole.clone()}
