"""The Dockerfiles keep the rules of hadolint; they are not built here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("file", sorted((ROOT / "docker").glob("*.Dockerfile")), ids=lambda file: file.name)
def test_dockerfiles_are_well_formed(file):
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, file.relative_to(ROOT)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
