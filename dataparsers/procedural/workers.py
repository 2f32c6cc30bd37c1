"""Many scenes at once: one process per CPU core, each a plain `python -m dataparsers.procedural.workers` that is fed one scene at a time.

Started as commands and not through `multiprocessing`, because that would run the user's script again in every child.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from dataparsers.procedural.generator import SceneJob, generate_scene

_MOST_WORKERS = 8
_FRAME, _DONE = "frame", "done"


def worker_count(jobs: int) -> int:
    """Processes that are worth their start (about two seconds each) for so many scenes; one means none beside our own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, jobs // 2, _MOST_WORKERS))


def generate_in_workers(jobs: Sequence[SceneJob], workers: int, advance: Callable[[], None]) -> None:
    """Make scenes in several processes; `advance` is called after each frame, never twice at once.

    Raises:
        RuntimeError: a scene could not be made; carries the worker's message.
    """
    waiting: queue.SimpleQueue[SceneJob] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    one_at_a_time = threading.Lock()

    def tick() -> None:
        with one_at_a_time:
            advance()

    processes = [_start() for _ in range(workers)]
    try:
        with ThreadPoolExecutor(workers) as threads:
            for feeding in [threads.submit(_feed, process, waiting, tick) for process in processes]:
                feeding.result()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _start() -> subprocess.Popen[str]:
    package_root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([package_root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "dataparsers.procedural.workers"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _feed(process: subprocess.Popen[str], waiting: queue.SimpleQueue[SceneJob], tick: Callable[[], None]) -> None:
    assert process.stdin is not None and process.stdout is not None
    while True:
        try:
            job = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"making {job.folder} failed: the worker process did not start") from None
        for line in process.stdout:
            if line.strip() == _DONE:
                break
            if line.strip() != _FRAME:
                raise RuntimeError(line.strip())
            tick()
        else:
            raise RuntimeError(f"making {job.folder} failed: the worker process ended (out of memory?)")


def _work() -> None:
    """Read one scene per line, make it, report every frame; an error is reported as its message."""
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        try:
            generate_scene(SceneJob(**json.loads(line)), torch.device("cpu"), lambda: print(_FRAME, flush=True))
        except Exception as error:
            print(" ".join(f"{error}".split()) or type(error).__name__, flush=True)
            return
        print(_DONE, flush=True)


if __name__ == "__main__":
    _work()
