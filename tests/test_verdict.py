"""Is a routed model worth it, and which one is asked for? Tables and sentences from figures that are given."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from mod_vision.conversion.choice import Setting
from mod_vision.conversion.job import names_of
from mod_vision.conversion.rows import Accuracy, Row, table
from mod_vision.conversion.verdict import dense_ap, verdict
from mod_vision.conversion.wanted import Wanted
from mod_vision.conversion.winners import asked_for


def row(name: str, ap: float, ms: float, imgsz: int = 640) -> Row:
    return Row(name, imgsz, Accuracy(ap, 2 * ap), ms, ms, 10)


DENSE = [row("dense", 30, 100), row("dense", 27, 60, 480), row("dense", 20, 30, 320)]


@pytest.mark.parametrize(
    ("routed", "max_loss", "sold", "told"),
    [
        (
            row("r", 29.8, 50),
            0.5,
            True,
            r"2\.00x .* at -0\.2 AP: 29\.8 AP in 50\.0 ms .* 24\.7 AP by interpolation\.$",
        ),
        (row("r", 30.4, 50), 0.0, True, r"at \+0\.4 AP"),
        (row("r", 28.0, 50), 0.5, False, r"loses 2\.0 AP, more than max_loss=0\.5"),
        (row("r", 28.0, 50), None, True, r"at -2\.0 AP"),
        (
            row("r", 24.0, 50),
            None,
            False,
            r"on smaller images is the better buy: 30\.0 AP .* interpolation 24\.7 AP in",
        ),
        (
            row("r", 0.0, 15),
            None,
            False,
            r"by interpolation 10\.0 AP in 15\.0 ms; the routed one has 0\.0",
        ),
        (row("r", 12.0, 15), None, True, r"6\.67x as fast"),
        (
            row("r", 26.9, 62),
            None,
            False,
            r"dense model at imgsz=480 is the better buy: 27\.0 AP in 60\.0 ms, the r",
        ),
        (row("r", 26.9, 55), None, True, r"1\.82x"),
        (row("r", 28.0, 80), None, False, r"so by interpolation 28\.5 AP"),
        (row("r", 19.0, 31), None, False, r"imgsz=320 is the better buy"),
        (row("r", 30.0, 97), None, False, r"^the dense model is the better buy: 30\.0 AP in 100\.0 ms, the routed one"),
    ],
)
def test_never_at_a_loss(routed, max_loss, sold, told):
    decision = verdict(routed, DENSE, max_loss)
    assert decision.sold is sold
    assert re.search(told, decision.sentence), decision.sentence


def test_a_smaller_image_may_take_the_time_that_is_asked_for():
    """A faster routed model with less accuracy is no better buy than what was asked for."""
    routed = row("r", 26.0, 50)
    assert verdict(routed, DENSE, None).sold
    assert verdict(routed, DENSE, None, allowed=59).sold is False, "by interpolation it has 26.8 AP in 59 ms"
    assert verdict(routed, DENSE, None, allowed=50).sold
    decision = verdict(routed, DENSE, None, allowed=100 / 1.5)
    assert not decision.sold
    assert decision.sentence.endswith("60.0 ms, the routed one has 26.0 AP in 50.0 ms; 66.7 ms are asked for.")
    assert verdict(row("r", 27.6, 50), DENSE, None, allowed=100 / 1.5).sold
    decision = verdict(routed, DENSE, None, allowed=1000)
    assert decision.sentence == (
        "the dense model is the better buy: 30.0 AP in 100.0 ms, the routed one has 26.0 AP in 50.0 ms; "
        "1000.0 ms are asked for."
    )
    late = verdict(routed, DENSE, None, allowed=40)
    assert late.sold
    assert late.sentence.endswith(" It does not reach the 40.0 ms that are asked for.")


def test_all_of_a_zone_without_a_training_can_be_the_better_buy():
    routed = row("r", 29.8, 50)
    for ap, ms, sold in ((30.1, 51, False), (29.7, 30, True), (31.0, 60, True)):
        decision = verdict(routed, DENSE, None, 0.0, row("all of the zone", ap, ms))
        assert decision.sold is sold
        assert decision.sentence.startswith("all of the zone, as `mod-vision zone` computes it") is not sold
    assert not verdict(routed, DENSE, None, 62.0, row("all of the zone", 31.0, 60)).sold, (
        "it may take what is asked for"
    )


def test_the_table():
    rows = [*DENSE, Row("look 192 at 40 %", 640, Accuracy(29.5, 60.1, 2.25, None, 6), 50.04, 71, 44)]
    text = table(rows).splitlines()
    assert text[0].split() == ["model", "imgsz", "AP", "AP50", "lost", "small", "windows", "ms", "p95", "MB"]
    assert text[4].split() == ["look", "192", "at", "40", "%", "640", "29.5", "60.1", "2.2%", "6", "50.0", "71.0", "44"]
    assert len({len(line) for line in text[:5]}) == 1


def test_what_is_asked_for():
    assert Wanted().bound == 0.5
    assert Wanted(speedup=2).bound is None
    assert Wanted(speedup=2, max_loss=1).bound == 1
    assert Wanted(budget=25).speedups(100.0)[1] == 4
    assert Wanted(speedup=2).speedups(100.0)[1] == 2
    assert [Wanted(budget=25).allowed(100.0), Wanted(speedup=2).allowed(100.0), Wanted().allowed(100.0)] == [25, 50, 0]


def test_the_dense_model_between_its_sizes():
    assert [dense_ap(DENSE, ms) for ms in (0, 15, 30, 45, 60, 80, 100, 150)] == [0, 10, 20, 23.5, 27, 28.5, 30, 30]
    assert dense_ap([DENSE[0], DENSE[0]], 50) == 15


def test_the_middle_winner_is_asked_for_though_it_won_before():
    first, second, third = (
        Setting("look", 192, 0.0, t, 1.2, share, 10, 0) for t, share in ((1, 0.3), (2, 0.301), (3, 0.1))
    )
    job: Any = SimpleNamespace(wanted=Wanted(speedup=2))
    assert asked_for(job, [first, first, third]) == first
    assert asked_for(job, [first, second, third]) == second
    assert names_of([first, first, second, third]) == {
        first: "look 192 at 30 %",
        second: "look 192 at 30 %, 2",
        third: "look 192 at 10 %",
    }
