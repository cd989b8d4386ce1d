"""Time a routed model, its dense baseline and other baselines in turn.

`quick=1` measures the efficiency of two capacities and fails if it is a tenth below the committed figures; `quick=1
write=1` commits new ones.
"""

import json
import sys
from pathlib import Path

from mod_vision.cli.main import run_tool
from mod_vision.eval.cost.benchmark import as_figures, benchmark, efficiency, save_figures, table
from mod_vision.eval.cost.conditions import conditions
from mod_vision.files import writable_dir
from mod_vision.run_settings import BenchSettings

MODEL, CAPACITIES = "yolo26n-mod-hybrid.yaml", (0.5, 0.25)
BENCH = BenchSettings(imgsz=640, device="cpu", threads=2, repeats=11)
TOLERANCE = 0.1
COMMITTED = Path(__file__).resolve().parent.parent / "studies" / "results" / "speed" / "quick.json"


def losses(found: dict[str, float], committed: dict[str, float]) -> dict[str, float]:
    """Return what share of its efficiency each row has lost, where that is more than is tolerated."""
    lost = {name: 1 - found[name] / before for name, before in committed.items()}
    return {name: share for name, share in lost.items() if share > TOLERANCE}


def quick(write: bool) -> int:
    """Measure, and compare with the committed efficiencies, or become them; returns the exit code."""
    if not write and not COMMITTED.is_file():
        print(f"error: there are no committed figures in {COMMITTED}; quick=1 write=1 makes them", file=sys.stderr)
        return 1
    rows = benchmark(MODEL, CAPACITIES, bench=BENCH)
    print(table(rows))
    if write:
        writable_dir(COMMITTED.parent)
        save_figures(as_figures(rows), conditions(BENCH), COMMITTED)
        return 0
    before = json.loads(COMMITTED.read_text())
    print(f"committed figures are from {before['conditions']['date']}, {before['conditions']['device']}")
    committed = {row["name"]: row["efficiency"] for row in before["rows"]}
    lost = losses({row.name: efficiency(row, rows[0]) for row in rows}, committed)
    for name, share in lost.items():
        print(f"error: {name} has lost {100 * share:.0f} % of its efficiency in {COMMITTED}", file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(quick("write=1" in sys.argv) if "quick=1" in sys.argv else run_tool("bench", str(__doc__)))
