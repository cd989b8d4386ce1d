"""Machines and cost for N images a day, dense and routed, from the figures of `mod-vision bench out=...`."""

import json
import math
import sys
from pathlib import Path

from mod_vision.cli import run_tool

SECONDS_PER_DAY, HOURS_PER_MONTH = 86_400, 730


def machines(images_per_day: float, ms_per_image: float, peak: float, load: float) -> int:
    """Return how many machines of the measured kind are needed, at least one.

    Args:
        images_per_day: N.
        ms_per_image: Measured milliseconds of one image, the machine doing nothing else.
        peak: Images in the busiest second over those in an average one.
        load: Share of the time that a machine may be busy: the rest is decoding, network and waiting in line.
    """
    return max(1, math.ceil(images_per_day / SECONDS_PER_DAY * peak * ms_per_image / 1000 / load))


def fleet(bench: str | Path, images_per_day: float, price: float, peak: float, load: float) -> str:
    """Return the table for each row of a benchmark; `price` is per machine and hour."""
    figures = json.loads(Path(bench).read_text())
    batch = figures["conditions"]["batch"]
    lines = ["| model | ms per image | machines | cost per month | to dense |", "| --- | --- | --- | --- | --- |"]
    first = None
    for row in figures["rows"]:
        ms = row["latency"]["median"] / batch
        count = machines(images_per_day, ms, peak, load)
        cost = count * price * HOURS_PER_MONTH
        first = first or cost
        lines.append(f"| `{row['name']}` | {ms:.1f} | {count:,} | {cost:,.0f} | {cost / first - 1:+.0%} |")
    return "\n".join(lines)


def main(
    bench: str, images_per_day: float = 10_000_000, price: float = 0.1, peak: float = 2.0, load: float = 0.6
) -> None:
    """Print the table."""
    print(fleet(bench, images_per_day, price, peak, load))


if __name__ == "__main__":
    sys.exit(run_tool(main, str(__doc__)))
