"""Nothing is lost: NaN, two trainings in one folder, damaged and altered checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import attempt, error_line, files_in, layers, read_csv
from ultralytics import YOLO

from mod_vision.resources import find_shipped
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.images import read_image
from mod_vision.yolo.run.predict import predict_images

pytestmark = pytest.mark.usefixtures("own_folder")

MODEL = "yolo26n-mod-hybrid.yaml"
SHIPPED = "yolo26n-mod-hybrid-seg.pt"
NAN = "router scores of model.6 are NaN or infinite"


@pytest.fixture
def words(tiny_data, tmp_path) -> dict[str, Any]:
    return training_words(tiny_data, tmp_path)


def training_words(data: Path, project: Path) -> dict[str, Any]:
    still = {"workers": 0, "plots": False, "amp": False, "device": "cpu", "name": "run"}
    return {"data": str(data), "imgsz": 32, "batch": 4, "epochs": 3, "project": str(project), **still}


# ----------------------------------------------------------------------------------------------------------- training


def test_two_trainings_in_one_folder(words):
    """The second is refused, and the first goes on as if nothing had been."""
    yolo, seen = YOLO(MODEL), []

    def again(trainer: Any) -> None:
        if trainer.epoch == 1 and not seen:
            before = files_in(Path(trainer.save_dir))
            with pytest.raises(FileExistsError, match=r"another training runs in .*run, both would write"):
                YOLO(MODEL).train(**words | {"seed": 7}, exist_ok=True)
            seen.append(files_in(Path(trainer.save_dir)) == before)

    yolo.add_callback("on_train_batch_end", again)
    yolo.train(**words)
    run = Path(yolo.trainer.save_dir)
    assert seen == [True]
    assert yaml.safe_load((run / "args.yaml").read_text())["seed"] == 0, "the arguments are those of the first"
    assert [row["epoch"] for row in read_csv(run / "results.csv")] == ["1", "2", "3"]
    YOLO(MODEL).train(**words | {"epochs": 1, "val": False}, exist_ok=True)  # over now, so the folder is free
    assert {row["epoch"] for row in read_csv(run / "routing.csv")} == {"1"}


def break_router(net: Any) -> None:
    """What a bit flip in memory or a step that is too large does."""
    with torch.no_grad():
        next(layers(net)[0].router.parameters()).fill_(float("nan"))


@pytest.mark.parametrize("epoch", [1, 2])
def test_nan_in_training_names_the_layer(words, caplog, epoch):
    """With a checkpoint Ultralytics goes back to it; in the first epoch there is none."""
    yolo, broken = YOLO(MODEL), []

    def break_once(trainer: Any) -> None:
        if trainer.epoch + 1 == epoch and not broken:
            broken.append(break_router(trainer.model))

    yolo.add_callback("on_train_batch_start", break_once)
    if epoch == 1:
        with pytest.raises(RuntimeError, match=rf"epoch 1: {NAN}.*lr0"):
            yolo.train(**words)
        return
    yolo.train(**words)
    lines = [line for line in caplog.messages if "NaN" in line]
    assert f"mod_vision: epoch 2: {NAN}" in lines[0]
    assert "recovering from last.pt" in lines[1]
    assert [row["epoch"] for row in read_csv(Path(yolo.trainer.save_dir) / "routing.csv")] == list("112233")
    assert all(torch.isfinite(p).all() for p in load_model(yolo.trainer.last).model.parameters())


def test_nan_at_inference_names_the_layer(tiny_data, photos, tmp_path, capsys, caplog):
    yolo = load_model(SHIPPED)
    break_router(yolo.model)
    yolo.save(tmp_path / "nan.pt")
    for command in (("heatmap", f"source={photos[0]}"), ("val", f"data={tiny_data}")):
        assert NAN in error_line(capsys, *command, f"model={tmp_path}/nan.pt", "imgsz=64", f"out={tmp_path}/out"), (
            command
        )
    before = files_in(tmp_path)
    for command in (
        ("export",),
        *(("bench", f"by={by}", "baselines=") for by in ("model", "step", "layer", "profile")),
    ):
        assert NAN in error_line(capsys, *command, f"model={tmp_path}/nan.pt", "imgsz=64"), command
    assert files_in(tmp_path) == before, "no export that would route at random"
    with pytest.raises(ValueError, match=NAN):
        predict_images(load_model(tmp_path / "nan.pt"), [read_image(photos[0])], 64, 0.25, 1, "cpu")
    caplog.clear()
    load_model(tmp_path / "nan.pt").predict(photos[:2], imgsz=64, batch=1)
    assert len([line for line in caplog.messages if NAN in line]) == 1, "plain `yolo predict` is told once"


# -------------------------------------------------------------------------------------------------------- checkpoints


def test_a_damaged_checkpoint_is_refused_or_the_same(tmp_path):
    whole = find_shipped(SHIPPED).read_bytes()
    same = load_model(SHIPPED).model.state_dict()
    file, refused = tmp_path / "flipped.pt", 0
    spread = [len(whole) * i // 12 for i in range(12)]
    for place in (*spread, *range(30, 90, 12), *range(len(whole) - 90, len(whole), 9)):
        flipped = bytearray(whole)
        flipped[place] ^= 0x10
        file.write_bytes(flipped)
        found, told = attempt(lambda: load_model(file).model.state_dict())
        if told is None:  # the byte was one that nothing depends on, such as a date
            assert all(torch.equal(found[key], same[key]) for key in same), place
        else:
            refused += 1
            assert f"checkpoint {file} " in told
            assert "\n" not in told
    assert refused > 12


@pytest.mark.parametrize("length", [0, 20, 5_000_000, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path, photos, capsys, length):
    (tmp_path / "cut.pt").write_bytes(find_shipped(SHIPPED).read_bytes()[:length])
    told = error_line(capsys, "heatmap", f"model={tmp_path}/cut.pt", f"source={photos[0]}", "out=out")
    assert f"checkpoint {tmp_path}/cut.pt is damaged or no checkpoint" in told
    assert files_in(tmp_path) == {"cut.pt"}


@pytest.mark.parametrize(
    ("start", "old"), [(b"", False), (b"hello", False), (b"PK\x03\x04", False), (b"\x80\x02", True)]
)
def test_only_what_may_be_an_old_checkpoint_is_offered_trust(tmp_path, start, old):
    (tmp_path / "a.pt").write_bytes(start)
    _, told = attempt(lambda: load_model(tmp_path / "a.pt"))
    assert "a.pt is damaged or no checkpoint" in told
    assert ("MOD_VISION_TRUST=1" in told) == old
    assert ("only if you trust whoever made it" in told) == old


@pytest.mark.parametrize(
    "content",
    [{"a": 1}, {"model": {"0.weight": torch.ones(1)}}, {"0.weight": torch.ones(1)}, [1, 2], torch.ones(1)],
    ids=["dict", "training state", "state dict", "list", "tensor"],
)
def test_a_file_without_a_model(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    _, told = attempt(lambda: load_model(tmp_path / "a.pt"))
    assert f"checkpoint {tmp_path}/a.pt holds no model of Ultralytics" in told


@pytest.mark.parametrize(
    ("alter", "missing"),
    [
        (lambda net: delattr(net.model, "6"), "it has 22 layers, and its `yaml` 23 rows"),
        (lambda net: delattr(net, "yaml"), "its `yaml`, the rows that it was built from, is missing"),
        (lambda net: setattr(net, "yaml", {"backbone": []}), "its `yaml`, the rows that it was built from, is missing"),
        (lambda net: setattr(net, "names", None), "its `names` must be a text for each of 80 classes, got None"),
        (lambda net: setattr(net, "names", "abc"), "got 'abc'"),
        (lambda net: net.names.pop(79), "its `names` must be a text for each of 80 classes"),
        (lambda net: net.names.update({3: 4}), "its `names` must be a text for each of 80 classes"),
    ],
)
def test_an_altered_checkpoint_is_refused(tmp_path, alter, missing):
    yolo = load_model(MODEL)
    alter(yolo.model)
    torch.save({"model": yolo.model}, tmp_path / "a.pt")
    _, told = attempt(lambda: load_model(tmp_path / "a.pt"))
    assert f"checkpoint {tmp_path}/a.pt holds no whole model: " in told
    assert missing in told
    assert "\n" not in told


def test_names_can_be_a_list(tmp_path):
    """As open vocabularies have them."""
    yolo = load_model(MODEL)
    yolo.model.names = [f"thing {i}" for i in range(80)]
    torch.save({"model": yolo.model}, tmp_path / "a.pt")
    assert load_model(tmp_path / "a.pt").names[79] == "thing 79"
