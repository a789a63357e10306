"""Parts, rows and objects as Parquet: what blocks leave on disk for each other. Never pickled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from geosam2.blocks import Node
from geosam2.files import whole
from geosam2.linking import Link
from geosam2.parts import Box, FrameKey, Part, PartKey
from geosam2.settling import Borders, Object, Overlap, Row

_PART = pa.schema(
    [
        ("row", pa.int32()),
        ("col", pa.int32()),
        ("rank", pa.int32()),
        ("top", pa.int64()),
        ("left", pa.int64()),
        ("step", pa.int8()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("logits", pa.binary()),
        ("predicted_iou", pa.float32()),
        ("stability", pa.float32()),
        ("edges", pa.int8()),
        ("feature", pa.binary()),
    ]
)


def write_atomic(
    path: Path, table: pa.Table, *, row_group_size: int | None = None, **metadata: Any
) -> None:
    """Write Parquet, whole or not at all."""
    extra = {k: json.dumps(v) for k, v in metadata.items()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **extra})
    with whole(path) as partial:
        pq.write_table(table, partial, compression="zstd", row_group_size=row_group_size)


def read_metadata(path: Path, key: str) -> Any:
    """One value that `write_atomic` was given beside the table."""
    return json.loads(pq.read_schema(path).metadata[key.encode()])


def write_parts(path: Path, parts: Iterable[Part], **metadata: Any) -> None:
    """All parts of a block."""
    rows = [
        {
            "row": p.frame[0],
            "col": p.frame[1],
            "rank": p.rank,
            "top": p.origin[0],
            "left": p.origin[1],
            "step": p.step,
            "height": p.logits.shape[0],
            "width": p.logits.shape[1],
            "logits": p.logits.tobytes(),
            "predicted_iou": p.predicted_iou,
            "stability": p.stability,
            "edges": p.edges,
            "feature": p.feature.tobytes(),
        }
        for p in parts
    ]
    write_atomic(path, pa.Table.from_pylist(rows, _PART), **metadata)


def read_parts(path: Path, frames: Sequence[FrameKey] | None = None) -> list[Part]:
    """Parts of a block, or only those of some frames, by frame and rank."""
    wanted = None if frames is None else set(frames)
    table = pq.read_table(path)
    if wanted is not None:
        keys = zip(table["row"].to_pylist(), table["col"].to_pylist(), strict=True)
        table = table.filter(pa.array([key in wanted for key in keys], pa.bool_()))
    return [_part(row) for row in table.to_pylist()]


def _part(row: dict[str, Any]) -> Part:
    logits = np.frombuffer(row["logits"], np.int8).reshape(row["height"], row["width"])
    return Part(
        frame=(row["row"], row["col"]),
        rank=row["rank"],
        origin=(row["top"], row["left"]),
        step=row["step"],
        logits=logits,
        predicted_iou=row["predicted_iou"],
        stability=row["stability"],
        edges=row["edges"],
        feature=np.frombuffer(row["feature"], np.float16),
    )


# --- what a node settled and what it holds: small JSON values, one row an entry


def write_settled(
    path: Path,
    objects: Sequence[Object],
    held: Borders,
    pending: Sequence[Node],
    block_of: Callable[[FrameKey], Node],
) -> None:
    """Objects that settled in a node, what it hands up, and the blocks that still wait.

    An object has a row for each block that it has parts in, with those parts, sorted by block and
    in small row groups: drawing a block reads no more than it needs, however long the seam.
    """
    rows: list[dict[str, Any]] = [
        {"kind": "object", "block": _code(block), "value": json.dumps(_object_values(o, parts))}
        for o in objects
        for block, parts in _by_block(o, block_of).items()
    ]
    rows.sort(key=lambda row: row["block"])
    rows += [{"kind": "row", "value": json.dumps(_row_values(r))} for r in held.rows]
    rows += [{"kind": "link", "value": json.dumps([k.a, k.b, k.iou])} for k in held.links]
    rows += [{"kind": "apart", "value": json.dumps(pair)} for pair in held.apart]
    rows += [{"kind": "overlap", "value": json.dumps([o.a, o.b, o.pixels])} for o in held.overlaps]
    rows += [{"kind": "taken", "value": json.dumps([*kv])} for kv in held.taken.items()]
    schema = pa.schema([("kind", pa.string()), ("block", pa.int64()), ("value", pa.string())])
    table = pa.Table.from_pylist(rows, schema)
    write_atomic(path, table, row_group_size=2048, pending=[list(node) for node in pending])


def _code(block: Node) -> int:
    return block.row * 2**31 + block.col


def _by_block(o: Object, block_of: Callable[[FrameKey], Node]) -> dict[Node, list[PartKey]]:
    out: dict[Node, list[PartKey]] = {}
    for key in o.parts:
        out.setdefault(block_of(key[:2]), []).append(key)
    return out


def read_pending(path: Path) -> list[Node]:
    """Blocks with parts that a node could not settle."""
    return [Node(*values) for values in read_metadata(path, "pending")]


def read_objects(path: Path, blocks: Sequence[Node]) -> list[Object]:
    """Objects that settled in a node and have parts in `blocks`, with their parts there."""
    table = pq.read_table(
        path, filters=[("kind", "=", "object"), ("block", "in", [_code(b) for b in blocks])]
    )
    found: dict[PartKey, Object] = {}
    for text in table["value"].to_pylist():
        here = _object(json.loads(text))
        before = found.get(here.name)
        parts = here.parts if before is None else (*before.parts, *here.parts)
        found[here.name] = replace(here, parts=tuple(sorted(parts)))
    return list(found.values())


def read_held(path: Path) -> Borders:
    """What a node hands up."""
    return Borders(
        tuple(_row(v) for v in _values(path, "row")),
        tuple(Link(tuple(a), tuple(b), iou) for a, b, iou in _values(path, "link")),
        tuple((tuple(a), tuple(b)) for a, b in _values(path, "apart")),
        tuple(Overlap(tuple(a), tuple(b), pixels) for a, b, pixels in _values(path, "overlap")),
        {tuple(key): taken for key, taken in _values(path, "taken")},
    )


def _values(path: Path, kind: str) -> list[Any]:
    table = pq.read_table(path, filters=[("kind", "=", kind)], columns=["value"])
    return [json.loads(text) for text in table["value"].to_pylist()]


def _object_values(o: Object, parts: list[PartKey]) -> list[Any]:
    return [
        o.name,
        parts,
        o.area,
        o.predicted_iou,
        o.stability,
        o.frames,
        o.open_edges,
        o.closed,
        o.parent,
    ]


def _object(values: list[Any]) -> Object:
    name, parts, area, iou, stability, frames, open_edges, closed, parent = values
    own = tuple(tuple(key) for key in parts)
    around = None if parent is None else tuple(parent)
    numbers = area, iou, stability, frames, open_edges, closed
    return Object(tuple(name), own, *numbers, around)


def _row_values(r: Row) -> list[Any]:
    box = (r.box.top, r.box.left, r.box.bottom, r.box.right)
    return [r.key, box, r.mass, r.area, r.predicted_iou, r.stability, r.edges]


def _row(values: list[Any]) -> Row:
    key, box, *numbers = values
    return Row(tuple(key), Box(*box), *numbers)
