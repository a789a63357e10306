"""One running job and what the client may do to it: pause, resume, accept, cancel, correct.

The reader thread changes a `Control`; the main thread looks at it between two network calls and
while it waits for pixels. One condition variable guards everything, so a waiting job wakes at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from geosam2.errors import SourceError


class Cancelled(BaseException):
    """The client cancelled the job (or went away).

    No `Exception`, as little as KeyboardInterrupt: whoever goes on after errors must let it pass.
    """


class Accepted(BaseException):
    """The client wants what there is, now; see `Cancelled` for why it is no `Exception`."""


class Control:
    """The client's wishes for one job.

    Args:
        say: Called with "paused" or "resumed" when the job really stops or goes on.
        pixel_timeout: Seconds to wait for one window of pixels.
    """

    def __init__(self, say: Callable[[str], None], pixel_timeout: float = 600.0) -> None:
        self._say = say
        self._pixel_timeout = pixel_timeout
        self._changed = threading.Condition()
        self._paused = self._cancelled = self._accepted = False
        self._corrections: deque[Any] = deque()
        self._correcting = False  # one of them is being applied, perhaps in a pause
        self._answers: dict[int, bytes | str] = {}

    # from the reader thread -----------------------------------------------------------------

    def pause(self) -> None:
        """Stop before the next frame."""
        self._set("_paused", True)

    def resume(self) -> None:
        """Go on."""
        self._set("_paused", False)

    def cancel(self) -> None:
        """Give up; nothing of the job remains."""
        self._set("_cancelled", True)

    def accept(self) -> None:
        """Finish with what has been found so far."""
        with self._changed:
            self._accepted, self._paused = True, False
            self._changed.notify_all()

    def correct(self, correction: Any) -> None:
        """Hand over more clicks; they are applied between two frames, also while paused."""
        with self._changed:
            self._corrections.append(correction)
            self._changed.notify_all()

    def answer(self, need: int, pixels: bytes | str) -> None:
        """Pixels that the job asked for (bytes), or why there are none (text)."""
        with self._changed:
            self._answers[need] = pixels
            self._changed.notify_all()

    def _set(self, name: str, value: bool) -> None:
        with self._changed:
            setattr(self, name, value)
            self._changed.notify_all()

    # from the main thread -------------------------------------------------------------------

    @property
    def accepted(self) -> bool:
        """Did the client ask to finish with what there is?"""
        return self._accepted

    def between_frames(self) -> Iterator[Any]:
        """Yield corrections to apply; stays here while paused. Raises Cancelled."""
        while True:
            with self._changed:
                correction = self._corrections.popleft() if self._corrections else None
            if correction is None:
                if self._hold(lambda: bool(self._corrections)):
                    return
            else:
                self._correcting = True
                yield correction
                self._correcting = False

    def poll(self) -> None:
        """Between two network calls: stay here while paused.

        Raises:
            Cancelled, Accepted: If the job was ended by the client.
        """
        self._hold(self._goes_on)
        if self._accepted:
            raise Accepted

    def pixels(self, need: int) -> bytes:
        """Wait for an answer; pausing is acknowledged meanwhile, cancelling ends it.

        A correction can only be applied between two frames, so when one comes in a pause that
        began here, this frame is finished first.

        Raises:
            SourceError: If the client has no pixels, or does not answer in time.
            Cancelled, Accepted: If the job was ended by the client.
        """
        while True:
            with self._changed:
                in_time = self._changed.wait_for(
                    lambda: need in self._answers or self._ended() or self._waits(),
                    self._pixel_timeout,
                )
                if need in self._answers and not self._ended():
                    answer = self._answers.pop(need)
                    break
            if not in_time:
                raise SourceError(f"no pixels arrived within {self._pixel_timeout:g} s")
            self._hold(self._goes_on)
            if self._accepted:
                raise Accepted
        if isinstance(answer, str):
            raise SourceError(answer)
        return answer

    def _waits(self) -> bool:
        return self._paused and not self._goes_on()

    def _goes_on(self) -> bool:
        """In spite of a pause: a correction that came in it is shown before all else."""
        return self._correcting or bool(self._corrections)

    def _ended(self) -> bool:
        return self._cancelled or self._accepted

    def _hold(self, until: Callable[[], bool]) -> bool:
        """Wait while paused. True: go on; False: `until` became true first.

        The client is told outside the lock: the reader thread must never wait for its reading.
        """
        announced = False
        while True:
            with self._changed:
                if self._cancelled:
                    raise Cancelled
                go_on = not self._paused
                if go_on or until():
                    break
                if announced:
                    self._changed.wait()
                    continue
            self._say("paused")
            announced = True
        if announced and go_on:
            self._say("resumed")
        return go_on
