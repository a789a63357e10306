"""Frames read ahead of their consumer, in threads that end with the iterator."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from geosam2.levels import Window
from geosam2.sources.base import Picture, blank, paste

if TYPE_CHECKING:
    from geosam2.scene import Frame, Scene
    from geosam2.tiling import FrameGrid, FrameIndex

_KEPT_PIXELS = 2**24  # of decoded chunks, 64 MiB at most


def frames_ahead(
    scene: Scene, grid: FrameGrid, indices: Iterator[FrameIndex], workers: int, ahead: int
) -> Iterator[Frame]:
    """Frames in order; up to `ahead` of them are under way before they are asked for."""
    executor = ThreadPoolExecutor(max(1, workers), thread_name_prefix="geosam2-read")
    begin = _way_of_reading(scene, grid, executor)
    waiting: deque[Callable[[], Frame]] = deque()
    try:
        waiting.extend(begin(index) for index in islice(indices, max(1, ahead)))
        while waiting:
            frame = waiting.popleft()()
            waiting.extend(begin(index) for index in islice(indices, 1))
            yield frame
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _way_of_reading(
    scene: Scene, grid: FrameGrid, executor: ThreadPoolExecutor
) -> Callable[[FrameIndex], Callable[[], Frame]]:
    """Starts a frame; what it returns waits for the frame."""
    side = scene.reader.chunk(grid.level) if grid.level.index >= 0 else None
    if side is not None:
        return _Chunks(scene, grid, side, executor).begin

    def begin(index: FrameIndex) -> Callable[[], Frame]:
        return executor.submit(scene.read_frame, grid, index).result

    return begin


class _Chunks:
    """Frames pasted from chunks of a file, each of them decoded and stretched once.

    Frames overlap. Read one by one, they copy and stretch a quarter of their pixels or more again,
    and two threads that read neighbours would both decode the blocks between them.
    """

    def __init__(
        self, scene: Scene, grid: FrameGrid, side: tuple[int, int], executor: ThreadPoolExecutor
    ) -> None:
        self._scene, self._grid, self._side, self._executor = scene, grid, side, executor
        # a row of chunks serves two rows of frames
        two_rows = 2 * (grid.covered.width // side[1] + 2)
        self._most = min(two_rows, max(1, _KEPT_PIXELS // (side[0] * side[1])))
        self._kept: OrderedDict[Window, Future[Picture]] = OrderedDict()

    def begin(self, index: FrameIndex) -> Callable[[], Frame]:
        """Ask for the chunks under a frame; the answer waits for them and puts them together."""
        places = list(self._under(self._grid.window(index)))
        return partial(self._assembled, index, [(place, self._ask(place)) for place in places])

    def _ask(self, place: Window) -> Future[Picture]:
        future = self._kept.get(place)
        if future is None:
            future = self._executor.submit(self._scene.draw, self._grid.level, place)
            self._kept[place] = future
        self._kept.move_to_end(place)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)  # frames that wait for it hold it themselves
        return future

    def _under(self, window: Window) -> Iterator[Window]:
        """Chunks that meet a window; they start at the corner of the file."""
        extent, (height, width) = self._grid.level.extent, self._side
        inside = window & extent
        if inside.empty:
            return
        top = inside.row - (inside.row - extent.row) % height
        left = inside.col - (inside.col - extent.col) % width
        for row in range(top, inside.row_stop, height):
            for col in range(left, inside.col_stop, width):
                yield Window(row, col, height, width) & extent

    def _assembled(self, index: FrameIndex, chunks: list[tuple[Window, Future[Picture]]]) -> Frame:
        from geosam2.scene import Frame

        window = self._grid.window(index)
        picture = blank(window)
        for place, future in chunks:
            paste(future.result(), place, picture, window)
        geobox = self._grid.geobox(index)
        return Frame(*picture, geobox, self._grid.level, (window.row, window.col), index)
