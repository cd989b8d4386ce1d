"""A trained dense model into one on windows: what is kept, said, refused, and gone on with."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomise
from ultralytics import YOLO

import mod_vision
from mod_vision.cli.main import main
from mod_vision.conversion.rows import Accuracy, score
from mod_vision.conversion.timing import time_predictions
from mod_vision.conversion.windowed import on_windows, without_windows
from mod_vision.routing import routed_layers
from mod_vision.yolo.model.loading import load_model, trained_with
from mod_vision.yolo.model.settings import WindowSettings
from mod_vision.yolo.model.windows import head_of

MODELS = ("yolov8n", "yolov9t", "yolo12n", "yolo26n-seg")


def outputs(value: Any) -> list[torch.Tensor]:
    value = list(value.values()) if isinstance(value, dict) else value
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in outputs(v)]


# ------------------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("router", ["look", "stem"])
@pytest.mark.parametrize("name", MODELS)
def test_every_weight_stays(name, router):
    dense = YOLO(f"{name}.yaml")
    randomise(dense.model).eval()
    x = torch.rand(1, 3, 256, 320)
    with torch.inference_mode():
        expected = outputs(dense.model(x))
    routed = on_windows(dense, WindowSettings(router=router, entry=5 if router == "stem" else 0))
    before, after = dense.model.state_dict(), routed.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(".router." in key for key in after.keys() - before.keys())
    assert not any(routed_layers(dense.model)), "the given model stays dense"
    mod_vision.set_capacity(routed, 1.0)
    with torch.inference_mode():
        found = outputs(routed.model.eval()(x))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_back_to_the_dense_model():
    dense = YOLO("yolo26n.yaml")
    randomise(dense.model).eval()
    again = without_windows(on_windows(dense, WindowSettings()))
    assert not any(routed_layers(again.model))
    before, after = dense.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    with pytest.raises(ValueError, match="no dense one to go back to"):
        without_windows(again)


def test_a_routed_model_is_refused():
    with pytest.raises(ValueError, match="routed already"):
        on_windows(YOLO("yolo26n-mod.yaml"), WindowSettings())


# ------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model=yolo26n.yaml"], "convert takes a trained checkpoint"),
        (["model=no.pt", "data=no.yaml"], "checkpoint no.pt does not exist"),
        ([], "mod-vision convert needs model=..."),
        (["model=dense.pt", "data=no.yaml", "budget=fast"], "budget=fast is no time; write milliseconds"),
        (["model=dense.pt", "data=no.yaml", "budget=30ms", "speedup=2"], "give budget=30ms or speedup=2, not both"),
        (["model=dense.pt", "data=no.yaml", "speedup=0.5"], "speedup must be above 1"),
        (["model=dense.pt", "data=no.yaml", "max_loss=-1"], "max_loss must be AP in [0, 100]"),
        (["model=dense.pt", "data=no.yaml", "router=oracle"], "look, scout and stem, got 'oracle'"),
        (["model=dense.pt", "data=no.yaml", "router="], "router= names none"),
        (["model=dense.pt", "data=no.yaml", "steps=0"], "steps=0: steps must be a whole number of at least 1"),
        (["model=dense.pt", "data=no.yaml", "out=dense.pt"], "is the model it is made from"),
        (["model=classes.pt", "data=no.yaml"], "detect, segment, pose, obb, this one is for 'classify'"),
        (["model=routed.pt", "data=no.yaml"], "the model is routed already"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    for name, base in (("dense", "yolo26n"), ("classes", "yolo26n-cls"), ("routed", "yolo26n-mod")):
        if f"model={name}.pt" in words:
            YOLO(f"{base}.yaml").save(f"{name}.pt")
    assert main(["convert", *words]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert told in said
    assert not list(tmp_path.glob("*-mod.pt"))


def goes_on_with_its_routers(words: list[str], asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another speed-up, or number of threads, is chosen anew, by the routers that are there."""
    reached: list[Any] = []

    def dense_ms(job: Any) -> Any:
        reached.append(job.routed["look"].model.model[0].router.trained)
        assert job.progress.done["asked"] == asked
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mod_vision.yolo.train.fit_windows.random_part", lambda *_: pytest.fail("trained again"))
        patch.setattr("mod_vision.conversion.winners._dense_ms", dense_ms)
        for own in (["speedup=2", "threads=1"], ["speedup=1.2", "threads=2"]):
            assert main([*words, *own]) == 130
    assert reached == [True, True]


def test_refused_unless_forced_and_resumed(scenes, tmp_path, monkeypatch, capsys):
    """An untrained model finds nothing at any size, so the smallest image is the better buy."""
    monkeypatch.chdir(tmp_path)
    YOLO("yolo26n.yaml").save("dense.pt")
    words = ["convert", "model=dense.pt", f"data={scenes}", "imgsz=256", "steps=2", "router=look"]
    words += ["speedup=1.2", "threads=1"]

    def scored(*given: Any) -> Accuracy:
        found = score(*given)
        torch.set_num_threads(2)  # as Ultralytics does where there are three cores
        return found

    def stop(models: Any, photos: Any) -> Any:
        assert torch.get_num_threads() == 1, "scoring had set its own"
        if len(models) > 1:
            raise KeyboardInterrupt
        return time_predictions(models, photos)

    torch.set_num_threads(2)
    with monkeypatch.context() as patch:
        patch.setattr("mod_vision.conversion.convert.score", scored)
        patch.setattr("mod_vision.conversion.convert.time_predictions", stop)
        assert main(words) == 130
    work = tmp_path / "dense-mod-convert"
    done = json.loads((work / "progress.json").read_text())
    assert any(key.startswith("settings for Wanted(budget=0.0, speedup=1.2") for key in done)
    assert (work / "look.pt").is_file()
    capsys.readouterr()
    assert main(words) == 1
    told = capsys.readouterr().out
    assert "going on with what is in dense-mod-convert" in told
    assert "is the better buy: 0.0 AP in" in told
    assert "batch 1, cpu, 1 threads" in told
    last = told.strip().splitlines()[-1]
    assert last.startswith("nothing was written; the trained routers stay in dense-mod-convert")
    assert not (tmp_path / "dense-mod.pt").exists()
    assert json.loads((work / "progress.json").read_text()) == done

    goes_on_with_its_routers([w for w in words if not w.startswith(("speedup", "threads"))], done["asked"], monkeypatch)
    capsys.readouterr()
    monkeypatch.setattr("mod_vision.conversion.convert.score", lambda *_: pytest.fail("scored again"))
    assert main([*words, "force=True"]) == 0
    told = capsys.readouterr().out
    assert "saved as dense-mod.pt: yolo predict model=dense-mod.pt imgsz=256" in told
    assert not work.exists()
    dense, routed = load_model("dense.pt").model, load_model("dense-mod.pt").model
    head = head_of(routed)
    assert head.entry.threshold is not None
    assert head.entry.crowded > 0
    assert routed.yaml["mod"]["windows"]["size"] == head.entry.window
    assert routed.yaml["mod"]["windows"]["doubt"] == head.doubt > 0
    state = routed.state_dict()
    assert all(torch.equal(state[key], value) for key, value in dense.state_dict().items())
    assert head.entry.router.trained
    assert trained_with(YOLO("dense-mod.pt")) == (256, str(scenes))
    assert YOLO("dense-mod.pt").predict(np.zeros((128, 256, 3), np.uint8), imgsz=256, verbose=False)
