"""What a run will cost on this machine: a few frames are looked at, the rest is arithmetic."""

from __future__ import annotations

import time
from dataclasses import dataclass

from geosam2.part_table import write_parts
from geosam2.parts import Part
from geosam2.steps import Job, look, network_of, visited_frames
from geosam2.tiling import FrameIndex


@dataclass(frozen=True)
class Estimate:
    """Expected cost of a run; measured on `sampled` frames spread over the scene."""

    frames: int
    """Frames that are looked at."""
    blocks: int
    """Blocks, the units of work."""
    megapixels: float
    """Pixels of the level that is looked at."""
    sampled: int
    """Frames that were measured."""
    seconds_read: float
    """Reading a frame."""
    seconds_network: float
    """Finding its masks."""
    bytes_frame: float
    """What a frame leaves on disk until the run is finished."""
    workers: int
    """Processes that share the work."""

    @property
    def seconds(self) -> float:
        """Expected time of the whole run; the other steps take a few percent of it."""
        return self.frames * (self.seconds_read + self.seconds_network) * 1.05 / self.workers

    @property
    def bytes(self) -> float:
        """Expected size of the run's folder."""
        return self.frames * self.bytes_frame


def estimate(job: Job, *, workers: int = 1, samples: int = 3) -> Estimate:
    """Look at a few frames spread over those of the run, after one that warms up."""
    shares = [(i + 0.5) / samples for i in range(samples)]
    if job.area is None:
        (rows, cols), (top, left) = job.grid.shape, job.grid.first
        count = rows * cols
        wanted = [FrameIndex(top + int(s * rows), left + int(s * cols)) for s in shares]
    else:
        visited = list(visited_frames(job))
        count = len(visited)
        wanted = [visited[int(s * count)] for s in shares]
    network = network_of(job)
    look(job, network, job.scene.read_frame(job.grid, wanted[0]))
    parts: list[Part] = []
    reading = finding = 0.0
    for index in wanted:
        began = time.perf_counter()
        frame = job.scene.read_frame(job.grid, index)
        read = time.perf_counter()
        parts += look(job, network, frame).parts
        reading += read - began
        finding += time.perf_counter() - read
    return Estimate(
        frames=count,
        blocks=len(job.blocks),
        megapixels=job.grid.extent.height * job.grid.extent.width / 1e6,
        sampled=samples,
        seconds_read=reading / samples,
        seconds_network=finding / samples,
        bytes_frame=_stored(job, parts) / samples,
        workers=max(1, workers),
    )


def _stored(job: Job, parts: list[Part]) -> int:
    path = job.folder / "calibration.parquet"
    write_parts(path, parts)
    size = path.stat().st_size
    path.unlink()
    return size
