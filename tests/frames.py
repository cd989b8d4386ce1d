"""Frames of a still camera, and a model for them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from ultralytics import YOLO

from mod_vision.conversion.windowed import on_windows, without_windows
from mod_vision.resources import resource_dir
from mod_vision.yolo.model.settings import WindowSettings

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


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """The picture of `still`."""
    return still()


@pytest.fixture
def camera() -> YOLO:
    """A dense model on windows that cover what moved."""
    return on_windows(without_windows(YOLO("yolo26n-mod-hituav.pt")), WindowSettings(size=128, router="zone"))
