"""The router's losses, against loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import FEW, SEEDS, normal
from hypothesis import given
from hypothesis import strategies as st

from mod_vision.routing.losses import (
    budget_loss,
    guide_anneal,
    guide_loss,
    token_weights,
    tokens_in_boxes,
    tokens_in_masks,
    z_loss,
)

UNIT = 64  # boxes have edges at multiples of 1/64 of the image, which floats hold exactly


@st.composite
def labelled_boxes(draw):
    """Boxes per image as integer edges (x0, y0, x1, y1) in units of 1/64."""
    span = st.tuples(st.integers(0, UNIT - 1), st.integers(1, UNIT)).map(lambda t: (t[0], min(t[0] + t[1], UNIT)))
    box = st.tuples(span, span).map(lambda t: (t[0][0], t[1][0], t[0][1], t[1][1]))
    return draw(st.lists(st.lists(box, max_size=3), min_size=1, max_size=4))


def cells_of(low: int, high: int, cells: int, unit: int) -> set[int]:
    """Cells that the pixels or units low..high of `unit` touch, counted on a grid fine enough for both."""
    return {fine // unit for fine in range(low * cells, high * cells)}


@FEW
@given(images=labelled_boxes(), height=st.integers(1, 9), width=st.integers(1, 9), order=st.randoms())
def test_tokens_in_boxes_equals_a_loop(images, height, width, order):
    expected = torch.zeros(len(images), height, width)
    labels = []
    for image, boxes in enumerate(images):
        for x0, y0, x1, y1 in boxes:
            labels.append((image, [(x0 + x1) / 2 / UNIT, (y0 + y1) / 2 / UNIT, (x1 - x0) / UNIT, (y1 - y0) / UNIT]))
            weight = max(1.0, (x1 - x0) * (y1 - y0) * height * width / UNIT**2) ** -0.5
            for row in cells_of(y0, y1, height, UNIT):
                for col in cells_of(x0, x1, width, UNIT):
                    expected[image, row, col] = max(expected[image, row, col], weight)
    order.shuffle(labels)  # labels need not come sorted by image
    boxes = torch.tensor([box for _, box in labels]).reshape(-1, 4)
    idx = torch.tensor([float(image) for image, _ in labels])
    torch.testing.assert_close(tokens_in_boxes(boxes, idx, len(images), (height, width)), expected)
    torch.testing.assert_close(tokens_in_boxes(boxes, idx[:, None], len(images), (height, width)), expected)


@FEW
@given(
    per_image=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    mask_size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=SEEDS,
)
def test_tokens_in_masks_equals_a_loop(per_image, mask_size, size, seed):
    images, (h, w) = len(per_image), mask_size
    idx = torch.tensor([i for i, count in enumerate(per_image) for _ in range(count)], dtype=torch.float32)
    number = torch.tensor([i + 1 for count in per_image for i in range(count)])
    drawn = torch.rand(len(idx), h, w, generator=torch.Generator().manual_seed(seed)) < 0.2
    joined = torch.zeros(images, h, w, dtype=torch.uint8)  # index map, later objects over earlier ones
    for i, image in enumerate(idx.long().tolist()):
        joined[image][drawn[i]] = number[i].to(torch.uint8)
    visible = torch.stack([joined[int(i)] == n for i, n in zip(idx, number, strict=True)]) if len(idx) else drawn

    def expected(masks: torch.Tensor) -> torch.Tensor:
        marks = torch.zeros(images, *size)
        for image, mask in zip(idx.long().tolist(), masks, strict=True):
            weight = max(1.0, int(mask.sum()) * size[0] * size[1] / (h * w)) ** -0.5
            for row, col in mask.nonzero().tolist():
                for i in cells_of(row, row + 1, size[0], h):
                    for j in cells_of(col, col + 1, size[1], w):
                        marks[image, i, j] = max(marks[image, i, j], weight)
        return marks

    torch.testing.assert_close(tokens_in_masks(joined, size, images, idx), expected(visible))
    torch.testing.assert_close(tokens_in_masks(drawn, size, images, idx, overlap=False), expected(drawn))
    torch.testing.assert_close(tokens_in_masks(drawn.float(), size, images, idx[:, None], False), expected(drawn))


def test_small_objects_weigh_more_by_token_and_less_in_all():
    areas = torch.tensor([0.1, 1.0, 4.0, 36.0])
    assert token_weights(areas).tolist() == pytest.approx([1.0, 1.0, 0.5, 1 / 6])


def test_no_label_marks_no_token():
    assert not tokens_in_boxes(torch.zeros(0, 4), torch.zeros(0), 2, (3, 4)).any()
    assert tokens_in_masks(torch.zeros(0, 8, 8), (3, 4), 2, torch.zeros(0), False).shape == (2, 3, 4)
    assert not tokens_in_masks(torch.zeros(2, 8, 8), (3, 4), 2, torch.zeros(0)).any()


def test_guide_loss_falls_as_logits_match():
    targets = tokens_in_boxes(torch.tensor([[0.25, 0.25, 0.5, 0.5]]).repeat(2, 1), torch.tensor([0.0, 1.0]), 2, (4, 4))
    signs = (targets.flatten(1) > 0) * 2.0 - 1
    losses = [guide_loss(scale * signs, targets).item() for scale in (-4.0, -1.0, 0.0, 1.0, 4.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[2] == pytest.approx(math.log(2))
    assert losses[-1] < 0.05


def test_guide_loss_weighs_objects_and_background_alike():
    targets = torch.zeros(1, 10, 10)
    targets[0, 3, 3] = 1.0  # one object token against 99
    logits = torch.zeros(1, 100, requires_grad=True)
    guide_loss(logits, targets).backward()
    on_object = targets.flatten(1) > 0
    assert logits.grad[on_object].sum().item() == pytest.approx(-0.25)
    assert logits.grad[~on_object].sum().item() == pytest.approx(0.25)


def test_guide_loss_weighs_a_small_object_by_its_token():
    """A sign of one token pulls as a car of 36 does with six of its tokens."""
    targets = tokens_in_boxes(
        torch.tensor([[0.05, 0.05, 0.1, 0.1], [0.6, 0.6, 0.6, 0.6]]), torch.zeros(2), 1, (10, 10)
    ).flatten(1)
    logits = torch.zeros(1, 100, requires_grad=True)
    guide_loss(logits, targets).backward()
    sign, car = logits.grad[0, 0].item(), logits.grad[0][targets[0] == targets[0, 55]].sum().item()
    assert car / sign == pytest.approx(6, rel=1e-3)


@FEW
@given(images=st.integers(1, 5), tokens=st.integers(1, 20), seed=SEEDS)
def test_guide_loss_does_not_depend_on_the_batch(images, tokens, seed):
    """So it is the same however the images are spread over ranks, empty images included."""
    logits, targets = normal(seed, images, tokens), normal(seed + 1, images, tokens).clamp(min=0)
    targets[0] = 0
    alone = [guide_loss(logits[i : i + 1], targets[i : i + 1]) for i in range(images)]
    torch.testing.assert_close(guide_loss(logits, targets), torch.stack(alone).mean())


@FEW
@given(tokens=st.integers(2, 30), seed=SEEDS)
def test_guide_gradient_is_that_of_the_closed_form(tokens, seed):
    logits = normal(seed, 1, tokens).requires_grad_()
    weights = normal(seed + 1, 1, tokens).clamp(min=0)
    guide_loss(logits, weights).backward()
    objects = weights > 0
    share = weights / weights.sum().clamp(min=1e-6) + (~objects) / (~objects).sum().clamp(min=1)
    torch.testing.assert_close(logits.grad, 0.5 * share * (logits.detach().sigmoid() - objects.float()))


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_guide_loss_is_finite_with_one_side_only(fill):
    logits = normal(0, 2, 12).requires_grad_()
    loss = guide_loss(logits, torch.full((2, 3, 4), fill))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert (logits.grad.sign() == (1 if fill == 0 else -1)).all()


def test_guide_weight_falls_along_a_cosine():
    assert [guide_anneal(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.6, 0.2])
    steps = [guide_anneal(i / 50) for i in range(51)]
    assert steps == sorted(steps, reverse=True)


def test_budget_loss_pulls_the_mean_to_the_capacity():
    logits = torch.zeros(2, 8, requires_grad=True)
    assert budget_loss(logits, 0.5).item() == 0
    loss = budget_loss(logits, 0.25)
    assert loss.item() == pytest.approx(0.25**2)
    loss.backward()
    assert (logits.grad > 0).all(), "too many are routed, so the logits go down"


def test_z_loss_is_the_mean_square():
    logits = normal(1, 3, 7).requires_grad_()
    z_loss(logits).backward()
    torch.testing.assert_close(z_loss(logits), (logits**2).mean())
    torch.testing.assert_close(logits.grad, 2 * logits.detach() / 21)


@pytest.mark.parametrize("loss", [lambda x: guide_loss(x, torch.ones(1, 4)), lambda x: budget_loss(x, 0.5), z_loss])
def test_losses_are_computed_in_full_precision(loss):
    logits = torch.tensor([[300.0, -300.0, 5.0, 0.0]], dtype=torch.float16)
    assert loss(logits).dtype == torch.float32
    assert loss(logits).isfinite()


def test_the_smallest_object_decides():
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.375, 0.375, 0.25, 0.25]])  # 16 tokens, and one of them
    for order in ([0, 1], [1, 0]):
        tokens = tokens_in_boxes(boxes[order], torch.zeros(2), 1, (4, 4))[0]
        expected = torch.full((4, 4), 0.25)
        expected[1, 1] = 1.0
        assert torch.equal(tokens, expected)


def test_a_mask_weighs_by_its_area_as_a_box_does():
    masks = torch.zeros(1, 48, 48, dtype=torch.uint8)
    masks[0, :24, :24], masks[0, 40:44, 40:44] = 1, 2  # 36 tokens and one
    logits = torch.zeros(1, 144, requires_grad=True)
    guide_loss(logits, tokens_in_masks(masks, (12, 12), 1, torch.zeros(2))).backward()
    pull = logits.grad.view(12, 12)
    assert pull[10, 10].item() == pytest.approx(-0.25 / 7)
    assert pull[:6, :6].sum().item() == pytest.approx(-0.25 * 6 / 7)


@FEW
@given(tokens=st.integers(1, 20), order=st.permutations(range(4)), seed=SEEDS)
def test_gradients_do_not_depend_on_how_a_batch_is_spread(tokens, order, seed):
    """Two ranks with half of the images each, whose gradients are averaged, do as one with all."""
    logits, weights = normal(seed, 4, tokens).requires_grad_(), normal(seed + 1, 4, tokens).clamp(min=0)
    for loss in (guide_loss, lambda x, _: z_loss(x)):
        (joint,) = torch.autograd.grad(loss(logits, weights), logits)
        ranks = [loss(logits[half], weights[half]) for half in (order[:2], order[2:])]
        (spread,) = torch.autograd.grad(sum(ranks) / 2, logits)
        torch.testing.assert_close(spread, joint)


@FEW
@given(images=st.integers(1, 4), tokens=st.integers(1, 40), capacity=st.floats(0.01, 1), seed=SEEDS)
def test_budget_loss_and_its_gradient_are_those_of_the_closed_form(images, tokens, capacity, seed):
    """The losses compute in float32, too coarse for gradcheck's differences."""
    logits = 3 * normal(seed, images, tokens).double()
    probability = 1 / (1 + (-logits).exp())
    gap = probability.mean() - capacity
    logits.requires_grad_()
    loss = budget_loss(logits, capacity)
    loss.backward()
    torch.testing.assert_close(loss.double(), gap**2, rtol=1e-4, atol=1e-6)
    closed = 2 * gap * probability * (1 - probability) / logits.numel()
    torch.testing.assert_close(logits.grad, closed, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_large_logits_in_half_precision(dtype):
    """Half a million squares of 20 are 2e8, beyond float16, and a sum in bfloat16 stops growing at a few hundred."""
    logits, marks = torch.full((1, 2**19), 20.0, dtype=dtype), torch.zeros(1, 2**19)
    marks[0, 0] = 1.0
    assert z_loss(logits).item() == pytest.approx(400.0)
    assert budget_loss(logits, 0.5).item() == pytest.approx(0.25)
    assert guide_loss(logits, marks).item() == pytest.approx(10.0, rel=1e-4)
