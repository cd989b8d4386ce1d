"""What a conversion says of images that get no window."""

from __future__ import annotations

import pytest

from mod_vision.conversion.empty import Timed, time_val
from mod_vision.routing.placing import gains_of
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of
from mod_vision.yolo.run.images import read_images
from mod_vision.yolo.run.letterbox import forward_letterboxed


@pytest.mark.parametrize(
    ("timed", "told"),
    [
        (
            Timed([10.0, 40.0, 12.0, 50.0], [0, 3, 0, 4], 4),
            "empty: 2 of val's 4 images (50 %) get no window by * and take 11.0 ms (median); the mean of all 4 is "
            "28.0 ms",
        ),
        (
            Timed([40.0, 50.0], [3, 4], 9),
            "empty: each of 2 images of val gets a window by *; the mean of all 2 is 45.0 ms; val has 9 images, of "
            "which these were timed",
        ),
        (
            Timed([10.0, 40.0], [0, 3], 9),
            "empty: 1 of 2 images of val (50 %) get no window by * and take 10.0 ms (median); the mean of all 2 is "
            "25.0 ms; val has 9 images, of which these were timed",
        ),
    ],
)
def test_what_is_said_of_empty_images(timed, told):
    assert timed.sentence().startswith(told)


def test_empty_images_are_those_that_get_no_window(drones):
    """With a threshold between what images are worth, half of them are empty."""
    routed = load_model("yolo26n-mod-hituav.pt")
    entry, worth = head_of(routed.model).entry, []
    for photo in read_images(sorted((drones.parent / "images" / "val").glob("*.jpg"))):
        forward_letterboxed(routed.model, photo, 384)
        worth.append(float(gains_of(entry.plan)[0]))
    worth.sort()
    assert worth[2] < worth[3]
    for threshold, empty in ((0.0, 0), ((worth[2] + worth[3]) / 2, 3), (worth[-1] + 1, 6)):
        entry.set_threshold(threshold)
        timed = time_val(routed, str(drones), 384)
        assert (timed.images, len(timed.ms), min(timed.ms) > 0) == (6, 6, True)
        assert timed.windows.count(0) == empty
