"""Train and score a routed model and its baselines under one schedule; resumable, figures in studies/results/."""

import inspect
import sys

import yaml

from studies.report import write_report
from studies.run import Schedule, study


def main(
    data: str,
    name: str,
    rows: str = "dense,routed-0.5,isoflop-0.5,random-0.5",
    seeds: str = "0,1,2",
    model: str = "yolo26n-mod-hybrid.yaml",
    jobs: int = 1,
    device: str = "cpu",
    out: str = "studies/results",
    **train: int,
) -> None:
    """Run the study `name` on a data YAML; other keys are those of `Schedule`."""
    schedule = Schedule(model, data, name, **train)
    folder = study(schedule, rows.split(","), [int(seed) for seed in str(seeds).split(",")], jobs, device, out)
    print(write_report(folder))


if __name__ == "__main__":
    words = sys.argv[1:]
    if not words or any(word in ("-h", "--help") for word in words):
        print(f"{__doc__}\nusage: python -m studies.study key=value ...\nkeys: {inspect.signature(main)}")
        print(f"schedule: {inspect.signature(Schedule)}")
    else:
        main(**{key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)})
