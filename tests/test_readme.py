"""The first screen: short, and everything in it is a command, a key, a name or a page that is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from ultralytics.cfg import CFG_FLOAT_KEYS, DEFAULT_CFG_DICT, MODES

from mod_vision.cli.keys import keys_of
from mod_vision.cli.verbs import VERBS
from mod_vision.resources import find_shipped

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
MOST_LINES = 150
WORD = re.compile(r"^[a-z_]+=")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Words of the commands of its bash blocks, without comments and what is before `&&`."""
    joined = "".join(blocks(text, "bash")).replace("\\\n", " ")
    lines = [part.strip() for line in joined.splitlines() for part in line.split("&&")]
    return [shlex.split(line, comments=True) for line in lines if line and "..." not in line]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_and_keys_of_its_commands_exist(page):
    for words in commands(page.read_text(encoding="utf-8")):
        at = next((i for i, word in enumerate(words) if word in ("mod-vision", "yolo")), None)
        if at is None or len(words) < at + 2 or words[at + 1] == "--version":
            continue
        program, verb, *rest = words[at:]
        keys = [word.partition("=")[0] for word in rest if WORD.match(word)]
        if program == "yolo":
            assert verb in MODES or verb in ("settings", "detect", "segment"), words
            known = {*DEFAULT_CFG_DICT, *CFG_FLOAT_KEYS}
        else:
            assert verb in VERBS, words
            known = set(keys_of(VERBS[verb]))
        assert set(keys) <= known, (words, set(keys) - known)


def test_all_verbs_are_told():
    table = README[README.index("## Verbs") :]
    assert [verb for verb in VERBS if f"`{verb}`" not in table] == []


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_its_python_runs(tmp_path, monkeypatch):
    """As it stands, with a picture of the name that it reads."""
    cv2.imwrite(str(tmp_path / "drone.jpg"), np.random.default_rng(0).integers(0, 255, (128, 160, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    assert find_shipped("yolo26n-mod-hituav.pt").is_file()
    (block,) = blocks(README, "python")
    exec(compile(block, "README.md", "exec"), {})
