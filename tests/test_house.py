"""The house: folders by job, imports that go one way, and small files."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import mod_vision

PACKAGE = Path(mod_vision.__file__).parent
ORDER = (  # from the ground up; a module imports its own folder and those before it
    "env versions errors text resources files leftovers limits measure run_settings",
    "routing",
    "nn",
    "yolo",
    "yolo.blocks yolo.data",
    "yolo.model",
    "yolo.run",
    "yolo.train yolo.export",
    "eval.cost",
    "eval.accuracy",
    "eval",
    "conversion tune",
    "viz",
    "plugin",
    "cli",
)
FLOOR = {name: floor for floor, names in enumerate(ORDER) for name in names.split()}
MAX_LINES = 300


def modules() -> dict[str, Path]:
    """Return the files of the package by their names below `mod_vision`; the package itself is ''."""
    names = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def imported(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of ours that a file imports anywhere, also within functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("mod_vision.") for alias in node.names if "mod_vision." in alias.name)
        elif isinstance(node, ast.ImportFrom) and re.match(r"mod_vision\b", node.module or ""):
            within = str(node.module).removeprefix("mod_vision").removeprefix(".")
            for alias in node.names:
                inner = f"{within}.{alias.name}".removeprefix(".")
                yield inner if inner in known else within


@functools.cache
def edges() -> list[tuple[str, str]]:
    """Return importer and imported; the package's own `__init__` hands names on and counts for neither."""
    known = modules()
    return sorted({(name, to) for name, file in known.items() if name for to in imported(file, known) if to != name})


def floor(name: str) -> int:
    """Return the floor of a module: that of the longest folder in `ORDER` that it lies in."""
    while name not in FLOOR:
        assert "." in name, f"{name} lies on no floor; add its folder to ORDER"
        name = name.rpartition(".")[0]
    return FLOOR[name]


def test_every_module_lies_on_a_floor():
    for name in modules():
        assert not name or floor(name) >= 0


def test_imports_go_one_way():
    against = [f"{a} imports {b}" for a, b in edges() if b and floor(a) < floor(b)]
    assert not against, against


def test_no_import_circle():
    left = {name: {b for a, b in edges() if a == name} for name in modules() if name}
    while ready := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in ready:
            del left[name]
    assert not left, f"these import each other: {', '.join(left)}"


def test_a_wrong_edge_would_be_seen(tmp_path):
    """Also one within a function."""
    (tmp_path / "plan.py").write_text(
        "def draw():\n    from mod_vision.viz import heatmap\n    import mod_vision.cli.main\n"
    )
    found = list(imported(tmp_path / "plan.py", modules()))
    assert found == ["viz.heatmap", "cli.main"]
    assert all(floor("routing.plan") < floor(name) for name in found)


def test_files_are_small():
    long = {name: len(file.read_text().splitlines()) for name, file in modules().items()}
    assert {name: lines for name, lines in long.items() if lines > MAX_LINES} == {}


def test_only_yolo_and_what_is_above_import_ultralytics():
    for name, file in modules().items():
        if name.startswith(("routing", "nn")) or name in ORDER[0].split():
            assert not re.search(r"^\s*(import|from) ultralytics", file.read_text(), re.MULTILINE), name
