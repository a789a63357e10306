"""The training loop: several processes, one core each, whose gradients are averaged.

Every step draws its randomness from (seed, process, step) alone, so a run that was stopped goes on
exactly as if it had not been.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from geosam2_model.checkpoints import load, save
from geosam2_model.config import VARIANTS
from geosam2_model.sam2 import SAM2
from geosam2_model.training import data, features, identity, judge, optimiser, sequences
from geosam2_model.training.losses import coverage, interaction_loss
from geosam2_model.training.prompts import KINDS, Question, ask, correct
from geosam2_model.training.recipe import Phase, Recipe
from geosam2_model.training.synthetic import scene
from geosam2_model.training.teacher import load_teacher, mobile_sam
from geosam2_model.trunks.efficientnet_lite import EfficientNetLite0, load_imagenet

STATE = "state.safetensors"
BEST = "best.safetensors"
LOG = "log.jsonl"
LESSON = "lesson-{rank}"
OLD_BEST = "best.json"
"""Held the best score and its step until they moved into the metadata of `BEST`."""


def new_model(recipe: Recipe) -> SAM2:
    """The network that training starts from; parts that the start has not begin untrained."""
    if recipe.start:
        # on the CPU in float32, whatever would be faster to use: small steps vanish in bfloat16
        start = load(recipe.start, device="cpu", dtype=torch.float32)
        wanted = VARIANTS[recipe.variant]
        if start.config.name != wanted.name or start.config == wanted:
            return start
        model = SAM2(wanted)
        model.load_state_dict(start.state_dict(), strict=False)
        return model
    torch.manual_seed(recipe.seed)
    model = SAM2(VARIANTS[recipe.variant])
    if isinstance(model.image_encoder.trunk, EfficientNetLite0):
        load_imagenet(model.image_encoder.trunk)
    return model


def training_crops(recipe: Recipe) -> data.Crops:
    """All pictures of the recipe, their superpixel regions, and made-up scenes."""
    groups: list[tuple[float, list[data.Picture]]] = []
    textures = []
    for source in recipe.sources:
        pictures = list(source.pictures(data.keep_training(recipe.split)))
        groups.append((source.weight, [p for p in pictures if p.labels]))
        if source.proposals:
            regions = [data.with_proposals(p, recipe.cache) for p in pictures]
            groups.append((source.proposals, regions))
        textures += [data.stretched(p) for p in pictures[:: max(1, len(pictures) // 60)]]
    rng = np.random.default_rng(recipe.seed)
    made = [scene(rng, textures) for _ in range(recipe.scenes if recipe.synthetic else 0)]
    return data.Crops([*groups, (recipe.synthetic, made)])


def feature_crops(recipe: Recipe) -> data.Crops | None:
    """Pictures that a larger network is asked about; None if no source says that it is for that."""
    groups = []
    for source in (s for s in recipe.sources if s.features):
        pictures = source.pictures(data.keep_training(recipe.split))
        groups.append((source.features, [data.with_proposals(p, recipe.cache) for p in pictures]))
    return data.Crops(groups) if groups else None


def phase_at(recipe: Recipe, step: int) -> tuple[Phase, int]:
    """The phase that a step belongs to, and the step's number within it.

    Raises:
        IndexError: After the last one.
    """
    for phase in recipe.phases:
        if step < phase.steps:
            return phase, step
        step -= phase.steps
    raise IndexError(step)


def learning_rate(phase: Phase, step: int) -> float:
    """Linear warm-up, then constant or along a half cosine."""
    rate = phase.lr * min(1.0, (step + 1) / max(phase.warmup, 1))
    return rate * 0.5 * (1 + float(np.cos(np.pi * step / phase.steps))) if phase.decay else rate


def interact(
    model: SAM2, crops: list[data.Crop], rng: np.random.Generator, phase: Phase, recipe: Recipe
) -> tuple[Tensor, dict[str, float]]:
    """Ask about objects on several crops, correct the answers, and judge every answer."""
    pixels = torch.from_numpy(np.stack([c.pixels for c in crops]))
    masks = np.concatenate([c.masks for c in crops])
    index = torch.arange(len(crops)).repeat_interleave(torch.tensor([len(c.masks) for c in crops]))
    truth = coverage(torch.from_numpy(masks))
    kind = KINDS[rng.choice(len(KINDS), p=phase.kinds)]
    corrections = int(rng.choice(len(phase.rounds), p=phase.rounds))
    question = ask(rng, kind, masks, truth)
    features = model.encode(pixels)
    total, report = torch.zeros(()), {}
    for turn in range(corrections + 1):
        prompts = replace(question.prompts, image_index=index)
        out = model.decode_all(features, prompts)
        loss, achieved = interaction_loss(out, truth, question.present, recipe.loss)
        total = total + loss
        best = achieved[torch.arange(len(achieved)), out.predicted_iou.argmax(1)]
        report[f"{kind}_{turn}"] = float(best[question.present].mean())
        if turn < corrections:
            question = _next(rng, question, out.logits.detach(), out.predicted_iou.detach(), truth)
    return total / (corrections + 1), report


def _next(
    rng: np.random.Generator, question: Question, logits: Tensor, iou: Tensor, truth: Tensor
) -> Question:
    best = logits[torch.arange(len(logits)), iou.argmax(1)]
    if rng.random() < 0.15:  # look again: the answer is the prompt, nobody clicks
        return replace(
            question, prompts=replace(question.prompts, masks=best[:, None].clamp(-12, 12))
        )
    return correct(rng, question, best, truth, keep_mask=bool(rng.random() < 0.6))


@dataclass
class Trainer:
    """One process's share of a run; mutable: it owns the weights."""

    recipe: Recipe
    crops: data.Crops
    held_back: dict[str, list[data.Crop]]
    rank: int
    model: SAM2
    identity: identity.Identity = field(default_factory=dict)
    """Written into the state, so that no other run goes on from it."""
    lesson: features.Lesson | None = None
    """What the trunk learns of a larger network's features."""
    step: int = 0

    def __post_init__(self) -> None:
        self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.train()
        rest, matrices = optimiser.groups(self.model, self.model.image_encoder.trunk)
        self.reader = None
        if self.lesson is not None:
            self.reader = features.Reader.fitted(self.model, self.lesson)
            share_first(self.reader)
            reading = {"params": list(self.reader.parameters()), "weight_decay": 0.0}
            rest.append({**reading, "part": features.READING})
        # not fused: that kernel takes numbers in memory order, and gradients that were averaged
        # lie otherwise in memory than channels-last weights do
        adam = torch.optim.AdamW(rest, betas=(0.9, 0.98), lr=0.0)
        self.optimisers = (adam, optimiser.Muon(matrices))
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.out = self.recipe.out
        self.started = time.monotonic()

    def run(self) -> None:
        """All phases, from the last checkpoint on."""
        self.resume()
        if self.step == 0:  # the start is the first best: at worst, it is what is handed out
            self.judge()
        while self.step < sum(phase.steps for phase in self.recipe.phases):
            self.advance(*phase_at(self.recipe, self.step))
            if self.rank == 0 and self.step % self.recipe.save_every == 0:
                self.save()
            if self.step % self.recipe.judge_every == 0:
                self.judge()
        if self.rank == 0:
            self.save()
        self.judge()

    def advance(self, phase: Phase, within: int) -> None:
        """One optimiser step."""
        rng = np.random.default_rng([self.recipe.seed, self.rank, self.step])
        torch.manual_seed(int(rng.integers(2**31)))
        rate = learning_rate(phase, within)
        open_trunk(self.model, phase)
        for one in self.optimisers:
            for group in one.param_groups:
                part = phase.trunk_lr if group.get("trunk") else group.get("part", 1.0)
                group["lr"] = rate * part
            one.zero_grad(set_to_none=True)
        loss, report = self._loss(phase, rng)
        loss.backward()  # type: ignore[no-untyped-call]
        if phase.trunk_lr:
            report |= self._learn_features(rng)
        average_gradients(list(self._parameters().values()))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if torch.isfinite(norm):
            for one in self.optimisers:
                one.step()
        self._follow_average()
        self.step += 1
        if self.rank == 0:
            self._log({"loss": float(loss.detach()), "norm": float(norm), "lr": rate, **report})

    def _loss(self, phase: Phase, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        # every process decides alike, or one would wait for the other: no rank in this seed
        common = np.random.default_rng([self.recipe.seed, self.step])
        size = int(common.choice(phase.sizes))
        images, objects = phase.batch(size)
        if common.random() < phase.sequences:
            shape = sequences.Shape(size, max(1, images * 2 // 3), objects)
            return sequences.follow(self.model, self.crops, rng, shape, self.recipe.loss)
        crops = [self.crops.draw(rng, size, objects) for _ in range(images)]
        return interact(self.model, crops, rng, phase, self.recipe)

    def _learn_features(self, rng: np.random.Generator) -> dict[str, float]:
        """Add the gradients of reading a larger network's features off the trunk."""
        if self.reader is None or self.lesson is None:
            return {}
        asked = self.recipe.features
        loss = self.reader.loss(self.model, *self.lesson.draw(rng, asked.batch))
        (asked.weight * loss).backward()  # type: ignore[no-untyped-call]
        return {"features": float(loss.detach())}

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        """All that is trained, by name."""
        named = dict(self.model.named_parameters())
        if self.reader is not None:
            named |= {f"reader.{k}": p for k, p in self.reader.named_parameters()}
        return named

    def _follow_average(self) -> None:
        weight = 1 - min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        floats = [k for k, v in state.items() if v.is_floating_point()]
        torch._foreach_lerp_(
            [self.average[k] for k in floats], [state[k].detach() for k in floats], weight
        )

    def judge(self) -> None:
        """Look at dev objects with the averaged weights; the first process alone works."""
        if self.rank == 0:
            figures = self._judged()
            self._log({"dev": figures})
            judge.draw_curves(self.out / LOG, self.out / "curves.png")
            if self.step == 0 or figures["score"] > self._best_score():
                self._save_best(figures["score"])
        if dist.is_initialized():
            dist.barrier()

    def _best_score(self) -> float:
        """Score of the best checkpoint so far, -1 if there is none."""
        best, older = self.out / BEST, self.out / OLD_BEST
        said = identity.metadata(best).get("score") if best.exists() else None
        if said is None and older.exists():  # the run was begun by an older version
            with contextlib.suppress(ValueError, KeyError):
                said = json.loads(older.read_text())["score"]
        return -1.0 if said is None else float(said)

    def _save_best(self, score: float) -> None:
        # score and weights in one file: a run that is killed here has both of the old or of the new
        told = {"step": str(self.step), "score": str(score)}
        save(self.model, self.out / BEST, weights=self.average, metadata=told)
        (self.out / OLD_BEST).unlink(missing_ok=True)

    def _judged(self) -> dict[str, float]:
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        self.model.eval()
        figures = judge.dev_figures(self.model, self.held_back)
        self.model.load_state_dict(own)
        self.model.train()
        return figures

    def _log(self, values: dict[str, Any]) -> None:
        seconds = round(time.monotonic() - self.started, 1)
        with (self.out / LOG).open("a") as log:
            log.write(json.dumps({"step": self.step, "seconds": seconds, **values}) + "\n")

    def save(self) -> None:
        """Weights, average and optimiser in one file without pickle."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        if self.reader is not None:
            tensors |= {f"reader.{k}": v for k, v in self.reader.state_dict().items()}
        for name, p in self._parameters().items():
            for one in self.optimisers:
                for key, value in one.state.get(p, {}).items():
                    tensors[f"optimiser.{key}.{name}"] = value
        partial = self.out / f"{STATE}.tmp"
        told = {"step": str(self.step), identity.KEY: json.dumps(self.identity)}
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, partial, told)
        partial.replace(self.out / STATE)

    def resume(self) -> None:
        """Go on from the last checkpoint of the run's folder, if there is one."""
        path = self.out / STATE
        if path.exists():
            self._take_up(path)
        if self.rank == 0:
            self._mend_log()

    def _take_up(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.step = int(file.metadata()["step"])
            names = list(file.keys())
            get = file.get_tensor
            self.model.load_state_dict({k[6:]: get(k) for k in names if k.startswith("model.")})
            self.average = {k[8:]: get(k) for k in names if k.startswith("average.")}
            reader = {k[7:]: get(k) for k in names if k.startswith("reader.")}
            if self.reader is not None and reader:
                self.reader.load_state_dict(reader)
            known = self._parameters()
            for key in (k for k in names if k.startswith("optimiser.")):
                _, what, name = key.split(".", 2)
                self._optimiser_of(known[name]).state[known[name]][what] = get(key)

    def _mend_log(self) -> None:
        """Drop what was logged after the state was saved; those steps are done again."""
        log = self.out / LOG
        if not log.exists():
            return
        lines = [x for x in judge.read_log(log) if x["step"] <= self.step] if self.step else []
        partial = log.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(x) + "\n" for x in lines))
        partial.replace(log)

    def _optimiser_of(self, p: Tensor) -> torch.optim.Optimizer:
        adam, muon = self.optimisers
        return muon if any(p is one for one in muon.param_groups[0]["params"]) else adam


def open_trunk(model: SAM2, phase: Phase) -> None:
    """Let the trunk, or its later blocks, be trained if the phase says so; hold what it names."""
    model.requires_grad_(True)  # an earlier phase may have held something
    trunk = model.image_encoder.trunk
    trunk.requires_grad_(phase.trunk_lr > 0)
    if isinstance(trunk, EfficientNetLite0) and phase.trunk_from:
        for part in (trunk.stem, *trunk.blocks[: phase.trunk_from]):
            part.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if phase.frozen and name.startswith(phase.frozen):
            parameter.requires_grad_(False)


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes."""
    if not dist.is_initialized():
        return
    wanted = [p for p in parameters if p.requires_grad]
    for p in wanted:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.reshape(-1) for p in wanted])  # type: ignore[union-attr]
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for p, part in zip(wanted, torch.split(flat, [p.numel() for p in wanted]), strict=True):
        p.grad = part.reshape(p.shape)


def share_first(module: torch.nn.Module) -> None:
    """Give every process the first one's weights."""
    if dist.is_initialized():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def lesson_of(recipe: Recipe, crops: data.Crops, rank: int) -> features.Lesson | None:
    """A process's share of what the recipe asks the larger network about; None for nothing."""
    count = recipe.features.crops // recipe.processes
    if not count:
        return None
    folder = recipe.out / LESSON.format(rank=rank)
    if folder.exists():
        return features.Lesson.read(folder)
    rng = np.random.default_rng([recipe.seed, rank])
    asked = feature_crops(recipe) or crops
    return features.prepare(load_teacher(), asked, count, rng, folder)


Pictures = tuple[data.Crops, dict[str, list[data.Crop]]]


@contextlib.contextmanager
def tiny_is_zero() -> Iterator[None]:
    """Numbers too small to be normal are 0 in this thread meanwhile.

    Gradients far from an outline are such numbers, and a quarter of a step's time.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)  # other code may count on them


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes on one core meanwhile, and whoever draws numbers afterwards sees no change.

    Threads that wait for each other at every small layer cost more than they do.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def _process(
    recipe: Recipe, pictures: Pictures, same: identity.Identity, rank: int, meeting: str
) -> None:
    if recipe.processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=recipe.processes
        )
    with one_thread(), tiny_is_zero():
        lesson = lesson_of(recipe, pictures[0], rank)
        Trainer(recipe, *pictures, rank, new_model(recipe), same, lesson).run()
    if dist.is_initialized():
        dist.destroy_process_group()


def identity_of(recipe: Recipe, pictures: Pictures | None = None) -> identity.Identity:
    """What the run in the recipe's folder must be for `train` to go on with it.

    Raises:
        InputError: If that folder holds another run.
        CheckpointError: If there are no such weights to start from.
    """
    if pictures is None:
        same = identity.of_recipe(recipe)
    else:
        same = identity.of_pictures(recipe, *pictures)
    identity.check(recipe.out, same, STATE, from_file=pictures is None)
    return same


def train(recipe: Recipe, pictures: Pictures | None = None) -> Path:
    """Run a recipe to its end; returns the best checkpoint, at worst the weights of the start.

    A run that was stopped in the recipe's folder goes on. Training is on the CPU, in float32.

    Args:
        recipe: What to do.
        pictures: What to draw crops from and what to judge by; default the recipe's sources.

    Raises:
        InputError: If the folder holds another run, or a picture cannot be trained on.
        RuntimeError: If a process died; its own message is on stderr.
    """
    same = identity_of(recipe, pictures)
    if pictures is None:
        pictures = training_crops(recipe), judge.held_back(recipe)
    recipe.out.mkdir(parents=True, exist_ok=True)
    if recipe.features.crops:
        mobile_sam()  # fetched before each process would
    if recipe.processes == 1:
        _process(recipe, pictures, same, 0, "")
        return recipe.out / BEST
    with tempfile.TemporaryDirectory() as folder:
        meeting = os.path.join(folder, "meeting")  # noqa: PTH118
        # forked, so that the pictures are held once
        context = get_context("fork")
        workers = [
            context.Process(target=_process, args=(recipe, pictures, same, rank, meeting))
            for rank in range(recipe.processes)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a training process died; what went wrong is printed above.")
    return recipe.out / BEST
