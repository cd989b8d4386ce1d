"""The coarse pass: large objects are its own, small ones the windows', and one of a pair that overlaps stays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import randomise
from torchvision.ops import box_iou
from ultralytics.nn import tasks
from ultralytics.utils.ops import process_mask

from mod_vision.routing.padding import GRAY
from mod_vision.yolo.model.coarse import KEPT, OVERLAP, OWN, cell_scores, largest_for_windows, merge
from mod_vision.yolo.model.windows import head_of, overview

WINDOW, SHARE = 128, 0.25


def fake_head(end2end: bool = True, **own: Any) -> Any:
    """What merging asks a head."""
    entry = SimpleNamespace(window=WINDOW, cell=32)
    common = {"coarse": SHARE, "entry": entry, "export": True, "xyxy": False, "nc": 2, "max_det": 300}
    return SimpleNamespace(**common, end2end=end2end, **own)


def row(x: float, y: float, side: float, score: float, kind: int = 0) -> list[float]:
    return [x, y, x + side, y + side, score, kind]


def merged(fine: list[list[float]], coarse: list[list[float]]) -> list[list[float]]:
    """Rows of both, those of the coarse pass given in px of the full image."""
    small = torch.tensor([coarse]) * torch.tensor([SHARE] * 4 + [1, 1])
    found = merge(torch.tensor([fine]), small, fake_head())[0]
    return found[found[:, 4] > 0].tolist()


def test_each_has_its_sizes():
    """In a band around half a window both count."""
    sides = (40, 63, 65, 95, 97, 200)
    fine = [row(300 * n, 0, side, 0.5) for n, side in enumerate(sides)]
    coarse = [row(300 * n, 900, side, 0.4) for n, side in enumerate(sides)]
    found = merged(fine, coarse)
    kept = {(round(r[2] - r[0]), round(r[4], 1)) for r in found}
    assert kept == {(40, 0.5), (63, 0.5), (65, 0.5), (95, 0.5), (65, 0.4), (95, 0.4), (97, 0.4), (200, 0.4)}
    assert (OWN * WINDOW, KEPT * WINDOW) == (64, 96)
    assert largest_for_windows(fake_head()) == 96


@pytest.mark.parametrize(
    ("fine", "coarse", "stays"),
    [
        (row(0, 0, 80, 0.5), row(4, 4, 80, 0.4), [0.5]),
        (row(0, 0, 80, 0.4), row(4, 4, 80, 0.5), [0.5]),
        (row(0, 0, 80, 0.5), row(4, 4, 80, 0.5), [0.5]),  # the windows' of equals
        (row(0, 0, 80, 0.5), row(4, 4, 80, 0.4, 1), [0.5, 0.4]),  # another class
        (row(0, 0, 80, 0.5), row(60, 60, 80, 0.4), [0.5, 0.4]),  # too little in common
        (row(0, 0, 120, 0.9), row(4, 4, 120, 0.4), [0.4]),  # too large for the windows: no rival
    ],
)
def test_one_of_a_pair_stays(fine, coarse, stays):
    found = merged([fine], [coarse])
    assert [round(r[4], 2) for r in found] == stays
    if fine[4] == coarse[4]:
        assert found[0][0] == 0


def squares(n: int) -> torch.Tensor:
    """Detections of both classes, 50 to 110 px wide, close to each other."""
    low, side = torch.rand(n, 2) * 200, torch.rand(n, 1) * 60 + 50
    return torch.cat((low, low + side, torch.rand(n, 1), torch.randint(0, 2, (n, 1))), 1)


def test_pairs_like_a_loop():
    torch.manual_seed(0)
    fine, coarse = (squares(40) for _ in range(2))
    scale = torch.tensor([SHARE] * 4 + [1, 1])
    found = merge(fine[None], (coarse * scale)[None], fake_head())[0]
    side = [(part[:, 2:4] - part[:, :2]).amax(1) for part in (fine, coarse)]
    mine, theirs = fine[side[0] <= 96], coarse[side[1] > 64]
    rivals = (box_iou(mine[:, :4], theirs[:, :4]) > OVERLAP) & (mine[:, None, 5] == theirs[None, :, 5])
    assert rivals.any()
    beats = theirs[None, :, 4] > mine[:, None, 4]
    kept = [*mine[~(rivals & beats).any(1)].tolist(), *theirs[~(rivals & ~beats).any(0)].tolist()]
    expected = torch.tensor(sorted(kept, key=lambda r: -r[4]))
    torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-4, atol=1e-4)
    assert float(found[len(expected) :, 4].abs().sum()) == 0


def test_models_with_nms_keep_both_lists():
    """Scores of the wrong size are 0, and boxes of the coarse pass are in px of the image; NMS does the rest."""
    fine = torch.tensor([[[50.0, 50, 40, 40, 0.1, 0.9]], [[60.0, 60, 120, 120, 0.1, 0.9]]]).transpose(1, 2)
    coarse = torch.tensor([[[20.0, 20, 30, 30, 0.2, 0.7]], [[20.0, 20, 5, 5, 0.2, 0.7]]]).transpose(1, 2)
    found = merge(fine, coarse, fake_head(end2end=False))
    assert found.shape == (2, 6, 2)
    assert found[0, :, 1].tolist() == pytest.approx([80, 80, 120, 120, 0.2, 0.7])
    assert found[0, 4:, 0].tolist() == pytest.approx([0.1, 0.9])
    assert found[1, 4:].abs().sum() == 0


def test_keypoints_are_scaled_and_angles_are_not():
    pose = fake_head(kpt_shape=(2, 3), nk=6)
    coarse = torch.tensor([[[0.0, 0, 30, 30, 0.9, 0, 4, 8, 0.5, 12, 16, 0.6]]])
    found = merge(torch.zeros(1, 1, 12), coarse, pose)[0, 0]
    assert found.tolist() == pytest.approx([0, 0, 120, 120, 0.9, 0, 16, 32, 0.5, 48, 64, 0.6])
    turned = fake_head(ne=1)
    found = merge(torch.zeros(1, 1, 7), torch.tensor([[[15.0, 15, 30, 30, 0.9, 0, 1.5]]]), turned)[0, 0]
    assert found.tolist() == pytest.approx([60, 60, 120, 120, 0.9, 0, 1.5])


def test_cells_that_a_box_touches_have_its_score():
    coarse = torch.tensor([[[1.0, 9, 15, 15, 0.8, 0], [0, 0, 7, 7, 0.3, 1]]])
    scores = cell_scores(coarse, fake_head(), torch.Size((96, 128))).sigmoid()[0, 0]
    expected = torch.full((3, 4), 1e-4)
    expected[1, :2], expected[0, 0] = 0.8, 0.3
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-5)


def test_the_small_image_has_whole_cells():
    small = overview(torch.ones(1, 3, 160, 224), 4, 32)
    assert small.shape == (1, 3, 64, 64)
    assert float(small[0, :, :40, :56].min()) == 1
    assert float(small[0, :, 40:].max()) == pytest.approx(GRAY)


@torch.no_grad()
def test_masks_of_large_objects_are_those_of_the_coarse_pass():
    """Each object's mask is made from its own prototypes, whatever Ultralytics knows of two passes."""
    model = randomise(tasks.SegmentationModel(segmenter(), verbose=False)).eval()
    model.end2end = True
    head = head_of(model)
    x = torch.rand(1, 3, 256, 256)
    (found, proto), _ = model(x)
    with head.entry.whole_image():
        (alone, small), _ = model(overview(x, 4, 32))
    nm = head.nm
    large = found[0, found[0, :, 6 : 6 + nm].abs().sum(1) == 0]
    large = large[(large[:, 4] > 0) & (large[:, 6 + nm :].abs().sum(1) > 0)]
    assert len(large)
    assert proto.shape == (1, 2 * nm, 64, 64)
    masks = process_mask(proto[0], large[:, 6:], large[:, :4], (256, 256), upsample=True)
    same = [(alone[0, :, 6:] - row[6 + nm :]).abs().amax(1).argmin() for row in large]
    own = alone[0, same]
    expected = process_mask(small[0, :, :16, :16], own[:, 6:], own[:, :4], (64, 64), upsample=True)
    wide = expected.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert float((wide.bool() ^ masks.bool()).float().mean()) < 0.05


def segmenter() -> dict[str, Any]:
    d = tasks.yaml_model_load("yolo26n-seg.yaml")
    return d | {"mod": {"windows": {"size": 64, "capacity": 0.3, "coarse": 0.25}}}
