"""The local page in a real browser: what moves when one moves a control, and what it refuses."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest
from browser import fits, unnamed_controls
from local_page import HALF, MAX_MB, serving
from PIL import Image

pytest.importorskip("gradio_client")
WAIT = 60_000


@pytest.fixture
def page(visit, page_server):
    page = visit(page_server.local_url)
    page.set_default_timeout(WAIT)
    page.get_by_text("Skipped").wait_for()
    return page


def skipped(page) -> int:
    """Return the share of skipped blocks that the page states, in percent."""
    return int(re.search(r"Skipped (\d+) %", page.get_by_text("Skipped").inner_text())[1])


def upload(page, path) -> None:
    """Put a file in the place of the picture; what was said of the last one goes."""
    page.locator("#picture").get_by_label("Remove Image").click()
    page.get_by_text("Skipped").wait_for(state="detached")
    page.locator("#picture input[type=file]").set_input_files(path)


def drawing(page) -> str | None:
    """Return the address of the drawn picture."""
    return page.locator("#routes img").get_attribute("src")


def test_moving_the_capacity_moves_routes_and_cost(page, explorer, photos):
    before, share = drawing(page), skipped(page)
    assert 30 < share < 70
    slider = page.get_by_label("number input for capacity")
    slider.fill("0.25")
    slider.press("Enter")
    page.wait_for_function(f"!document.body.innerText.includes('Skipped {share} %')")
    assert skipped(page) > share + 10
    assert drawing(page) != before
    row = page.get_by_role("row").filter(has_text="executed GFLOPs").get_by_role("cell").all_inner_texts()
    executed, dense = float(row[1]), float(row[2])
    assert executed < dense
    assert float(row[3].removesuffix(" x")) == pytest.approx(dense / executed, abs=0.02)


def test_pictures_of_every_kind(page, tmp_path, photos):
    """Gray, 16 bits, transparent: what a browser sends is drawn."""
    photo = cv2.imread(str(photos[0]))
    kinds = {
        "gray.png": photo[..., 0],
        "deep.png": photo.astype(np.uint16) * 257,
        "clear.png": cv2.cvtColor(photo, cv2.COLOR_BGR2BGRA),
        "tiny.png": photo[:20, :40],
    }
    for name, pixels in kinds.items():
        cv2.imwrite(str(tmp_path / name), pixels)
        upload(page, tmp_path / name)
        page.get_by_text("Skipped").wait_for()
        assert skipped(page) > 0


@pytest.mark.parametrize(
    ("name", "message"), [("text.png", "not a picture"), ("big.png", "exceed"), ("wide.png", "too many")]
)
def test_what_is_refused(page, visit, tmp_path, name, message):
    """No picture, a file above the limit, and a small file of a huge picture: a message, and the page goes on."""
    content = b"no picture" if name == "text.png" else np.random.default_rng(0).bytes((MAX_MB << 20) + 1)
    (tmp_path / name).write_bytes(content)
    if name == "wide.png":
        Image.new("1", (20_000, 4_000)).save(tmp_path / name)
    upload(page, tmp_path / name)
    told = page.get_by_test_id("toast-body") if name == "big.png" else page.get_by_test_id("markdown")
    told.filter(has_text=message).wait_for()
    page.get_by_label("Thumbnail 2").click()
    page.get_by_text("Skipped").wait_for()
    visit.wrong.clear()  # the browser notes that the server refused


def test_photos_to_try_can_be_chosen_from_any_folder(page, own_folder):
    before = drawing(page)
    page.get_by_label("Thumbnail 2").click()
    page.wait_for_function("(src) => document.querySelector('#routes img').src !== src", arg=before)
    assert skipped(page) > 0


def test_a_video_is_drawn_and_plays(page, tmp_path, photos):
    photo = cv2.resize(cv2.imread(str(photos[0])), (200, 120))
    writer = cv2.VideoWriter(str(tmp_path / "street.webm"), cv2.VideoWriter.fourcc(*"VP80"), 10, (160, 120))
    for left in range(0, 40, 4):
        writer.write(np.ascontiguousarray(photo[:, left : left + 160]))
    writer.release()
    page.get_by_role("tab", name="video").click()
    page.locator("#video input[type=file]").set_input_files(tmp_path / "street.webm")
    page.locator("#video video").wait_for()
    page.get_by_role("button", name="draw the video").click()
    page.locator("#film video").wait_for()
    page.wait_for_function("document.querySelector('#film video').readyState >= 2")
    assert page.evaluate("document.querySelector('#film video').videoHeight") > 120  # frames with their legend


def test_on_a_phone_and_for_a_screen_reader(visit, page_server):
    page = visit(page_server.local_url, viewport={"width": 360, "height": 780})
    page.get_by_text("Skipped").wait_for(timeout=WAIT)
    assert fits(page)
    assert not unnamed_controls(page)
    page.set_viewport_size({"width": 390, "height": 844})
    cut = """(nodes) => nodes.filter((node) => {
        const box = node.getBoundingClientRect();
        return box.width && box.right > node.closest('.prose, #tries').getBoundingClientRect().right + 1;
    }).length"""
    cells = page.locator(".prose td, .prose th, #tries img")
    assert cells.count() > 12
    assert cells.evaluate_all(cut) == 0


def test_an_empty_page_says_what_to_do(page):
    page.locator("#picture").get_by_label("Remove Image").click()
    page.get_by_text("Drop a picture, or choose one of the photos below").wait_for()
    page.get_by_role("tab", name="video").click()
    assert page.get_by_text("Drop a video and press the button").is_visible()


def test_a_zone_on_the_page(visit, tmp_path):
    """A bad one is told in one line, as text; and the page goes on."""
    with serving("yolo26n-mod-hituav.pt", 320) as server:
        page = visit(server.local_url)
        page.set_default_timeout(WAIT)
        page.get_by_text("Skipped").wait_for()
        before = drawing(page)
        page.get_by_role("button", name="zone:").click()
        (tmp_path / "zone.json").write_text(json.dumps(HALF))
        page.locator("#zone input[type=file]").set_input_files(tmp_path / "zone.json")
        page.wait_for_function("(src) => document.querySelector('#routes img').src !== src", arg=before)
        page.locator("#zone").get_by_label("Clear").click()
        page.wait_for_function("() => !document.querySelector('#zone .file-preview')")
        evil = "![x](http://127.0.0.2/x.png) <img src=http://127.0.0.2/y.png>"
        (tmp_path / "bad.json").write_text(json.dumps([[[evil, 1], [0, 1], [1, 1]]]))
        page.locator("#zone input[type=file]").set_input_files(tmp_path / "bad.json")
        page.get_by_text("each point is [x, y], two numbers").wait_for()
        assert page.locator("#routes img").count() == 0
        page.locator("#zone").get_by_label("Clear").click()
        page.get_by_text("Skipped").wait_for()
        assert page.locator("#routes img").count() == 1
