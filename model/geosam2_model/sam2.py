"""SAM 2: image encoder, prompt encoder, mask decoder and memory (https://arxiv.org/abs/2408.00714).

The methods build no state and hold no gradients back, so that training and prediction call the
same code; the predictors and `geosam2` wrap them in `torch.no_grad()`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geosam2_model.config import ModelConfig
from geosam2_model.errors import InputError
from geosam2_model.mask_decoder import DecoderOutput, MaskDecoder, stability
from geosam2_model.memory_attention import MemoryAttention, Tokens, rotary_table
from geosam2_model.memory_bank import (
    PROMPTED,
    Memory,
    MemoryBank,
    Place,
    Recall,
    stack_recalls,
)
from geosam2_model.memory_encoder import MemoryEncoder
from geosam2_model.neck import ImageEncoder
from geosam2_model.ops import (
    MLP,
    LastUsed,
    channels_last,
    rows_for,
    sine_positions,
    sine_times,
    version,
)
from geosam2_model.prompt_encoder import PromptEncoder, Prompts

SKETCH = 12.0  # logits that are laid on later frames are held within this
CACHED_PIXELS = 4 * 512**2  # of objects that are decoded together
ABSENT = -1024.0  # logit of every pixel where the object is not on the frame


@dataclass(frozen=True)
class ImageFeatures:
    """What is known of B images after encoding: enough for any number of prompts."""

    embedding: Tensor
    """(B, d_model, H / 16, W / 16), without memory."""
    high_res: tuple[Tensor, Tensor]
    """Skips of the mask decoder at stride 4 and 8: (B, fine, H / 4, W / 4), (B, middle, ...)."""
    size: tuple[int, int]
    """Height and width of the input in pixels."""
    conditioned: Tensor | None = None
    """(N, d_model, H / 16, W / 16), the embedding of each object after memory attention."""
    trunk: tuple[Tensor, ...] | None = None
    """Maps at stride 4, 8 and 16 that dense prompts look into; only for models that have them."""
    recalled: Tensor | None = None
    """(N, 1, H / 4, W / 4) logits from memory, laid where they belong on this frame; stand in for
    a mask prompt. Only for models with dense prompts."""
    pixels_small: Tensor | None = None
    """(B, 3, H / 4, W / 4) normalised RGB; kept for models with dense prompts only."""
    parts: tuple[ImageFeatures, ...] = ()
    """What was joined to this batch: what the network keeps of images, it keeps of each of them."""

    def __len__(self) -> int:
        return len(self.embedding)

    def select(self, index: int) -> ImageFeatures:
        """One image of the batch, as a batch of one."""
        return self.from_dict({k: v[index : index + 1] for k, v in self.to_dict().items()})

    @classmethod
    def joined(cls, parts: list[ImageFeatures]) -> ImageFeatures:
        """The images of several batches of one size, as one batch; a single batch as it is."""
        if len(parts) == 1:
            return parts[0]
        named = [part.to_dict() for part in parts]
        whole = cls.from_dict({k: torch.cat([one[k] for one in named]) for k in named[0]})
        return replace(whole, parts=tuple(parts))

    def of(self, objects: slice) -> ImageFeatures:
        """The same images for some of the objects that `attend` was asked about."""
        if self.conditioned is None or len(self.conditioned) == 1:  # one memory, however many ask
            return self
        rows = None if self.recalled is None else self.recalled[objects]
        return replace(self, conditioned=self.conditioned[objects], recalled=rows)

    def to_dict(self) -> dict[str, Tensor]:
        """Flat tensors under fixed names, for safetensors; the input size follows from them."""
        named = {"embedding": self.embedding, "high_res.0": self.high_res[0]}
        named |= {"high_res.1": self.high_res[1], "pixels_small": self.pixels_small}  # type: ignore[dict-item]
        named |= {"conditioned": self.conditioned, "recalled": self.recalled}  # type: ignore[dict-item]
        named |= {f"trunk.{i}": x for i, x in enumerate(self.trunk or ())}
        return {k: v for k, v in named.items() if v is not None}

    @classmethod
    def from_dict(cls, tensors: dict[str, Tensor]) -> ImageFeatures:
        """The reverse of `to_dict`."""
        trunk = tuple(tensors[k] for k in sorted(k for k in tensors if k.startswith("trunk.")))
        height, width = tensors["embedding"].shape[-2:]
        return cls(
            tensors["embedding"],
            (tensors["high_res.0"], tensors["high_res.1"]),
            (16 * height, 16 * width),
            tensors.get("conditioned"),
            trunk or None,
            tensors.get("recalled"),
            tensors.get("pixels_small"),
        )

    def to(self, device: torch.device | str) -> ImageFeatures:
        """The same on another device."""
        return self.from_dict({k: v.to(device) for k, v in self.to_dict().items()})


@dataclass(frozen=True)
class Decoded:
    """Masks and scores of N objects."""

    logits: Tensor
    """(N, M, H / 4, W / 4), mask where > 0; M is 3 candidates or 1."""
    predicted_iou: Tensor
    """(N, M) the network's own guess of each mask's IoU, 0..1."""
    object_score: Tensor
    """(N,) logit; > 0 means the object is visible on this image."""
    pointer: Tensor
    """(N, d_model) object pointer of the best mask, for the memory bank."""

    @property
    def best(self) -> Tensor:
        """(N,) number of the candidate with the highest predicted IoU."""
        return self.predicted_iou.argmax(1)

    @property
    def best_logits(self) -> Tensor:
        """(N, H / 4, W / 4) logits of that candidate."""
        return self.logits[torch.arange(len(self.logits), device=self.logits.device), self.best]

    @property
    def best_iou(self) -> Tensor:
        """(N,) its predicted IoU."""
        return self.predicted_iou.amax(1)

    def hide_absent(self) -> Decoded:
        """The same with every logit at -1024 where the object is not visible, as in video."""
        present = (self.object_score > 0)[:, None, None, None]
        return replace(self, logits=torch.where(present, self.logits, ABSENT))

    @classmethod
    def joined(cls, parts: list[Decoded]) -> Decoded:
        """The objects of several answers, one after another."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def __getitem__(self, index: slice) -> Decoded:
        return Decoded(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


class SAM2(nn.Module):
    """The whole network; parameters are named as in Meta's checkpoints.

    Args:
        config: One of `VARIANTS`, or your own numbers.

    >>> from geosam2_model.config import VARIANTS
    >>> model = SAM2(VARIANTS["sam2.1_tiny"]).eval()
    >>> with torch.no_grad():
    ...     features = model.encode(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    ...     out = model.decode(features, Prompts.clicks([[40.0, 30.0]]), multimask=True)
    >>> out.logits.shape
    torch.Size([1, 3, 16, 24])
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.name = config.name
        self.fingerprint = ""
        width = config.d_model
        self.image_encoder = ImageEncoder(config)
        self.sam_prompt_encoder = PromptEncoder(config)
        self.sam_mask_decoder = MaskDecoder(config)
        self.memory_attention = MemoryAttention(config)
        self.memory_encoder = MemoryEncoder(config)
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(config.num_maskmem, 1, 1, config.mem_dim))
        self.mask_downsample = nn.Conv2d(1, 1, 4, stride=4)
        self.obj_ptr_proj = MLP((width, width, width, width))
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.no_mem_pos_enc = nn.Parameter(torch.zeros(1, 1, width))
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, width))
        if config.pointer_time:
            self.obj_ptr_tpos_proj = nn.Linear(width, config.mem_dim)
        if config.occlusion_embedding:
            self.no_obj_embed_spatial = nn.Parameter(torch.zeros(1, config.mem_dim))
        for parameter in (self.maskmem_tpos_enc, self.no_mem_embed, self.no_obj_ptr):
            nn.init.trunc_normal_(parameter, std=0.02)
        self._seen: LastUsed[tuple[Tensor, Tensor, Tensor]] = LastUsed()
        if config.dense_prompts:
            from geosam2_model.dense_prompts import DensePrompts

            self.dense_prompts = DensePrompts(config, tuple(self.image_encoder.trunk.channels))
        if config.mask_quality:
            from geosam2_model.mask_quality import MaskQuality

            self.mask_quality = MaskQuality(config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.no_mem_embed.device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights."""
        return self.no_mem_embed.dtype

    def encode(self, pixels: Tensor) -> ImageFeatures:
        """Encode images once, for any number of prompts.

        Args:
            pixels: (B, 3, H, W) RGB in 0..255, uint8 or float; H and W multiples of 32.

        Raises:
            InputError: If channels, size or values are not as above.
        """
        x = self.normalise(_checked(pixels))
        maps = self.image_encoder.trunk(channels_last(x))
        neck, decoder = self.image_encoder.neck, self.sam_mask_decoder
        skips = (neck.skip(maps, 0, decoder.conv_s0), neck.skip(maps, 1, decoder.conv_s1))
        features = ImageFeatures(neck.embedding(maps), skips, (x.shape[-2], x.shape[-1]))
        if not self.config.dense_prompts:
            return features
        pyramid = self.dense_prompts.pyramid(maps)
        return replace(features, trunk=pyramid, pixels_small=F.avg_pool2d(x, 4))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), 0 to 255, as the trunk wants them."""
        mean, std = (
            torch.tensor(v, device=self.device)[:, None, None]
            for v in (self.config.pixel_mean, self.config.pixel_std)
        )
        return ((pixels.to(self.device).float() - mean) / std).to(self.dtype)

    def decode(
        self, features: ImageFeatures, prompts: Prompts | None = None, multimask: bool = False
    ) -> Decoded:
        """Masks of N objects from prompts, from memory (`attend` first), or both.

        Args:
            features: One image, or a batch; see `Prompts.image_index`. Where `conditioned` is
                set (by `attend`), row i of it belongs to object i.
            prompts: Of N objects; None follows what is in memory.
            multimask: Three candidates instead of one mask.

        Raises:
            InputError: If prompts and features do not fit each other.
        """
        prompts = self._prompts_for(features, prompts)
        count = self._at_once(features)
        if torch.is_grad_enabled() or len(prompts) <= count:
            return self.choose(self._decode(features, prompts), multimask)
        if prompts.image_index is None and len(features) > 1:  # one each: some, of some images
            prompts = replace(prompts, image_index=torch.arange(len(prompts), device=self.device))
        parts = [slice(i, i + count) for i in range(0, len(prompts), count)]
        return Decoded.joined(
            [self.choose(self._decode(features.of(p), prompts[p]), multimask) for p in parts]
        )

    def _at_once(self, features: ImageFeatures) -> int:
        """Objects whose maps stay in a processor's cache together."""
        height, width = features.size
        return max(1, CACHED_PIXELS // (height * width)) if self.device.type == "cpu" else 64

    def decode_all(self, features: ImageFeatures, prompts: Prompts | None = None) -> DecoderOutput:
        """All four masks of N objects, before `decode` chooses among them; training wants each."""
        out = self._decode(features, self._prompts_for(features, prompts))
        return replace(out, predicted_iou=self._judged(out, slice(None)), seen=None)

    def _decode(self, features: ImageFeatures, prompts: Prompts) -> DecoderOutput:
        index = prompts.image_index
        if prompts.masks is None and features.recalled is not None:
            prompts = replace(prompts, masks=features.recalled)
        image, middle, fine = (rows_for(x, index) for x in self._image_side(features))
        if features.conditioned is not None:
            image = features.conditioned
        dense = self.sam_prompt_encoder.dense(prompts)
        if self.config.dense_prompts:
            d16, d8, d4 = self.dense_prompts(features, prompts)
            dense, middle, fine = d16.add_(dense), d8.add_(middle), d4.add_(fine)
        result: DecoderOutput = self.sam_mask_decoder(
            image + dense,
            self.sam_prompt_encoder.grid(*image.shape[-2:]).to(image.dtype),
            self.sam_prompt_encoder.sparse(prompts, features.size).to(image.dtype),
            (fine, middle),
        )
        wanted = self.config.mask_quality and not prompts.in_part
        return replace(result, seen=middle) if wanted else result

    def _judged(self, out: DecoderOutput, masks: slice) -> Tensor:
        """Predicted IoU (N, M) of some of the four masks, after the second opinion if wanted."""
        predicted = out.predicted_iou[:, masks]
        if out.seen is None:
            return predicted
        more = self.mask_quality(out.seen, out.logits[:, masks], out.tokens[:, masks])
        result: Tensor = (torch.logit(predicted, 1e-4) + more).sigmoid()
        return result

    def _image_side(self, features: ImageFeatures) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding without memory and the skips, as the decoder walks through them."""

        def make() -> tuple[Tensor, Tensor, Tensor]:
            fine, middle = features.high_res
            image = features.embedding + self.no_mem_embed[0, 0, :, None, None]
            a, b, c = (channels_last(x) for x in (image, middle, fine))
            return a, b, c

        if torch.is_grad_enabled():
            return make()
        return self._seen.get(features.high_res[0], version(self.no_mem_embed), make)

    def choose(self, out: DecoderOutput, multimask: bool) -> Decoded:
        """The three candidates or the single mask, with scores and the pointer of the best."""
        if multimask:
            logits, tokens = out.logits[:, 1:], out.tokens[:, 1:]
            iou = self._judged(out, slice(1, None))
            token = tokens[torch.arange(len(tokens), device=tokens.device), iou.argmax(1)]
        else:
            logits, iou = self._single_mask(out)
            token = out.tokens[:, 0]
        pointer = self._pointer(token, out.object_score > 0)
        return Decoded(logits.float(), iou.float(), out.object_score.float(), pointer)

    def attend(
        self,
        features: ImageFeatures,
        bank: MemoryBank | Sequence[MemoryBank],
        place: Place,
        *,
        image_index: Tensor | None = None,
        reverse: bool = False,
        num_frames: int | None = None,
    ) -> ImageFeatures:
        """Condition a frame on memories; `decode` the result.

        Args:
            features: Of the frame (or of a batch of frames in training).
            bank: One bank of N objects, or a bank for each object; objects whose banks have the
                same layout go through the network together.
            place: Where the frame is: its number, or lattice cell (row, column).
            image_index: (N,) which image of a batch each object is on.
            reverse: The video runs backwards.
            num_frames: Length of the video, if known.

        Returns:
            The features with `conditioned`, a row for each object.

        Raises:
            InputError: If a bank is empty.
        """
        banks = [bank] if isinstance(bank, MemoryBank) else list(bank)
        groups: dict[Hashable, list[tuple[int, Recall]]] = defaultdict(list)
        for i, one in enumerate(banks):
            recall = one.recall(place, reverse=reverse, num_frames=num_frames)
            groups[recall.layout].append((i, recall))
        image = rows_for(features.embedding, image_index)
        parts: list[Tensor] = [image] * len(banks)
        sketches: list[Tensor | None] = [None] * len(banks)
        height, width = features.size[0] // 4, features.size[1] // 4
        for members in groups.values():
            numbers, recalls = zip(*members, strict=True)
            stacked, times = stack_recalls(list(recalls))
            memory = self._tokens(stacked, times)
            rows = image if len(image) == 1 or len(banks) == 1 else image[list(numbers)]
            seen = self.memory_attention(rows, memory)
            sizes = [len(r.features[0]) for r in recalls]
            for i, part in zip(numbers, seen.split(sizes), strict=True):
                parts[i] = part
            laid = stacked.sketch(height, width)
            for i, piece in zip(
                numbers, () if laid is None else torch.split(laid, sizes), strict=False
            ):
                sketches[i] = piece
        known = [piece for piece in sketches if piece is not None]
        recalled = torch.cat(known).to(self.device) if len(known) == len(banks) else None
        return replace(features, conditioned=torch.cat(parts), recalled=recalled)

    def _tokens(self, recall: Recall, times: Tensor) -> Tokens:
        """Memories and pointers as keys of memory attention."""
        device, width = self.device, self.config.mem_dim
        oldest = self.config.num_maskmem - 1
        values, positions, tables = [], [], []
        for x, age, offset in zip(recall.features, recall.ages, recall.offsets, strict=True):
            h, w = x.shape[-2:]
            # embeddings of the recent ones come first, that of the prompted ones is the last
            when = self.maskmem_tpos_enc[oldest if age == PROMPTED else age - 1]
            where = sine_positions(width, h, w, device).to(self.dtype)
            values.append(x.to(device, self.dtype).flatten(2).transpose(1, 2))  # N, h w, m
            positions.append(where.flatten(2).transpose(1, 2) + when)
            tables.append(rotary_table(self.config.d_model, h, w, *offset, device))
        rows = len(values[0])
        if recall.pointers:
            pieces = self.config.d_model // width  # a pointer is cut into narrow tokens
            pointers = torch.stack(recall.pointers, dim=1).to(device, self.dtype)  # N, P, d
            values.append(pointers.reshape(rows, -1, width))
            when = self._pointer_times(times.to(device)).to(self.dtype)
            positions.append(when.repeat_interleave(pieces, dim=1))
        spread = (p.expand(rows, -1, -1) for p in positions)
        return Tokens(torch.cat(values, dim=1), torch.cat(list(spread), dim=1), torch.cat(tables))

    def _pointer_times(self, times: Tensor) -> Tensor:
        if not self.config.pointer_time:
            return times.new_zeros(*times.shape, self.config.mem_dim)
        embedded = sine_times(times, self.config.d_model).to(self.dtype)
        result: Tensor = self.obj_ptr_tpos_proj(embedded)
        return result

    def remember(
        self,
        features: ImageFeatures,
        out: Decoded,
        *,
        prompted: bool = False,
        logits: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Memory:
        """Encode what was segmented on a frame into a memory, for `MemoryBank.add`.

        Args:
            features: Of the frame; its embedding without memory is used.
            out: What was decoded for N objects.
            prompted: A person's prompt is on this frame; the mask is then taken as it was seen.
            logits: (N, h, w) to remember in place of `out.best_logits`, in any resolution.
            image_index: (N,) which image of a batch each object is on.
        """
        logits = out.best_logits if logits is None else logits
        present = (out.object_score > 0)[:, None, None, None]
        masks = F.interpolate(
            torch.where(present, logits[:, None].float(), ABSENT),
            size=features.size,
            mode="bilinear",
            align_corners=False,
        )
        binary = prompted and self.config.binarize_prompted and not self.training
        share = (masks > 0).float() if binary else masks.sigmoid()
        share = share * self.config.memory_scale + self.config.memory_bias
        image = rows_for(features.embedding, image_index)
        memory = self.memory_encoder(image, share.to(self.dtype))
        if self.config.occlusion_embedding:
            memory = memory + ~present * self.no_obj_embed_spatial[:, :, None, None]
        if not self.config.dense_prompts:
            return Memory(memory, out.pointer, out.object_score)
        quarter = (features.size[0] // 4, features.size[1] // 4)
        sketch = F.interpolate(logits[:, None].detach().float(), quarter, mode="bilinear")[:, 0]
        # where the object was not seen, nothing is said about where it is now
        sketch = torch.where(present[:, 0], sketch.clamp(-SKETCH, SKETCH), 0.0)
        return Memory(memory, out.pointer, out.object_score, sketch)

    def adopt(self, features: ImageFeatures, masks: Tensor) -> Decoded:
        """Take masks as the truth: logits are +-10 and only the object pointer is computed.

        Args:
            features: As for `decode`.
            masks: (N, 1, H, W) 0 or 1 at the resolution of the input.
        """
        masks = masks.to(self.dtype)
        raw = replace(features, conditioned=features.embedding)
        out = self.decode(raw, Prompts(masks=self.mask_downsample(masks)))
        present = masks.flatten(1).gt(0).any(1)
        logits = F.interpolate(
            masks * 20 - 10, scale_factor=0.25, mode="bilinear", antialias=True, align_corners=False
        )
        pointer = torch.where(present[:, None], out.pointer, self.no_obj_ptr)
        score = present.float() * 20 - 10
        return Decoded(logits.float(), torch.ones_like(score)[:, None], score, pointer)

    def _pointer(self, token: Tensor, present: Tensor) -> Tensor:
        return torch.where(present[:, None], self.obj_ptr_proj(token), self.no_obj_ptr)

    def _single_mask(self, out: DecoderOutput) -> tuple[Tensor, Tensor]:
        """The single mask, or the best candidate where the single one is not stable."""
        logits, iou = out.logits[:, :1], self._judged(out, slice(1))
        threshold = self.config.stability_threshold
        if threshold is None or self.training:
            return logits, iou
        stable = stability(logits[:, 0].detach(), self.config.stability_delta) >= threshold
        if bool(stable.all()):
            return logits, iou
        iou = torch.cat([iou, self._judged(out, slice(1, None))], dim=1)
        chosen = torch.where(stable, 0, 1 + iou[:, 1:].argmax(1))
        rows = torch.arange(len(logits), device=logits.device)
        return out.logits[rows, chosen][:, None], iou[rows, chosen][:, None]

    def _prompts_for(self, features: ImageFeatures, prompts: Prompts | None) -> Prompts:
        """Prompts on the right device, checked against the images."""
        rows = len(features) if features.conditioned is None else len(features.conditioned)
        device = features.embedding.device
        if prompts is None or len(prompts) == 0:
            prompts = _nothing(rows)
        prompts = prompts.to(device)
        height, width = features.size
        if prompts.masks is not None and prompts.masks.shape[-2:] != (height // 4, width // 4):
            raise InputError(
                f"masks are {tuple(prompts.masks.shape[-2:])}; an input of {features.size} needs "
                f"{(height // 4, width // 4)}, a quarter of it."
            )
        if len(features) == 1:
            return replace(prompts, image_index=None)
        if prompts.image_index is None:
            if len(prompts) != len(features):
                raise InputError(
                    f"{len(prompts)} objects on {len(features)} images: say which is on which "
                    "with Prompts(image_index=...)."
                )
            return prompts
        if not bool(((prompts.image_index >= 0) & (prompts.image_index < len(features))).all()):
            raise InputError(
                f"image_index {prompts.image_index.tolist()} must be in 0..{len(features) - 1}."
            )
        return prompts


def _nothing(count: int) -> Prompts:
    return Prompts(torch.zeros(count, 1, 2), torch.full((count, 1), -1))


def _checked(pixels: Tensor) -> Tensor:
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise InputError(
            f"pixels have shape {tuple(pixels.shape)}; expected (B, 3, H, W) in the order R, G, B."
        )
    height, width = pixels.shape[-2:]
    if height % 32 or width % 32 or not height or not width:
        raise InputError(
            f"pixels are {height} x {width}; both must be multiples of 32. Pad or resize them."
        )
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise InputError(f"pixels are {pixels.dtype}; give uint8 or floats in 0..255.")
    if not torch.isfinite(pixels).all():
        raise InputError("pixels contain NaN or infinity; fill nodata with a number first.")
    return pixels
