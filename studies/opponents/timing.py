"""How long each way takes: image by image, all in turn, from the decoded image to its detections."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mod_vision.eval.cost.latency import keep_memory
from mod_vision.yolo.run.images import evenly_spaced, read_image
from mod_vision.yolo.run.validate import Validation
from studies.opponents.scoring import SHOWN, show_camera
from studies.opponents.ways import Way

PHOTOS, REPEATS = 32, 3


def time_ways(ways: Sequence[Way], found: Validation, threads: int, camera: str) -> dict[str, Any]:
    """Return the milliseconds of each way on each of some photos, medians of repeats that go in turn, for JSON.

    Args:
        ways: The ways.
        found: A validation of the split, for its images.
        threads: Threads.
        camera: Pattern that finds the camera in the name of an image.

    Raises:
        RuntimeError: If something has set other threads, so the times do not compare.
    """
    keep_memory()
    places = evenly_spaced(list(range(len(found.files))), PHOTOS)
    finders = {way.name: way.prepare(SHOWN) for way in ways}
    times: dict[str, list[float]] = {name: [] for name in finders}
    for place in places:
        photo = read_image(found.folder / found.files[place])
        show_camera(found.files[place], camera)
        own: dict[str, list[float]] = {name: [] for name in finders}
        for turn in range(1 + REPEATS):
            for name, find in finders.items():
                torch.set_num_threads(threads)  # Ultralytics' predictor, which SAHI runs, sets its own
                start = time.perf_counter()
                find(photo)
                if turn and torch.get_num_threads() != threads:
                    raise RuntimeError(f"{name} runs with {torch.get_num_threads()} threads instead of {threads}.")
                if turn:
                    own[name].append(1e3 * (time.perf_counter() - start))
        for name, taken in own.items():
            times[name].append(round(float(np.median(taken)), 2))
    conditions = {"threads": torch.get_num_threads(), "torch": torch.__version__, "repeats": REPEATS}
    return {"images": places, "conditions": conditions, "ms": times}
