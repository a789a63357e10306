"""Files that many processes share: written whole or not at all, and kept within bounds."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

PARTIAL = ".part"
"""Suffix of files that are being written."""

_FORGOTTEN = 3600.0  # seconds after which a half-written file belongs to nobody


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; what is written there moves into place if nothing fails.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole(Path(folder) / "a") as partial:
    ...         _ = partial.write_text("all of it")
    ...     [path.name for path in Path(folder).iterdir()]
    ['a']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # not by mkstemp, whose files nobody else may read: workers may run as other users
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a temporary name in the same folder, then a rename."""
    with whole(path) as partial:
        partial.write_bytes(data)


def evict(paths: Iterable[Path], max_bytes: int) -> None:
    """Remove the files that were not used for longest until the rest fits.

    Also what a killed process left half-written. Other processes may do the same at the same time.

    Args:
        paths: Files; those that end in `PARTIAL` do not count, and go when they are an hour old.
        max_bytes: Size of those that stay, at most.
    """
    found = []
    for path in paths:
        with contextlib.suppress(OSError):  # another process was faster
            stat = path.stat()
            if path.suffix != PARTIAL:
                found.append((stat.st_mtime, stat.st_size, path))
            elif time.time() - stat.st_mtime > _FORGOTTEN:
                path.unlink()
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
