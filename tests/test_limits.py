"""Files of a few bytes that would cost gigabytes, or never end: one line instead."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from ultralytics.utils import YAML

from mod_vision.cli.main import main
from mod_vision.limits import check_nodes
from mod_vision.nn.vit import read_blocks
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.rows import check_model_yaml
from mod_vision.yolo.model.trust import check_data, restricted
from mod_vision.yolo.run.images import some_images

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)  # 10 to the tenth


def write_data(tiny_data: Path, folder: Path, **changes: Any) -> Path:
    data = {**yaml.safe_load(tiny_data.read_text()), **changes}
    (folder / "data.yaml").write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    return folder / "data.yaml"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": None, "nc": 1_000_000_000}, "`nc:` has 1,000,000,000 classes, and at most 20,000 are taken"),
        ({"names": None, "nc": "1e9"}, "`nc:` has 1,000,000,000 classes"),
        ({"names": None, "nc": float("inf")}, "`nc:` has inf classes"),
        ({"names": None, "nc": 10**400}, "`nc:` has inf classes"),
        ({"names": ["x"] * 30_000}, "`names:` has 30,000 classes"),
        ({"channels": 10**6}, "`channels: 1000000` must be at most 1024"),
    ],
)
def test_a_data_yaml_is_refused_before_it_costs_anything(tiny_data, tmp_path, changes, message):
    data = write_data(tiny_data, tmp_path, **changes)
    for read in (check_data, lambda file: some_images(file, 2)):
        with pytest.raises(ValueError, match=f"data.yaml: {message}"):
            read(str(data))


def test_val_tells_it_in_one_line(tiny_data, tmp_path, capsys):
    data = write_data(tiny_data, tmp_path, names=None, nc=1_000_000_000)
    words = ["model=yolo26n-mod-hybrid-seg.pt", f"data={data}", "imgsz=32", "threads=1", f"out={tmp_path / 'out'}"]
    assert main(["val", *words]) == 1
    assert capsys.readouterr().err.endswith(
        "data.yaml: `nc:` has 1,000,000,000 classes, and at most 20,000 are taken.\n"
    )


def test_aliases_are_counted_as_often_as_they_are_used(tiny_data, tmp_path):
    (tmp_path / "laughs.yaml").write_text(LAUGHS + "train: a\nval: *a9\nnames: [x]\n")
    told = "laughs.yaml: written out it would have more than 1,000,000 values; its aliases repeat them"
    with pytest.raises(ValueError, match=told):
        check_data(str(tmp_path / "laughs.yaml"))
    (tmp_path / "laughs.yaml").write_text(LAUGHS + "nc: 3\nhead: []\nbackbone: [*a9]\n")
    with pytest.raises(ValueError, match=told):
        load_model(tmp_path / "laughs.yaml")
    (tmp_path / "itself.yaml").write_text("a: &a [*a]\ntrain: a\n")
    with pytest.raises(ValueError, match=r"itself\.yaml: written out"):
        check_data(str(tmp_path / "itself.yaml"))
    shared = {"x": ["many"] * 1000}
    check_nodes([shared] * 900, "it")


def small(*rows: Any, **keys: Any) -> dict[str, Any]:
    return {"nc": 2, "backbone": [[-1, 1, "Conv", [16, 3, 4]], *rows], "head": [[[1], 1, "Detect", ["nc"]]], **keys}


CONV = [-1, 1, "Conv", [32, 3, 2]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (small(CONV, nc=1_000_000), "`nc:` has 1,000,000 classes, and at most 20,000 are taken"),
        (small(CONV, ch=10**6), "`ch: 1000000`, the channels of an image, must be at most 1024"),
        (small(CONV, channels=10**6), "`channels: 1000000`, the channels of an image, must be at most 1024"),
        (small([-1, 1, "Conv", [10**8, 3, 2]]), r"layer 1, row \[-1, 1, 'Conv', .* is larger than 20,000"),
        (small([-1, 1, "Conv", ["99999999", 3, 2]]), "layer 1, row .* is larger than 20,000"),
        (small([-1, 1, "RepNCSPELAN4", [32, 32, 16, 99_999_999]]), "layer 1, row .* is larger than 20,000"),
        (small([-1, 900, "Conv", [32]], [-1, 900, "Conv", [32]]), "has 1,800 repeats at its depth, and at most 1,000"),
        (small([-1, 900, "Conv", [32]], depth_multiple=5), "has 4,500 repeats at its depth"),
        (small(CONV, depth_multiple=1e9), "depth and width are numbers from 0 to 10"),
        (small(CONV, width_multiple=1e9), "depth and width are numbers from 0 to 10"),
        (small(CONV, scales={"n": [1e9, 1, 1024]}), "depth and width are numbers from 0 to 10"),
        (small(CONV, scales={"n": [1, 1]}), "depth and width are numbers from 0 to 10"),
        (small([-1, 1, "Conv", [20_000, 101, 2]]), "has 11,589,960,584 parameters, and at most 1,000,000,000"),
        (small(CONV, reg_max=10**9), "parameters, and at most|cannot be built"),
    ],
)
def test_a_model_yaml_is_refused_before_it_costs_anything(tmp_path, content, message):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "x.yaml")


@pytest.mark.parametrize("blocks", [[[-5, 99_999_999]], [[0, 10**12]], [[-(10**12), 3]], [[7, 3]], [[1, 3], [3, 4]]])
def test_blocks_of_a_vit_are_checked_before_they_are_listed(blocks):
    with pytest.raises(ValueError, match="it: blocks must be alternate, or a list of block numbers from 0 to 11"):
        read_blocks(blocks, 12, "it")


def test_no_model_of_ultralytics_or_ours_is_beyond_a_limit():
    """In its largest scale."""
    import ultralytics

    folders = (Path(ultralytics.__file__).parent / "cfg" / "models", Path("cfg/models"))
    files = [file for folder in folders for file in sorted(folder.rglob("*.yaml"))]
    for file in files:
        d = YAML.load(file)
        check_model_yaml({**d, "scale": max(d["scales"], key=lambda s: d["scales"][s]) if d.get("scales") else ""})
    assert len(files) > 60


def test_links_that_lead_back_end_a_data_set(tiny_data, tmp_path):
    """Two of them list 2 to the 40th files."""
    shutil.copytree(tiny_data.parent, tmp_path / "set")
    for name in "ab":
        (tmp_path / "set" / "images" / "val" / name).symlink_to(".")
    data = write_data(tiny_data, tmp_path, path=str(tmp_path / "set"))
    with pytest.raises(ValueError, match=r"images/val/. is the folder .*images/val again, by a link; remove the link"):
        check_data(str(data))


def test_a_folder_that_is_a_link_is_taken(tiny_data, tmp_path):
    shutil.copytree(tiny_data.parent, tmp_path / "set")
    (tmp_path / "set" / "images" / "val").rename(tmp_path / "elsewhere")
    (tmp_path / "set" / "images" / "val").symlink_to(tmp_path / "elsewhere")
    data = write_data(tiny_data, tmp_path, path=str(tmp_path / "set"))
    assert Path(check_data(str(data))["val"]).samefile(tmp_path / "elsewhere")


def test_a_device_in_place_of_an_image_is_refused(tiny_data, tmp_path):
    """Ultralytics reads it until the memory is full."""
    shutil.copytree(tiny_data.parent, tmp_path / "set")
    (tmp_path / "set" / "images" / "val" / "zero.jpg").symlink_to("/dev/zero")
    data = write_data(tiny_data, tmp_path, path=str(tmp_path / "set"))
    with restricted(), pytest.raises(ValueError, match=r"zero\.jpg is neither a file nor a folder"):
        load_model("yolo26n-mod-hybrid-seg.pt").val(data=str(data), imgsz=32, workers=0, project=str(tmp_path))
