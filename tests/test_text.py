"""Names that others chose, of classes, files and layers: they are shown, and do nothing else."""

from __future__ import annotations

import csv
import json
import shutil
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from torch import nn

from mod_vision.cli.main import main
from mod_vision.resources import find_shipped
from mod_vision.text import in_csv, in_plot, printable, short_stem
from mod_vision.viz.lettering import put_text, text_width
from mod_vision.viz.results import draw_results
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.images import some_images
from mod_vision.yolo.run.sources import Source, find_sources, open_clip

SHIPPED = "yolo26n-mod-hybrid-seg.pt"
TITLE = "\x1b]0;owned\x07"  # makes a terminal change the title of its window
BAD = [TITLE, "two\nlines", "\rover", "\u202egpj.exe", "\x9b31m", "\ud800", "\0"]


def controls(text: str) -> set[str]:
    """Characters that do more than show themselves, but for ends of lines."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs")} - {"\n"}


@pytest.mark.parametrize("text", BAD)
def test_nothing_but_letters_reaches_a_terminal(text):
    shown = printable(text)
    assert not controls(shown)
    assert "\n" not in shown
    assert shown.startswith("\\") or shown == "two\\nlines"


def test_letters_of_all_languages_stay():
    text = "Straße 道路 дорога\u3000ถนน"
    assert printable(text) == text.replace("\u3000", " ")
    assert printable("x" * 300, 200) == "x" * 197 + "..."


@pytest.mark.parametrize("text", ['=HYPERLINK("http://a")', "+1", "-cat", "@sum"])
def test_no_formula_in_a_csv(text):
    assert in_csv(text) == f"'{text}"
    assert in_csv(-0.5) == -0.5
    assert in_csv("a=b") == "a=b"


@pytest.mark.parametrize("text", [*BAD, "name " * 3000])
def test_any_text_is_drawn(text):
    picture = np.zeros((40, 300, 3), np.uint8)
    put_text(picture, text, 5, 5, 15, (255, 255, 255))
    assert picture.any()
    assert 0 < text_width(text, 15) < 5000


@pytest.mark.parametrize("text", [r"$\nothing{$", "50 $ and 60 $", *BAD])
def test_any_text_is_plotted(tmp_path, text):
    figure = Figure()
    figure.text(0.5, 0.5, in_plot(text))
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()


def test_class_names_on_pictures(photos):
    yolo = load_model(SHIPPED)
    result = yolo.predict(photos[0], imgsz=160, conf=0.05, verbose=False, device="cpu")[0]
    assert len(result.boxes)
    scene = result.orig_img
    plain = draw_results(scene.copy(), result)
    result.names = {index: f"{name}\n{TITLE}" for index, name in result.names.items()}
    assert (draw_results(scene.copy(), result) != plain).any()


@pytest.fixture
def hostile_data(tmp_path, tiny_data) -> Path:
    """Photos whose classes have all kinds of names."""
    data = yaml.safe_load(tiny_data.read_text())
    names = list(data["names"].values()) if isinstance(data["names"], dict) else data["names"]
    bad = ["=HYPERLINK(1)", f"cat{TITLE}", "two\nlines", "-1+1"]
    content = {"path": data["path"], "train": data["train"], "val": data["val"], "names": [*bad, *names[len(bad) :]]}
    (tmp_path / "hostile.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "hostile.yaml"


def test_class_names_in_tables(hostile_data, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["val", f"model={SHIPPED}", f"data={hostile_data}", "imgsz=64", "threads=1", f"out={out}"]) == 0
    printed = capsys.readouterr().out
    names = yaml.safe_load(hostile_data.read_text())["names"]
    assert not controls(printed[printed.index("COCO metrics") :])
    with (out / "evaluation-classes.csv").open(newline="") as file:
        cells = [row["class"] for row in csv.DictReader(file)]
    assert cells[:4] == ["'=HYPERLINK(1)", "cat\\x1b]0;owned\\x07", "two\\nlines", "'-1+1"]
    told = json.loads((out / "evaluation.json").read_text())["classes"]
    assert [row["class"] for row in told] == names, "figures for programs have the names as they are"


def test_the_name_of_a_model_on_a_plot(tmp_path, tiny_data):
    model = tmp_path / f"50$ {TITLE}\n$\\x$.pt"
    shutil.copy(find_shipped(SHIPPED), model)
    words = [f"data={tiny_data}", "capacity=1,0.5", "imgsz=64", "threads=1", f"out={tmp_path / 'out'}"]
    assert main(["val", f"model={model}", *words]) == 0
    assert cv2.imread(str(tmp_path / "out" / "sweep.png")) is not None


def test_names_of_layers_are_names(tmp_path):
    yolo = load_model(SHIPPED)
    yolo.model.model[0].add_module(f"conv{TITLE}", nn.Identity())
    yolo.save(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"'model\.0\.conv\\x1b\]0;owned\\x07' is no name of a layer"):
        load_model(tmp_path / "a.pt")


def test_heatmaps_of_files_of_all_names(tmp_path, photos, capsys):
    """A name may have 255 bytes, and ours are longer than those that they are made from."""
    folder = tmp_path / "in"
    folder.mkdir()
    names = ["路" * 78, "路" * 77 + "口", f"a{TITLE}", "two\nlines", "=1", "plain"]
    for name in names:
        (folder / f"{name}.jpg").write_bytes(photos[0].read_bytes())
    (folder / f"broken{TITLE}.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    assert main(["heatmap", f"source={folder}", "imgsz=64", "view=overlay", f"out={out}"]) == 0
    printed = capsys.readouterr().out
    assert not controls(printed)
    assert printed.count("left out, ") == 1
    assert len(printed.splitlines()) == len(names) + 2
    assert len(list(out.glob("*.png"))) == len(names)


def test_a_short_stem_is_whole_letters():
    assert short_stem("plain") == "plain"
    assert short_stem("路" * 78) == "路" * 40
    assert short_stem("ab" + "路" * 78) == "ab" + "路" * 39


def test_an_error_is_one_line_without_controls(tmp_path, capsys):
    assert main(["val", f"model={tmp_path}/{TITLE}\n.pt", "data=a.yaml", f"out={tmp_path}/out"]) == 1
    told = capsys.readouterr().err
    assert not controls(told)
    assert told.count("\n") == 1


def test_files_and_folders_that_are_named_like_patterns(tmp_path, photos):
    folder = tmp_path / "all*"
    folder.mkdir()
    for name in ("a*.jpg", "ab.jpg", "a[b].jpg"):
        shutil.copy(photos[0], folder / name)
    (tmp_path / "all of them").mkdir()
    shutil.copy(photos[0], tmp_path / "all of them" / "other.jpg")
    for name in ("a*.jpg", "ab.jpg", "a[b].jpg"):
        assert [one.place.name for one in find_sources(folder / name)] == [name]
        assert [file.name for file in some_images(str(folder / name), 9)] == [name]
    assert [one.place.name for one in find_sources([str(folder / "a*.jpg"), str(folder / "ab.jpg")])] == [
        "a*.jpg",
        "ab.jpg",
    ]
    assert {one.place.name for one in find_sources(str(folder))} == {"a*.jpg", "ab.jpg", "a[b].jpg"}
    assert len(find_sources(str(tmp_path / "all*" / "*.jpg"))) == 4, "what does not exist is a pattern"


def test_a_video_that_is_named_like_a_pattern(tmp_path):
    for name, side in (("a*.avi", 64), ("ab.avi", 32)):
        writer = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter.fourcc(*"MJPG"), 5, (side, side))
        writer.write(np.zeros((side, side, 3), np.uint8))
        writer.release()
    frames = [image.shape for (image,) in open_clip(Source(tmp_path / "a*.avi", "video")).frames]
    assert frames == [(64, 64, 3)]
