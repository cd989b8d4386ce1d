"""Whom the local page answers: this computer, its own pages, and no large uploads."""

from __future__ import annotations

import http.client
import socket

import pytest
from local_page import IMGSZ, MAX_MB, MODEL

from mod_vision.cli.main import main
from mod_vision.viz.explore import ViewSettings

httpx = pytest.importorskip("httpx")
gradio_client = pytest.importorskip("gradio_client")


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
