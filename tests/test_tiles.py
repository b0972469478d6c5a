"""Tile geometry, and the container: what it writes it reads, and what it cannot trust it refuses."""

from __future__ import annotations

import pytest

from linnet.runtime.errors import UsageError
from linnet.runtime.tiles import Rect, TileGrid, compute_tiles


@pytest.mark.parametrize(
    ("width", "height", "tile"), [(1, 1, 64), (17, 4099, 128), (5472, 3648, 512), (512, 512, 512), (513, 64, 512)]
)
def test_tiles_cover_the_padded_frame_once(width: int, height: int, tile: int) -> None:
    grid = TileGrid(width, height, tile)
    padded = grid.padded
    assert padded.width % 64 == padded.height % 64 == 0
    assert padded.width - width < 64 and padded.height - height < 64
    assert sum(r.width * r.height for r in map(grid.rect, range(grid.count))) == padded.width * padded.height
    for number in range(grid.count):
        rect = grid.rect(number)
        assert rect.width > 0 and rect.height > 0 and rect.width % 64 == rect.height % 64 == 0
        assert grid.touching(rect) == [number]


def test_touching_is_the_block_of_tiles() -> None:
    grid = TileGrid(2000, 2000, 512)
    assert grid.touching(Rect(500, 500, 20, 20)) == [0, 1, 4, 5]
    assert grid.touching(Rect(511, 0, 1, 1)) == [0]
    assert grid.touching(Rect(0, 0, 2000, 2000)) == list(range(16))


def test_same_shape_batches_hold_every_tile_once() -> None:
    grid = TileGrid(1300, 1100, 512)
    groups = list(grid.same_shape(list(range(grid.count)), 2))
    assert sorted(n for group in groups for n in group) == list(range(grid.count))
    for group in groups:
        assert len(group) <= 2
        assert len({grid.rect(n)[2:] for n in group}) == 1


def test_compute_tiles_partition() -> None:
    rect = Rect(7, 9, 100, 50)
    pieces = list(compute_tiles(rect, 30, 20))
    assert sum(p.width * p.height for p in pieces) == 5000
    assert all(p.right <= rect.right and p.bottom <= rect.bottom for p in pieces)


@pytest.mark.parametrize(
    ("width", "height", "tile"),
    [(0, 1, 64), (1, 1 << 21, 64), (10, 10, 63), (10, 10, 96), (10, 10, 8192), (1 << 20, 1 << 20, 64)],
)
def test_impossible_grids_are_refused(width: int, height: int, tile: int) -> None:
    with pytest.raises(UsageError):
        TileGrid(width, height, tile)
