"""Versions that are not supported are refused in one line, and registration is all or nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import ultralytics

from mod_vision.versions import SUPPORTED, check_version

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def test_installed_versions_are_supported():
    check_version("torch", torch.__version__)
    check_version("ultralytics", ultralytics.__version__)


@pytest.mark.parametrize(
    ("name", "version", "fine"),
    [
        ("torch", "2.5.0", False),
        ("torch", "2.6.0+cu124", False),
        ("torch", "2.7.0", True),
        ("torch", "2.14.1+cu130", True),
        ("torch", "2.16.0.dev20261101", True),
        ("ultralytics", "8.3.200", False),
        ("ultralytics", "8.4.60", False),
        ("ultralytics", "8.4.190", True),
        ("ultralytics", "8.4.1000", True),
        ("ultralytics", "8.5.0", False),
    ],
)
def test_ranges(name, version, fine):
    if fine:
        check_version(name, version)
    else:
        with pytest.raises(ImportError, match=re.escape(f'{name} {version} is not supported: pip install "{name}>=')):
            check_version(name, version)


def test_the_project_asks_for_the_same():
    for name, wanted in SUPPORTED.items():
        assert f'"{name}{wanted}"' in PYPROJECT.read_text()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("nn.tasks", "RTDETRDetectionModel"),
        ("utils.export.onnx", "onnx_int8_quantize"),
        ("utils.export.openvino", "torch2openvino"),
    ],
)
def test_nothing_is_patched_if_something_is_missing(module, name, tmp_path):
    code = f"""
import ultralytics.{module} as module, ultralytics.nn.tasks as tasks
del module.{name}
from mod_vision.plugin.register import register
before = tasks.parse_model, tasks.check_yaml, tasks.BaseModel.loss
try:
    register()
except ImportError as error:
    print(error)
assert before == (tasks.parse_model, tasks.check_yaml, tasks.BaseModel.loss)
"""
    env = {"MOD_VISION_AUTOLOAD": "0", "YOLO_CONFIG_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(f"Ultralytics has no {name} in ultralytics.{module}; install another version.")
