"""Which windows a conversion chooses: what they would show, what they take, and the best within a time."""

from __future__ import annotations

import pytest
import torch
from ultralytics import YOLO

import mod_vision
from mod_vision.conversion.choice import best_within, settings_of, sparse
from mod_vision.conversion.job import with_router
from mod_vision.conversion.seen import WHOLE, Seen, doubts_of, look_at, shown_by
from mod_vision.conversion.timing import WindowTime, _few_and_many, time_windows
from mod_vision.routing.lost_objects import Objects, shown_share
from mod_vision.routing.placing import plan_windows, window_count


@pytest.mark.parametrize("router", ["look", "stem"])
def test_models_of_stride_64_see_images_of_its_multiples(scenes, router):
    yolo = with_router(YOLO("yolov8n-p6.yaml"), router)
    mod_vision.set_capacity(yolo, 1e-3)
    assert {seen.plan.cell for seen in look_at(yolo, str(scenes), 224, "val")} == {64}


def seen(seed: int, objects: int = 6, size: tuple[int, int] = (12, 16)) -> Seen:
    torch.manual_seed(seed)
    logits = torch.randn(1, size[0] * size[1]) * 2 - 3
    low = torch.rand(objects, 2) * torch.tensor([size[1] * 32 - 40, size[0] * 32 - 40])
    boxes = torch.cat((low, low + 5 + torch.rand(objects, 2) * 30), 1)
    plan = plan_windows(logits, size, (4, 4), 1)
    doubts = doubts_of(plan, (boxes[:, :2] + boxes[:, 2:]) / 2, torch.zeros(objects, dtype=torch.long))
    return Seen(plan, boxes, torch.ones(objects, dtype=torch.bool), doubts)


def test_a_doubt_is_minus_the_logarithm_of_the_probability_of_the_class():
    logits, size = torch.zeros(1, 12), (3, 4)
    classes = torch.randn(1, 2, 12, generator=torch.Generator().manual_seed(0))
    plan = plan_windows(logits, size, (1, 1), 1)._replace(classes=classes)
    centres = torch.tensor([[40.0, 70.0], [127.9, 0.0], [300.0, -5.0]])  # the last is off the image
    found = doubts_of(plan, centres, torch.tensor([1, 0, 1]))
    expected = -torch.stack([classes[0, 1, 9], classes[0, 0, 3], classes[0, 1, 3]]).sigmoid().log()
    torch.testing.assert_close(found, expected)
    assert doubts_of(plan._replace(classes=None), centres, torch.tensor([1, 0, 1])).tolist() == pytest.approx(
        [0.6931] * 3, abs=1e-3
    )


@pytest.mark.parametrize("size", [128, 192])
def test_what_windows_would_show_is_what_they_show(size):
    image = seen(0)
    shown = shown_by(image, size)
    for threshold in (0.05, 0.4, 1.0):
        window = (size // 32, size // 32)
        most = window_count(image.plan.size, window, 1.0)
        plan = plan_windows(image.plan.logits, image.plan.size, window, most, least=threshold)
        i = shown.chosen(threshold)
        assert plan.width == shown.counts[i]
        objects = Objects(image.boxes, torch.ones(6), torch.zeros(6, dtype=torch.long), [""] * 6)
        assert shown.lost[i] == int((shown_share(plan, objects) < WHOLE).sum())


def test_the_choice_loses_least_within_the_time():
    images = [seen(i) for i in range(6)]
    times = {(128, 0.0): WindowTime(20, 5), (192, 0.0): WindowTime(20, 9)}
    settings = settings_of("look", images, 100.0, times)
    assert {setting.size for setting in settings} == {128, 192}
    mean = float(torch.cat([image.doubts for image in images]).mean())
    assert all(setting.doubt == pytest.approx(mean, abs=1e-4) for setting in settings)
    lost = [best_within(settings, ms) for ms in (30, 50, 70)]
    assert all(setting.ms <= ms for setting, ms in zip(lost, (30, 50, 70), strict=True))
    assert lost[0].lost >= lost[1].lost >= lost[2].lost
    assert lost[0].lost > lost[2].lost
    for setting in settings:
        assert setting.crowded == pytest.approx(100 / times[setting.size, 0.0].each * (setting.size // 32) ** 2 / 192)
    fastest = min(settings, key=lambda s: s.ms)
    assert best_within(settings, 1.0).ms == fastest.ms, "nothing is so fast, so the fastest"


def test_windows_that_compute_more_than_the_whole_image_are_no_choice():
    """Not though they were measured to be as fast; unless there are no others, which the verdict will refuse."""
    images = [seen(i, size=(9, 11)) for i in range(3)]
    settings = settings_of("look", images, 100.0, {(256, 0.0): WindowTime(1, 0.1)})
    more = [setting for setting in settings if setting.share >= 1]
    assert min(setting.lost for setting in settings) == min(setting.lost for setting in more)
    assert max(setting.share for setting in more) == pytest.approx(1.29, abs=0.005)
    left = sparse(settings)
    assert left == [setting for setting in settings if setting not in more]
    assert len(left) > 0
    assert best_within(left, 100.0).share < 1
    assert sparse(more) == more


def test_crowded_images_lose_nothing_and_cost_the_dense_time():
    settings = settings_of("look", [seen(0)], 10.0, {(128, 0.0): WindowTime(4, 50)})
    setting = min(settings, key=lambda s: s.threshold)
    assert setting.share == 1
    assert setting.ms == 14
    assert setting.lost == 0


def test_a_coarse_pass_counts_for_what_it_finds():
    """Objects larger than a window are lost without one, and with one that does not find them."""
    image = seen(0)
    y, x = (float(n) for n in image.plan.corners[0, 0] * 32 + 40)  # within the first window
    boxes = torch.tensor([[0.0, 0.0, 300.0, 200.0], [100.0, 100.0, 350.0, 300.0], [x, y, x + 9, y + 9]])
    image = image._replace(boxes=boxes, coarse=torch.tensor([True, False, False]))
    lost = []
    for coarse in (0.0, 0.25):
        settings = settings_of("look", [image], 1e4, {(128, coarse): WindowTime(1, 1)})
        lost.append(min(setting.lost for setting in settings))
    assert lost == [pytest.approx(2 / 3), pytest.approx(1 / 3)]


def test_times_of_windows():
    yolo = YOLO("yolo26n-mod.yaml")
    dense, times = time_windows(yolo, (64, 128), (0.0, 0.25), torch.rand(1, 3, 256, 384))
    assert times.keys() == {(64, 0.0), (64, 0.25), (128, 0.0), (128, 0.25)}
    assert dense > 0
    assert all(time.each >= 0 and time.base > 0 for time in times.values())
    assert min(time.each for time in times.values()) > 0, "more windows take more time"
    assert times[128, 0.0].of(3) == times[128, 0.0].base + 3 * times[128, 0.0].each


@pytest.mark.parametrize(("height", "width", "size", "counts"), [(160, 192, 128, [1, 2]), (384, 640, 320, [1, 2])])
def test_time_is_taken_of_different_numbers_of_windows(height, width, size, counts):
    """A tenth and half of a small image are as many windows; the difference is what one of them takes."""
    models = _few_and_many(YOLO("yolo26n-mod.yaml"), size, 0.0, torch.rand(1, 3, height, width))
    assert [count for count, _ in models] == counts
