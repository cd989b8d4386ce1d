"""Anything a user may write: model YAMLs, images, labels. `FUZZ=50` tries 50 times as many cases."""

from __future__ import annotations

import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from helpers import attempt
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ultralytics.nn.tasks import DetectionModel

from mod_vision.cli.main import main
from mod_vision.routing import routed_layers
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.settings import ModSettings
from mod_vision.yolo.run.images import read_image

TIMES = int(os.environ.get("FUZZ", "1"))
SMALL = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def cases(number: int) -> settings:
    return settings(max_examples=number * TIMES, deadline=None, suppress_health_check=SMALL, derandomize=TIMES == 1)


NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 0.5, 0.25, 1.0, 2, 1e-9, 1e30, 10**20]), st.floats(), st.integers(-5, 300)
)
SCALARS = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=6), st.sampled_from(["conv", "norm", "nn.SiLU()"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
MOD_KEYS = st.sampled_from(["capacity", "router", "warmup", "elastic", "loss", "schedule"])
LOSSES = st.dictionaries(st.sampled_from(["guide", "budget", "z", "zz"]), SCALARS, max_size=3)
SECTIONS = st.one_of(VALUES, st.dictionaries(MOD_KEYS, VALUES | LOSSES, max_size=4))
OPTION_KEYS = st.sampled_from(["capacity", "router", "scope", "blocks", "x"])
OPTIONS = st.dictionaries(OPTION_KEYS, VALUES, max_size=3)


@cases(100)
@given(section=SECTIONS)
@example(section={"capacity": [0.5, float("nan")]})
@example(section={"elastic": [0.5, [1]]})
@example(section={1: 2})
def test_a_mod_section_is_read_or_refused(section):
    found, told = attempt(lambda: ModSettings.from_yaml(section))
    if told is None:
        assert 0 <= found.schedule.warmup < 1
    else:
        assert "mod" in told
        assert "\n" not in told


SMALL_ROWS = {
    "MoDStage": [[-1, 1, "Conv", [32, 3, 4]], [-1, 1, "MoDStage", [32]]],
    "MoDC2PSA": [[-1, 1, "Conv", [64, 3, 4]], [-1, 1, "MoDC2PSA", [64]]],
    "MoDA2C2f": [[-1, 1, "Conv", [64, 3, 4]], [-1, 1, "MoDA2C2f", [64, True, 4]]],
    "MoDAIFI": [[-1, 1, "Conv", [64, 3, 4]], [-1, 1, "MoDAIFI", [128, 4]]],
}


def model_yaml(row: list[Any]) -> dict[str, Any]:
    """A model of three layers around a routed row, with a head."""
    before = SMALL_ROWS[row[2]][0]
    return {"nc": 2, "backbone": [before, row], "head": [[[1], 1, "Detect", ["nc"]]]}


@cases(60)
@example(name="MoDStage", repeats=0, args=None, options={})
@example(name="MoDC2PSA", repeats=1, args=[None], options={})
@example(name="MoDA2C2f", repeats=1, args=[64, True, 0], options={})
@example(name="MoDAIFI", repeats=1, args=[128, 3], options={})
@example(name="MoDC2PSA", repeats=1, args=[[8]], options={"x": "x"})
@example(name="MoDStage", repeats=200_000, args=None, options={})
@example(name="MoDStage", repeats=True, args=[], options={"scope": {}})
@given(
    name=st.sampled_from(["MoDStage", "MoDC2PSA", "MoDA2C2f", "MoDAIFI"]),
    repeats=st.sampled_from([1, 1, 1, 2, 0, -1, 0.5, True, None, "n"]),
    args=st.none() | st.lists(VALUES, max_size=4),
    options=OPTIONS,
)
def test_a_routed_row_builds_or_is_refused(name, repeats, args, options):
    row = deepcopy(SMALL_ROWS[name][1])
    row[1] = repeats
    row[3] = [*(row[3] if args is None else args), options]
    model, told = attempt(lambda: DetectionModel(model_yaml(row), verbose=False))
    if told is None:
        assert any(routed_layers(model))
    else:
        assert "layer 1" in told
        assert "\n" not in told


ROWS = st.lists(
    st.one_of(
        st.sampled_from([[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "MoDStage", [32]], [[0, 1], 1, "Concat", [1]]]),
        st.tuples(
            st.sampled_from([-1, 0, 1, -2, 99, -99, [], [0], [-1, 0], ["x"], None, 0.5, True]),
            st.sampled_from([1, 2, 0, 1001, 200_000, "n", None]),
            st.sampled_from(["Conv", "MoDStage", "nn.Identity", "Concat", "nothing", ["MoDStage"], 3, None]),
            st.sampled_from([[], [32], [32, 3, 2], 32, None, {}]),
        ).map(list),
        VALUES,
        st.just([-1, 1]),
    ),
    max_size=3,
)
KEYS = st.fixed_dictionaries(
    {},
    optional={
        "nc": st.sampled_from([2, 0, -1, 2.5, "abc", None, True, [], 10**20]),
        "backbone": ROWS | VALUES,
        "head": ROWS.map(lambda rows: [*rows, [[0], 1, "Detect", ["nc"]]]) | ROWS | VALUES,
        "scales": SCALARS,
        "train": st.just("images/train"),
    },
)
FIRST = [-1, 1, "Conv", [32, 3, 4]]


def small(*rows: Any, **keys: Any) -> dict[str, Any]:
    return {"nc": 2, "backbone": [FIRST, *rows], "head": [[[1], 1, "Detect", ["nc"]]], **keys}


@cases(60)
@given(content=KEYS | VALUES)
@example(content={})
@example(content=[1])
@example(content={"train": "images/train", "val": "images/val", "nc": 1, "names": ["x"]})
@example(content={"nc": 2, "backbone": [FIRST]})
@example(content=small([-1, 1]))
@example(content=small([-1, 1, "MoDStage"]))
@example(content=small([-1, 1, ["MoDStage"], [32]]))
@example(content=small([99, 1, "MoDStage", [32]]))
@example(content=small([-1, 200_000, "MoDStage", [32]]))
@example(content=small([-1, 1, "MoDStage", [32]], nc="abc"))
def test_a_model_yaml_builds_or_is_refused(tmp_path, content):
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(content))
    model, told = attempt(lambda: load_model(file))
    if told is None:
        assert len(model.model.model) == len(content["backbone"]) + len(content["head"])
    else:
        assert str(file) in told or "layer " in told or told.startswith("mod")
        assert "\n" not in told


@cases(60)
@given(data=st.binary(max_size=400), suffix=st.sampled_from([".jpg", ".png", ".tif", ".webp", ".bmp", ".gif", ".avif"]))
@example(data=b"", suffix=".png")
@example(data=b"\xff\xd8\xff\xe0", suffix=".jpg")
@example(data=b"II*\x00\x08\x00\x00\x00\xff\xff", suffix=".tif")
def test_random_bytes_are_no_image(tmp_path, data, suffix):
    (tmp_path / f"a{suffix}").write_bytes(data)
    read_or_refuse(tmp_path / f"a{suffix}")


@cases(60)
@given(
    cut=st.integers(0, 3000),
    place=st.integers(0, 3000),
    value=st.integers(0, 255),
    suffix=st.sampled_from([".jpg", ".png", ".tiff", ".webp", ".bmp"]),
)
def test_a_damaged_image_is_read_or_refused(tmp_path, cut, place, value, suffix):
    picture = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    data = bytearray(cv2.imencode(suffix, picture)[1].tobytes())
    data[place % len(data)] = value
    (tmp_path / f"a{suffix}").write_bytes(data[: len(data) - cut % len(data)])
    read_or_refuse(tmp_path / f"a{suffix}")


def read_or_refuse(file: Path) -> None:
    image, told = attempt(lambda: read_image(file))
    if told is None:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
    else:
        assert str(file) in told
        assert "\n" not in told


LINES = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.lists(
            st.one_of(st.integers(-2, 100), st.floats(), st.sampled_from(["nan", "inf", "1e400", ""])), max_size=9
        ).map(lambda numbers: " ".join(map(str, numbers))),
    ),
    max_size=4,
).map("\n".join)


@pytest.fixture(scope="module")
def few(tiny_data, tmp_path_factory) -> Path:
    """Two photos to validate."""
    root = tmp_path_factory.mktemp("few")
    for kind in ("images", "labels"):
        (root / kind).mkdir()
        for file in sorted((tiny_data.parent / kind / "val").glob("*.[jt][px][gt]"))[:2]:
            shutil.copy(file, root / kind)
    data = yaml.safe_load(tiny_data.read_text()) | {"path": str(root), "train": "images", "val": "images"}
    data.pop("annotations", None)
    (root / "few.yaml").write_text(yaml.safe_dump(data))
    return root / "few.yaml"


@cases(4)
@given(text=LINES)
@example(text="0 0.5 0.5 0.2 0.2\nhello")
@example(text="0 nan 0.5 0.2 0.2")
@example(text="99999999999999999999 0.5 0.5 0.2 0.2")
@example(text="0.5 0.5 0.5 0.2 0.2")
def test_broken_labels_are_told_or_left_out(few, tmp_path, capsys, text):
    """One line of an error, or figures; never a trace."""
    (few.parent / "labels.cache").unlink(missing_ok=True)
    first = sorted((few.parent / "labels").glob("*.txt"))[0]
    first.write_text(text, encoding="utf-8")
    words = [f"data={few}", "model=yolo26n-mod-hybrid.yaml", "imgsz=32", "threads=1", f"out={tmp_path / 'out'}"]
    code = main(["val", *words])
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    assert code == 0 or told.err.strip().splitlines()[-1].startswith("error: ")
