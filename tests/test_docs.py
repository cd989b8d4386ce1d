"""The documentation site builds without a warning, has the public names, and reads offline."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UNDOCUMENTED = {"__version__", "ROUTERS"}  # no functions or classes


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    config = ROOT / "docs" / "site" / "mkdocs.yml"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("module", ["mod_vision", "mod_vision.routing", "mod_vision.nn"])
def test_the_reference_has_the_public_names(module, site):
    page = (site / "reference" / f"{module.rpartition('.')[2]}.html").read_text()
    names = set(importlib.import_module(module).__all__) - UNDOCUMENTED
    missing = [name for name in names if f'id="{module}.{name}"' not in page]
    assert not missing, f"add a line `::: {module}.NAME` to docs/reference for {missing}"


def test_pages_read_offline(site, visit):
    """From files, without a server: pictures are there, and `visit` fails on any request elsewhere."""
    for name in ("index", "heatmap", "tutorials/heatmap", "reference/viz"):
        page = visit((site / f"{name}.html").as_uri())
        assert page.locator("h1").count() == 1
        broken = page.eval_on_selector_all("img", "all => all.filter(one => !one.naturalWidth).map(one => one.src)")
        assert not broken
