"""`minillm.attention.flash_decoding` on a GPU: the launches around `flash_split_kernels`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from minillm.attention.naive import check_shapes
from minillm.attention.splits import choose_num_splits
from minillm.kernels.flash import addressable, flash_attention, with_positive_scale
from minillm.kernels.flash_forward import LOG2_E, launch_options
from minillm.kernels.flash_split_kernels import decode_split_kernel, merge_splits_kernel
from minillm.kernels.flash_tiles import INTERPRETER_DECODE_TILE, decode_tile, padded_dim
from minillm.kernels.launch import check_tensors, is_interpreting, num_sms, on_device

WIDEST = 1024  # head_dim


def flash_decoding(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_splits: int | None = None,
    softmax_scale: float | None = None,
    seq_lens: Tensor | Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of the last q_len tokens of each sequence to all of its keys, computed in splits of the keys.

    q           (batch, q_len, num_heads, k_head_dim): the new tokens, causal among themselves
    k, v        (batch, k_len, num_kv_heads, …): the cache, of which row b holds seq_lens[b] valid keys. All float32,
                float16 or bfloat16 on one GPU (or the CPU where Triton interprets), of any strides, head dims up to
                1024
    num_splits  None chooses by k_len and the number of SMs
    seq_lens    integers (batch,), the keys of the new tokens included; None = k_len for all. A tensor on the GPU is
                read there, so that the host never waits: values outside 0 … k_len count as 0 and k_len

    Returns out (batch, q_len, num_heads, v_head_dim) in the dtype of q and lse (batch, q_len, num_heads), float32, as
    `minillm.attention.flash_decoding`. Where a gradient is needed, `flash_attention` takes over, one sequence at a time
    if there are seq_lens. Raises ValueError for shapes, dtypes and devices that don't fit, num_splits below 1, and
    seq_lens outside 0 … k_len that aren't on the GPU.
    """
    lengths = check_decoding(q, k, v, num_splits=num_splits, seq_lens=seq_lens)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return _differentiable(q, k, v, softmax_scale, None if seq_lens is None else lengths.tolist())
    step = DecodeStep(q, k, v, lengths, num_splits=num_splits, softmax_scale=softmax_scale)
    step.attend()
    step.merge()
    return step.out, step.lse.transpose(1, 2)


def check_decoding(
    q: Tensor, k: Tensor, v: Tensor, *, num_splits: int | None, seq_lens: Tensor | Sequence[int] | None
) -> Tensor:
    """The lengths (batch,) on the device of q; ValueError for what doesn't fit, as far as the host can see it."""
    check_shapes(q, k, v, causal=True, window=None)
    check_tensors(q=q, k=k, v=v)
    (batch, k_len), dims = k.shape[:2], (q.shape[-1], v.shape[-1])
    if max(dims) > WIDEST:
        raise ValueError(f"expected head dims of at most {WIDEST}, got k_head_dim {dims[0]}, v_head_dim {dims[1]}")
    if num_splits is not None and num_splits < 1:
        raise ValueError(f"expected at least 1 split, got num_splits={num_splits}")
    if seq_lens is None:
        return torch.full((batch,), k_len, dtype=torch.int32, device=q.device)
    lengths = torch.as_tensor(seq_lens)
    is_bad = lengths.shape != (batch,) or lengths.is_floating_point()
    if is_bad or not (lengths.is_cuda or bool(((lengths >= 0) & (lengths <= k_len)).all())):
        raise ValueError(f"expected seq_lens of {batch} sequences, each from 0 to k_len = {k_len}, got {seq_lens}")
    return lengths.to(q.device).contiguous()


class DecodeStep:
    """The buffers of one step on the device, and the launches that fill them. Needs no number from the device.

    out    (batch, q_len, num_heads, v_head_dim), in the dtype of q
    lse    (batch, num_heads, q_len), float32
    redo   int8, shaped like lse: rows that `flash_unified` computes again
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Tensor,
        *,
        num_splits: int | None,
        softmax_scale: float | None,
    ) -> None:
        """Arguments as of `flash_decoding`, checked; lengths (batch,) on the device of q."""
        batch, q_len, num_heads, k_head_dim = q.shape
        k_len, num_kv_heads, v_head_dim = v.shape[1:]
        q, self.softmax_scale = with_positive_scale(q, softmax_scale)
        self.q, self.k, self.v, self.lengths = addressable(q), addressable(k), addressable(v), lengths
        self.num_rows, self.num_kv_heads = num_heads // num_kv_heads * q_len, num_kv_heads
        tile = decode_tile(max(self.num_rows, 1), k_head_dim, v_head_dim, itemsize=q.element_size())
        self.tile = INTERPRETER_DECODE_TILE if is_interpreting() else tile
        self.units = batch * num_kv_heads * triton.cdiv(self.num_rows, self.tile.block_q)
        if num_splits is None:
            num_splits = choose_num_splits(max(self.units, 1), 1, k_len, num_sms(q.device))
        self.num_splits = min(num_splits, max(1, triton.cdiv(k_len, self.tile.block_k)))  # a tile of keys or more each

        self.out = q.new_empty((batch, q_len, num_heads, v_head_dim))
        self.lse = torch.empty((batch, num_heads, q_len), device=q.device)
        self.redo = torch.empty(self.lse.shape, dtype=torch.int8, device=q.device)
        self.part_lse = torch.empty((*self.lse.shape, self.num_splits), device=q.device)
        self.part_out = torch.empty((*self.part_lse.shape, v_head_dim), device=q.device)

    def attend(self, *, fixed_top: float | None = None, only_redo: bool = False) -> None:
        """Each split on its own. fixed_top   in the unit of the scaled scores, in place of their maximum"""
        if self.lse.numel() == 0:
            return
        sizes = (self.q.shape[1], self.k.shape[1], self.num_kv_heads, self.num_rows, self.num_splits)
        k_head_dim, v_head_dim = self.k.shape[-1], self.v.shape[-1]
        with on_device(self.q):
            decode_split_kernel[(self.units * self.num_splits,)](
                self.q, self.k, self.v, self.lengths, self.part_out, self.part_lse, self.redo,
                self.softmax_scale * LOG2_E, (fixed_top or 0.0) * LOG2_E, *sizes,
                *self.q.stride(), *self.k.stride(), *self.v.stride(),
                FIXED_TOP=fixed_top is not None, ONLY_REDO=only_redo,
                K_DIM=k_head_dim, V_DIM=v_head_dim, BLOCK_D=padded_dim(k_head_dim), BLOCK_V=padded_dim(v_head_dim),
                **launch_options(self.tile),
            )  # fmt: skip

    def merge(self, *, band: tuple[float, float] | None = None, only_redo: bool = False) -> None:
        """The splits together. band   (low, high): rows whose lse isn't between them are marked in `redo`"""
        if self.lse.numel() == 0:
            return
        low, high = band or (0.0, 0.0)
        with on_device(self.q):
            merge_splits_kernel[(self.lse.numel(),)](
                self.part_out, self.part_lse, self.out, self.lse, self.redo, low * LOG2_E, high * LOG2_E,
                self.q.shape[1], self.num_rows, self.num_kv_heads, self.num_splits,
                CHECK_BAND=band is not None, ONLY_REDO=only_redo,
                V_DIM=self.v.shape[-1], BLOCK_V=padded_dim(self.v.shape[-1]), num_warps=4,
            )  # fmt: skip


def _differentiable(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None, lengths: list[int] | None
) -> tuple[Tensor, Tensor]:
    if lengths is None:
        return flash_attention(q, k, v, softmax_scale=softmax_scale)
    results = [
        flash_attention(q[[b]], k[[b], :seq_len], v[[b], :seq_len], softmax_scale=softmax_scale)
        for b, seq_len in enumerate(lengths)
    ]
    outs, lses = zip(*results, strict=True)
    return torch.cat(outs), torch.cat(lses)
