"""Every choice of an automatic run in one frozen value: what is written beside the result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from geosam2.errors import PromptError

Layer = Literal["flat", "parts"]


def _are_sides(points: Any) -> bool:
    """
    >>> _are_sides((32, 16, 4)), _are_sides(8), _are_sides((4.5,)), _are_sides((0, 0))
    (True, False, False, False)
    """
    whole = isinstance(points, tuple | list) and all(isinstance(n, int) and n >= 0 for n in points)
    return whole and 1 <= len(points) <= 3 and max(points) > 0


@dataclass(frozen=True)
class Recipe:
    """How to find everything; `recipe_for` gives the defaults that suit a model.

    >>> Recipe(points=(16,)).points
    (16,)
    >>> Recipe(min_iou=7)
    Traceback (most recent call last):
        ...
    geosam2.errors.PromptError: min_iou is 7; it is a share, give a number from 0 to 1
    """

    points: tuple[int, ...] = (32, 16, 4)
    """Points per side: on the frame, on each of 4 zoomed regions, on each of 16; 0 = leave out."""
    min_iou: float = 0.7
    """Masks with a lower predicted IoU are dropped.

    This limit and the next two hold for a frame's own look: where `look_again` asks a second time,
    the new mask's scores are written, and they may lie below them."""
    min_stability: float = 0.85
    """Masks whose area changes more when the threshold moves are dropped (IoU of the two).

    For a frame's own look, as `min_iou`."""
    min_score: float = 0.0
    """Masks whose predicted IoU x stability is lower are dropped.

    For a frame's own look, as `min_iou`."""
    stability_offset: float = 1.0
    """By how many logits the threshold moves, up and down."""
    duplicate_iou: float = 0.7
    """Of two masks of one frame that overlap more than this, the better one stays."""
    skip_explained: bool = True
    """Leave out points in the middle of small masks that earlier points of the frame found."""
    min_region: int = 64
    """Holes and islands of a mask smaller than so many network pixels are filled or removed."""
    coverage: tuple[float, ...] = (0.9, 0.8)
    """Where nothing was found, look again, the three limits times these; () = do not."""
    coverage_points: int = 48
    """Points per side of a frame for asking again."""
    look_again: bool = False
    """Ask again for what a frame saw whole, from a window with the object in its middle."""
    link_iou: float = 0.5
    """Parts of neighbouring frames, cut by their borders, with this IoU in the overlap are one."""
    doubt_share: float = 0.5
    """Below that, but with so much of the smaller one inside the larger one, the judge decides."""
    covered_share: float = 0.6
    """In the flat layer, of two objects that share more than this of the smaller one's ground, the
    better one stays, unless the smaller is no more than a tenth of the larger."""
    layer: Layer = "flat"
    """"flat": no two polygons overlap; "parts": all of them, with the `parent` they lie in."""
    gap_logit: float = 1.0
    """Gaps between two objects close where both logits are above minus this."""
    simplify: float = 1.0
    """Tolerance of the simplified borders in pixels; 0 keeps the pixels' corners."""
    min_area_m2: float = 0.0
    """Smaller polygons are dropped."""
    max_area_m2: float = float("inf")
    """Larger ones too."""
    features: bool = True
    """Keep the pooled embedding of each object, for `find_similar`."""
    chunk: int = 64
    """Points per call of the mask decoder."""

    def __post_init__(self) -> None:
        shares = [(name, getattr(self, name)) for name in _SHARES]
        for name, share in [*shares, *(("coverage", x) for x in self.coverage)]:
            if not 0 <= share <= 1:
                raise PromptError(f"{name} is {share}; it is a share, give a number from 0 to 1")
        if not self.stability_offset > 0 or not self.gap_logit >= 0:
            raise PromptError(
                f"stability_offset={self.stability_offset}: must be above 0; "
                f"gap_logit={self.gap_logit}: at least 0"
            )
        if not _are_sides(self.points):
            raise PromptError(
                f"points is {self.points}; give 1 to 3 whole numbers (points per side of the "
                "frame, of its 4 zoomed regions, of its 16 regions), not all 0"
            )
        if self.layer not in ("flat", "parts"):
            raise PromptError(f"layer is {self.layer!r}; choose 'flat' or 'parts'")
        if not 0 <= self.min_area_m2 < self.max_area_m2:
            raise PromptError(
                f"area range {self.min_area_m2} to {self.max_area_m2} m2 holds nothing; "
                "min_area_m2 must be >= 0 and below max_area_m2"
            )
        if self.chunk < 1 or self.coverage_points < 1 or self.min_region < 0 or self.simplify < 0:
            raise PromptError(
                f"chunk={self.chunk}, coverage_points={self.coverage_points}: at least 1; "
                f"min_region={self.min_region}, simplify={self.simplify}: at least 0"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The reverse of `to_dict`, lists for tuples allowed.

        Raises:
            PromptError: If a name is not a field of the recipe, or a value cannot be used.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise PromptError(f"a recipe has no {unknown}; it has {known}")
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**given)

    @property
    def fingerprint(self) -> str:
        """Twelve characters that change when any choice changes."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def recipe_for(network: Any) -> Recipe:
    """The defaults for a model: point grids and limits on the scale of its own scores.

    The embedded model is soft at borders, and neither of its scores tells a good mask alone; their
    product does best on training chips of the drone scene (`benchmarks/everything.py --only tune`
    says what each limit finds). Meta's models want the limits of their own generator.

    >>> from types import SimpleNamespace
    >>> meta = SimpleNamespace(config=SimpleNamespace(trunk="hiera", image_size=1024))
    >>> recipe_for(meta).points, recipe_for(object()).points
    ((32, 16, 4), (8,))
    """
    if _is_metas(network):
        return Recipe(min_iou=0.8, min_stability=0.92)
    return Recipe(
        points=(8,),
        min_iou=0.3,
        min_stability=0.3,
        min_score=0.42,
        coverage=(0.8,),
        coverage_points=16,
        look_again=True,
        covered_share=0.4,
        chunk=16,
    )


def frame_size_for(network: Any) -> int:
    """Side in pixels of the frames that automatic mode shows a model.

    Half the input size of the embedded one: it was trained on crops of 192 to 384 pixels, finds as
    much at 256 as at 512, and a point costs as much as the frame that it is asked on is large.

    >>> from types import SimpleNamespace
    >>> frame_size_for(SimpleNamespace(config=SimpleNamespace(trunk="hiera", image_size=1024)))
    1024
    """
    config = getattr(network, "config", None)
    size = 512 if config is None else int(config.image_size)
    return size if config is None or _is_metas(network) else size // 2


def overlap_for(network: Any, size: int) -> int:
    """Pixels that neighbouring frames of `size` pixels share.

    Half a frame for the embedded model: what is smaller than that is whole on one frame at least,
    most places are seen by four frames, whose points lie between each other's, and encoding a frame
    costs no more than three points. A quarter for Meta's, where it costs as much as ninety.

    >>> from types import SimpleNamespace
    >>> meta = SimpleNamespace(config=SimpleNamespace(trunk="hiera", image_size=1024))
    >>> overlap_for(meta, 1024), overlap_for(object(), 256)
    (256, 128)
    """
    return size // 4 if _is_metas(network) else size // 2


def _is_metas(network: Any) -> bool:
    config = getattr(network, "config", None)
    return config is not None and getattr(config, "trunk", "") == "hiera"


_SHARES = (
    "min_iou",
    "min_stability",
    "min_score",
    "duplicate_iou",
    "link_iou",
    "doubt_share",
    "covered_share",
)
