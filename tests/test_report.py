"""The report page in a real browser, against route maps and scores of a model of its own."""

from __future__ import annotations

import base64
import json
import re
import shutil

import numpy as np
import pytest
import yaml
from browser import fits, unnamed_controls
from reports import EVIL_CLASS, EVIL_FILE, EVIL_STUFF, IMGSZ, MODEL, RUN, STOPS

from mod_vision.cli.main import main
from mod_vision.viz.heatmap import skipped_share
from mod_vision.viz.report import write_report
from mod_vision.viz.routes import route_maps, skipped_depth, total_depth
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.images import read_image
from mod_vision.yolo.run.predict import predict_images
from mod_vision.yolo.run.validate import validate

pytestmark = pytest.mark.usefixtures("own_folder")  # Ultralytics makes a folder for its runs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The shipped checkpoint with a bad class name."""
    yolo = load_model(MODEL)
    yolo.model.names = {**yolo.model.names, 0: EVIL_CLASS}
    path = tmp_path_factory.mktemp("model") / "evil.pt"
    yolo.save(path)
    return str(path)


@pytest.fixture(scope="module")
def report(model, evil_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "page.html"
    assert write_report(model, str(evil_data), STOPS, 2, conf=0.05, run=RUN, out=out) == out
    assert list(out.parent.iterdir()) == [out]  # nothing else is left
    return out


@pytest.fixture
def page(report, visit):
    return visit(report.as_uri(), viewport={"width": 1200, "height": 900})


def picture(page) -> str:
    return page.evaluate("document.getElementById('overlay').toDataURL()")


def stated(page) -> int:
    return int(page.locator("#summary strong").inner_text().removesuffix("%"))


def gallery(page) -> dict:
    return json.loads(page.locator("#data").text_content())


def unpack(grid: dict, kind: str = "<u1", text: str | None = None) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text or grid["depth"]), kind).reshape(grid["rows"], grid["cols"])


def photo_of(evil_data, name: str) -> np.ndarray:
    return read_image(evil_data.parent / "images" / "val" / name)


def table(page, title: str) -> list[list[str]]:
    rows = page.get_by_role("region", name=f"Table: {title}", include_hidden=True).locator("tbody tr")
    return [row.locator("th, td").all_text_contents() for row in rows.all()]


def test_maps_and_boxes_are_those_of_the_model(page, model, evil_data):
    shown = gallery(page)
    assert [stage["name"] for stage in shown["stages"]] == ["model.6", "model.8"]
    assert [stage["title"] for stage in shown["stages"]] == ["P4 stage", "P5 stage"]
    most = sum(stage["blocks"] for stage in shown["stages"])
    for number, capacity in enumerate(STOPS):
        fresh = load_model(model)
        set_capacity(fresh, capacity)
        photos = [photo_of(evil_data, image["name"]) for image in shown["images"]]
        looks = [image["looks"][number] for image in shown["images"]]
        for photo, look in zip(photos, looks, strict=True):
            if capacity == 1:
                assert look["all"]["skipped"] == look["all"]["none"] == 0
                assert unpack(look["all"]).tolist() == [[most]]
                continue
            maps = route_maps(fresh, photo, IMGSZ)
            total, _ = total_depth(maps)
            np.testing.assert_array_equal(unpack(look["all"]), total)
            assert look["all"]["skipped"] == pytest.approx(skipped_depth(maps))
            for grid, layer in zip(look["stages"], maps, strict=True):
                np.testing.assert_array_equal(unpack(grid), layer.depth)
                assert grid["extent"] == pytest.approx(layer.extent)
                assert grid["skipped"] == pytest.approx(skipped_share(layer))
                steps = unpack(grid, "<u2", grid["scores"]["steps"])
                scores = grid["scores"]["low"] + grid["scores"]["step"] * steps
                np.testing.assert_allclose(scores, layer.score, atol=1e-3)
        predicted = predict_images(fresh, photos, IMGSZ, 0.05, 8, "cpu")
        for photo, look, found in zip(photos, looks, predicted, strict=True):
            assert [box["name"] for box in look["boxes"]] == found.name
            scale = np.tile(photo.shape[1::-1], 2)
            boxes = np.array([box["box"] for box in look["boxes"]]).reshape(-1, 4)
            np.testing.assert_allclose(boxes * scale, np.reshape(found.box, (-1, 4)), atol=0.1)
    assert any(look["boxes"] for image in shown["images"] for look in image["looks"])


def test_slider_and_stage_change_picture_and_shares(page):
    looks = gallery(page)["images"][0]["looks"]
    seen = set()
    for number, look in enumerate(looks):
        page.locator("#stop").fill(str(number))
        for view, grid in (
            ("", look["all"]),
            ("depth", look["all"]),
            ("0", look["stages"][0]),
            ("1", look["stages"][1]),
        ):
            page.locator("#view").select_option(view)
            assert stated(page) == round(100 * grid["skipped"])
            seen.add(picture(page))
        assert f"capacity {STOPS[number]:g}" in page.locator("#summary").inner_text()
    assert len(seen) >= 8  # at capacity 1 pictures of stages with as many blocks are alike
    page.locator("#boxes").check()
    assert picture(page) not in seen
    assert page.locator("#found-list").inner_text()


def test_keyboard_moves_slider_images_and_patches(page):
    start = picture(page)
    page.locator("#stop").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#stop-name").inner_text() == "0.25"
    assert page.locator("#stop").get_attribute("aria-valuetext") == "0.25"
    lowest = picture(page)
    assert lowest != start
    names = [image["name"] for image in gallery(page)["images"]]
    page.locator("input[name=image]").first.focus()
    page.keyboard.press("ArrowRight")
    assert names[1] in page.locator("#name").inner_text()
    assert page.locator("#photo").get_attribute("alt") == names[1]
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # around the end
    assert names[-1] in page.locator("#name").inner_text()
    page.locator("#overlay").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.locator("#route-title").inner_text() == "Patch, row 2, column 2"
    assert re.match(
        r"Patch, row 2, column 2: P4 stage (skipped|computed, 6 of 6 blocks), score", page.inner_text("#spoken")
    )


def test_a_patch_shows_its_route(page):
    page.locator("#view").select_option("1")
    shown = gallery(page)
    grids = shown["images"][0]["looks"][len(STOPS) // 2]["stages"]
    page.locator("#overlay").evaluate("(overlay) => overlay.scrollIntoView({block: 'end'})")
    depth, box = unpack(grids[1]), page.locator("#overlay").bounding_box()
    top, left, height, width = grids[1]["extent"]
    for row, col in ((0, 0), (2, 3), (depth.shape[0] - 1, depth.shape[1] - 1)):
        x, y = left + (col + 0.5) / depth.shape[1] * width, top + (row + 0.5) / depth.shape[0] * height
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        assert page.locator("#route-title").inner_text() == f"Patch, row {row + 1}, column {col + 1}"
        name, route, blocks, score = page.locator("#route tr").nth(1).locator("th, td").all_inner_texts()
        assert name == shown["stages"][1]["title"]
        assert route == ("computed" if depth[row, col] else "skipped")
        assert blocks == f"{depth[row, col]} of {shown['stages'][1]['blocks']}"
        low, step = grids[1]["scores"]["low"], grids[1]["scores"]["step"]
        steps = unpack(grids[1], "<u2", grids[1]["scores"]["steps"])
        assert float(score) == pytest.approx(low + step * steps[row, col], abs=0.006)


def test_figures_are_those_of_the_split(page, model, evil_data):
    fresh = load_model(model)
    set_capacity(fresh, 0.5)
    found = validate(fresh, data=str(evil_data), imgsz=IMGSZ, batch=8, device="cpu", save_json=False)
    shares, chance, _, best = found.recall.result()
    for layer in shares:
        title = {"model.6": "P4 stage", "model.8": "P5 stage"}[layer]
        row = next(row for row in table(page, "Object recall of the router") if row[0] == f"{title}, 0.5")
        objects, rest = shares[layer]["objects"], shares[layer]["rest"]
        wanted = [objects, best[layer]["objects"], 1 - rest, chance[layer], 1 - chance[layer]]
        assert row[1:] == [f"{100 * share:.1f} %" for share in wanted]
    classes = {row[0]: row for row in table(page, "What is skipped at capacity 0.5")}
    for group, kind in ((EVIL_STUFF, "stuff"), ("road", "stuff"), (EVIL_CLASS, "class")):
        wanted = [f"{100 - 100 * shares[layer][group]:.1f} %" for layer in shares]
        assert [*classes[group][:2], *classes[group][3:]] == [group, kind, *wanted]
    depths = np.concatenate([unpack(image["looks"][1]["all"]).ravel() for image in gallery(page)["images"]])
    for row in table(page, "Depth of the patches"):
        assert row[1] == f"{100 * (depths == int(row[0])).mean():.1f} %"
    costs = table(page, "Accuracy against cost")
    assert [row[0] for row in costs] == ["capacity 1", "capacity 0.5", "capacity 0.25"]
    assert [float(row[1]) for row in costs] == sorted((float(row[1]) for row in costs), reverse=True)


def test_only_the_classes_of_the_capacity_are_shown(page):
    titles = page.locator("figure h3")
    assert "What is skipped at capacity 0.5" in titles.all_inner_texts()
    page.locator("#stop").fill("2")
    assert "What is skipped at capacity 0.5" not in [t.inner_text() for t in titles.all() if t.is_visible()]
    page.locator("#stop").fill("0")
    assert page.locator("#nothing").is_visible()


def test_ranked_images_open_in_the_gallery(page):
    rows = page.locator("section[aria-labelledby=ranking-title] tbody tr")
    shares = [float(text.removesuffix("%")) for text in rows.locator("td:nth-child(2)").all_inner_texts()]
    most, least = shares[:3], shares[3:]
    assert most == sorted(most, reverse=True)
    assert min(most) >= max(least)
    link = rows.nth(0).locator("a")
    link.click()
    assert link.inner_text() in page.locator("#name").inner_text()
    assert len(gallery(page)["images"]) == 4  # two evenly spaced, and those that are ranked


def test_what_the_user_names_is_text(page, report):
    assert page.title() == "What evil.pt skips"
    assert page.locator("img[src=x], b").count() == 0
    assert page.locator("script").count() == 2
    assert EVIL_FILE in [image.get_attribute("alt") for image in page.locator(".thumbs img").all()]
    assert EVIL_CLASS in page.locator("figure").all_text_contents()[-1]
    looks = [look for image in gallery(page)["images"] for look in image["looks"]]
    assert EVIL_CLASS in {box["name"] for look in looks for box in look["boxes"]}
    text = report.read_text()
    assert EVIL_CLASS not in text
    assert EVIL_STUFF not in text
    assert EVIL_FILE.partition(" &")[0] not in text


def test_controls_have_names(page):
    assert unnamed_controls(page) == []
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("svg[role=img]:not([aria-label])").count() == 0
    assert page.locator("#summary").get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_slider_verdict_and_picture_are_on_the_first_screen(report, visit, size):
    """In the colours of the photo; what made the page is at its end."""
    page = visit(report.as_uri(), viewport=dict(zip(("width", "height"), size, strict=True)))
    for number in range(len(gallery(page)["images"])):
        page.locator("input[name=image]").nth(number).evaluate("(input) => input.click()")
        for part in ("#stop", "#summary", "#overlay"):
            box = page.locator(part).bounding_box()
            assert box["y"] >= 0
            assert box["y"] + box["height"] <= size[1]
    assert "box AP" in page.locator("#summary").inner_text()
    assert page.locator("#photo").evaluate("(photo) => getComputedStyle(photo).filter") == "none"
    assert page.locator("#mask-legend").is_visible()
    assert page.locator("footer .facts").count() == 1
    page.locator("#view").select_option("depth")
    assert page.locator("#depth-legend li").all_inner_texts() == ["0", "3", "6", "9"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_and_schemes(report, visit, scheme):
    page = visit(report.as_uri(), viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    assert fits(page)
    box = page.locator("#overlay").bounding_box()
    assert box["width"] > 200
    assert box == page.locator("#photo").bounding_box()
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (min(map(int, re.findall(r"\d+", paper))) > 128) == (scheme == "light")


def test_without_scores_and_a_corrupt_image(evil_data, tmp_path, capsys, visit):
    root = tmp_path / "data"
    shutil.copytree(evil_data.parent, root)
    photos = sorted((root / "images" / "val").glob("*.jpg"))
    photos[1].write_bytes(b"no image")
    described = yaml.safe_load(evil_data.read_text())
    (root / "evil.yaml").write_text(yaml.safe_dump({**described, "path": str(root)}))
    out = tmp_path / "new" / "quick.html"
    words = [
        f"model={MODEL}",
        f"data={root}/evil.yaml",
        "capacity=0.5",
        f"imgsz={IMGSZ}",
        "evaluate=False",
        "threads=1",
    ]
    assert main(["report", *words, f"out={out}"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "[1/1] routing 3 images at capacity 0.5" in said
    assert f"left out: {photos[1]} is not an image" in said
    assert said.splitlines()[-1] == f"report in {out}; open it in a browser"
    page = visit(out.as_uri())
    assert page.locator("figure h3").all_inner_texts() == ["Depth of the patches"]
    assert "evaluate=False" in page.inner_text("main")
    assert "capacity=0.5" in page.inner_text("pre")
