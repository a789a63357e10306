"""Frames that were encoded once: a memory cache, a disk cache, and the encoder in front of them.

Encoding a frame costs a hundred times more than answering a click on it. The command line, Python
and the QGIS worker share the files on disk. A file is only used if the key inside it is the one
that was asked for: scene content, window, stretch and weights; anything else is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geosam2 import __version__
from geosam2.files import PARTIAL, evict, write_atomically

if TYPE_CHECKING:
    from geosam2_model import SAM2, ImageFeatures
    from odc.geo.geobox import GeoBox
    from torch import Tensor

    from geosam2.levels import Level, Window
    from geosam2.scene import Scene

log = logging.getLogger(__name__)

MEMORY_BYTES = 512 * 2**20
"""Default bound of the memory cache."""

DISK_BYTES = 4 * 2**30
"""Default bound of the disk cache."""

_EVICT_EVERY = 16  # writes between two looks at the size of the folder


def default_folder() -> Path:
    """Where embeddings are kept: `$GEOSAM2_CACHE`, or the user's cache folder."""
    import platformdirs

    root = os.environ.get("GEOSAM2_CACHE") or platformdirs.user_cache_dir("geosam2")
    return Path(root) / "embeddings"


@dataclass(frozen=True)
class Place:
    """Where a frame is and where it has data: what is kept of many frames at a time."""

    valid: NDArray[np.bool_]
    """(H, W), True = data."""
    geobox: GeoBox
    """Its place on the map."""
    window: Window
    """Its place on the level's pixel lattice."""


@dataclass(frozen=True)
class EncodedFrame:
    """What is kept of a frame: enough to answer any prompt on it without its pixels."""

    features: ImageFeatures
    """The network's view of the frame, a batch of one."""
    valid: NDArray[np.bool_]
    """(H, W), True = data."""
    geobox: GeoBox
    """Its place on the map."""
    window: Window
    """Its place on the level's pixel lattice."""

    @property
    def place(self) -> Place:
        """The frame without what the network made of it, some megabytes."""
        return Place(self.valid, self.geobox, self.window)


@dataclass
class EmbeddingCache:
    """Tensors by key, least recently used out first; safe for many threads and processes.

    >>> cache = EmbeddingCache(folder=None, memory_bytes=100)
    >>> cache.get("a") is None
    True
    """

    folder: Path | None = field(default_factory=default_folder)
    """Folder of the disk cache; None = memory only."""
    memory_bytes: int = MEMORY_BYTES
    """Bound of the memory cache."""
    disk_bytes: int = DISK_BYTES
    """Bound of the disk cache; looked at from time to time, so it may be passed for a while."""
    hits: int = 0
    """Answers from memory or disk so far."""
    misses: int = 0
    """Questions without an answer so far."""

    def __post_init__(self) -> None:
        self._held: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._bytes = 0
        self._writes = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors stored under a key, or None."""
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
        if found is None:
            found = self._read(key)
            if found is not None:
                self._hold(key, found)
        self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return found

    def put(self, key: str, tensors: dict[str, Tensor], *, disk: bool = True) -> None:
        """Keep tensors; a full or read-only disk is noted in the log and otherwise no matter."""
        self._hold(key, tensors)
        if disk and self.folder is not None:
            self._write(key, tensors)

    def clear(self) -> None:
        """Forget everything, on disk too."""
        with self._lock:
            self._held.clear()
            self._bytes = 0
        for path in self._files():
            with contextlib.suppress(OSError):
                path.unlink()

    def _hold(self, key: str, tensors: dict[str, Tensor]) -> None:
        with self._lock:
            self._drop(key)
            self._held[key] = tensors
            self._bytes += _nbytes(tensors)
            while self._bytes > self.memory_bytes and self._held:
                self._drop(next(iter(self._held)))

    def _drop(self, key: str) -> None:
        if (old := self._held.pop(key, None)) is not None:
            self._bytes -= _nbytes(old)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.safetensors"

    def _read(self, key: str) -> dict[str, Tensor] | None:
        if self.folder is None or not (path := self._path(key)).is_file():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                if (file.metadata() or {}).get("key") != key:
                    return None
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            os.utime(path)  # used now: the last to be evicted
        except (OSError, SafetensorError) as error:  # damaged, or evicted by another process
            log.info("embedding cache: ignoring %s (%s)", path, error)
            return None
        return found

    def _write(self, key: str, tensors: dict[str, Tensor]) -> None:
        from safetensors.torch import save

        assert self.folder is not None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
            write_atomically(self._path(key), save(whole, {"key": key}))
            self._writes += 1
            if self._writes % _EVICT_EVERY == 1:
                evict([*self._files(), *self.folder.glob(f"*{PARTIAL}")], self.disk_bytes)
        except OSError as error:
            log.warning("embedding cache: %s cannot be written (%s); memory only", key, error)
            self.folder = None

    def _files(self) -> list[Path]:
        return list(self.folder.glob("*.safetensors")) if self.folder is not None else []


@dataclass
class FrameEncoder:
    """Windows of one scene as the network sees them, each encoded once."""

    scene: Scene
    """Where pixels come from."""
    model: SAM2
    """The network, in eval mode."""
    cache: EmbeddingCache = field(default_factory=lambda: EmbeddingCache(folder=None))
    """Where encoded frames are kept."""
    encoded: int = 0
    """Frames that had to go through the network so far."""

    def key(self, level: Level, window: Window) -> str:
        """The cache key: everything that the features depend on."""
        parts = {
            "version": __version__,
            "scene": self.scene.signature,
            "stretch": str(self.scene.stretch),
            "level": [*level.resolution, *level.anchor],
            "window": list(window),
            "model": self._model_name(),
        }
        return json.dumps(parts, separators=(",", ":"))

    def _model_name(self) -> str:
        """Weights without a fingerprint (a model under construction) are known by their address."""
        return self.model.fingerprint or f"unnamed-{id(self.model)}"

    def __call__(self, level: Level, window: Window) -> EncodedFrame:
        """Encode a window of a level, or recall it.

        Raises:
            SourceError: If the pixels cannot be read.
        """
        key = self.key(level, window)
        tensors = self.cache.get(key)
        if tensors is None:
            tensors = self._encode(level, window)
            self.cache.put(key, tensors, disk=bool(self.model.fingerprint))
        return self._frame(tensors, level, window)

    def _encode(self, level: Level, window: Window) -> dict[str, Tensor]:
        import torch

        frame = self.scene.read_window(level, window)
        pixels = torch.from_numpy(np.ascontiguousarray(frame.pixels))[None]
        with torch.no_grad():
            features = self.model.encode(pixels)
        self.encoded += 1
        tensors = {name: t.detach().cpu() for name, t in features.to_dict().items()}
        tensors["valid"] = torch.from_numpy(np.packbits(frame.valid))
        return tensors

    def _frame(self, tensors: dict[str, Tensor], level: Level, window: Window) -> EncodedFrame:
        from geosam2_model import ImageFeatures

        rest = {name: tensor for name, tensor in tensors.items() if name != "valid"}
        features = ImageFeatures.from_dict(rest).to(_device(self.model))
        bits = np.unpackbits(tensors["valid"].numpy(), count=window.height * window.width)
        valid = bits.reshape(window.height, window.width).astype(bool)
        return EncodedFrame(features, valid, level.geobox(window), window)


def _device(model: SAM2) -> Any:
    return model.device


def _nbytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
