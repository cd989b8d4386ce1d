"""Capacity over the course of a training: warm-up, elastic draws, and that no state is needed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mod_vision.routing import capacity_per_depth
from mod_vision.routing.schedule import CapacitySchedule

FEW = settings(max_examples=50, deadline=None)
SEEDS = st.integers(0, 2**16)
GRAIN = 1 / 32  # drawn capacities are multiples of it
CAPACITIES = st.integers(1, 100).map(lambda percent: percent / 100)
LAYER = st.lists(CAPACITIES, min_size=1, max_size=4).map(lambda layer: tuple(sorted(layer, reverse=True)))
LAYERS = st.lists(LAYER, min_size=1, max_size=3)
RANGES = st.tuples(CAPACITIES, CAPACITIES).filter(lambda t: t[0] < t[1])


def flat(nominal: list[tuple[float, ...]]) -> list[float]:
    return [c for layer in nominal for c in layer]


def run(schedule: CapacitySchedule, nominal: list[tuple[float, ...]], steps: int, seed: int = 0) -> list[list[float]]:
    """Return the capacities of all blocks at each step."""
    return [flat(schedule.capacities(nominal, step, seed)) for step in range(steps)]


def equal_layers(capacity: float) -> list[tuple[float, ...]]:
    return [(capacity,) * 6, (capacity,) * 4]


# ----------------------------------------------------------------------------------------------------------- constant


@FEW
@given(nominal=LAYERS, step=st.integers(0, 50), seed=SEEDS)
def test_without_warmup_and_range_the_model_keeps_its_capacity(nominal, step, seed):
    schedule = CapacitySchedule()
    assert schedule.constant
    assert schedule.capacities(nominal, step, seed) == nominal


def test_constant_only_without_both():
    assert not CapacitySchedule(warmup=0.1).constant
    assert not CapacitySchedule(elastic=(0.25, 1.0)).constant


# ------------------------------------------------------------------------------------------------------------ warm-up


@FEW
@given(warmup=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.99]), epochs=st.integers(1, 300))
def test_the_warmup_is_a_share_of_the_epochs_and_the_last_one_is_routed(warmup, epochs):
    first = CapacitySchedule(warmup=warmup).first_routed(epochs)
    assert 0 <= first <= epochs - 1
    assert first == pytest.approx(warmup * epochs, abs=0.5) or first == epochs - 1


# ------------------------------------------------------------------------------------------------------------ elastic


@FEW
@given(capacity=CAPACITIES.filter(lambda c: c < 1), elastic=RANGES, seed=SEEDS)
def test_draws_stay_within_the_range(capacity, elastic, seed):
    low, high = elastic
    for capacities in run(CapacitySchedule(elastic=elastic), equal_layers(capacity), 60, seed):
        assert len(set(capacities)) == 1
        assert low - 1e-6 <= capacities[0] <= min(1.0, high + GRAIN)


@FEW
@given(capacity=CAPACITIES.filter(lambda c: c < 1), elastic=RANGES, start=st.integers(0, 1000), seed=SEEDS)
def test_three_steps_hold_the_lowest_and_the_highest(capacity, elastic, start, seed):
    schedule = CapacitySchedule(elastic=elastic)
    drawn = [schedule.capacities(equal_layers(capacity), start + i, seed)[0][0] for i in range(3)]
    for end in elastic:
        assert any(end - 1e-6 <= c < end + GRAIN for c in drawn)


@FEW
@given(low=st.integers(2, 31), high=st.integers(3, 32), capacity=st.integers(1, 31), seed=SEEDS)
def test_ends_on_the_grid_are_met_exactly(low, high, capacity, seed):
    low, high = sorted((low / 32, high / 32))
    schedule = CapacitySchedule(elastic=(low, high))
    drawn = {c for capacities in run(schedule, equal_layers(capacity / 32), 30, seed) for c in capacities}
    assert (min(drawn), max(drawn)) == (low, high)


def test_draws_cover_the_range():
    drawn = [row[0] for row in run(CapacitySchedule(elastic=(0.25, 0.75)), equal_layers(0.5), 600)]
    assert set(drawn) == {i / 32 for i in range(8, 25)}
    assert sum(drawn) / 600 == pytest.approx(0.5, abs=0.02)
    assert drawn.count(0.25) >= 200
    assert drawn.count(0.75) >= 200


@FEW
@given(
    nominal=st.sampled_from([[(0.5, 0.25)], [(0.5,), (0.25,)], [(0.6, 0.6, 0.3), (0.3,)], [(1.0, 0.5), (0.25,)]]),
    drawn=st.floats(0.05, 1.0),
)
def test_unequal_layers_share_what_is_drawn(nominal, drawn):
    """Below the model's own mean its capacities shrink in proportion, above it what each lacks of 1 does."""
    own = [c for c in flat(nominal) if c < 1]
    mean = sum(own) / len(own)
    now = flat(CapacitySchedule(elastic=(drawn / 2, drawn)).capacities(nominal, 1, 0))  # step 1 takes the highest
    routed = [new for new, old in zip(now, flat(nominal), strict=True) if old < 1]
    for old, new in zip(own, routed, strict=True):
        expected = old * drawn / mean if drawn <= mean else 1 - (1 - old) * (1 - drawn) / (1 - mean)
        assert expected - 1e-6 <= new <= expected + GRAIN
    assert drawn - 1e-6 <= sum(routed) / len(routed) <= drawn + GRAIN
    assert all(new == 1 for new, old in zip(now, flat(nominal), strict=True) if old == 1)


# ---------------------------------------------------------------------------------------------------------- any kind

ANY = st.builds(CapacitySchedule, warmup=st.sampled_from([0.0, 0.1, 0.5]), elastic=st.none() | RANGES)


@FEW
@given(schedule=ANY, nominal=LAYERS, seed=SEEDS)
def test_all_capacities_can_be_set(schedule, nominal, seed):
    """In (0, 1] and not increasing over the blocks of a layer, and blocks at 1 stay at 1."""
    for step in range(40):
        for own, layer in zip(nominal, schedule.capacities(nominal, step, seed), strict=True):
            assert capacity_per_depth(layer, len(own)) == layer
            assert all(now == 1 for c, now in zip(own, layer, strict=True) if c == 1)


@FEW
@given(schedule=ANY, nominal=LAYERS, step=st.integers(0, 100), seed=SEEDS)
def test_a_step_needs_no_history(schedule, nominal, step, seed):
    """A resumed training and another rank see what an unbroken training on one device sees."""
    at_once = schedule.capacities(nominal, step, seed)
    run(schedule, nominal, step, seed)
    again = CapacitySchedule(schedule.warmup, schedule.elastic)
    assert schedule.capacities(nominal, step, seed) == at_once
    assert again.capacities(list(nominal), step, seed) == at_once


def test_the_draw_is_the_same_in_every_process(run_cli, tmp_path):
    """Python's own hash of a text differs between processes."""
    schedule = CapacitySchedule(elastic=(0.1, 1.0))
    code = (
        "from mod_vision.routing.schedule import CapacitySchedule as C;"
        "print([C(elastic=(0.1, 1.0)).capacities([(0.5,)], step, 7)[0][0] for step in range(30)])"
    )
    done = run_cli("python", "-c", code, cwd=tmp_path, PYTHONHASHSEED="1", MOD_VISION_AUTOLOAD="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([row[0] for row in run(schedule, [(0.5,)], 30, 7)])


def test_the_draw_varies_with_seed_and_step():
    schedule = CapacitySchedule(elastic=(0.25, 1.0))
    drawn = {seed: tuple(row[0] for row in run(schedule, equal_layers(0.5), 90, seed)[2::3]) for seed in range(10)}
    assert len(set(drawn.values())) == 10
    assert all(len(set(steps)) > 8 for steps in drawn.values())
