"""The tutorials work as they are written: all their commands run, and print what the pages say they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PAGES = sorted((Path(__file__).resolve().parent.parent / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "ultralytics", "mod_vision"):
    sys.modules[name] = None
runpy.run_path("run_onnx.py")
"""


class Block(NamedTuple):
    """A fenced block: its language, the file that it is (none: it is run), and its text."""

    kind: str
    file: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page.read_text())]


def masked(text: str) -> str:
    """Numbers differ from machine to machine, and so does the space that they take."""
    return re.sub(r"[\s-]+", " ", re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", text)).strip()


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Follow a page from top to bottom in an empty folder, and return the folder."""
    config = tmp_path_factory.mktemp("config")

    def run(command: list[str], cwd: Path) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "YOLO_CONFIG_DIR": str(config), "OMP_NUM_THREADS": "1"}
        env.pop("PYTEST_CURRENT_TEST", None)  # Ultralytics would write elsewhere than for users
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def follow(page: Path) -> Path:
        folder, printed = tmp_path_factory.mktemp(page.stem), ""
        for block in blocks(page):
            if block.file:
                (folder / block.file).write_text(block.text)
            elif block.kind == "text":
                shown = [masked(line) for line in block.text.splitlines() if line.strip() not in ("", "...")]
                missing = [line for line in shown if line not in masked(printed)]
                assert not missing, f"{page.name} shows what was not printed: {missing}\n{printed}"
            else:
                shell = ["bash", "-ec"] if block.kind == "bash" else [sys.executable, "-c"]
                printed = run([*shell, block.text], folder)
        return folder

    return follow


def test_pages_are_found():
    assert {"own-data.md", "convert.md", "onnx.md", "heatmap.md", "capacity.md"} <= {page.name for page in PAGES}
    assert {block.kind for page in PAGES for block in blocks(page)} == {"bash", "python", "text", "yaml"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "onnx"], ids=lambda page: page.stem)
def test_page(page, walk):
    walk(page)


def test_onnx_needs_no_torch(walk):
    """The page compares its boxes with Ultralytics'; the script also runs where there is neither of the two."""
    folder = walk(next(page for page in PAGES if page.stem == "onnx"))
    first = (folder / "boxes.csv").read_text()
    (folder / "boxes.csv").unlink()
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=folder, check=True, timeout=300)
    assert (folder / "boxes.csv").read_text() == first
    assert len(first.splitlines()) > 3
