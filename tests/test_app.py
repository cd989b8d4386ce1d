"""The local page in a real browser: what moves when one moves a control, what it refuses, and whom it calls."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import subprocess

import cv2
import numpy as np
import pytest
from browser import fits, unnamed_controls
from PIL import Image
from ultralytics.utils import checks

from mod_vision.cli.main import main
from mod_vision.viz.dropped import read_picture, read_zones
from mod_vision.viz.explore import Explorer, ViewSettings
from mod_vision.viz.window_annotator import ZONE
from mod_vision.yolo.data.zones import masks_of
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.zone import set_zone

httpx = pytest.importorskip("httpx")
gradio_client = pytest.importorskip("gradio_client")
MODEL, IMGSZ, MAX_MB = "yolo26n-mod-hybrid-seg.pt", 160, 1
WAIT = 60_000


@pytest.fixture(scope="module")
def explorer():
    return Explorer(MODEL, IMGSZ)


@pytest.fixture(scope="module")
def page_server():
    from mod_vision.viz.app import start

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start(MODEL, IMGSZ, "cpu", "127.0.0.1", port, MAX_MB)
    yield server
    server.close()


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


def test_figures_are_those_of_the_routes(explorer, photos):
    image = cv2.imread(str(photos[0]))
    for capacity in (0.5, 0.25):
        look = explorer.look(image, ViewSettings(capacity))
        executed, dense = look.figures.gflops
        assert executed < dense
        assert all(abs(share - (1 - capacity)) < 0.15 for share in look.figures.by_layer.values())
    assert look.picture.shape[2] == 3
    assert look.latency.median > 0


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


def test_only_this_computer_reaches_it(page_server):
    port = page_server.server_port
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))


def test_a_list_of_files_is_no_video(page_server, explorer, tmp_path, photos):
    """Else whoever reaches the page could look at any picture of the server."""
    listing = tmp_path / "clip.txt"
    listing.write_text(f"{photos[0]}\n")
    with pytest.raises(ValueError, match=r"clip\.txt is not a video"):
        explorer.film(listing, tmp_path / "out.webm", ViewSettings(0.5), 5, lambda i, n: None)
    client = gradio_client.Client(page_server.local_url, verbose=False)
    video = {"video": gradio_client.handle_file(str(listing))}
    with pytest.raises(gradio_client.exceptions.AppError):
        client.predict(video, 10, 0.5, "overlay", False, 0.25, api_name="/film")


@pytest.mark.parametrize("name", ["clip.m3u8", "clip.txt", "clip"])
def test_a_playlist_is_refused_before_it_is_opened(explorer, tmp_path, monkeypatch, name):
    """It can name a video of the server, whose size would be told."""
    from mod_vision.viz.app import _Answers, gr

    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: pytest.fail("opened"))
    (tmp_path / name).write_text("#EXTM3U\n#EXTINF:1,\n/srv/secret.mp4\n")
    for zone in ("", json.dumps(HALF)):
        with pytest.raises(gr.Error, match=rf"^'?{re.escape(name)} is not a video; known are "):
            _Answers(explorer).film(str(tmp_path / name), 10, None, zone, 0.5)


def test_huge_frames_are_refused_before_one_is_decoded(explorer, tmp_path):
    """A small file can hold them."""
    writer = cv2.VideoWriter(str(tmp_path / "huge.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (6000, 4000))
    writer.write(np.zeros((4000, 6000, 3), np.uint8))
    writer.release()
    assert (tmp_path / "huge.avi").stat().st_size < 1_000_000
    with pytest.raises(ValueError, match="frames of 6000 x 4000 pixels are too large, a video may have 4096 x 2160"):
        explorer.film(tmp_path / "huge.avi", tmp_path / "out.webm", ViewSettings(0.5), 5, lambda i, n: None)
    assert not (tmp_path / "out.webm").exists()


def ask(server, method="GET", path="/config", **headers) -> tuple[int, str]:
    """Return what the server answers to a request that a browser could be made to send."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": f"127.0.0.1:{server.server_port}", **headers}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    told = answer.read().decode()
    connection.close()
    return answer.status, told


def test_a_name_that_is_made_to_point_here_is_refused(page_server):
    for name in ("localhost:1", "127.0.0.1", "[::1]:7860", socket.gethostname()):
        assert ask(page_server, Host=name)[0] == 200
    for name in ("evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        status, told = ask(page_server, Host=name, Origin=f"http://{name}")
        assert status == 421
        assert "open it by an address" in told


def test_other_pages_in_the_browser_cannot_send_anything(page_server):
    path, form = "/gradio_api/upload", {"Content_Type": "multipart/form-data; boundary=x", "Content_Length": "0"}
    for site in ("cross-site", "same-site"):
        assert ask(page_server, "POST", path, Sec_Fetch_Site=site, **form) == (403, "Other pages cannot use this one.")
    assert ask(page_server, "POST", path, Sec_Fetch_Site="same-origin", **form)[0] not in (403, 411, 413, 421)
    assert ask(page_server, Sec_Fetch_Site="cross-site")[0] == 200, "a link to the page"


def test_the_files_of_an_upload_count_together(page_server):
    """Each of them is small enough."""
    client = httpx.Client(base_url=page_server.local_url)
    files = [("files", (f"{i}.png", bytes(MAX_MB << 19), "image/png")) for i in range(4)]
    assert client.post("/gradio_api/upload", files=files[:2]).status_code == 200
    answer = client.post("/gradio_api/upload", files=files)
    assert (answer.status_code, answer.text) == (413, "Files exceed the 1 MB of an upload.")
    chunked = client.post("/gradio_api/upload", content=iter([b"a", b"b"]), headers={"Content-Type": "a/b"})
    assert chunked.status_code == 411


def test_pages_count(tmp_path):
    """A small file can hold many pages, all of which are decoded."""
    page = Image.new("1", (6000, 6000))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page] * 3, compression="group4")
    with pytest.raises(ValueError, match="6000 x 6000 pixels on 4 pages are too many"):
        read_picture(str(tmp_path / "pages.tif"))


def test_what_is_no_picture_starts_no_process(tmp_path, monkeypatch):
    """Ultralytics would install a decoder of HEIF for it."""
    for name in ("run", "check_output", "Popen"):
        monkeypatch.setattr(subprocess, name, lambda *args, **kwargs: pytest.fail("a process"))
    monkeypatch.setattr(checks, "AUTOINSTALL", True)
    monkeypatch.setattr(checks, "ONLINE", True)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^broken\.png is not a picture that can be read\.$"):
        read_picture(str(tmp_path / "broken.png"))
    with pytest.raises(ValueError, match=r"^zone: broken\.png is not a picture that can be read\.$"):
        read_zones(str(tmp_path / "broken.png"), "", None)


def test_whatever_a_decoder_raises_is_one_line(tmp_path):
    """Pillow raises NotImplementedError for the first, cannot tell the second; OpenCV reads no pixel of the third."""
    Image.new("RGB", (8, 8)).save(tmp_path / "whole.dds")
    unknown = bytearray((tmp_path / "whole.dds").read_bytes())
    unknown[80:88] = b"\4\0\0\0ABCD"  # a compression that nobody knows
    tag = (256).to_bytes(2, "little") + b"\2\0" + (4).to_bytes(4, "little") + b"abc\0"  # a width that is a text
    cut = io.BytesIO()
    Image.new("RGB", (99, 99)).save(cut, "PNG")
    files = {"a.png": bytes(unknown), "b.tif": b"II*\0\x08\0\0\0\1\0" + tag + bytes(4), "c.png": cut.getvalue()[:40]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{re.escape(name)} is not a picture that can be read\.$"):
            read_picture(str(tmp_path / name))
        with pytest.raises(ValueError, match=rf"^zone[:=] ?{re.escape(name)} is n") as refused:
            read_zones(str(tmp_path / name), "", None)
        assert str(tmp_path) not in str(refused.value)


def test_a_port_that_is_taken(page_server):
    from mod_vision.viz.app import start

    port = page_server.server_port
    with pytest.raises(OSError, match=rf"port {port} of 127\.0\.0\.1 is not free; choose another with port="):
        start(MODEL, IMGSZ, "cpu", "127.0.0.1", port, MAX_MB)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("port=99999", "error: port=99999: a port is a number from 1 to 65535, such as port=7860."),
        ("host=nope.invalid", "error: host=nope.invalid is unknown: give an address of this computer, such as host="),
        (f"host={'a' * 80}", f"error: host={'a' * 80} is unknown"),
    ],
)
def test_an_address_that_no_server_has(capsys, word, told):
    assert main(["app", f"model={MODEL}", word]) == 1
    assert capsys.readouterr().err.startswith(told)


def test_models_without_a_capacity_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no routed layer"):
        Explorer("yolo26n.yaml", IMGSZ)
    with pytest.raises(FileNotFoundError):
        Explorer(tmp_path / "missing.pt", IMGSZ)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match="neither a checkpoint"):
        Explorer(tmp_path / "model.onnx", IMGSZ)


def test_a_film_without_frames(explorer, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="no frame that can be read"):
        explorer.film(tmp_path / "broken.mp4", tmp_path / "out.webm", ViewSettings(0.5), 5, lambda i, n: None)


def test_the_routed_model_is_left_alone():
    yolo = load_model("yolo26n-mod-hybrid.yaml")
    before = {name for name, _ in yolo.model.named_modules()}
    Explorer(yolo, IMGSZ)
    assert {name for name, _ in yolo.model.named_modules()} == before


HALF = [[0, 0.5], [1, 0.5], [1, 1], [0, 1]]


@pytest.fixture(scope="module")
def windowed():
    return Explorer("yolo26n-mod-hituav.pt", 320)


def test_a_zone_is_of_one_picture(windowed, photos):
    """The next one is looked at as a whole; nothing is computed where the windows have no cell in the zone."""
    image = cv2.imread(str(photos[0]))
    settings = ViewSettings(0.3, boxes=False)
    whole = windowed.look(image, settings)
    zoned = windowed.look(image, settings._replace(zone=read_zones(None, json.dumps(HALF), None)))
    assert (zoned.picture == ZONE).all(-1).any()
    assert not (whole.picture == ZONE).all(-1).any()
    again = windowed.look(image, settings)
    np.testing.assert_array_equal(again.picture, whole.picture)


def test_the_zone_of_a_checkpoint_comes_back(tmp_path, photos):
    yolo = load_model("yolo26n-mod-hituav.pt")
    set_zone(yolo, HALF)
    explorer, image = Explorer(yolo, 320), cv2.imread(str(photos[0]))
    settings = ViewSettings(0.3, boxes=False)
    own = explorer.look(image, settings).picture
    assert (own == ZONE).all(-1).any()
    other = explorer.look(image, settings._replace(zone=[[[[0, 0], [0.5, 0], [0.5, 0.5]]]])).picture
    assert (own != other).any()
    np.testing.assert_array_equal(explorer.look(image, settings).picture, own)


def test_zones_in_every_form_are_one(tmp_path):
    mask = np.zeros((100, 200), np.uint8)
    mask[50:] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    (tmp_path / "zone.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [[*HALF, HALF[0]]]}))
    shape = {"shape_type": "rectangle", "points": [[0, 50], [200, 100]]}
    (tmp_path / "labelme.json").write_text(json.dumps({"imageWidth": 200, "imageHeight": 100, "shapes": [shape]}))
    pixels = json.dumps([[0, 50], [200, 50], [200, 100], [0, 100]])
    zones = [read_zones(str(tmp_path / name), "", None) for name in ("mask.png", "zone.geojson", "labelme.json")]
    zones += [read_zones(None, json.dumps(HALF), None), read_zones(None, pixels, (200, 100))]
    masks = [masks_of(zone)[0] for zone in zones]
    assert all((mask == masks[0]).all() for mask in masks)
    assert masks[0].float().mean() == 0.5
    assert read_zones(None, " ", (200, 100)) is read_zones(None, None, None) is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("zone.json", b"__import__('os').system('touch ran')", "zone=zone.json is no JSON"),
        ("zone.json", b'["/etc/passwd"]', "zone=zone.json holds text where points should be"),
        ("zone.json", b"[" * 100_000, "zone=zone.json is no JSON"),
        ("zone.json", b" " * 10_000_001, "has 10 MB at most"),
        ("zone.png", b"no picture", "zone: zone.png is not a picture"),
        ("zone.py", b"raise SystemExit", "zone: zone.py is not a picture"),
        ("wide.png", None, "zone: 20000 x 4000 pixels are too many"),
    ],
)
def test_zones_that_are_refused(tmp_path, name, content, said):
    """In one line, which names no folder."""
    Image.new("1", (20_000, 4_000)).save(tmp_path / "wide.png")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        read_zones(str(tmp_path / name), "", (64, 64))
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(
    "points", ["/etc/passwd", '"/etc/passwd"', '["/etc/passwd"]', "open('x')", "[[1, 2", "3", "null"]
)
def test_points_are_numbers(points):
    """A text never names a file of this computer."""
    with pytest.raises(ValueError, match="zone: points are a list such as"):
        read_zones(None, points, (64, 64))


def test_a_picture_has_one_zone(tmp_path, monkeypatch):
    """More are refused before any is drawn, which takes 4 MB each."""
    many = json.dumps([[[[0, 0], [1, 0], [1, 1]]]] * 5000)
    (tmp_path / "many.json").write_text(many)
    monkeypatch.setattr(cv2, "fillPoly", lambda *args, **kwargs: pytest.fail("drawn"))
    with pytest.raises(ValueError, match=r"^zone: a picture has one zone, a list of polygons; got 5,000 zones\.$"):
        read_zones(None, many, (64, 64))
    with pytest.raises(ValueError, match=r"^zone=many\.json must hold one zone, got 5,000"):
        read_zones(str(tmp_path / "many.json"), "", (64, 64))


def test_a_zone_on_the_page(visit, tmp_path):
    """A bad one is told in one line, as text; and the page goes on."""
    from mod_vision.viz.app import start

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start("yolo26n-mod-hituav.pt", 320, "cpu", "127.0.0.1", port, MAX_MB)
    try:
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
    finally:
        server.close()
