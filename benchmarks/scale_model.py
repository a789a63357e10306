"""What a country or the whole land surface would take: a simulation fed with measured times.

    python benchmarks/scale_model.py [--quick] [--frame-seconds S] [--workers N]

1. The cost of each kind of step is measured on a small scene (CPU seconds, one thread), that of a
   frame with the real network on a few frames, unless --frame-seconds gives it.
2. What the scheduler adds to a step is measured on dask itself: empty steps sent through the same
   executor that runs use.
3. The ledger of a run of 10^6 blocks is played through with those times by simulated workers, the
   scheduler being one more resource that does one step at a time. Last line: JSON.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affine import Affine
from odc.geo.geobox import GeoBox

from geosam2.blocks import Blocks, Node
from geosam2.calibration import estimate
from geosam2.cluster import InProcess, OnDask
from geosam2.everything import plan, start
from geosam2.ledger import Ledger, Step
from geosam2.testing import write_geotiff
from geosam2.testing.oracle import ColourOracle, colour_scene

EXAMPLE = Path(__file__).parent.parent / "examples" / "banepa.tif"
PLACES = {"Nepal": 147_516, "Germany": 357_592, "land surface": 148_940_000}  # km2
SIDE = 8  # frames along a block
SIZE, OVERLAP = 256, 128  # of a frame for the embedded model
STRIDE = SIZE - OVERLAP


@dataclass(frozen=True)
class Costs:
    """Seconds of one thread; a step's cost is that of a block of SIDE x SIDE frames."""

    frame: float
    settle: float
    draw: float
    join: float
    dispatch: float
    """What the client and the scheduler spend on a step."""
    bytes_frame: float

    def of(self, step: Step) -> float:
        """Cost of a step."""
        if step.kind == "find":
            return self.frame * SIDE**2
        return {"settle": self.settle, "draw": self.draw, "join": self.join}[step.kind]


class Timed(InProcess):
    """Notes the CPU seconds of each kind of step."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, list[float]] = {}

    def next_done(self) -> Any:
        began = time.process_time()
        step, outcome = super().next_done()
        self.seconds.setdefault(step.kind, []).append(time.process_time() - began)
        return step, outcome


def measured_steps(folder: Path, quick: bool) -> dict[str, float]:
    """CPU seconds of settling, drawing and joining a full block, some 40 objects a frame."""
    side = STRIDE * (6 if quick else 2 * SIDE)  # quick: a part of a block, scaled up
    pixels, ids = colour_scene((side, side), 40 * side**2 // STRIDE**2, seed=5, size=(10, 110))
    geobox = GeoBox(ids.shape, Affine(0.5, 0, 499_968, 0, -0.5, 4_600_032), "EPSG:32633")
    path = write_geotiff(folder / "s.tif", pixels, geobox)
    choices = {"points": (20,), "coverage": (), "frame_size": SIZE, "overlap": OVERLAP}
    job = plan(path, folder / "run", model=ColourOracle(), block=SIDE, **choices)
    timed = Timed()
    for _ in start(job, timed):
        pass
    share = min(1.0, len(job.grid) / SIDE**2)
    return {"join": 0.0, **{kind: max(own) / share for kind, own in timed.seconds.items()}}


def measured_frame(folder: Path, model: str) -> tuple[float, float]:
    """CPU seconds and bytes of a frame of the example scene with the real network."""
    import torch

    torch.set_num_threads(1)
    job = plan(EXAMPLE, folder / "frame", model=model)
    job.folder.mkdir(parents=True)
    began = time.process_time()
    samples = 2
    found = estimate(job, samples=samples)
    return (time.process_time() - began) / (samples + 1), found.bytes_frame


class Nothing:
    """A job whose steps do nothing."""

    folder = Path.cwd()  # one that exists; nothing is written to it

    def result(self, step: Step) -> Path:
        return self.folder

    def do(self, step: Step) -> dict[str, Any]:
        return {}


def measured_dispatch(count: int) -> float:
    """Wall seconds that dask needs for a step that does nothing."""
    import distributed

    with distributed.Client(n_workers=1, threads_per_worker=2, processes=False,
                            dashboard_address=":0") as client:  # fmt: skip
        executor = OnDask(client)
        began, sent, done = time.perf_counter(), 0, 0
        while done < count:
            while sent - done < executor.capacity and sent < count:
                executor.submit(Nothing(), Step("find", Node(0, 0, sent)))
                sent += 1
            executor.next_done()
            done += 1
        return (time.perf_counter() - began) / count


def rim(blocks: Blocks, node: Node) -> list[Node]:
    """Blocks of a node next to blocks outside: what a busy map leaves unsettled there."""
    side = 2**node.level
    rows, cols = blocks.shape
    top, left = node.row * side, node.col * side
    bottom, right = min(top + side, rows), min(left + side, cols)
    out = set()
    for r, c in ((top, None), (bottom - 1, None), (None, left), (None, right - 1)):
        outside = {top: top > 0, bottom - 1: bottom < rows} if c is None else {
            left: left > 0, right - 1: right < cols}  # fmt: skip
        if not outside[r if c is None else c]:
            continue
        line = range(left, right) if c is None else range(top, bottom)
        out |= {Node(0, r, i) if c is None else Node(0, i, c) for i in line}
    return sorted(out)


def simulate(side: int, workers: int, costs: Costs) -> dict[str, float]:
    """Play a run of side x side blocks through; simulated seconds and the workers' idle share."""
    blocks = Blocks((0, 0), (side * SIDE, side * SIDE), SIDE)
    ledger = Ledger(blocks)
    under_way: list[tuple[float, int, Step]] = []
    now = scheduler_free = busy = 0.0
    count = 0
    while True:
        while len(under_way) < workers and (step := ledger.take()) is not None:
            scheduler_free = max(now, scheduler_free) + costs.dispatch
            busy += costs.of(step)
            heapq.heappush(under_way, (scheduler_free + costs.of(step), count, step))
            count += 1
        if not under_way:
            break
        now, _, step = heapq.heappop(under_way)
        ledger.done(step, rim(blocks, step.node) if step.kind == "settle" else None)
    return {
        "blocks": side * side,
        "steps": count,
        "workers": workers,
        "hours": now / 3600,
        "efficiency": busy / (now * workers),
    }


def tell(costs: Costs, efficiency: float, workers: int) -> list[dict[str, Any]]:
    """Places and resolutions, from frames to hours."""
    across = (SIDE * STRIDE + OVERLAP) / 256 + 1  # tiles of 256 px that a block touches
    per_block = costs.settle * 4 / 3 + costs.draw + costs.join / 3
    rows = []
    for place, area in PLACES.items():
        for gsd in (10.0, 0.5):
            frames = area / (STRIDE * gsd / 1000) ** 2
            seconds = frames * (costs.frame + per_block / SIDE**2)
            rows.append(
                {
                    "place": place,
                    "gsd": gsd,
                    "frames": round(frames),
                    "blocks": round(frames / SIDE**2),
                    "core_hours": round(seconds / 3600),
                    "hours": round(seconds / 3600 / workers / efficiency, 1),
                    "scratch_gb": round(frames * costs.bytes_frame / 1e9, 1),
                    "tile_requests": round(frames * across**2 / SIDE**2),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10^4 blocks instead of 10^6.")
    parser.add_argument("--frame-seconds", type=float, help="Do not measure the network.")
    parser.add_argument("--frame-bytes", type=float, default=20_000.0)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--model", default="nano")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = measured_steps(folder, args.quick)
        frame, size = args.frame_seconds, args.frame_bytes
        if frame is None:
            frame, size = measured_frame(folder, args.model)
    costs = Costs(
        frame, steps["settle"], steps["draw"], steps["join"], measured_dispatch(500), size
    )
    print({k: round(v, 5) for k, v in vars(costs).items()}, flush=True)
    began = time.perf_counter()
    found = simulate(100 if args.quick else 1000, args.workers, costs)
    print({k: round(v, 4) for k, v in found.items()}, f"{time.perf_counter() - began:.0f} s")
    rows = tell(costs, found["efficiency"], args.workers)
    for row in rows:
        print(row)
    print(json.dumps({"costs": vars(costs), "simulation": found, "places": rows}))


if __name__ == "__main__":
    main()
