"""Walks and orbits: smooth camera paths through free space, with something to see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from dataparsers.procedural.raycast import Raycaster

Poses = Float[np.ndarray, "frames 4 4"]

_CLEARANCE = 0.3
"""Least distance between camera and surfaces, scene units."""
_FINE = np.linspace(0, 1, 48)
"""Where a path is tested for clearance."""
_CANDIDATES = 64
_VIEWED = 8
"""Candidates whose view is looked at."""
_PROBE = 12
_FASTEST_TURN = 0.065
"""Radians between two neighbours of `_FINE`: three radians over the whole path if it turned evenly."""


@dataclass(frozen=True)
class Stage:
    """Where the camera may go and what is worth its attention."""

    low: tuple[float, float]
    high: tuple[float, float]
    """Corners of the ground that may be walked on."""
    eye: tuple[float, float]
    """Range of the camera's height."""
    attractions: Float[np.ndarray, "n 3"]
    """Points to look at; at least two."""


@dataclass(frozen=True)
class Path:
    """Quadratic Bézier (walk) or arc (orbit) of the camera, and the point it looks at moving from one place to another."""

    positions: Callable[[np.ndarray], Float[np.ndarray, "n 3"]]
    looked_at: Callable[[np.ndarray], Float[np.ndarray, "n 3"]]

    def __call__(self, progress: Float[np.ndarray, " n"]) -> Poses:
        """OpenCV camera-to-world at each progress in [0, 1]; the horizon stays level."""
        position = self.positions(progress)
        forward = self.looked_at(progress) - position
        forward /= np.linalg.norm(forward, axis=1, keepdims=True)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right, axis=1, keepdims=True)
        pose = np.zeros((len(progress), 4, 4))
        pose[:, :3] = np.stack([right, np.cross(forward, right), forward, position], axis=2)
        pose[:, 3, 3] = 1
        return pose


def find_path(raycaster: Raycaster, stage: Stage, rng: np.random.Generator) -> Path:
    """The most interesting of some random paths that stay clear of everything.

    Raises:
        RuntimeError: the world has no free space on its stage.
    """
    clearance = _CLEARANCE
    for attempt in range(12):
        shrink = 0.85**attempt
        candidates = [(_orbit if rng.random() < 0.4 else _walk)(stage, rng, shrink) for _ in range(_CANDIDATES)]
        points = np.stack([path.positions(_FINE) for path in candidates])
        inside = ((points[..., :2] >= stage.low) & (points[..., :2] <= stage.high)).all((1, 2))
        room = raycaster.clearance(torch.from_numpy(points.reshape(-1, 3)).float().to(raycaster.device))
        clear = inside & (room.view(len(candidates), -1).amin(1).cpu().numpy() > clearance)
        scored = [(_interest(raycaster, path), -i, path) for i, path in enumerate(candidates) if clear[i]][:_VIEWED]
        good = [entry for entry in scored if entry[0] > 0]
        if good:
            return max(good, key=lambda entry: entry[:2])[2]
        clearance = max(0.15, clearance * 0.9)
    raise RuntimeError("no free camera path in this world")


def _walk(stage: Stage, rng: np.random.Generator, shrink: float) -> Path:
    start = np.append(rng.uniform(stage.low, stage.high), rng.uniform(*stage.eye))
    first, second = stage.attractions[rng.choice(len(stage.attractions), 2, replace=False)]
    towards = np.arctan2(*(first - start)[1::-1])
    # mostly forward, sometimes sideways as in a pan along a shop window
    heading = towards + (rng.normal(0, 0.4) if rng.random() < 0.65 else rng.choice([-1, 1]) * rng.uniform(1.0, 1.9))
    length = shrink * rng.uniform(1.0, 3.0)
    end = start + length * np.array([np.cos(heading), np.sin(heading), rng.normal(0, 0.06)])
    bend = (start + end) / 2 + 0.25 * length * rng.normal(0, 0.5) * np.array([-np.sin(heading), np.cos(heading), 0])
    blend = rng.uniform(0.0, 0.5)

    def positions(t: np.ndarray) -> np.ndarray:
        t = t[:, None]
        return (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end

    def looked_at(t: np.ndarray) -> np.ndarray:
        ease = blend * (t * t * (3 - 2 * t))[:, None]
        return (1 - ease) * first + ease * second

    return Path(positions, looked_at)


def _orbit(stage: Stage, rng: np.random.Generator, shrink: float) -> Path:
    centre = stage.attractions[rng.integers(len(stage.attractions))]
    radius = rng.uniform(1.2, 3.2)
    begin, sweep = rng.uniform(0, 2 * np.pi), shrink * rng.choice([-1, 1]) * min(rng.uniform(0.6, 2.0), 3.2 / radius)
    low, high = rng.uniform(*stage.eye, size=2)

    def positions(t: np.ndarray) -> np.ndarray:
        angle = begin + sweep * t
        rise = low + (high - low) * (t * t * (3 - 2 * t)) * 0.5
        return np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle), rise], axis=1)

    return Path(positions, lambda t: np.broadcast_to(centre, (len(t), 3)).copy())


def _interest(raycaster: Raycaster, path: Path) -> float:
    """How many different things come into view; 0 if the camera whirls, stares at something close, or looks steeply up or down."""
    forward = path(_FINE)[:, :3, 2]
    if (forward[1:] * forward[:-1]).sum(1).min() < np.cos(_FASTEST_TURN):
        return 0.0
    grid = (torch.arange(_PROBE, device=raycaster.device) + 0.5) / _PROBE * 2 - 1
    seen: set[int] = set()
    for pose in path(np.array([0.0, 0.5, 1.0])):
        if abs(pose[2, 2]) > 0.5:
            return 0.0
        x, y = torch.meshgrid(grid * 0.6, grid * 0.6, indexing="xy")
        camera = torch.stack([x, y, torch.ones_like(x)]).reshape(3, -1)
        rotation = torch.from_numpy(pose[:3, :3]).float().to(raycaster.device)
        origin = torch.from_numpy(pose[:3, 3:]).float().to(raycaster.device)
        distance, index = raycaster.first_hit(origin, rotation @ camera)
        if float(distance.quantile(0.1)) < 0.7 or float(distance.median()) < 1.3:
            return 0.0
        seen |= set(index.tolist())
    return float(len(seen))
