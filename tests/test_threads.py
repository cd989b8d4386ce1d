"""Two threads at once: each has the routes of its own image, and its own restrictions."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import cv2
import numpy as np
import pytest
import torch
from conftest import normal
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.utils import checks

from mod_vision.nn import MoDStage
from mod_vision.viz.routes import route_maps
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.trust import restricted

ROUNDS = 12


def both(work, items):
    """Run work on each of two items in a thread of its own, at the same time."""
    start = Barrier(2)

    def run(item):
        start.wait()
        return work(item)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, items))


@pytest.mark.parametrize("name", ["yolo26n-mod-hybrid-seg.pt", "yolo26n-mod-hybrid.yaml"])
def test_route_maps_are_those_of_the_image(name, photos):
    """With images of different shapes too; a model in training mode stays in it."""
    model = load_model(name)
    training = model.model.training
    images = [cv2.resize(cv2.imread(str(photos[i])), size) for i, size in enumerate([(160, 160), (160, 96)])]
    alone = [route_maps(model, image, 160) for image in images]
    for image, wanted, found in zip(
        images, alone, both(lambda image: [route_maps(model, image, 160) for _ in range(ROUNDS)], images), strict=True
    ):
        for maps in found:
            for a, b in zip(wanted, maps, strict=True):
                np.testing.assert_array_equal(a.score, b.score, err_msg=f"{image.shape}")
                np.testing.assert_array_equal(a.kept, b.kept)
    assert model.model.training is training


def test_a_plan_belongs_to_its_thread():
    stage = MoDStage(32, 32, 1).eval()
    inputs = [normal(seed, 1, 32, 6, 6) for seed in (0, 1)]
    ran = Barrier(2)

    def run(x):
        with torch.inference_mode():
            stage(x)
        ran.wait()
        return stage.plan.indices

    found = both(run, inputs)
    assert not torch.equal(*found)
    for x, indices in zip(inputs, found, strict=True):
        with torch.inference_mode():
            stage(x)
        assert torch.equal(stage.plan.indices, indices)


def test_replicas_have_plans_of_their_own():
    """As `nn.DataParallel` makes them, each for a thread, in which its loss reads the plan."""
    stage = MoDStage(32, 32, 1).eval()
    replicas = [stage._replicate_for_data_parallel() for _ in range(2)]
    for replica in replicas:
        for name in ("_modules", "_parameters"):
            setattr(replica, name, dict(getattr(stage, name)))

    def run(i):
        with torch.inference_mode():
            replicas[i](normal(i, 1, 32, 6, 6))
        return replicas[i].plan.indices

    assert not torch.equal(*both(run, [0, 1]))
    assert stage.plan is None


def test_copies_and_checkpoints_leave_plans_behind():
    stage = MoDStage(32, 32, 1).eval()
    stage(normal(0, 1, 32, 6, 6))
    plan = stage.plan
    state = {**stage.__getstate__(), "plan": None}  # as older versions saved it
    older = MoDStage.__new__(MoDStage)
    older.__setstate__(state)
    stream = io.BytesIO()
    torch.save(stage, stream)
    stream.seek(0)
    for twin in (
        copy.deepcopy(stage),
        copy.copy(stage),
        pickle.loads(pickle.dumps(stage)),
        torch.load(stream, weights_only=False),
        older,
    ):
        assert twin.plan is None
        twin(normal(1, 1, 32, 6, 6))
        assert twin.plan is not None
        assert stage.plan is plan


class Stranger(torch.nn.Identity):
    """A class that no restricted load takes."""


def test_restrictions_hold_for_one_thread_alone(tmp_path):
    model = load_model("yolo26n-mod-hybrid.yaml")
    model.model.stranger = Stranger()
    model.save(tmp_path / "strange.pt")

    def load(_):
        assert not tasks.SAFE_LOAD
        assert bool(checks.AUTOINSTALL) is usual
        return YOLO(tmp_path / "strange.pt").model.stranger

    usual = bool(checks.AUTOINSTALL)
    with ThreadPoolExecutor(1) as pool, restricted():
        assert isinstance(pool.submit(load, None).result(), Stranger)
        with pytest.raises(TypeError, match="references types outside"):
            YOLO(tmp_path / "strange.pt")
        assert not checks.AUTOINSTALL
        with restricted():
            pass
        assert tasks.SAFE_LOAD
    assert isinstance(load(None), Stranger)


def test_restrictions_hold_where_the_switch_was_set_by_hand(monkeypatch):
    monkeypatch.setattr(tasks, "SAFE_LOAD", False)
    with restricted():
        assert tasks.SAFE_LOAD
    assert not tasks.SAFE_LOAD
