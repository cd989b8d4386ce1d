"""predict-many on real Ray clusters: same results as `yolo predict`, nothing lost or repeated when workers die."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import psutil
import pytest
import torch
from conftest import OPEN

from mod_vision.cli.main import main
from mod_vision.yolo.model.loading import load_model

ray = pytest.importorskip("ray")
pq = pytest.importorskip("pyarrow.parquet")

from mod_vision.yolo.run.predict_many import finished, list_images, predict_many, run_parts  # noqa: E402 after the check for Ray

SETTINGS = {"imgsz": 96, "conf": 0.02}
WORDS = [f"{key}={value}" for key, value in SETTINGS.items()]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """An untrained segmenter that finds something everywhere."""
    torch.manual_seed(0)
    model = load_model("yolo26n-mod-hybrid-seg.yaml")
    head = model.model.model[-1]
    for branch in (*head.cv3, *head.one2one_cv3):
        torch.nn.init.normal_(branch[-1].weight, std=0.5)
        torch.nn.init.constant_(branch[-1].bias, -3.0)
    path = tmp_path_factory.mktemp("weights") / "random.pt"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def cluster():
    """A local cluster for the tests that kill nothing."""
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    yield
    ray.shutdown()


def rows_of(folder: Path) -> dict[str, dict]:
    """Rows by path; a path in two rows is an error."""
    rows = [row for file in folder.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == len(rows), "an image is there twice"
    return by_path


@pytest.mark.usefixtures("cluster")
def test_equals_predict_image_by_image(weights, tmp_path, capsys):
    folder = predict_many(str(weights), str(OPEN / "images" / "val"), tmp_path / "out", batch=2, workers=2, **SETTINGS)
    rows = rows_of(folder)
    said = capsys.readouterr().out
    assert "22 images in" in said
    assert "\r" not in said  # a log has no progress bar
    model, objects = load_model(weights), 0
    for photo in sorted((OPEN / "images" / "val").glob("*.jpg")):
        row, result = rows[str(photo)], model.predict(photo, verbose=False, device="cpu", **SETTINGS)[0]
        assert (row["height"], row["width"], row["error"]) == (*result.orig_shape, None)
        assert row["cls"] == result.boxes.cls.int().tolist()
        assert row["name"] == [model.names[c] for c in row["cls"]]
        torch.testing.assert_close(torch.tensor(row["conf"]), result.boxes.conf, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            torch.tensor(row["box"]).view(-1, 4), result.boxes.xyxy.view(-1, 4), rtol=0, atol=1e-2
        )
        if row["cls"]:
            assert [len(outline) for outline in row["polygon"]] == [2 * len(xy) for xy in result.masks.xy]
        objects += len(row["cls"])
    assert objects > 22


@pytest.mark.usefixtures("cluster")
def test_what_cannot_be_read_is_reported(tmp_path, capsys):
    """Also 68 bytes that claim more pixels than OpenCV takes, under a name in which a terminal would see a command."""
    photos = sorted((OPEN / "images" / "val").glob("*.jpg"))
    for name, photo in (("a/same.jpg", photos[0]), ("b/same.jpg", photos[1])):
        (tmp_path / name).parent.mkdir()
        shutil.copy(photo, tmp_path / name)
    huge = tmp_path / "huge\x1b]0;owned\x07.png"
    huge.write_bytes(png_of_size(100_000, 100_000))
    (tmp_path / "b" / "broken.png").write_bytes(b"no image")
    listed = ("a/same.jpg", f"{tmp_path}/b/same.jpg", "b/broken.png", "", "a/gone.jpg", huge.name)
    (tmp_path / "list.txt").write_text("\n".join(listed))
    words = ["predict-many", "model=yolo26n-mod-hybrid-seg.pt", f"source={tmp_path}/list.txt", f"out={tmp_path}/out"]
    words += WORDS
    assert main(words) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert f"unreadable: {tmp_path}/b/broken.png\n" in printed
    assert f"unreadable: {tmp_path}/a/gone.jpg\n" in printed
    assert f"unreadable: {tmp_path}/huge\\x1b]0;owned\\x07.png\n" in printed
    rows = rows_of(tmp_path / "out")
    assert {path: row["error"] is None for path, row in rows.items()} == {
        str(tmp_path / name): name.endswith("same.jpg")
        for name in ("a/same.jpg", "b/same.jpg", "b/broken.png", "a/gone.jpg", huge.name)
    }
    assert rows[str(tmp_path / "b/broken.png")]["cls"] == []
    assert "no image that OpenCV can read: " in rows[str(huge)]["error"]
    assert main(words) == 0
    assert "5 images, 5 of them done before" in capsys.readouterr().out


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of 68 bytes whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(8))) + chunk(b"IEND", b"")


def test_a_file_that_is_named_like_a_pattern(tmp_path):
    for name in ("a[1].jpg", "a1.jpg", "a*.jpg"):
        shutil.copy(sorted((OPEN / "images" / "val").glob("*.jpg"))[0], tmp_path / name)
    for name in ("a[1].jpg", "a*.jpg"):
        assert list_images(str(tmp_path / name)) == [str(tmp_path / name)]
    assert list_images(str(tmp_path / "?1.jpg")) == [str(tmp_path / "a1.jpg")]


@pytest.mark.usefixtures("cluster")
def test_goes_on_with_new_images_and_refuses_other_settings(weights, tmp_path, capsys):
    photos = sorted((OPEN / "images" / "val").glob("*.jpg"))[:3]
    (tmp_path / "in").mkdir()
    for photo in photos[:2]:
        shutil.copy(photo, tmp_path / "in")
    words = ["predict-many", f"model={weights}", f"source=file://{tmp_path}/in", f"out={tmp_path}/out"]
    assert main([*words, *WORDS]) == 0, capsys.readouterr().err
    first = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.parquet")}
    shutil.copy(photos[2], tmp_path / "in")
    assert main([*words, *WORDS]) == 0
    assert "3 images, 2 of them done before" in capsys.readouterr().out
    assert set(rows_of(tmp_path / "out")) == {f"file://{tmp_path}/in/{photo.name}" for photo in photos}
    assert all(file.stat().st_mtime_ns == time for file, time in first.items()), "finished parts are left alone"
    assert main([*words, "imgsz=64", "conf=0.02"]) == 1
    assert "holds results of other settings (imgsz 96 is now 64)" in capsys.readouterr().err


@pytest.fixture
def running(weights, tmp_path):
    """A run of all photos in a process of its own, with a cluster of its own, once its first part is done."""
    words = [f"model={weights}", f"source={OPEN / 'images'}", f"out={tmp_path}", "batch=1", "workers=2", *WORDS]
    command = [str(Path(sys.executable).with_name("mod-vision")), "predict-many", *words]
    started = []

    def start() -> subprocess.Popen:
        env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for_part(folder: Path, process: subprocess.Popen, before: int = 0) -> None:
    """Wait until there are more parts than before."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob("part-*.parquet"))) <= before:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_run_and_a_killed_worker_lose_nothing(running, tmp_path):
    """First all processes of a run are killed, then a worker of the run that goes on."""
    process = running()
    wait_for_part(tmp_path, process)
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in tree:
        member.kill()
    psutil.wait_procs(tree)
    parts = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob("part-*.parquet")}
    done, every = finished(tmp_path), set(list_images(str(OPEN / "images")))
    assert 0 < len(done) < len(every)
    process = running()
    wait_for_part(tmp_path, process, len(parts))
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "MapWorker" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGKILL)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert f"{len(every)} images, {len(done)} of them done before" in printed
    assert set(rows_of(tmp_path)) == every
    assert all((file.stat().st_mtime_ns, file.read_bytes()) == before for file, before in parts.items())


def test_sources(tmp_path):
    for name in ("b.JPG", "a.png", "below/c.webp", "notes.txt", "x.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    everything = [str(tmp_path / name) for name in ("a.png", "b.JPG", "below/c.webp")]
    assert list_images(str(tmp_path)) == everything
    assert list_images(f"{tmp_path}/*.png") == everything[:1]
    assert list_images(f"file://{tmp_path}") == [f"file://{path}" for path in everything]
    assert list_images(str(tmp_path / "b.JPG")) == everything[1:2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=none.pt", "source=."], "checkpoint none.pt does not exist"),
        (["model={weights}", "source=nowhere"], "no image there"),
        (["model={weights}", "source=.", "conf=2"], "conf must be in [0, 1], got 2"),
        (["model={weights}", "source=.", "capacity=7"], "capacity must be a number in (0, 1], got 7"),
        (["model=cut.pt", "source=."], "checkpoint cut.pt is damaged"),
    ],
)
def test_bad_input(weights, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.pt").write_bytes(weights.read_bytes()[:1000])
    assert main(["predict-many", *(word.format(weights=weights) for word in words)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("cluster")
def test_what_a_worker_cannot_do_is_said_in_a_line(weights, tmp_path):
    """Not in a trace of Ray's: here the folder of the results has gone."""
    settings = {**SETTINGS, "capacity": None}
    with pytest.raises(RuntimeError) as told:
        run_parts(
            weights.read_bytes(),
            list_images(str(OPEN / "images" / "val"))[:1],
            tmp_path / "gone",
            settings,
            1,
            1,
            "cpu",
        )
    assert str(told.value) == (
        f"cannot write to the folder {tmp_path}/gone: No such file or directory. The parts in {tmp_path}/gone "
        "are kept: the same command goes on with them."
    )
