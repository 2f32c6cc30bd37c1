"""Photograph `ns-viewer` in a headless Chromium: what a person who opens the viewer sees.

    python scripts/screenshot_viewer.py --load-config RUN/config.yml --output docs/images/viewer.webp
    python scripts/screenshot_viewer.py --load-config RUN/config.yml --output scene.png --scene scene_00003 --hide-cameras

Starts the viewer on a free port, takes the scene from its dropdown, tunes it with its slider and button, waits for a
picture at full resolution, saves the page, and ends both processes. Needs Chromium: `apt-get install -y --no-install-recommends chromium`.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from websockets.sync.client import ClientConnection, connect

MAX_BYTES = 200_000
"""A picture in the documentation is no larger than this."""
FULL_RESOLUTION = 512
"""Longer side of the pictures that the viewer renders at rest."""
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_FLAGS = (
    *("--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--mute-audio", "--remote-debugging-port=0"),
    *("--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load-config", type=Path, required=True, help="a trained run: its config.yml, or its folder")
    parser.add_argument("--output", type=Path, required=True, help="picture to write: .webp, .png or .jpg")
    parser.add_argument("--scene", help="scene to choose in the dropdown; by default the one that the viewer opens with")
    parser.add_argument("--tuning-steps", type=int, default=0, help="test-time tuning steps of the scene (default: 0)")
    parser.add_argument("--hide-cameras", action="store_true", help="press 'Hide Train Cams' first")
    parser.add_argument("--width", type=int, default=1280, help="of the browser's window (default: 1280)")
    parser.add_argument("--height", type=int, default=900, help="of the browser's window (default: 900)")
    options = parser.parse_args()
    config = options.load_config / "config.yml" if options.load_config.is_dir() else options.load_config
    if not config.is_file():
        sys.exit(f"no run at {config}: name the config.yml that ns-train wrote")
    chromium = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if chromium is None:
        sys.exit("Chromium was not found; on Debian: apt-get install -y --no-install-recommends chromium")

    console = Console(stderr=True)
    with console.status("starting ns-viewer") as status, viewer(config) as address:
        status.update("opening the page")
        with browser(chromium, options.width, options.height) as page:
            page.open(address)
            page.wait_for_picture()
            if options.scene is not None:
                status.update(f"choosing {options.scene}")
                page.choose(options.scene)
                page.wait_for_picture()
            if options.tuning_steps:
                status.update(f"tuning {options.tuning_steps} steps")
                page.enter("Tuning steps", str(options.tuning_steps))
                page.press("Encode")
                page.wait_for_picture()
            if options.hide_cameras:
                page.press("Hide Train Cams")
                time.sleep(1)
            picture = page.screenshot()
    size = save(picture, options.output)
    console.print(f"{options.output}: {picture.width}x{picture.height} pixels, {size / 1000:.0f} kB")


# The two processes.


@contextmanager
def viewer(config: Path) -> Iterator[str]:
    """`ns-viewer` on a free port of this machine; gives its address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "nerfstudio.scripts.viewer.run_viewer", "--load-config", str(config)]
    command += ["--viewer.websocket-port", str(port), "--viewer.websocket-host", "127.0.0.1"]
    address = f"http://127.0.0.1:{port}/"

    def answers(process: subprocess.Popen[bytes], log: Path) -> bool:
        if process.poll() is not None:
            sys.exit("ns-viewer ended before it could be looked at:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-20:]))
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, OSError):
            return False
        return True

    with running(command) as (process, log):
        wait_for("ns-viewer", lambda: answers(process, log), seconds=300)
        yield address


@contextmanager
def browser(chromium: str, width: int, height: int) -> Iterator[Page]:
    """A headless Chromium with one page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium, *CHROMIUM_FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}", "about:blank"]
        with running(command):
            port_file = Path(profile) / "DevToolsActivePort"
            wait_for("Chromium", lambda: port_file.exists() and "\n" in port_file.read_text(), seconds=60)
            targets = f"http://127.0.0.1:{port_file.read_text().splitlines()[0]}/json"
            with urllib.request.urlopen(targets, timeout=10) as reply:
                target = next(target for target in json.load(reply) if target["type"] == "page")
            with connect(target["webSocketDebuggerUrl"], max_size=None) as connection:
                yield Page(connection, width, height)


@contextmanager
def running(command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process and the file that it prints to; it is ended with all of its children, whatever happens."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield process, log
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=5)
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(what: str, ready: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            sys.exit(f"{what} is not ready after {seconds:.0f} s")
        time.sleep(0.25)


# The page.


class Page:
    """A page of the viewer, driven through Chromium's DevTools protocol."""

    def __init__(self, connection: ClientConnection, width: int, height: int) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def open(self, address: str) -> None:
        self._call("Page.navigate", url=address)

    def wait_for_picture(self, seconds: float = 600) -> None:
        """Until the viewer has encoded its scene and sent a picture at full resolution."""

        def is_there() -> bool:
            text: str = self._evaluate("document.body?.innerText ?? ''")
            resolution = re.search(r"Resolution: (\d+)x(\d+)px", text)
            return "Encoding" not in text and resolution is not None and max(map(int, resolution.groups())) >= FULL_RESOLUTION

        time.sleep(2)  # until the last click has had its effect
        wait_for("a rendered picture", is_there, seconds)
        time.sleep(3)  # a low resolution may follow, and the number comes before the picture
        wait_for("a rendered picture", is_there, seconds)

    def choose(self, scene: str) -> None:
        """Take a scene from the dropdown.

        Raises:
            SystemExit: it is not in the list.
        """
        self._evaluate(f"{_input('Scene')}.click()")
        time.sleep(0.5)
        options = f"[...document.getElementById({_input('Scene')}.getAttribute('aria-controls')).querySelectorAll('[role=option]')]"
        names: list[str] = self._evaluate(f"{options}.map(e => e.innerText.trim())")
        if scene not in names:
            sys.exit(f"the dropdown has no scene {scene!r}; it has {', '.join(names) or 'none'}")
        self._evaluate(f"{options}[{names.index(scene)}].click()")

    def enter(self, label: str, text: str) -> None:
        """Type into the field of a control."""
        self._evaluate(f"{_input(label)}.select()")
        self._evaluate(f"{_input(label)}.focus()")
        self._call("Input.insertText", text=text)
        self._evaluate(f"{_input(label)}.blur()")

    def press(self, button: str) -> None:
        """Click a button."""
        self._evaluate(f"[...document.querySelectorAll('button')].find(e => e.innerText.includes({json.dumps(button)})).click()")

    def screenshot(self) -> Image.Image:
        """The page, without pictures that could not be loaded (logos from the internet)."""
        self._evaluate("[...document.images].filter(e => !e.naturalWidth).forEach(e => e.style.visibility = 'hidden')")
        data = self._call("Page.captureScreenshot", format="png")["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    def _evaluate(self, expression: str) -> Any:
        reply = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in reply:
            sys.exit(f"the page could not evaluate {expression}: {reply['exceptionDetails']['exception'].get('description')}")
        return reply["result"].get("value")

    def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            reply = json.loads(self._connection.recv(timeout=60))
            if reply.get("id") == number:
                if "error" in reply:
                    sys.exit(f"Chromium refused {method}: {reply['error']['message']}")
                return reply["result"]


def _input(label: str) -> str:
    """JavaScript for the text field that follows a label of the control panel."""
    fields = "[...document.querySelectorAll('label, input:not([type=hidden])')]"
    return f"{fields}.find((_, i, all) => i > 0 && all[i - 1].tagName === 'LABEL' && all[i - 1].innerText.trim() === {json.dumps(label)})"


def save(picture: Image.Image, path: Path) -> int:
    """Write a picture in the best quality that keeps it below MAX_BYTES (a .png as it is); its size in bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in (90, 80, 70, 60, 45):
        buffer = io.BytesIO()
        picture.save(buffer, format=Image.registered_extensions()[path.suffix.lower()], quality=quality, method=6)
        if buffer.tell() < MAX_BYTES:
            break
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)
    return len(buffer.getvalue())


if __name__ == "__main__":
    main()
