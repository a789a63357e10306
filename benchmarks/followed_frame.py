"""What a followed frame costs: `pan` against Meta's video predictor on the same frames.

    python benchmarks/followed_frame.py [--quick]

A row of overlapping frames, one click on the first; both networks are SAM 2.1 tiny at 512 x 512
with the same random weights, and remember a prompted frame and up to six others. Ours does all
that following does (reads, encodes, attends, is told what is known, blends, remembers), with
memories placed as in a video, and asks each frame once. One thread, processor seconds, float32;
the median over the frames whose memory is full. The last line is JSON; `ratio` is Meta's time over
ours, `asked_again` our seconds for asking a frame once more, which following does about twice.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from geosam2_model import SAM2, VARIANTS, Prompts
from PIL import Image

import geosam2
from geosam2.masklet import Gate, PanOptions
from geosam2.prompts import Prompt
from geosam2.propagate import Panning
from geosam2.testing import synthetic_scene, write_geotiff
from geosam2.tiling import FrameIndex

SIDE = 512
FULL = 7  # frames after which the memory is full
ANYTHING = Gate(object_score=-1e9, agreement=-1, predicted_iou=-1)

clock = time.process_time


class Walk(Panning):
    """Follows along a row of frames, wherever random weights see the object."""

    def _next(self) -> FrameIndex | None:
        start = self.grid.index_at(*self.prompts[0].anchor)
        index = FrameIndex(start.row, start.col + len(self.reports))
        return index if index in self.grid else None


def ours(model: SAM2, path: Path, frames: int) -> list[float]:
    """Seconds of each frame."""
    scene = geosam2.open_scene(path)
    left, _, _, top = scene.bounds
    half = SIDE / 2 * scene.cell_size
    options = PanOptions(max_frames=frames, positions="frame", gate=ANYTHING, rounds=0)
    run = Walk(scene, model, Prompt(((left + half, top - half),)), options=options)
    seconds = []
    while not run.finished:
        started = clock()
        run.step()
        seconds.append(clock() - started)
    return seconds


def metas(model: SAM2, folder: Path) -> list[float]:
    """Seconds of each frame."""
    from sam2.build_sam import build_sam2_video_predictor

    predictor = build_sam2_video_predictor(
        "configs/sam2.1/sam2.1_hiera_t.yaml",
        device="cpu",
        hydra_overrides_extra=[f"++model.image_size={SIDE}"],
    )
    predictor.load_state_dict(model.state_dict())
    predictor.fill_hole_area = 0  # needs CUDA
    seconds = []
    with torch.inference_mode():
        state = predictor.init_state(str(folder))
        middle = [[SIDE / 2, SIDE / 2]]
        predictor.add_new_points_or_box(state, 0, 1, points=middle, labels=[1])
        started = clock()
        for _ in predictor.propagate_in_video(state):
            seconds.append(clock() - started)
            started = clock()
    return seconds


def draw(folder: Path, frames: int) -> Path:
    """A row of frames as a scene for us, and as the pictures of a video for Meta's predictor."""
    stride = SIDE - SIDE // 4
    made = synthetic_scene(0, (SIDE, stride * (frames - 1) + SIDE))
    for n in range(frames):
        cut = made.pixels[:, :, n * stride : n * stride + SIDE]
        Image.fromarray(cut.transpose(1, 2, 0)).save(folder / f"{n}.jpg", quality=95)
    return write_geotiff(folder / "scene.tif", made.pixels, made.geobox)


def asked_again(model: SAM2) -> float:
    """Seconds of one more decoding with a click and a mask."""
    click = Prompts.clicks([[SIDE / 2, SIDE / 2]])
    said = replace(click, masks=torch.zeros(1, 1, SIDE // 4, SIDE // 4))
    seconds = []
    with torch.no_grad():
        features = model.encode(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
        for _ in range(5):
            started = clock()
            model.decode(features, said)
            seconds.append(clock() - started)
    return float(np.median(seconds))


def main() -> None:
    """Run and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="9 frames and not 14")
    frames = 9 if parser.parse_args().quick else 14
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = SAM2(replace(VARIANTS["sam2.1_tiny"], image_size=SIDE)).eval()
    with TemporaryDirectory() as name:
        path = draw(Path(name), frames)
        table = {"ours": ours(model, path, frames), "meta": metas(model, Path(name))}
    for who, seconds in table.items():
        print(f"{who:<5}", " ".join(f"{value:6.2f}" for value in seconds), flush=True)
    found: dict[str, Any] = {who: float(np.median(some[FULL:])) for who, some in table.items()}
    found |= {"ratio": found["meta"] / found["ours"], "asked_again": asked_again(model)}
    print(json.dumps({key: round(value, 3) for key, value in found.items()}))


if __name__ == "__main__":
    main()
