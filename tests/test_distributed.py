"""Two ranks on the CPU: the same routes and gradients as one, and a real training by Ultralytics."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import read_csv, write_mod_yaml

from mod_vision.routing.schedule import CapacitySchedule

TESTS = Path(__file__).parent
SECONDS = 240  # a healthy run takes 20


def torchrun(script: str, *words: object, cwd: Path, ranks: int = 2, fails: bool = False) -> None:
    """Run a script of tests/ranks in `ranks` processes, which ends well or `fails`; none of them outlives the call."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "YOLO_CONFIG_DIR": str(cwd)}
    with subprocess.Popen(
        [*command, str(TESTS / "ranks" / script), *map(str, words)],
        cwd=cwd,
        env=env | {"YOLO_OFFLINE": "true", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        try:
            out, _ = run.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGTERM)  # which the launcher hands on to its ranks
            out, _ = run.communicate(timeout=60)
            pytest.fail(f"{script} hangs\n{out[-3000:]}")
    assert bool(run.returncode) == fails, out[-5000:]


# --------------------------------------------------------------------------------------------------------- gradients


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> list[dict[float, dict]]:
    """A step with the whole batch, and what two ranks with half of it did, by capacity."""
    folder = tmp_path_factory.mktemp("steps")
    torchrun("gradients.py", folder, 0.5, 1.0, cwd=folder)
    return [torch.load(folder / f"{name}.pt") for name in ("alone", "rank0", "rank1")]


@pytest.mark.parametrize("capacity", [0.5, 1.0])
def test_two_ranks_have_the_routes_and_gradients_of_one(steps, capacity):
    """At capacity 1 the routers have no gradient, on no rank."""
    alone, *ranks = (step[capacity] for step in steps)
    for together, *apart in zip(alone["routes"], *(rank["routes"] for rank in ranks), strict=True):
        if capacity == 1:
            assert together is None
            assert apart == [None, None]
        else:
            assert torch.equal(torch.cat(apart), together)
            assert together.shape[0] == 4
    torch.testing.assert_close((ranks[0]["loss"] + ranks[1]["loss"]) / 2, alone["loss"], rtol=1e-6, atol=0)
    for rank in ranks:
        assert rank["gradients"].keys() == alone["gradients"].keys()
        for name, gradient in alone["gradients"].items():
            assert gradient.dtype == torch.float64
            assert (rank["gradients"][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    routers = [name for name in alone["gradients"] if ".router.proj." in name]
    assert len(routers) == (4 if capacity < 1 else 0)


# ---------------------------------------------------------------------------------------------------- real training


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_data) -> tuple[Path, list[dict]]:
    """Two epochs of two steps, the first one dense, the second with fitted routing, elastic capacity and all losses."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun("train.py", folder, routed_model(folder), tiny_data, cwd=folder)
    return folder, [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def routed_model(folder: Path) -> Path:
    loss = {"guide": 0.5, "budget": 1.0, "z": 0.001}
    return write_mod_yaml(folder, {"warmup": 0.5, "elastic": [0.25, 1.0], "loss": loss})


def test_all_ranks_draw_the_same_capacities(trained):
    first, second = trained[1]
    nominal = [(0.5,) * 6, (0.5,) * 4]
    schedule = CapacitySchedule(elastic=(0.25, 1.0))
    dense = [[(1.0,) * 6, (1.0,) * 4]] * 2
    drawn = [schedule.capacities(nominal, step, 0) for step in (2, 3)]
    assert first["used"] == second["used"] == dense + drawn
    assert first["ema"] == second["ema"] == nominal


def test_ranks_end_with_the_same_weights(trained):
    first, second = trained[1]
    assert sorted(first["images"] + second["images"]) == sorted([*range(8)] * 2), "half of the images each"
    assert set(first["images"][:4]).isdisjoint(second["images"][:4])
    assert first["weights"].keys() == second["weights"].keys()
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name


def test_one_rank_writes_the_figures(trained):
    folder, _ = trained
    rows = read_csv(folder / "rank0" / "run" / "routing.csv")
    assert [(row["epoch"], row["layer"]) for row in rows] == [(e, n) for e in "2" for n in ("model.6", "model.8")]
    (first, second) = read_csv(folder / "rank0" / "run" / "results.csv")
    for name in ("guide", "budget", "z"):
        assert float(first[f"train/{name}"]) == 0, "dense"
        assert float(second[f"train/{name}"]) > 0
        assert float(second[f"val/{name}"]) > 0
        assert float(first[f"val/{name}"]) > 0 or name == "budget", "untrained routers are near their budget"
    assert not list(folder.glob("rank1/**/*.csv"))


def test_a_killed_training_resumes_to_what_an_unbroken_one_gives(trained, tiny_data, tmp_path):
    unbroken, ranks = trained
    words = ("train.py", tmp_path, routed_model(tmp_path), tiny_data)
    torchrun(*words, "killed", cwd=tmp_path, fails=True)
    run = tmp_path / "rank0" / "run"
    torchrun(*words, run / "weights" / "last.pt", cwd=tmp_path)
    for rank in range(2):
        weights = torch.load(tmp_path / f"rank{rank}.pt")["weights"]
        assert all(torch.equal(weight, ranks[rank]["weights"][name]) for name, weight in weights.items())
    for table in ("results.csv", "routing.csv"):
        rows, others = read_csv(run / table), read_csv(unbroken / "rank0" / "run" / table)
        assert [row | {"time": ""} for row in rows] == [row | {"time": ""} for row in others]
