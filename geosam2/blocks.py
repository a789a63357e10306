"""Blocks of frames, and the tree in which their borders are merged: arithmetic only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from geosam2.parts import Box, FrameKey, Layout


class Node(NamedTuple):
    """A square of 2^level x 2^level blocks; level 0 is a block."""

    level: int
    row: int
    col: int

    @property
    def name(self) -> str:
        """Short name for files and messages."""
        return f"{self.level}_{self.row}_{self.col}"

    @property
    def parent(self) -> Node:
        """The node one level up."""
        return Node(self.level + 1, self.row // 2, self.col // 2)


@dataclass(frozen=True)
class Blocks:
    """The frames of a run, cut into blocks of `side` x `side`.

    Blocks are aligned to the lattice, not to the scene, as frames are.

    >>> blocks = Blocks(first=(10, 10), frames=(5, 9), side=4)
    >>> blocks.shape, blocks.height, [b.name for b in blocks.in_order()][:3]
    ((2, 3), 2, ['0_0_0', '0_0_1', '0_1_0'])
    >>> blocks.block_of((14, 17))
    Node(level=0, row=1, col=2)
    """

    first: FrameKey
    """North-western frame."""
    frames: tuple[int, int]
    """Rows and columns of frames."""
    side: int
    """Frames along the side of a block."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        top, left = self._corner
        bottom = (self.first[0] + self.frames[0] - 1) // self.side
        right = (self.first[1] + self.frames[1] - 1) // self.side
        return bottom - top + 1, right - left + 1

    @property
    def _corner(self) -> tuple[int, int]:
        return self.first[0] // self.side, self.first[1] // self.side

    def __len__(self) -> int:
        rows, cols = self.shape
        return rows * cols

    @property
    def height(self) -> int:
        """Level of the root, the one node that holds all blocks."""
        return (max(self.shape) - 1).bit_length()

    @property
    def root(self) -> Node:
        """The node that holds all blocks."""
        return Node(self.height, 0, 0)

    def __contains__(self, node: object) -> bool:
        if not isinstance(node, Node):
            return False
        side: int = 2**node.level
        rows, cols = (-(-n // side) for n in self.shape)
        return bool(0 <= node.row < rows and 0 <= node.col < cols)

    # -- walking

    def in_order(self, node: Node | None = None) -> Iterator[Node]:
        """All blocks of a node along a Z-curve, so that whole subtrees are finished early."""
        node = self.root if node is None else node
        if node.level == 0:
            yield node
            return
        for child in self.children(node):
            yield from self.in_order(child)

    def nodes(self) -> Iterator[Node]:
        """All inner nodes, lowest first."""
        for level in range(1, self.height + 1):
            rows, cols = (-(-n // 2**level) for n in self.shape)
            yield from (Node(level, row, col) for row in range(rows) for col in range(cols))

    def children(self, node: Node) -> list[Node]:
        """The up to four nodes one level down."""
        below = [
            Node(node.level - 1, 2 * node.row + r, 2 * node.col + c) for r in (0, 1) for c in (0, 1)
        ]
        return [child for child in below if child in self]

    def ancestors(self, node: Node) -> Iterator[Node]:
        """The node itself and all above it."""
        yield node
        while node.level < self.height:
            node = node.parent
            yield node

    def neighbours(self, block: Node) -> list[Node]:
        """The up to eight blocks around a block."""
        around = [
            Node(0, block.row + r, block.col + c) for r in (-1, 0, 1) for c in (-1, 0, 1) if r or c
        ]
        return [block for block in around if block in self]

    # -- frames

    def block_of(self, frame: FrameKey) -> Node:
        """The block of a frame."""
        top, left = self._corner
        return Node(0, frame[0] // self.side - top, frame[1] // self.side - left)

    def exists(self, frame: FrameKey) -> bool:
        """True if the run has this frame."""
        row, col = frame[0] - self.first[0], frame[1] - self.first[1]
        return 0 <= row < self.frames[0] and 0 <= col < self.frames[1]

    def frames_of(self, node: Node) -> list[FrameKey]:
        """The frames of a block or node, row by row."""
        rows, cols = self._span(node)
        return [(row, col) for row in rows for col in cols]

    def _span(self, node: Node) -> tuple[range, range]:
        step = self.side * 2**node.level
        out = []
        for axis, place in enumerate((node.row, node.col)):
            start = self._corner[axis] * self.side + place * step
            first, count = self.first[axis], self.frames[axis]
            out.append(range(max(start, first), min(start + step, first + count)))
        return out[0], out[1]

    def holds(self, node: Node, frame: FrameKey) -> bool:
        """True if a frame belongs to a node."""
        rows, cols = self._span(node)
        return frame[0] in rows and frame[1] in cols

    def ring(self, block: Node) -> list[FrameKey]:
        """Frames just outside a block, which share pixels with its frames."""
        rows, cols = self._span(block)
        wide = (range(rows.start - 1, rows.stop + 1), range(cols.start - 1, cols.stop + 1))
        return [
            (row, col)
            for row in wide[0]
            for col in wide[1]
            if not (row in rows and col in cols) and self.exists((row, col))
        ]

    def core(self, block: Node, layout: Layout) -> Box:
        """The lattice pixels that a block answers for; blocks tile the scene."""
        frames = self.frames_of(block)
        return self._tile(frames[0], layout) | self._tile(frames[-1], layout)

    def tiles(self, block: Node, layout: Layout) -> list[Box]:
        """The core of each frame of a block; at the rim of the run, all that the frame sees.

        Nothing looks beyond the rim, so objects there are drawn as far as they are known, and not
        cut where the core ends.
        """
        return [self._tile(frame, layout) for frame in self.frames_of(block)]

    def _tile(self, frame: FrameKey, layout: Layout) -> Box:
        core, whole = layout.core(frame), layout.frame(frame)
        row, col = frame
        return Box(
            core.top if self.exists((row - 1, col)) else whole.top,
            core.left if self.exists((row, col - 1)) else whole.left,
            core.bottom if self.exists((row + 1, col)) else whole.bottom,
            core.right if self.exists((row, col + 1)) else whole.right,
        )

    def reaches_out(self, node: Node, frame: FrameKey, box: Box, layout: Layout) -> bool:
        """True if pixels of `box`, seen by `frame`, are also seen by a frame outside the node."""
        around = [(frame[0] + r, frame[1] + c) for r in (-1, 0, 1) for c in (-1, 0, 1) if r or c]
        return any(
            self.exists(other)
            and not self.holds(node, other)
            and not (layout.frame(other) & box).empty
            for other in around
        )
