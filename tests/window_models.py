"""A model whose router tells cells apart, as if it were trained, and a photo for it."""

from __future__ import annotations

import cv2
import pytest
import torch
from helpers import randomise, write_windows_yaml

from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.images import read_image

IMGSZ = 320
SETTINGS = {"size": 128, "capacity": 0.5, "router": "look"}


def built_sure(folder, sure: bool = True, **settings):
    """A model whose router tells cells apart, as if it were trained."""
    torch.manual_seed(0)
    yolo = load_model(write_windows_yaml(folder, **{**SETTINGS, **settings}))
    if sure:
        randomise(head_of(yolo.model).entry.router).steps.fill_(1)
    return yolo


@pytest.fixture(scope="module")
def windows_model(tmp_path_factory):
    return built_sure(tmp_path_factory.mktemp("windows"))


@pytest.fixture(scope="module")
def square_photo(photos):
    return cv2.resize(read_image(photos[0]), (IMGSZ, IMGSZ))
