"""A bounded folder of fetched tiles that any number of processes may share.

One file per entry, its name a hash: a line of JSON, then the body. Entries appear by an atomic
rename, so a reader sees all of one or nothing. A disk that is full or read-only turns the cache
off; it never stops a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from geosam2.files import evict, write_atomically

log = logging.getLogger(__name__)

_SUFFIX = ".tile"


@dataclass(frozen=True)
class Entry:
    """What was fetched; an empty body means that there is nothing to be had."""

    body: bytes
    """As the server sent it."""
    etag: str = ""
    """For If-None-Match."""
    modified: str = ""
    """For If-Modified-Since."""
    expires: float = 0.0
    """Seconds since 1970; later the server is asked whether it changed."""

    @property
    def fresh(self) -> bool:
        """True if the server need not be asked."""
        return time.time() < self.expires


class DiskCache:
    """Entries by key, the least recently used removed first.

    Args:
        folder: Created when something is stored.
        max_bytes: Bodies kept, about; two processes may exceed it by a sixteenth each.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = DiskCache(folder)
    ...     cache.put("a", Entry(b"tile", etag="1"))
    ...     cache.get("a").etag, cache.get("b")
    ('1', None)
    """

    def __init__(self, folder: str | Path, max_bytes: int = 2**30) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._unswept: int | None = None  # bytes written since the last sweep; None: never swept

    def path(self, key: str) -> Path:
        """File of a key; 256 folders keep listings short."""
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / (name + _SUFFIX)

    def get(self, key: str) -> Entry | None:
        """The entry, or None; a damaged file counts as none."""
        path = self.path(key)
        try:
            head, _, body = path.read_bytes().partition(b"\n")
            facts = json.loads(head)
            if len(body) != facts.pop("length"):
                return None
            entry = Entry(body, **facts)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the sweep goes by age
        return entry

    def put(self, key: str, entry: Entry) -> None:
        """Store an entry; failing to is logged, no more."""
        facts = {
            "length": len(entry.body),
            "etag": entry.etag,
            "modified": entry.modified,
            "expires": entry.expires,
        }
        content = json.dumps(facts).encode() + b"\n" + entry.body
        try:
            path = self.path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            log.warning("tiles are not cached in %s: %s", self.folder, error.strerror)
            return
        self._sweep_when_due(len(content))

    def _sweep_when_due(self, written: int) -> None:
        with self._lock:
            if self._unswept is not None:
                self._unswept += written
                if self._unswept < self.max_bytes // 16:
                    return
            self._unswept = 0
        self.sweep()

    def sweep(self) -> None:
        """Remove the oldest entries until what is left fits, and what a killed process left."""
        evict(self.folder.glob("*/*"), self.max_bytes)
