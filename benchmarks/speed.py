"""How much faster than Meta's sam2: encoding an image, one click, one tracked frame.

    python benchmarks/speed.py            # SAM 2.1 tiny at 1024 x 1024
    python benchmarks/speed.py --quick    # at 512 x 512, fewer repeats
    python benchmarks/speed.py --busy     # one thread, processor time: for a machine at work

Both run in turn, each measurement in a process of its own, with the same random weights, so that
neither sees the other's memory. The last line is JSON; ratios are Meta's time over ours. Where
bfloat16 products are slower than float32 ones (no AMX or AVX512-BF16), Meta's bfloat16 run would
take many minutes at full size; it is then measured, against ours, at 128 x 128, and that is said.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from geosam2_model.checkpoints import fast_dtype

MEMORIES = 7  # a prompted frame and six tracked ones, SAM 2's full memory
SLOW_SIDE = 128


clock = time.perf_counter


def best_of(repeats: int, work: Callable[[], Any]) -> float:
    """Shortest time in seconds after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


def matrix_peak(dtype: torch.dtype) -> float:
    """GFLOP/s of a square matrix product; a small one first, in case it is hopeless."""
    rate = 0.0
    for side in (128, 512, 1536):
        a = torch.ones(side, side, dtype=dtype)
        rate = max(rate, 2 * side**3 / best_of(3, lambda a=a: a @ a) / 1e9)
        if side >= 512 and rate < 10:
            break
    return rate


def pictures(side: int, count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (count, side // 8, side // 8, 3)).astype(np.uint8)
    return [np.kron(c, np.ones((8, 8, 1), np.uint8)) for c in coarse]


def measure_meta(side: int, repeats: int, autocast: bool) -> dict[str, float]:
    from PIL import Image
    from sam2.build_sam import build_sam2_video_predictor

    model = build_sam2_video_predictor(
        "configs/sam2.1/sam2.1_hiera_t.yaml",
        device="cpu",
        hydra_overrides_extra=[f"++model.image_size={side}"],
    )
    model.fill_hole_area = 0  # needs CUDA
    before = resident()
    context = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(), context:
        for i, picture in enumerate(pictures(side, MEMORIES + 1)):
            Image.fromarray(picture).save(Path(folder) / f"{i}.jpg")
        state = model.init_state(folder)
        image = state["images"][:1]
        result = {"encode": best_of(repeats, lambda: model.forward_image(image))}
        result["memory"] = peak() - before
        encoded = model.forward_image(image)
        result["click"] = best_of(4 * repeats, lambda: meta_click(model, encoded, side))
        model.add_new_points_or_box(state, 0, 1, points=[[side / 2, side / 2]], labels=[1])
        model.propagate_in_video_preflight(state)
        outputs = state["output_dict_per_obj"][0]
        for i in range(1, MEMORIES):
            outputs["non_cond_frame_outputs"][i] = dict(outputs["cond_frame_outputs"][0])

        def track() -> None:
            state["cached_features"] = {}
            for _ in model.propagate_in_video(state, MEMORIES, 0):
                pass

        result["frame"] = best_of(max(1, repeats // 2), track)
    return result


def meta_click(model: Any, encoded: dict[str, Any], side: int) -> Any:
    point = torch.full((1, 1, 2), side / 2), torch.ones(1, 1, dtype=torch.int32)
    sparse, dense = model.sam_prompt_encoder(point, None, None)
    maps = encoded["backbone_fpn"]
    return model.sam_mask_decoder(
        image_embeddings=maps[2] + model.no_mem_embed[0, 0, :, None, None],
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        repeat_image=False,
        high_res_features=maps[:2],
    )


def measure_ours(side: int, repeats: int) -> dict[str, float]:
    from dataclasses import replace

    from geosam2_model.config import VARIANTS
    from geosam2_model.prompt_encoder import Prompts
    from geosam2_model.sam2 import SAM2
    from geosam2_model.video_predictor import VideoPredictor, _Seen
    from torch.utils.flop_counter import FlopCounterMode

    dtype = fast_dtype(torch.device("cpu"))
    model = SAM2(replace(VARIANTS["sam2.1_tiny"], image_size=side)).eval().to(dtype)
    frames = pictures(side, MEMORIES + 1)
    pixels = torch.tensor(frames[0]).permute(2, 0, 1)[None].float()
    before = resident()
    with torch.no_grad():
        result = {"encode": best_of(repeats, lambda: model.encode(pixels))}
        result["memory"] = peak() - before
        features = model.encode(pixels)
        click = Prompts.clicks([[side / 2, side / 2]])
        result["click"] = best_of(4 * repeats, lambda: model.decode(features, click, True))
        with FlopCounterMode(display=False) as counter:
            model.encode(pixels)
        result["gflop"] = counter.get_total_flops() / 1e9
        video = VideoPredictor(model, frames)
        video.prompt(0, 1, points=[[side / 2, side / 2]])
        one = video._objects[1]
        for i in range(1, MEMORIES):
            one.bank.add(one.bank.get(0).memory, i)  # type: ignore[union-attr]
            one.seen[i] = _Seen(one.seen[0].logits, one.seen[0].score, True)

        def track() -> None:
            video._encoded = None
            for _ in video.track(MEMORIES, max_frames=1):
                pass

        result["frame"] = best_of(max(1, repeats // 2), track)
    return result


def resident() -> float:
    """Resident memory now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak() -> float:
    """Highest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def be_patient() -> None:
    """Count what this process does, not what it waits for."""
    global clock
    clock = time.process_time
    torch.set_num_threads(1)


def run(kind: str, side: int, repeats: int) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--worker", kind, "--side", str(side)]
    command += ["--repeats", str(repeats)] + ["--busy"] * (clock is time.process_time)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"measuring {kind} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def fastest(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: min(one[key] for one in runs) for key in runs[0]}


def compare(side: int, repeats: int, rounds: int) -> dict[str, float | None]:
    peaks = {name: matrix_peak(getattr(torch, name)) for name in ("float32", "bfloat16")}
    print(f"matrix product: {peaks['float32']:.0f} GFLOP/s float32, "
          f"{peaks['bfloat16']:.1f} GFLOP/s bfloat16; we chose "
          f"{str(fast_dtype(torch.device('cpu'))).removeprefix('torch.')}")  # fmt: skip
    turns = [(run("ours", side, repeats), run("meta", side, repeats)) for _ in range(rounds)]
    ours, meta = (fastest(list(runs)) for runs in zip(*turns, strict=True))
    half_side = side if peaks["bfloat16"] > peaks["float32"] / 4 else min(side, SLOW_SIDE)
    half = run("meta16", half_side, repeats if half_side == side else 1)
    ours_at_half = ours if half_side == side else run("ours", half_side, repeats)
    print(f"\n{side} x {side}        ours      Meta float32   ratio     "
          f"Meta bfloat16 ({half_side} x {half_side})  ratio")  # fmt: skip
    for key in ("encode", "click", "frame"):
        print(f"{key:<12} {ours[key]:8.3f} s  {meta[key]:10.3f} s {meta[key] / ours[key]:8.2f} "
              f"{half[key]:14.3f} s {half[key] / ours_at_half[key]:17.2f}")  # fmt: skip
    share = ours["gflop"] / ours["encode"] / max(peaks.values())
    print(f"\nencoding: {ours['gflop']:.0f} GFLOP, {ours['gflop'] / ours['encode']:.0f} GFLOP/s, "
          f"{share:.0%} of the fastest matrix product here")  # fmt: skip
    print(f"memory above the weights: ours {ours['memory']:.0f} MB, Meta {meta['memory']:.0f} MB")
    return {
        "encode_vs_float32": meta["encode"] / ours["encode"],
        "encode_vs_bf16": half["encode"] / ours_at_half["encode"],
        "frame_vs_float32": meta["frame"] / ours["frame"],
        "frame_vs_bf16": half["frame"] / ours_at_half["frame"],
        "click_vs_float32": meta["click"] / ours["click"],
        "peak_share": share,
        "encode_seconds": ours["encode"],
        "frame_seconds": ours["frame"],
        "click_seconds": ours["click"],
        "memory_mb": ours["memory"],
        "side": side,
        "bf16_side": half_side,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="512 x 512 and fewer repeats")
    parser.add_argument("--busy", action="store_true", help="one thread and processor time")
    parser.add_argument("--side", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=None)
    parser.add_argument("--worker", choices=["ours", "meta", "meta16"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    side = options.side or (512 if options.quick else 1024)
    repeats = options.repeats or (2 if options.quick else 4)
    torch.manual_seed(0)
    if options.busy:
        be_patient()
    if options.worker:
        warnings.simplefilter("ignore")
        half = options.worker == "meta16"
        measured = (
            measure_ours(side, repeats)
            if options.worker == "ours"
            else measure_meta(side, repeats, half)
        )
        print(json.dumps(measured))
        return
    figures = compare(side, repeats, 1 if options.quick else 2)
    print(json.dumps({k: None if v is None else round(v, 3) for k, v in figures.items()}))


if __name__ == "__main__":
    main()
