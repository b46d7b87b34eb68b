"""Which tiles are visited, which are masked; that nothing as large as the score matrix is ever made."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minillm.attention import flash_attention, flash_attention_v1, flash_attention_v2, flash_decoding, naive_attention
from minillm.attention.flash import LARGEST_BLOCK, SMALLEST_BLOCK, TILE_NUMBERS, cpu_block
from minillm.attention.naive import visible_keys
from minillm.attention.tiles import Tiles, group_heads, ungroup_heads
from tests.attention.problems import make_problem, random_tensor


@st.composite
def grids(draw: st.DrawFn) -> Tiles:
    causal = draw(st.booleans())
    return Tiles(
        q_len=draw(st.integers(1, 14)),
        k_len=draw(st.integers(1, 14)),
        block_q=draw(st.integers(1, 6)),
        block_k=draw(st.integers(1, 6)),
        causal=causal,
        window=draw(st.none() | st.integers(1, 16)) if causal else None,
    )


@given(grids())
@settings(max_examples=200, deadline=None)
def test_tiles_are_classified_by_what_they_hold(tiles: Tiles) -> None:
    visible = visible_keys(tiles.q_len, tiles.k_len, causal=tiles.causal, window=tiles.window)
    all_rows, all_keys = list(tiles.query_blocks()), list(tiles.key_blocks())
    assert torch.cat([torch.arange(r.start, r.stop) for r in all_rows]).tolist() == list(range(tiles.q_len))
    assert torch.cat([torch.arange(k.start, k.stop) for k in all_keys]).tolist() == list(range(tiles.k_len))
    for rows in all_rows:
        seen = [keys for keys in all_keys if visible[rows, keys].any()]
        assert list(tiles.key_blocks(rows)) == seen
        for keys in all_keys:
            assert tiles.is_visible(rows, keys) == (keys in seen)
            assert tiles.is_full(rows, keys) == bool(visible[rows, keys].all())
            assert torch.equal(tiles.hidden(rows, keys), ~visible[rows, keys])
    for keys in all_keys:
        assert list(tiles.query_blocks(keys)) == [rows for rows in all_rows if visible[rows, keys].any()]


def test_heads_of_a_group_stand_together() -> None:
    x = random_tensor(0, 2, 5, 6, 3)
    grouped = group_heads(x, 2)
    assert grouped.shape == (4, 3, 5, 3)
    torch.testing.assert_close(grouped[3, 1], x[1, :, 4])  # sequence 1, KV head 1, its second query head
    torch.testing.assert_close(ungroup_heads(grouped, 2), x)


class Watch(TorchDispatchMode):
    """The most elements of any tensor made, and the FLOPs of the products that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "bmm" in str(func):  # bmm(a, b) or baddbmm_(c, a, b)
            a, b = args[-2:]
            self.flops += 2 * a.numel() * b.shape[-1]
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.num_elements = max(self.num_elements, leaf.numel())
        return result


PATTERNS: list[dict[str, Any]] = [{"causal": False}, {}, {"window": 7}, {"window": 20}, {"q_len": 20}, {"q_len": 50}]


@pytest.mark.parametrize("options", PATTERNS)
@pytest.mark.parametrize("function", [flash_attention_v1, flash_attention_v2])
def test_tiles_without_a_visible_pair_are_not_computed(function: Any, options: dict[str, Any]) -> None:
    """FLOPs of the products that ran, forward and backward, are those of the visible tiles."""
    problem = make_problem(**({"q_len": 37, "k_len": 37, "v_head_dim": 3} | options))
    q_len, k_len, block_q, block_k = problem.q.shape[1], problem.k.shape[1], 8, 5
    inputs = [x.requires_grad_() for x in (problem.q, problem.k, problem.v)]
    visible = visible_keys(
        q_len, k_len, causal=problem.options.get("causal", True), window=problem.options.get("window")
    )
    pairs = sum(tile.numel() for rows in visible.split(block_q) for tile in rows.split(block_k, dim=1) if tile.any())
    assert pairs < q_len * k_len or not problem.options.get("causal", True)

    with Watch() as forward:
        out, lse = function(*inputs, **problem.options, block_q=block_q, block_k=block_k)
    with Watch() as backward:
        torch.autograd.grad(out.sum() + lse.exp().sum(), inputs)
    assert forward.flops == 2 * pairs * 8 * (6 + 3)  # batch · num_heads = 8; Q Kᵀ over 6 numbers, P V over 3
    assert backward.flops == 2 * pairs * 8 * (3 * 6 + 2 * 3)  # Q Kᵀ, dS K, dSᵀ Q; dO Vᵀ, Pᵀ dO


@pytest.mark.parametrize("function", [flash_attention_v1, flash_attention_v2])
def test_only_boundary_tiles_are_masked(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[slice, slice]] = []
    hidden = Tiles.hidden

    def recording(tiles: Tiles, rows: slice, keys: slice, device: Any = None) -> Tensor:
        made.append((rows, keys))
        return hidden(tiles, rows, keys, device)

    monkeypatch.setattr(Tiles, "hidden", recording)
    problem = make_problem(q_len=32, k_len=32)
    function(problem.q, problem.k, problem.v, block_q=4, block_k=4)
    assert len(made) == 8 and all(rows == keys for rows, keys in made)  # the diagonal; 28 full tiles lie below it


def largest_tensors(function: Any, length: int, q_len: int | None = None) -> tuple[int, int]:
    """Elements of the largest tensor in the forward and in the backward pass of 2 heads of size 8."""
    problem = make_problem(batch=1, q_len=q_len or length, k_len=length, num_heads=2, num_kv_heads=1, k_head_dim=8)
    inputs = [x.requires_grad_() for x in (problem.q, problem.k, problem.v)]
    with Watch() as forward:
        out, lse = function(*inputs)
    with Watch() as backward:
        torch.autograd.grad(out.sum() + lse.sum(), inputs)
    assert forward.flops and backward.flops
    return forward.num_elements, backward.num_elements


@pytest.mark.parametrize("function", [flash_attention_v1, flash_attention_v2, flash_attention])
def test_memory_grows_with_the_length_and_not_with_its_square(function: Any) -> None:
    for length in (1024, 2048):
        forward, backward = largest_tensors(function, length)
        limit = max(2 * 8 * length, 2 * LARGEST_BLOCK**2 if function is flash_attention else 2 * 64 * 64)
        assert max(forward, backward) <= limit < length * length


def test_the_oracle_would_fail_the_test_above() -> None:
    assert min(largest_tensors(naive_attention, 1024)) >= 1024 * 1024


def test_decoding_neither_repeats_nor_copies_the_cache() -> None:
    forward, _ = largest_tensors(lambda q, k, v: flash_decoding(q, k, v, num_splits=4), 4096, q_len=1)
    assert forward <= 4096 * 8  # views of k and v


def test_only_inputs_out_and_lse_are_kept_for_the_backward_pass() -> None:
    kept: list[int] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    problem = make_problem(q_len=20, k_len=30)
    inputs = [x.requires_grad_() for x in (problem.q, problem.k, problem.v)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out, lse = flash_attention(*inputs)
    assert sorted(kept) == sorted([*(x.numel() for x in inputs), out.numel(), lse.numel()])


def test_second_derivatives_are_refused_rather_than_wrong() -> None:
    x = random_tensor(0, 1, 3, 1, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(flash_attention(x, x, x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("num_matrices", [0, 1, 8, 9, 32, 64, 128, 4096])
def test_blocks_on_a_cpu_keep_a_tile_in_the_cache(num_matrices: int) -> None:
    block = cpu_block(num_matrices)
    assert SMALLEST_BLOCK <= block <= LARGEST_BLOCK and math.log2(block).is_integer()
    assert block == SMALLEST_BLOCK or num_matrices * block**2 <= TILE_NUMBERS
    assert block == LARGEST_BLOCK or num_matrices * (2 * block) ** 2 > TILE_NUMBERS
