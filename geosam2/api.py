"""`geosam2.segment`: prompts in, a GeoDataFrame out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from geosam2.errors import PromptError
from geosam2.levels import level_from
from geosam2.masklet import PanOptions, Step
from geosam2.prompts import Prompt, as_prompts
from geosam2.segmenter import Segmenter

if TYPE_CHECKING:
    import geopandas
    from geosam2_model import SAM2

    from geosam2.cache import EmbeddingCache


def segment(
    scene: Any,
    points: Any = None,
    labels: Any = None,
    boxes: Any = None,
    masks: Any = None,
    *,
    crs: Any = None,
    level: Any = "auto",
    gsd: float | None = None,
    model: str | SAM2 | None = None,
    preset: str | None = None,
    max_frames: int = 50,
    refine: bool | None = None,
    cache: EmbeddingCache | None = None,
    on_step: Callable[[Prompt, Step], None] | None = None,
    **geometry: Any,
) -> geopandas.GeoDataFrame:
    """Polygons of the objects that are pointed at, each followed over any number of frames.

    Args:
        scene: A `Scene`, a path, a URL, an XYZ template or an xarray.DataArray.
        points: One object a point `[(x, y), ...]`; or several points of one object in each inner
            list; or a layer of points (its CRS is known); or a single (x, y).
        labels: 1 foreground or 0 background, nested as `points`.
        boxes: [(left, bottom, right, top), ...], one object each; or a single box.
        masks: Polygons that roughly cover the objects, one each; or a single one.
        crs: CRS of the prompts; default a layer's own, else the scene's.
        level: "auto", a number (0 = finest) or a label such as "1/4" or "z17".
        gsd: Metres per pixel on the ground, in place of `level`.
        model: Name or path of weights, or a loaded model; default the embedded one.
        preset: "rapid" or "high-res".
        max_frames: Frames looked at for one object, at most.
        refine: Sharpen the outline at the finest level; the default with level "auto".
        cache: Where encoded frames are kept.
        on_step: Called with the prompt and the step after each frame.
        **geometry: min_area_m2, simplify_m, orthogonal (buildings), smooth (natural things).

    Returns:
        One row an object in the scene's CRS: id, score, stability, area_m2, frames, open_edges,
        level, model, prompt, source, date, geometry. `open_edges` counts the places where the
        object goes on but was not followed; `area_m2` is NaN where the scene has no CRS.

    Raises:
        PromptError: If there is no prompt, or one is outside, on nodata or in the wrong CRS.
        OptionError: If an option's value makes no sense.
        SourceError: If the scene cannot be opened or its first frame cannot be read.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from geosam2.testing import synthetic_scene, write_geotiff
    >>> from geosam2.testing.colour_model import ColourModel  # in place of a real network
    >>> made = synthetic_scene(1, 256, kinds=["lake"])
    >>> lake = made.truth.geometry[0].representative_point()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_geotiff(Path(folder, "scene.tif"), made.pixels, made.geobox)
    ...     found = segment(path, points=[(lake.x, lake.y)], model=ColourModel(), level=0)
    >>> len(found), found.level[0], bool(found.frames[0] > 1)
    (1, 'native', True)
    """
    from geosam2.vectorize import check_options

    check_options(**geometry)
    options = PanOptions(max_frames=max_frames)
    prompts = as_prompts(points, labels, boxes, masks, crs=crs)
    if not prompts:
        raise PromptError("nothing to segment: give points=, boxes= or masks=")
    segmenter = Segmenter(scene, model, preset=preset, cache=cache)
    found = segmenter.objects(
        prompts,
        level=level_from(segmenter.scene, level, gsd),
        options=options,
        refine=refine,
        on_step=on_step,
    )
    return segmenter.to_frame(list(found), **geometry)
