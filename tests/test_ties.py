"""Which tokens are routed where scores tie, and where the image is padded: the same ones in every runtime."""

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import FEW, SEEDS, normal
from helpers import layers, routing_order
from hypothesis import given
from hypothesis import strategies as st
from test_export import calibrated
from ultralytics.data.augment import LetterBox

from mod_vision.nn import MoDStage
from mod_vision.nn.attention_windows import best_slots, window_slots
from mod_vision.resources import find_file, find_shipped
from mod_vision.routing import Routed, num_routed
from mod_vision.routing.padding import Frame, padded_images
from mod_vision.routing.rank import INT32_TOKENS, rank
from mod_vision.yolo.export.check import check_export
from mod_vision.yolo.export.exporter import export_model, input_tensors
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.letterbox import letterbox

SIZE = 160
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
FEW_VALUES = st.sampled_from([-3e38, -40.0, -1.0, -1e-4, 0.0, 1e-4, 0.5, 0.5001, 7.0, 7.001, 3e38])


@FEW
@given(
    scores=st.lists(st.one_of(FEW_VALUES, st.floats(-20, 20, width=32)), min_size=1, max_size=50),
    dtype=st.sampled_from(DTYPES),
    seed=SEEDS,
)
def test_ranks_are_unique_and_follow_score_then_position(scores, dtype, seed):
    """Padding comes after all else."""
    values = torch.tensor(scores, dtype=torch.float64).to(dtype)
    inside = torch.rand(len(scores), generator=torch.Generator().manual_seed(seed)) > 0.3
    assert rank(values).unique().numel() == len(scores)
    by_hand = routing_order(values.float().clamp(-7e13, 7e13))  # beyond e^32 all are equal
    assert rank(values).argsort(descending=True).tolist() == by_hand
    padded = sorted(by_hand, key=lambda i: not inside[i])
    assert rank(values, inside).argsort(descending=True).tolist() == padded
    assert torch.equal(rank(values, torch.zeros_like(inside)).argsort(), rank(values).argsort())


@pytest.mark.parametrize("tokens", [INT32_TOKENS, INT32_TOKENS + 1])
def test_ranks_do_not_overflow(tokens):
    scores = torch.full((tokens,), 3e38)
    scores[1::2] *= -1
    ranks = rank(scores, scores > 0).tolist()
    assert sorted(ranks, reverse=True) == ranks[::2] + ranks[1::2]
    assert len(set(ranks)) == tokens


@FEW
@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.sampled_from([None, 2, 3]),
    share=st.floats(0.01, 1),
    seed=SEEDS,
)
def test_windows_rank_like_the_whole_map(grid, window, share, seed):
    """With whole numbers for scores, so that many tie."""
    tokens = grid[0] * grid[1]
    logits, inside = normal(seed, 2, tokens).round(), normal(seed + 1, 2, tokens) > -0.5
    slots = window_slots(grid, window, logits.device)
    k = num_routed(slots.shape[1], share)
    _, chosen = best_slots(logits, slots, k, inside)
    for image in range(2):
        order = sorted(routing_order(logits[image]), key=lambda i: not inside[image, i])
        for row, found in zip(slots.tolist(), chosen[image].tolist(), strict=True):
            wanted = [token for token in order if token in row][:k]
            assert found == wanted + [tokens] * (k - len(wanted))


# ----------------------------------------------------------------------------------------------------------- padding


def framed(photo: np.ndarray, top: int, left: int, bottom: int, right: int) -> torch.Tensor:
    """Return a photo (H, W, 3) in a gray frame as Ultralytics pads it, (1, 3, H, W) of 8 bits."""
    grown = cv2.copyMakeBorder(photo, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114, 114, 114))
    return torch.from_numpy(grown).permute(2, 0, 1)[None]


@FEW
@given(
    photo=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    frame=st.tuples(*[st.integers(0, 40)] * 4),
    stride=st.sampled_from([1, 4, 8]),
    dtype=st.sampled_from(DTYPES),
    seed=SEEDS,
)
def test_padding_is_found(photo, frame, stride, dtype, seed):
    """A token is padding if no pixel of the photo is in its cell; gray within the photo is none."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*photo, 3), dtype=np.uint8)
    pixels[rng.random(photo) < 0.5] = 114
    pixels[[0, -1, 0, -1], [0, -1, -1, 0]] = (113, 114, 114)  # one level off, in one channel
    image = framed(pixels, *frame).to(dtype) / 255
    height, width = image.shape[2:]
    grid = -(-height // stride), -(-width // stride)
    top, left = frame[:2]
    found = Frame(image).inside(grid).view(grid)
    for row in range(grid[0]):
        for col in range(grid[1]):
            rows = row * height / grid[0] < top + photo[0] and (row + 1) * height / grid[0] > top
            cols = col * width / grid[1] < left + photo[1] and (col + 1) * width / grid[1] > left
            assert found[row, col] == (rows and cols)


def test_each_image_of_a_batch_has_its_own_padding():
    photo = np.zeros((16, 32, 3), np.uint8)
    images = torch.cat([framed(photo, 8, 0, 8, 0), framed(photo, 16, 0, 0, 0), torch.full((1, 3, 32, 32), 114)])
    inside = Frame(images.float() / 255).inside((4, 4)).view(3, 4, 4)
    assert inside.all(dim=2).tolist() == [[False, True, True, False], [False, False, True, True], [False] * 4]


@FEW
@given(rows=st.integers(1, 8), share=st.floats(0.01, 0.99), seed=SEEDS)
def test_padding_uses_up_no_capacity(rows, share, seed):
    photo = np.random.default_rng(seed).integers(0, 100, (8 * rows, 64, 3), dtype=np.uint8)
    layer = Routed(torch.nn.Identity(), 4, share, "norm")
    with padded_images(framed(photo, 0, 0, 64 - 8 * rows, 0) / 255):
        layer(normal(seed, 1, 64, 4), (8, 8))
    kept = layer.plan.kept()[0]
    assert kept.sum() == num_routed(64, share)
    assert kept[:rows].all() or not kept[rows:].any()


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_a_blank_image_in_any_precision(dtype):
    stage = MoDStage(32, 32, 1, router="norm").to(dtype).eval()
    with padded_images(torch.zeros(2, 3, 64, 64)), torch.no_grad():
        stage(torch.zeros(2, 32, 8, 8, dtype=dtype))
    assert stage.plan.indices.tolist() == [list(range(32))] * 2


def test_compiled_layers_route_as_eager_ones_do():
    """Without graph breaks, padding included."""
    photo = np.random.default_rng(0).integers(0, 255, (24, 64, 3), dtype=np.uint8)
    images = torch.cat([framed(photo, 16, 0, 24, 0) / 255, torch.full((1, 3, 64, 64), 0.5)])
    stage = MoDStage(3, 32, 1).eval()

    def run(images):
        with padded_images(images):
            return stage(torch.nn.functional.avg_pool2d(images, 8))

    with torch.no_grad():
        eager = run(images), stage.plan.indices
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(images), stage.plan.indices
    assert torch.equal(eager[1], compiled[1])
    torch.testing.assert_close(eager[0], compiled[0])
    assert set(eager[1][0].tolist()) >= set(range(16, 40)), "all of the photo, 3 of 8 rows, at capacity 0.5"


# ----------------------------------------------------------------------------------------------------- whole networks


def panorama(photo, turned: bool) -> torch.Tensor:
    wide = cv2.resize(cv2.imread(str(photo)), (500, 100))
    return letterbox(np.rot90(wide).copy() if turned else wide, (SIZE, SIZE), 32, auto=False)[0]


def hard_images(photos) -> list[torch.Tensor]:
    """Panoramas, blank images, a photo beside itself, a chessboard."""
    colours = torch.tensor([[0.0, 0, 0], [1, 1, 1], [114, 114, 114], [0.2, 0.5, 0.9]])
    colours[2] /= 255
    images = [panorama(photo, turned) for photo in photos[:3] for turned in (False, True)]
    images += [colour[None, :, None, None].expand(1, 3, SIZE, SIZE).contiguous() for colour in colours]
    twice = letterbox(cv2.resize(cv2.imread(str(photos[0])), (SIZE // 2, SIZE)), (SIZE, SIZE), 32, auto=False)[0]
    twice[..., SIZE // 2 :] = twice[..., : SIZE // 2]
    board = (torch.arange(SIZE)[:, None] // 32 + torch.arange(SIZE) // 32) % 2
    return [*images, twice, board.float().expand(1, 3, SIZE, SIZE).contiguous()]


def checkpoint_of(name, photos, folder):
    if name.endswith(".pt"):
        (folder / name).write_bytes(find_file(name).read_bytes())
        return folder / name
    if name == "windows":
        d = yaml.safe_load(find_shipped("yolo26-mod-vit-t.yaml").read_text())
        d["backbone"][0][3] = [128, "vit_tiny_patch16_224", {"blocks": [[8, 11]], "window": 4}]
        name = folder / "windows.yaml"
        name.write_text(yaml.safe_dump(d))
    return calibrated(name, photos[:4], folder / "model.pt")


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("yolo26n-mod-hybrid-seg.pt", "onnx"),
        ("yolo26n-mod-hybrid-seg.pt", "torchscript"),
        ("yolo12n-mod-attention.yaml", "openvino"),
        ("windows", "onnx"),
        ("windows", "openvino"),
    ],
)
def test_exports_equal_eager_where_scores_tie(name, format, photos, tmp_path):
    done = export_model(checkpoint_of(name, photos, tmp_path), format, SIZE)
    check = check_export(*done, hard_images(photos))
    assert check.same_indices == 1.0
    assert check.max_error < (1e-3 if name.endswith(".pt") else 0.1)  # an untrained model's float32 is not exact
    assert check.distinct_routes
    if name == "windows":
        assert check_export(*done, input_tensors(photos[:4], SIZE)).passed


def test_a_dynamic_export_finds_the_padding_of_each_size(photos, tmp_path):
    done = export_model(checkpoint_of("yolo26n-mod-hybrid-seg.pt", photos, tmp_path), "onnx", SIZE, dynamic=True)
    images = [torch.cat([panorama(photos[0], False), panorama(photos[1], True)]), panorama(photos[2], False)[..., :96]]
    for batch in images:
        check = check_export(*done, [batch.contiguous()])
        assert check.same_indices == 1.0
        assert check.max_error < 1e-3


@pytest.mark.parametrize("name", ["yolo26n-mod-hybrid-seg.pt", "yolo12n-mod-attention.yaml"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_padded_photo_is_computed_before_its_padding(name, turned, photos):
    """A fifth of the input is photo, and half of all tokens are routed."""
    net = load_model(name).model.eval()
    image = panorama(photos[0], turned)
    with torch.inference_mode():
        net(image)
    for layer in layers(net):
        cells = layer.plan.size[0]
        line = torch.zeros(cells, dtype=torch.bool)
        line[SIZE * 2 // 5 * cells // SIZE : -(-SIZE * 3 // 5 * cells // SIZE)] = True
        photo = line.expand(cells, -1) if turned else line[:, None].expand(-1, cells)
        kept = layer.plan.kept()[0]
        assert kept[photo].all()
        assert kept.sum() >= cells * cells // 2


def test_ultralytics_pads_with_the_gray_that_is_looked_for():
    """In predictions and in batches of a validation."""
    padded = LetterBox((64, 64), auto=False)(image=np.zeros((16, 64, 3), np.uint8))
    inside = Frame(torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255).inside((8, 8)).view(8, 8)
    assert inside[:, 0].tolist() == [False, False, False, True, True, False, False, False]
