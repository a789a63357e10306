"""A run for tests, on its own so that it can be killed: python everything_run.py SCENE FOLDER OUT.

Prints a line a step. Options: --workers N, --scheduler ADDRESS, --resume, --slow SECONDS.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from geosam2.everything import collect, executor_for, plan, start, with_threads
from geosam2.testing.oracle import ColourOracle

CHOICES = {
    "frame_size": 128,
    "overlap": 32,
    "block": 2,
    "points": (8,),
    "coverage": (),
    "min_region": 16,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scene", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--scheduler")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--slow", type=float, default=0.0)
    args = parser.parse_args()
    job = plan(args.scene, args.folder, model=ColourOracle(seconds=args.slow), **CHOICES)
    with executor_for(job, workers=args.workers, scheduler=args.scheduler) as executor:
        for done in start(with_threads(job, executor), executor, resume=args.resume):
            print(done.step.name, flush=True)
        table = collect(job)
    table.drop(columns="feature").to_file(args.output, driver="GeoJSON")


if __name__ == "__main__":
    sys.exit(main())
