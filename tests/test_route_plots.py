"""Pictures and logged figures of the routes while a model trains."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from helpers import read_csv, write_mod_yaml
from ultralytics import YOLO
from ultralytics.utils import SettingsManager

from mod_vision.viz.annotators import DepthAnnotator
from mod_vision.viz.routes import route_maps
from mod_vision.viz.training_pictures import TILE, draw_mosaic
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.images import read_image

FIGURES = ("routed", "entropy", "variance", "never")


def train(data: Path, folder: Path, **words):
    """Train for two epochs; returns the trainer and the metrics that the loggers got after each."""
    yolo = YOLO(str(write_mod_yaml(folder, {"capacity": 0.25})))
    logged: list[dict[str, float]] = []
    yolo.add_callback("on_fit_epoch_end", lambda trainer: logged.append(dict(trainer.metrics)))
    still = {"workers": 0, "amp": False, "device": "cpu", "name": "run", "imgsz": 64, "batch": 4, "epochs": 2}
    still["single_cls"] = True  # Ultralytics' own pictures of 80 classes take long
    yolo.train(data=str(data), project=str(folder), **{**still, **words})
    return yolo.trainer, logged


@pytest.fixture(scope="module")
def drawn(tiny_data, tmp_path_factory):
    return train(tiny_data, tmp_path_factory.mktemp("drawn"), plots=True)


def test_each_interval_has_its_pictures(drawn):
    trainer, _ = drawn
    pictures = sorted(path.name for path in trainer.save_dir.glob("rout*g"))
    assert pictures == ["routes_epoch1.jpg", "routes_epoch2.jpg", "routing.png"]
    assert {path.name for path in trainer.plots} >= set(pictures)  # from where the loggers take them
    first, last = (cv2.imread(str(trainer.save_dir / f"routes_epoch{epoch}.jpg")) for epoch in (1, 2))
    assert first.shape == last.shape
    assert first.shape[1] > 2 * TILE[0]


def test_the_loggers_get_the_figures_and_results_csv_does_not(drawn):
    trainer, logged = drawn
    rows = read_csv(trainer.save_dir / "routing.csv")
    for epoch, metrics in enumerate(logged[:2], 1):
        own = {key: value for key, value in metrics.items() if key.startswith("routing/")}
        expected = {
            f"routing/{row['layer']}/{name}": float(row[name])
            for row in rows
            if int(row["epoch"]) == epoch
            for name in FIGURES
        }
        assert own == expected
        assert len(own) == 2 * len(FIGURES)
    assert not any(key.startswith("routing/") for key in read_csv(trainer.save_dir / "results.csv")[0])


def test_without_validation_and_plots(tiny_data, tmp_path):
    trainer, logged = train(tiny_data, tmp_path, plots=False, val=False)
    assert not list(trainer.save_dir.glob("rout*g"))
    assert any(key.startswith("routing/") for key in logged[0])
    lines = (trainer.save_dir / "results.csv").read_text().splitlines()
    assert len({line.count(",") for line in lines}) == 1
    assert "routing" not in lines[0]


def test_gray_images_have_pictures_too(tiny_data, tmp_path):
    gray = {**yaml.safe_load(tiny_data.read_text()), "channels": 1}
    (tmp_path / "gray.yaml").write_text(yaml.safe_dump(gray))
    trainer, _ = train(tmp_path / "gray.yaml", tmp_path, plots=True, epochs=1)
    assert (trainer.save_dir / "routes_epoch1.jpg").is_file()


def test_a_distilled_student_has_pictures_whatever_its_teacher(drawn, tiny_data, tmp_path):
    teacher = drawn[0].save_dir / "weights" / "last.pt"
    trainer, _ = train(tiny_data, tmp_path, plots=True, epochs=1, distill_model=str(teacher))
    assert (trainer.save_dir / "routes_epoch1.jpg").is_file()


def test_a_picture_that_fails_costs_a_line(tiny_data, tmp_path, caplog):
    """Whatever fails: here there is a folder in the place of the picture."""
    (tmp_path / "run" / "routes_epoch1.jpg" / "in").mkdir(parents=True)
    with caplog.at_level("WARNING", logger="ultralytics"):
        trainer, _ = train(tiny_data, tmp_path, plots=True, epochs=1, exist_ok=True)
    assert (trainer.save_dir / "weights" / "last.pt").is_file()
    assert "no picture of the routes of epoch 1" in caplog.text


def test_the_mosaic_shows_the_routes_of_the_model(photos, tmp_path):
    model = load_model("yolo26n-mod-hybrid-seg.pt")
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    picture = draw_mosaic(model.model, [tmp_path / "broken.jpg", photos[0]], 160, tmp_path / "mosaic.jpg")
    assert (tmp_path / "mosaic.jpg").is_file()
    image = read_image(photos[0])
    scale = min(TILE[0] / image.shape[1], TILE[1] / image.shape[0])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    scene = DepthAnnotator().annotate(small, route_maps(model, image, 160))
    score = cv2.matchTemplate(picture, scene, cv2.TM_SQDIFF_NORMED)
    assert score.min() < 0.01
    with pytest.raises(ValueError, match="none of 1 images"):
        draw_mosaic(model.model, [tmp_path / "broken.jpg"], 160, tmp_path / "none.jpg")
    assert not (tmp_path / "none.jpg").exists()


def test_tensorboard_gets_the_mosaic_and_the_figures(tiny_data, tmp_path, run_cli, monkeypatch):
    """In a process of its own: Ultralytics logs nothing where it sees pytest."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for name in ("PYTEST_CURRENT_TEST", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    SettingsManager(tmp_path / "Ultralytics" / "settings.json").update(tensorboard=True)
    model = write_mod_yaml(tmp_path, {"capacity": 0.25})
    words = [f"model={model}", f"data={tiny_data}", "imgsz=64", "epochs=1", "batch=4", "workers=0", "device=cpu"]
    words += [f"project={tmp_path}", "name=run", "single_cls=True"]
    done = run_cli("yolo", "train", *words, cwd=tmp_path, YOLO_CONFIG_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    log = event_accumulator.EventAccumulator(str(tmp_path / "run"))
    log.Reload()
    assert "routes" in log.Tags()["images"]
    encoded = log.Images("routes")[0].encoded_image_string
    assert cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR).shape[1] > TILE[0]
    assert "routing/model.6/variance" in log.Tags()["scalars"]
