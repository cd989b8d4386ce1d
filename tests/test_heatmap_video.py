"""Heat maps of videos: each frame as route_maps sees it, its figures, and what cannot be read."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from clips import FPS, FRAMES, IMGSZ, PHOTOS, read_video, write_clip
from helpers import read_csv
from ultralytics.data.loaders import LoadImagesAndVideos

from mod_vision.cli.main import main
from mod_vision.eval.cost.flops import executed_gflops
from mod_vision.files import renamed_at_end
from mod_vision.viz.heatmap import heatmap
from mod_vision.viz.routes import route_maps, skipped_depth, skipped_share
from mod_vision.viz.video import WINDOW, Figures, Recording
from mod_vision.viz.views import draw_view
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.images import read_image
from mod_vision.yolo.run.letterbox import letterbox
from mod_vision.yolo.run.sources import Clip, find_sources


@pytest.fixture(scope="module")
def model():
    return load_model("yolo26n-mod-hybrid-seg.pt")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "pan.mp4")


def test_each_frame_shows_what_its_own_forward_did(model, clip, tmp_path):
    (video,) = heatmap(model, clip, IMGSZ, tmp_path, view="overlay")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pan-overlay.csv", "pan-overlay.mp4"]
    drawn, fps = read_video(video)
    rows = read_csv(video.with_suffix(".csv"))
    assert (len(drawn), len(rows), fps) == (FRAMES, FRAMES, pytest.approx(FPS))
    images = [images[0] for _, images, _ in LoadImagesAndVideos(str(clip))]
    for number, (image, frame, row) in enumerate(zip(images, drawn, rows, strict=True)):
        maps = route_maps(model, image, IMGSZ)
        wanted = draw_view(image, maps, "overlay").picture
        assert np.abs(wanted.astype(int) - frame[: wanted.shape[0], : wanted.shape[1]]).mean() < 12  # a lossy codec
        assert (int(row["frame"]), float(row["seconds"])) == (number + 1, pytest.approx(number / FPS, abs=1e-3))
        assert float(row["skipped"]) == pytest.approx(skipped_depth(maps), abs=1e-4)
        for m in maps:
            assert float(row[f"{m.name} skipped"]) == pytest.approx(skipped_share(m), abs=1e-4)
        costs = [float(row[name]) for name in ("gflops", "saved_gflops", "dense_gflops")]
        assert costs[0] + costs[1] == pytest.approx(costs[2], abs=2e-4)
        assert costs[1] > 0
    batch, _ = letterbox(images[0], [IMGSZ, IMGSZ], 32, auto=True)
    assert costs[0] == pytest.approx(executed_gflops(model.model, image=batch), abs=1e-4)


@pytest.mark.parametrize("view", ["page", "side", "mask"])
def test_views_of_odd_frames_keep_their_size(model, view, tmp_path):
    clip = write_clip(tmp_path / "odd.avi", 3, (122, 66), "MJPG")
    (video,) = heatmap(model, clip, IMGSZ, tmp_path / "out", view=view, boxes=True, conf=0.05)
    frames, _ = read_video(video)
    assert len(frames) == 3
    image = read_video(clip)[0][0]
    picture = draw_view(image, route_maps(model, image, IMGSZ), view).picture
    assert frames[0].shape[0] > picture.shape[0]
    assert frames[0].shape[1] >= picture.shape[1]
    assert (frames[0][-2:] > 240).all()  # what is below the picture has a margin


def test_photos_and_videos_and_what_cannot_be_read(model, clip, tmp_path, capsys):
    source = tmp_path / "in"
    source.mkdir()
    for name, data in (("a.mp4", b"no video"), ("b.mp4", clip.read_bytes()), ("c.png", b"")):
        (source / name).write_bytes(data)
    (source / "d.jpg").write_bytes(PHOTOS[0].read_bytes())
    written = heatmap(model, source, IMGSZ, tmp_path / "out", frames=2)
    assert [path.name for path in written] == ["d-mask.png", "b-mask.mp4"]
    assert len(read_video(written[1])[0]) == 2
    said = capsys.readouterr().out
    assert "[1/4]" in said
    assert "c.png: left out" in said
    assert "a.mp4: left out" in said
    assert "b.mp4: 2 frames, see b-mask.mp4 and b-mask.csv" in said
    assert said.splitlines()[-1].startswith("mean of 1 image and 2 frames: skipped model.6 ")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_only_broken_videos(model, tmp_path):
    write_clip(tmp_path / "a.mp4", 1)
    (tmp_path / "a.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:200])
    with pytest.raises(ValueError, match="none of the 1 files"):
        heatmap(model, tmp_path / "a.mp4", IMGSZ, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_lists_and_text_files_of_sources(clip, tmp_path):
    (tmp_path / "list.txt").write_text(f"{PHOTOS[0]}\n{clip}\n{PHOTOS[1]}\n")
    for source in (tmp_path / "list.txt", [PHOTOS[0], clip, PHOTOS[1]]):
        assert [(s.place, s.kind) for s in find_sources(source)] == [
            (PHOTOS[0], "image"),
            (PHOTOS[1], "image"),
            (clip, "video"),
        ]
    assert find_sources(0) == find_sources("0")
    assert [find_sources(s)[0].kind for s in ("0", "rtsp://camera/1", "screen 0")] == ["stream", "stream", "screen"]


def small_clip(total=None):
    return Clip(["a"], FPS, total, False, iter(()))


def figures(skipped):
    return Figures(skipped, {"model.6": skipped}, (1.0, 2.0))


def test_an_error_keeps_what_was_drawn(model, tmp_path):
    image = read_image(PHOTOS[0])
    view = draw_view(image, route_maps(model, image, IMGSZ), "overlay")

    def fail():
        with Recording(tmp_path / "a.mp4", small_clip()) as recording:
            recording.add(view, figures(0.5))
            recording.add(view, figures(1 / 0))

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(read_video(tmp_path / "a.mp4")[0]) == 1
    assert [row["gflops"] for row in read_csv(tmp_path / "a.csv")] == ["1.0"]


def test_a_stream_that_changes_its_size_goes_on(model, tmp_path):
    image = read_image(PHOTOS[0])
    maps = route_maps(model, image, IMGSZ)
    with Recording(tmp_path / "a.mp4", small_clip()) as recording:
        for size in ((200, 100), (300, 300)):
            recording.add(draw_view(cv2.resize(image, size), maps, "overlay"), figures(0.5))
    frames, _ = read_video(tmp_path / "a.mp4")
    assert len(frames) == 2


def test_the_curve_moves_with_time(model, tmp_path):
    """The last frames, and as many as the axis has room for: long videos cost no more than short ones."""
    image = cv2.resize(read_image(PHOTOS[0]), (320, 200))
    view = draw_view(image, route_maps(model, image, IMGSZ), "overlay")
    with Recording(tmp_path / "a.mp4", small_clip(total=40)) as recording:
        for i in range(40):
            recording.add(view, figures(i / 40))
    frames, _ = read_video(tmp_path / "a.mp4")
    below = [frame[view.picture.shape[0] :].astype(int) for frame in frames]
    filled = [((b[..., 0] - b[..., 2]) > 12).sum() for b in below]  # the blue area below the curve
    assert filled[10] < filled[25] < filled[39]
    assert small_clip().total is None
    assert Recording(tmp_path / "b.mp4", small_clip(total=9999))._window == WINDOW


def test_files_are_named_at_the_end_whatever_ends_them(tmp_path):
    path = tmp_path / "a.txt"

    def write(error):
        with renamed_at_end(path) as part:
            part.write_text("first")
            assert not path.exists()
            raise error

    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt)
    assert path.read_text() == "first"
    with renamed_at_end(tmp_path / "none.txt"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="cannot write to the folder"), renamed_at_end(tmp_path / "folder") as part:
        part.write_text("a file cannot replace a folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "folder"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frames=0"], "frames must be a whole number of at least 1, got 0."),
        (["frames=all"], "frames must be a whole number of at least 1, got all."),
        (["view=both"], "view must be one of mask, overlay, side, page, got 'both'."),
        (["boxes=True", "conf=40"], "conf must be in [0, 1], got 40."),
        (["source=nowhere.mp4"], "nowhere.mp4 is no image or video, no folder with some"),
        (["source=rtsp://127.0.0.1:9/none", "frames=1"], "Failed to open rtsp"),
        (["model=best.engine"], "best.engine does not show what it routes; use the checkpoint (.pt)"),
    ],
)
def test_mistakes_are_one_line(words, said, clip, tmp_path, capsys):
    assert main(["heatmap", f"source={clip}", f"imgsz={IMGSZ}", f"out={tmp_path / 'out'}", *words]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_an_unknown_colour_map_is_refused_before_the_work(clip, tmp_path):
    with pytest.raises(ValueError, match=r"^cmap must be one of viridis, cividis, magma, got 'jet'\.$"):
        heatmap("yolo26n-mod-hybrid-seg.pt", clip, IMGSZ, tmp_path / "out", cmap="jet")
    assert not (tmp_path / "out").exists()
