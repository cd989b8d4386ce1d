"""Frames of a still camera, for tests."""

from __future__ import annotations

import cv2
import numpy as np

from mod_vision.resources import resource_dir

HITUAV = resource_dir("assets") / "hituav" / "images" / "val"
NOISE = 3.0


def still() -> np.ndarray:
    """Return a thermal picture of a sports ground, (512, 640, 3)."""
    image = cv2.imread(str(HITUAV / "1_60_30_0_00003.jpg"))
    assert image is not None
    return image


def noisy(frame: np.ndarray, seed: int, noise: float = NOISE, brightness: float = 1.0) -> np.ndarray:
    """Return a frame with the noise of a sensor, at another exposure."""
    numbers = np.random.default_rng(seed).normal(0, noise, frame.shape) if noise else 0
    return np.clip(frame * brightness + numbers, 0, 255).astype(np.uint8)


def with_box(frame: np.ndarray, x: int, y: int, level: int = 255, side: int = 24) -> np.ndarray:
    """Return a frame with a square in it."""
    frame = frame.copy()
    frame[y : y + side, x : x + side] = level
    return frame
