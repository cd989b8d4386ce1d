"""Figures of speed that a busy machine has spoilt are named, and what is compared is timed in turn."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from helpers import build

from mod_vision.eval.cost.benchmark import Row, table
from mod_vision.eval.cost.latency import Latency, doubts, paired_latency, paired_part_latency
from mod_vision.eval.cost.layer_benchmark import LayerRow, layer_table
from mod_vision.eval.cost.step_benchmark import StepRow, step_table
from mod_vision.eval.evaluate import evaluate_model
from mod_vision.run_settings import ScoreSettings

STEADY, DOUBTFUL = Latency(100, 90, 110), Latency(100, 89, 110)
SAID = "not to be trusted, quartiles more than 20 % apart: "


def test_a_call_that_takes_now_long_now_short_is_not_to_be_trusted():
    waits = cycle((0.0, 0.05))
    times = paired_latency({"a": lambda: time.sleep(next(waits))}, repeats=8, warmup=0)
    (line,) = doubts({name: found.spread for name, found in times.items()})
    assert line.startswith(f"{SAID}a (")
    assert doubts({"a": STEADY.spread}) == []
    assert doubts({"a": DOUBTFUL.spread, "b": STEADY.spread}) == [f"{SAID}a (21 %); time again when nothing else runs"]


def test_parts_have_quartiles_too():
    net = build("yolo26n-mod-hybrid.yaml").eval()
    (found,) = paired_part_latency([(net, {6: net.model[6]})], torch.rand(1, 3, 64, 64), repeats=3)
    assert 0 < found[6].low <= found[6].median <= found[6].high


@pytest.mark.parametrize(("latency", "names"), [(STEADY, ""), (DOUBTFUL, "half (21 %)")])
def test_bench_says_which_figure(latency, names):
    """Of models and of training steps, by name; of layers, by layer and capacity."""
    spread = latency.spread
    tables = {
        "half": (
            table([Row("dense", 2.0, STEADY), Row("half", 1.0, latency)]),
            step_table([StepRow("dense", STEADY, 2.0), StepRow("half", latency, 1.0)]),
        ),
        "model.6 at 0.5": (layer_table([LayerRow("model.6", "MoDStage", 0.5, 2.0, 1.0, 2.0, spread)]),),
    }
    for name, texts in tables.items():
        for text in texts:
            said = [line for line in text.splitlines() if line.startswith(SAID)]
            wanted = names.replace("half", name)
            assert said == ([f"{SAID}{wanted}; time again when nothing else runs"] if names else []), text


def test_val_says_which_figure(tiny_data, tmp_path):
    found = evaluate_model("yolo26n-mod-hybrid.yaml", str(tiny_data), ScoreSettings(64), project=str(tmp_path))
    for own, twin, names in (
        (STEADY, STEADY, []),
        (STEADY, DOUBTFUL, ["latency of the dense baseline (21 %)"]),
        (DOUBTFUL, DOUBTFUL, ["latency (21 %), latency of the dense baseline (21 %)"]),
    ):
        text = replace(found, cost=replace(found.cost, latency=own, dense_latency=twin)).report()
        said = [line for line in text.splitlines() if line.startswith(SAID)]
        assert said == [f"{SAID}{name}; time again when nothing else runs" for name in names], text
