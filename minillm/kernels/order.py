"""In which order the tiles of C are made: grouped, so that programs that run together share what they load.

Programs start in the order of their numbers, about as many at once as there are SMs. Nine at once, C of 9 × 9 tiles:

      row by row (GROUP_M = 1)             grouped (GROUP_M = 3)
         B ▼▼▼▼▼▼▼▼▼                          B ▼▼▼······
      A ► 0 1 2 3 4 5 6 7 8                A ► 0 3 6 9 …          the first nine read
        · . . . . . . . . .                  ► 1 4 7 10 …           1 + 9 = 10 strips of A and B row by row,
        · . . . . . . . . .                  ► 2 5 8 11 …           3 + 3 =  6 grouped
        · . . . . . . . . .                  · 27 30 …

A strip is read from HBM once and found in L2 by the programs beside it, if they run at about the same time: fewer
strips at a time, less traffic. Source: the matrix-multiplication tutorial of Triton, "L2 Cache Optimizations".
"""

from __future__ import annotations


def grouped_order(tiles_m: int, tiles_n: int, group_m: int) -> list[tuple[int, int]]:
    """(tile_m, tile_n) of programs 0, 1, 2 …: down `group_m` rows of tiles, then the next column, then the next group.

    The last group has the rows that are left. `group_m=1` goes row by row. The kernels' own arithmetic
    (`gemm.tile_of_program`) is tested against this. Raises ValueError for a group without rows.
    """
    if group_m < 1:
        raise ValueError(f"expected group_m of at least 1, got {group_m}")
    order = []
    for first in range(0, tiles_m, group_m):
        rows = range(first, min(first + group_m, tiles_m))
        order += [(tile_m, tile_n) for tile_n in range(tiles_n) for tile_m in rows]
    return order


def strips_read(order: list[tuple[int, int]], num_at_once: int) -> int:
    """Strips of A and B that L2 must fetch when `num_at_once` programs run together and the next ones find it cold."""
    strips = 0
    for first in range(0, len(order), num_at_once):
        running = order[first : first + num_at_once]
        strips += len({tile_m for tile_m, _ in running}) + len({tile_n for _, tile_n in running})
    return strips
