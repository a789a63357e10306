"""Reading, fitting and fetching weights."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import rasterio
import torch
from click.testing import CliRunner
from geosam2_model import checkpoints
from geosam2_model.checkpoints import Published, fetch, load, save
from geosam2_model.config import VARIANTS, ModelConfig
from geosam2_model.errors import CheckpointError
from geosam2_model.prompt_encoder import Prompts
from geosam2_model.sam2 import SAM2

from geosam2.commands.models import command

EXAMPLE = Path(__file__).parents[2] / "examples" / "banepa.tif"
SMALL = replace(
    VARIANTS["sam2.1_tiny"],
    name="toy",
    image_size=64,
    embed_dim=16,
    d_model=32,
    mem_dim=16,
    skip_channels=(4, 8),
    decoder_heads=2,
    decoder_mlp=32,
    memory_mlp=32,
)


@pytest.fixture(scope="module")
def toy() -> SAM2:
    torch.manual_seed(0)
    return SAM2(SMALL).eval()


def test_a_saved_model_comes_back_with_its_configuration(toy: SAM2, tmp_path: Path) -> None:
    save(toy, tmp_path / "toy.safetensors")
    again = load(tmp_path / "toy.safetensors", device="cpu", dtype=torch.float32)
    assert again.config == SMALL
    assert not again.training
    assert all(torch.equal(x, again.state_dict()[k]) for k, x in toy.state_dict().items())
    content = (tmp_path / "toy.safetensors").read_bytes()
    assert again.fingerprint == hashlib.sha256(content).hexdigest()
    assert [p.name for p in tmp_path.iterdir()] == ["toy.safetensors"]


@pytest.mark.parametrize(
    "name", ["sam2_tiny", pytest.param("sam2.1_base_plus", marks=pytest.mark.slow)]
)
def test_the_variant_is_seen_from_the_weights(name: str, tmp_path: Path) -> None:
    state = SAM2(VARIANTS[name]).state_dict()
    torch.save({"model": state}, tmp_path / "weights.pt")
    assert load(tmp_path / "weights.pt", device="cpu").name == name


def test_all_variants_can_be_told_apart() -> None:
    for name, config in VARIANTS.items():
        if config.trunk != "hiera":
            continue
        with torch.device("meta"):
            state = SAM2(config).state_dict()
        assert checkpoints.detect(state, Path("x.pt")).name == name


def test_what_does_not_fit_is_named(toy: SAM2, tmp_path: Path) -> None:
    state = toy.state_dict()
    state["surplus"] = state.pop("no_obj_ptr")
    state["no_mem_embed"] = torch.zeros(1, 1, 7)
    with pytest.raises(CheckpointError) as caught:
        checkpoints._fit(SMALL, state, tmp_path / "x.pt")
    message = str(caught.value)
    assert "missing: no_obj_ptr" in message
    assert "unexpected: surplus" in message
    assert "no_mem_embed (1, 1, 7) instead of (1, 1, 32)" in message


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["BOMB"],)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name -> a file that is not a checkpoint, and what must be said about it."""
    html = folder / "page.pt"
    html.write_text("<!DOCTYPE html><html>Not found</html>")
    cut = folder / "cut.pt"
    torch.save({"model": {"a": torch.zeros(9999)}}, cut)
    cut.write_bytes(cut.read_bytes()[:8000])
    code = folder / "code.pt"
    code.write_bytes(pickle.dumps({"model": Bomb()}, protocol=2))
    other = folder / "other.pt"
    torch.save({"model": {"epoch": 3}}, other)
    foreign = folder / "foreign.pt"
    torch.save({"model": {"conv.weight": torch.zeros(3)}}, foreign)
    empty = folder / "empty.pt"
    empty.touch()
    picture = folder / "picture.tif"
    picture.write_bytes(b"II*\0" + b"\x08\0\0\0" * 40)
    tensors = folder / "bad.safetensors"
    tensors.write_bytes(b"\x00" * 100)
    return {
        "html": (html, "is a web page"),
        "cut": (cut, "damaged, cut off"),
        "code": (code, "were not run"),
        "other": (other, "holds no weights"),
        "foreign": (foreign, "fits no variant"),
        "empty": (empty, "damaged, cut off"),
        "picture": (picture, "damaged, cut off or another format"),
        "safetensors": (tensors, "not a readable safetensors"),
        "missing": (folder / "nowhere.pt", "There is no file"),
    }


@pytest.mark.parametrize(
    "kind",
    ["html", "cut", "code", "other", "foreign", "empty", "picture", "safetensors", "missing"],
)
def test_bad_files_give_one_clear_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    path, message = bad_files(tmp_path)[kind]
    with pytest.raises(CheckpointError, match=message):
        load(path)
    assert not (tmp_path / "exploded").exists()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"No model is called 'huge'.*nano, tiny"):
        load("huge")


# Downloads, from a server on this computer


@dataclass
class Server:
    """Serves one file; `cuts` answers end after so many bytes."""

    content: bytes
    cuts: list[int] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    port: int = 0


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server(os.urandom(1_000_000))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.ranges.append(wanted)
            if not self.path.endswith("weights.pt"):
                self.send_error(404)
                return
            start = int(re.findall(r"\d+", wanted)[0]) if wanted else 0
            body = state.content[start:]
            if wanted and not body:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)

        def log_message(self, *_: Any) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = web.server_port
    thread = threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("GEOSAM2_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(checkpoints, "BASE_URL", f"http://127.0.0.1:{web.server_port}/")
    monkeypatch.setattr(checkpoints.time, "sleep", lambda _: None)
    publish(monkeypatch, state.content)
    yield state
    web.shutdown()
    web.server_close()
    thread.join()


def publish(monkeypatch: pytest.MonkeyPatch, content: bytes, path: str = "a/weights.pt") -> None:
    known = Published(path, hashlib.sha256(content).hexdigest(), 1)
    monkeypatch.setitem(checkpoints.PUBLISHED, "sam2.1_tiny", known)


def files() -> list[str]:
    return sorted(p.name for p in checkpoints.models_dir().iterdir())


def test_a_file_is_fetched_once(server: Server) -> None:
    seen: list[tuple[int, int]] = []
    path = fetch("tiny", lambda have, total: seen.append((have, total)))
    assert path.read_bytes() == server.content
    assert seen[-1] == (1_000_000, 1_000_000)
    assert fetch("sam2.1_tiny") == path
    assert len(server.ranges) == 1
    assert files() == ["weights.pt"]


def test_a_cut_transfer_goes_on_where_it_ended(server: Server) -> None:
    server.cuts = [300_000, 200_000]
    assert fetch("tiny").read_bytes() == server.content
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_failed_transfer_goes_on_at_the_next_call(server: Server) -> None:
    server.cuts = [100_000] * checkpoints.TRIES
    with pytest.raises(CheckpointError, match=r"500000 bytes are kept"):
        fetch("tiny")
    assert files() == ["weights.pt.part"]
    assert fetch("tiny").read_bytes() == server.content
    assert server.ranges[-1] == "bytes=500000-"


def test_a_complete_part_is_not_fetched_again(server: Server) -> None:
    folder = checkpoints.models_dir()
    folder.mkdir(parents=True)
    (folder / "weights.pt.part").write_bytes(server.content)
    assert fetch("tiny").read_bytes() == server.content
    assert files() == ["weights.pt"]


def test_a_wrong_file_is_deleted_and_nothing_else(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints.models_dir()
    folder.mkdir(parents=True)
    (folder / "mine.pt").touch()
    publish(monkeypatch, b"something else")
    with pytest.raises(CheckpointError, match=r"sha256 differs.*was deleted"):
        fetch("tiny")
    assert files() == ["mine.pt"]


def test_a_missing_file_says_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, b"", path="gone.pt")
    with pytest.raises(CheckpointError, match="answers 404"):
        fetch("tiny")


def test_no_network_says_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "BASE_URL", "http://127.0.0.1:9/")
    with pytest.raises(CheckpointError, match=r"Cannot download .*Check the network"):
        fetch("tiny")


def test_the_command_line_fetches_and_finds(server: Server) -> None:
    runner = CliRunner()
    missing = runner.invoke(command, ["path", "tiny"])
    assert isinstance(missing.exception, CheckpointError)
    assert "geosam2 models get tiny" in str(missing.exception)
    got = runner.invoke(command, ["get", "tiny"])
    assert got.exit_code == 0, got.output
    path = str(checkpoints.models_dir() / "weights.pt")
    assert got.stdout.strip().endswith(path)
    assert runner.invoke(command, ["path", "tiny"]).stdout.strip() == path
    table = runner.invoke(command, ["list"]).stdout
    assert re.search(rf"tiny +sam2.1_tiny +{re.escape(path)}", table)
    assert re.search(r"large +sam2.1_large +898 MB to download", table)


def test_published_checkpoints_are_the_ones_meta_lists() -> None:
    assert set(checkpoints.PUBLISHED) == {n for n in VARIANTS if n.startswith("sam2")}
    assert all(re.fullmatch(r"[0-9a-f]{64}", p.sha256) for p in checkpoints.PUBLISHED.values())


def test_a_configuration_survives_its_dictionary() -> None:
    for config in VARIANTS.values():
        assert ModelConfig.from_dict(config.to_dict()) == config


def test_bfloat16_is_only_chosen_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.fast_dtype.cache_clear()
    monkeypatch.setattr(checkpoints, "_cpu_has_bfloat16", lambda: False)
    assert checkpoints.fast_dtype(torch.device("cpu")) == torch.float32
    checkpoints.fast_dtype.cache_clear()


def test_the_embedded_network_stays_in_float32(
    toy: SAM2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 a few of its masks are others, so speed does not choose for it."""
    monkeypatch.setattr(checkpoints, "fast_dtype", lambda device: torch.bfloat16)
    save(toy, tmp_path / "plain.safetensors")
    assert load(tmp_path / "plain.safetensors", device="cpu").dtype == torch.bfloat16
    assert load("nano", device="cpu").dtype == torch.float32
    assert load("nano", device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16


@torch.no_grad()
def test_masks_of_the_embedded_network_hardly_differ_in_bfloat16() -> None:
    with rasterio.open(EXAMPLE) as file:
        scene = torch.from_numpy(file.read([1, 2, 3]))
    exact, rounded = (load("nano", device="cpu", dtype=d) for d in (torch.float32, torch.bfloat16))
    assert rounded.image_encoder.trunk.blocks[0].project.weight.dtype == torch.float32
    draw = torch.Generator().manual_seed(4)
    shared = []
    for _ in range(24):
        row, column = (
            int(torch.randint(0, n - 256, (1,), generator=draw)) for n in scene.shape[1:]
        )
        image = scene[None, :, row : row + 256, column : column + 256]
        click = Prompts.clicks([[128.0, 128.0]])
        one, other = (m.decode(m.encode(image), click, multimask=True) for m in (exact, rounded))
        a, b = (out.logits[0, int(one.best)] > 0 for out in (one, other))
        shared.append(float((a & b).sum() / (a | b).sum().clamp(1)))
    assert sum(shared) / len(shared) > 0.99


def test_loading_draws_no_numbers_and_leaves_the_compiler_alone(toy: SAM2, tmp_path: Path) -> None:
    save(toy, tmp_path / "toy.safetensors")
    code = (
        "import sys; from geosam2_model import load, checkpoints; "
        "checkpoints.nn.init._no_grad_uniform_ = None; "  # would fail if a layer were filled
        f"load({str(tmp_path / 'toy.safetensors')!r}); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
