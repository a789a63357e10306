"""Classical ways of answering a click, as rivals for the evaluation: no training, only colour.

Each rival is made once a picture (`solve`) and then answers clicks on it. They come from
scikit-image and OpenCV, which only the evaluation needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geosam2.errors import import_optional
from geosam2.evaluation import Answerer, Click, Mask

Pixels = npt.NDArray[np.uint8]
DISC = 3
"""Radius in pixels of what a click is sure of."""
LARGEST = 256
"""GrabCut and the random walker work on pictures no larger than this; their time grows quickly."""


@dataclass(frozen=True)
class Rival:
    """A way to answer clicks."""

    solve: Callable[[Pixels], Answerer]
    """From a picture (3, S, S) to whoever answers clicks on it."""


def everybody() -> dict[str, Rival]:
    """All rivals by name.

    Raises:
        MissingDependencyError: If scikit-image or OpenCV is not installed.
    """
    import_optional("skimage", "evaluate")
    import_optional("cv2", "evaluate")
    return {
        "GrabCut": Rival(grabcut),
        "region growing": Rival(region_growing),
        "Felzenszwalb": Rival(felzenszwalb),
        "random walker": Rival(random_walker),
    }


def _discs(clicks: Sequence[Click], label: int, shape: tuple[int, ...]) -> Mask:
    y, x = np.mgrid[: shape[0], : shape[1]]
    found = np.zeros(shape, bool)
    for cx, cy, kind in clicks:
        if kind == label:
            found |= (x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2 <= DISC**2
    return found


def _cells(clicks: Sequence[Click], label: int) -> list[tuple[int, int]]:
    return [(int(y), int(x)) for x, y, kind in clicks if kind == label]


def region_growing(pixels: Pixels) -> Answerer:
    """Connected pixels whose colour is close to a foreground click's, and closer than to others."""
    from skimage.segmentation import flood

    image = pixels.transpose(1, 2, 0).astype(np.float32)
    tolerance = 0.6 * float(image.std((0, 1)).mean())

    def answer(clicks: Sequence[Click]) -> Mask:
        found = np.zeros(image.shape[:2], bool)
        for cell in _cells(clicks, 1):
            far = np.linalg.norm(image - image[cell], axis=2)
            for other in _cells(clicks, 0):
                far = np.where(np.linalg.norm(image - image[other], axis=2) < far, np.inf, far)
            near = (far <= tolerance).astype(np.uint8)
            near[cell] = 1
            found |= flood(near, cell)  # type: ignore[no-untyped-call]
        return found

    return answer


def felzenszwalb(pixels: Pixels) -> Answerer:
    """The graph-based regions under the foreground clicks, without those under background ones."""
    from skimage.segmentation import felzenszwalb as segment

    regions = segment(pixels.transpose(1, 2, 0), scale=300, sigma=0.8, min_size=100)

    def answer(clicks: Sequence[Click]) -> Mask:
        wanted = {int(regions[cell]) for cell in _cells(clicks, 1)}
        wanted -= {int(regions[cell]) for cell in _cells(clicks, 0)}
        return np.isin(regions, list(wanted))

    return answer


def _at_most(side: int, pixels: Pixels, inner: Callable[[Pixels], Answerer]) -> Answerer:
    """An answerer that works on a smaller picture if this one is wider than `side`."""
    import cv2

    full = pixels.shape[-1]
    if full <= side:
        return inner(pixels)
    image = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
    solve, scale = inner(np.ascontiguousarray(small)), side / full

    def answer(clicks: Sequence[Click]) -> Mask:
        found = solve([(x * scale, y * scale, kind) for x, y, kind in clicks])
        share = cv2.resize(found.astype(np.float32), (full, full), interpolation=cv2.INTER_LINEAR)
        return np.asarray(share > 0.5)

    return answer


def grabcut(pixels: Pixels) -> Answerer:
    """Graph cut with colour mixtures; what is near a click is probably the object."""
    return _at_most(LARGEST, pixels, _grabcut)


def random_walker(pixels: Pixels) -> Answerer:
    """Where a random walker that avoids edges reaches a click first; the border is outside."""
    return _at_most(LARGEST // 2, pixels, _random_walker)


def _grabcut(pixels: Pixels) -> Answerer:
    import cv2

    image = np.ascontiguousarray(pixels.transpose(1, 2, 0)[..., ::-1])
    size = image.shape[0]

    def answer(clicks: Sequence[Click]) -> Mask:
        cv2.setRNGSeed(0)
        y, x = np.mgrid[:size, :size]
        likely = np.zeros((size, size), bool)
        for cx, cy, kind in clicks:
            likely |= (kind == 1) & (np.hypot(x - cx, y - cy) < size / 6)
        state = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        state[0], state[-1], state[:, 0], state[:, -1] = (cv2.GC_BGD,) * 4
        state[_discs(clicks, 1, state.shape)] = cv2.GC_FGD
        state[_discs(clicks, 0, state.shape)] = cv2.GC_BGD
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(image, state, (0, 0, size, size), *models, 3, cv2.GC_INIT_WITH_MASK)
        return np.isin(state, (cv2.GC_FGD, cv2.GC_PR_FGD))

    return answer


def _random_walker(pixels: Pixels) -> Answerer:
    from skimage.segmentation import random_walker as walk

    size = pixels.shape[-1]
    image = pixels.transpose(1, 2, 0).astype(np.float64) / 255

    def answer(clicks: Sequence[Click]) -> Mask:
        seeds = np.zeros((size, size), np.int32)
        seeds[0], seeds[-1], seeds[:, 0], seeds[:, -1] = (2,) * 4
        seeds[_discs(clicks, 0, seeds.shape)] = 2
        seeds[_discs(clicks, 1, seeds.shape)] = 1
        found = walk(image, seeds, beta=300, mode="cg_j", prob_tol=1.0, channel_axis=2)
        return np.asarray(found == 1)

    return answer
