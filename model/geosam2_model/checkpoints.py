"""Weights: where they are, how they are fetched and checked, how they become a model.

Files are read without running anything that is in them: safetensors, or PyTorch's `.pt` with
`weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import platformdirs
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from geosam2_model.config import VARIANTS, ModelConfig
from geosam2_model.errors import CheckpointError
from geosam2_model.ops import cpu_has
from geosam2_model.sam2 import SAM2

logger = logging.getLogger(__name__)

BASE_URL = "https://dl.fbaipublicfiles.com/segment_anything_2/"
EMBEDDED = Path(__file__).parent / "weights"
TRIES = 5  # connections that may be cut before giving up; each goes on where the last one ended


@dataclass(frozen=True)
class Published:
    """A checkpoint that can be downloaded."""

    path: str
    """Below the download server's root."""
    sha256: str
    """Of the whole file."""
    megabytes: int
    """Size of the download."""

    @property
    def filename(self) -> str:
        return self.path.rpartition("/")[2]


PUBLISHED = {
    "sam2.1_tiny": Published(
        "092824/sam2.1_hiera_tiny.pt",
        "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
        156,
    ),
    "sam2.1_small": Published(
        "092824/sam2.1_hiera_small.pt",
        "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
        184,
    ),
    "sam2.1_base_plus": Published(
        "092824/sam2.1_hiera_base_plus.pt",
        "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
        324,
    ),
    "sam2.1_large": Published(
        "092824/sam2.1_hiera_large.pt",
        "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
        898,
    ),
    "sam2_tiny": Published(
        "072824/sam2_hiera_tiny.pt",
        "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125",
        156,
    ),
    "sam2_small": Published(
        "072824/sam2_hiera_small.pt",
        "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3",
        184,
    ),
    "sam2_base_plus": Published(
        "072824/sam2_hiera_base_plus.pt",
        "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071",
        323,
    ),
    "sam2_large": Published(
        "072824/sam2_hiera_large.pt",
        "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b",
        898,
    ),
}
"""Meta's checkpoints (Apache-2.0) by name."""

ALIASES = {size: f"sam2.1_{size}" for size in ("tiny", "small", "base_plus", "large")}
"""Short names stand for SAM 2.1."""

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes in all (0 if unknown)."""


def models_dir() -> Path:
    """Where downloads are kept: `GEOSAM2_MODELS`, or the user's cache directory."""
    chosen = os.environ.get("GEOSAM2_MODELS")
    return Path(chosen) if chosen else platformdirs.user_cache_path("geosam2") / "models"


def full_name(name: str) -> str:
    """The variant that a name stands for.

    Raises:
        CheckpointError: If no model has that name.

    >>> full_name("tiny")
    'sam2.1_tiny'
    """
    name = ALIASES.get(name, name)
    if name not in VARIANTS:
        known = ", ".join(["nano", *ALIASES, *(n for n in PUBLISHED if n.startswith("sam2_"))])
        raise CheckpointError(
            f"No model is called {name!r} and there is no such file; models are {known}."
        )
    return name


def local_path(name: str) -> Path:
    """Where a model's file is, or would be once fetched."""
    name = full_name(name)
    if name in PUBLISHED:
        return models_dir() / PUBLISHED[name].filename
    return EMBEDDED / f"{name}.safetensors"


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The file of a model, downloaded and verified unless it is there already.

    Args:
        name: As for `load`.
        progress: Called while downloading.

    Raises:
        CheckpointError: If there is no connection, no such file, or its content is not the
            published one (the download is then deleted, nothing else).
    """
    target = local_path(name)
    if target.exists():
        return target
    if full_name(name) not in PUBLISHED:
        raise CheckpointError(f"{target} is missing from this installation; install it again.")
    known = PUBLISHED[full_name(name)]
    import pooch  # here, as it is slow to import and rarely needed

    def download(url: str, output_file: str, _: Any) -> None:
        part = target.with_name(target.name + ".part")
        _download(url, part, progress)
        part.replace(output_file)

    target.parent.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s (%d MB) to %s", known.filename, known.megabytes, target.parent)
    pooch.get_logger().setLevel(logging.WARNING)  # it would print; the line above logs the same
    try:
        pooch.retrieve(
            BASE_URL + known.path,
            known_hash=f"sha256:{known.sha256}",
            fname=target.name,
            path=target.parent,
            downloader=download,
        )
    except CheckpointError:
        raise
    except ValueError as error:  # pooch's word for a wrong hash
        raise CheckpointError(
            f"The download of {known.filename} from {BASE_URL} is not the published file (sha256 "
            "differs) and was deleted. Try again; a proxy may have answered in its place."
        ) from error
    return target


def _download(url: str, part: Path, progress: Progress | None) -> None:
    """Fetch `url` into `part`, going on where an earlier attempt ended."""
    for attempt in range(TRIES):
        try:
            return _download_rest(url, part, progress)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            raise CheckpointError(f"{url} answers {status}; it may have moved.") from error
        except httpx.TransportError as error:
            if attempt == TRIES - 1:
                have = part.stat().st_size if part.exists() else 0
                raise CheckpointError(
                    f"Cannot download {url} ({type(error).__name__}); {have} bytes are kept and "
                    "the next try goes on from there. Check the network, or copy the file to "
                    f"{part.with_suffix('')} by hand."
                ) from error
            time.sleep(min(2.0**attempt * 0.1, 2.0))


def _download_rest(url: str, part: Path, progress: Progress | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as answer:
        if answer.status_code == 416:  # nothing is left after `have`: all there, or garbage
            if answer.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()
            return _download_rest(url, part, progress)
        answer.raise_for_status()
        have = have if answer.status_code == 206 else 0
        total = have + int(answer.headers.get("Content-Length", -have))
        with part.open("ab" if have else "wb") as file:
            for block in answer.iter_raw():  # as it arrives, so that a cut loses nothing
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress(have, total)


def locate(name: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """The file that `load` reads for a name or a path; downloaded if it has to be.

    Raises:
        CheckpointError: If there is no such file, or it cannot be fetched.
    """
    path = Path(name)
    if path.is_file():
        return path
    is_path = path.suffix or len(path.parts) > 1 or isinstance(name, os.PathLike)
    if is_path and str(name) not in VARIANTS:  # "sam2.1_tiny" only looks like a suffix
        raise CheckpointError(f"There is no file {path}; give a path or a model's name.")
    return fetch(str(name), progress)


def load(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> SAM2:
    """A model in eval mode, from a name or a file.

    Args:
        name: "nano" (embedded), "tiny", "small", "base_plus", "large" (SAM 2.1, downloaded
            once), "sam2_tiny" and so on (SAM 2), or the path of a .pt or .safetensors file.
        device: Where to run; a GPU if PyTorch sees one, else the CPU.
        dtype: Number type of the weights; by default what is fast on the device without
            changing masks (`fast_dtype`).
        progress: Called while downloading.

    Raises:
        CheckpointError: If the file cannot be found, fetched, read or fitted to a variant; the
            message names the missing, unexpected and misshapen weights.
    """
    path = locate(name, progress)
    state, config = read(path)
    model = _fit(config or detect(state, path), state, path)
    model.fingerprint = sha256(path)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    # bfloat16 saves the embedded network a fifth of its time, but a few of its masks are others
    chosen = torch.float32 if model.config.dense_prompts else fast_dtype(device)
    return model.to(device, dtype or chosen).eval()


def save(
    model: SAM2,
    path: str | os.PathLike[str],
    *,
    weights: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model as safetensors, its configuration inside; replaces the file in one step.

    Args:
        model: What to write.
        path: File to write or replace.
        weights: By name, in place of the model's own (a running average of them, say).
        dtype: Number type in the file, such as `torch.float16`; as they are by default.
        metadata: What else is written beside the configuration.
    """
    path = Path(path)
    state = {}
    for name, x in (weights or model.state_dict()).items():
        kind = dtype if dtype and x.is_floating_point() else x.dtype
        state[name] = x.detach().to("cpu", kind).contiguous()
    part = path.with_name(path.name + ".part")
    config = json.dumps(model.config.to_dict())
    safetensors.torch.save_file(state, part, {**(metadata or {}), "config": config})
    part.replace(path)


def read(path: Path) -> tuple[dict[str, Tensor], ModelConfig | None]:
    """Weights by name, and the configuration if the file carries one.

    Raises:
        CheckpointError: If the file is not a checkpoint, is cut off, or has code in it.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file:
        head = file.read(64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about odd files before it refuses them
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=head[:2] == b"PK"
            )
    except Exception as error:
        raise CheckpointError(_why_unreadable(path, head, error)) from error
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise CheckpointError(f"{path} holds no weights (a dictionary of tensors) but other data.")
    return state, None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], ModelConfig | None]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        state = safetensors.torch.load_file(path)
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); fetch it again."
        ) from error
    config = metadata.get("config")
    return state, _config(config, path) if config else None


def _config(text: str, path: Path) -> ModelConfig:
    """The configuration that a file carries, each setting of the type that it must have."""
    remedy = "save it again with geosam2_model.checkpoints.save."
    try:
        values = json.loads(text)
        wrong = {k: v for k, v in values.items() if k in _USUAL and not _fits(k, v)}
        if wrong:
            raise CheckpointError(
                f"{path} carries a configuration of the wrong types ({wrong}); {remedy}"
            )
        return ModelConfig.from_dict(values)
    except CheckpointError:
        raise
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        # no JSON, no names and values, names that are unknown, numbers that do not go together
        raise CheckpointError(
            f"{path} carries a configuration that cannot be read ({error}); {remedy}"
        ) from error


_USUAL = ModelConfig().to_dict()
"""A value of the right type for each setting."""


def _fits(name: str, value: Any) -> bool:
    never = name == "stability_threshold" and value is None
    return never or _alike(value, _USUAL[name])


def _alike(value: Any, usual: Any) -> bool:
    """Whether a setting, as JSON has it, has the type of its default.

    A whole number is a number too.

    >>> _alike([1, "2"], (1,)), _alike(True, 1), _alike(3, 0.5)
    (False, False, True)
    """
    if isinstance(usual, tuple):
        return isinstance(value, list) and all(_alike(x, usual[0]) for x in value)
    if isinstance(usual, bool) or isinstance(value, bool):
        return isinstance(usual, bool) and isinstance(value, bool)
    return isinstance(value, (int, float) if isinstance(usual, float) else type(usual))


def _why_unreadable(path: Path, head: bytes, error: Exception) -> str:
    if head.lstrip()[:1] == b"<":
        return f"{path} is a web page, not a checkpoint; download the file itself."
    pickled = head[:2] == b"PK" or head[:1] == b"\x80"
    if pickled and "unsupported" in str(error).lower() and "weights_only" in str(error):
        return f"{path} holds Python objects besides weights; they were not run. Save weights only."
    return (
        f"{path} is not a readable checkpoint: damaged, cut off or another format. Fetch it again."
    )


def detect(state: dict[str, Tensor], path: Path) -> ModelConfig:
    """The variant of Meta's whose shape these weights have.

    Raises:
        CheckpointError: If it is none of them.
    """
    stem = "image_encoder.trunk."
    first = state.get(f"{stem}patch_embed.proj.weight")
    width = None if first is None else first.shape[0]
    blocks = {name.split(".")[3] for name in state if name.startswith(f"{stem}blocks.")}
    occlusion = "no_obj_embed_spatial" in state
    for config in VARIANTS.values():
        same = (config.embed_dim, sum(config.stages)) == (width, len(blocks))
        if config.trunk == "hiera" and same and config.occlusion_embedding == occlusion:
            return config
    raise CheckpointError(
        f"{path} fits no variant of SAM 2: its trunk has {width or 'no'} channels and "
        f"{len(blocks)} blocks. Checkpoints of SAM 1 or of other projects do not work."
    )


def _fit(config: ModelConfig, state: dict[str, Tensor], path: Path) -> SAM2:
    model = _unfilled(config, path)
    wanted = model.state_dict()
    problems = {
        "missing": [k for k in wanted if k not in state],
        "unexpected": [k for k in state if k not in wanted],
        "of another shape": [
            f"{k} {tuple(state[k].shape)} instead of {tuple(x.shape)}"
            for k, x in wanted.items()
            if k in state and state[k].shape != x.shape
        ],
    }
    if any(problems.values()):
        named = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in problems.items() if keys)
        raise CheckpointError(f"{path} does not fit {config.name}. {named}.")
    model.load_state_dict(state, assign=True)
    return model


def _unfilled(config: ModelConfig, path: Path) -> SAM2:
    """The network that a configuration describes, its weights not yet there."""
    try:
        with _Unfilled():
            return SAM2(config)
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} carries a configuration that describes no network "
            f"({type(error).__name__}: {error}); save it again with geosam2_model.checkpoints.save."
        ) from error


class _Unfilled(TorchFunctionMode):
    """Nobody draws numbers for weights that are replaced at once: layers get memory alone.

    The device "meta" would do as well, but there PyTorch imports its compiler, for over a second.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _some(keys: list[str], limit: int = 8) -> str:
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more


def sha256(path: Path) -> str:
    """Of a file's content, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@lru_cache
def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where a matrix product in it is much faster than in float32, else float32.

    On a CPU without bfloat16 instructions it can be 200 times slower, so the processor is asked
    first and a kernel is timed only if it says yes.
    """
    if device.type != "cpu" or not _cpu_has_bfloat16():
        return torch.float32
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 1024, dtype=dtype)
        a @ b
        start = time.perf_counter()
        for _ in range(3):
            a @ b
        times[dtype] = time.perf_counter() - start
    return torch.bfloat16 if times[torch.bfloat16] < 0.6 * times[torch.float32] else torch.float32


def _cpu_has_bfloat16() -> bool:
    return cpu_has("amx_tile") or cpu_has("avx512_bf16")
