"""The oracles of the fused kernels against the model's modules and torch's own functions, without Triton."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minillm.config import RopeConfig
from minillm.kernels import fused_oracles as oracles
from minillm.model.ffn import SwiGLU
from minillm.model.norm import RMSNorm
from minillm.model.rope import Rope, rotate

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_are_the_models(dtype: torch.dtype) -> None:
    x, residual = normal(3, 5, 24, dtype=dtype), normal(3, 5, 24, dtype=dtype, seed=1)
    norm = RMSNorm(24, eps=1e-3).to(dtype)
    norm.weight.data = normal(24, dtype=dtype, seed=2)
    assert torch.equal(oracles.rms_norm(x, norm.weight, 1e-3), norm(x))
    y, new_residual = oracles.add_rms_norm(x, residual, norm.weight, 1e-3)
    assert torch.equal(new_residual, x + residual) and torch.equal(y, norm(x + residual))
    if dtype == torch.float64:
        assert torch.allclose(norm(x), F.rms_norm(x, (24,), norm.weight, 1e-3), rtol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_is_the_models(dtype: torch.dtype) -> None:
    cos, sin = Rope(RopeConfig(), 16).cos_sin(torch.arange(5), dtype)
    q, k = normal(2, 5, 4, 16, dtype=dtype), normal(2, 5, 1, 16, dtype=dtype, seed=1)
    for result, x in zip(oracles.rope(q, k, cos, sin), (q, k), strict=True):
        assert torch.equal(result, rotate(x, cos, sin))


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_is_the_models(dtype: torch.dtype) -> None:
    ffn = SwiGLU(8, 8).to(dtype)
    for linear in (ffn.w_gate, ffn.w_up, ffn.w_down):
        linear.weight.data = torch.eye(8, dtype=dtype)
    x = normal(3, 8, dtype=dtype)
    assert torch.equal(oracles.swiglu(x, x), ffn(x))
    both = normal(3, 16, dtype=dtype)
    assert torch.equal(oracles.swiglu_halves(both), F.silu(both[:, :8]) * both[:, 8:])


def test_softmax_is_torchs_but_for_rows_of_minus_infinity() -> None:
    x = normal(4, 3, 20)
    assert torch.allclose(oracles.softmax(x), torch.softmax(x, dim=-1), rtol=1e-14)
    x[0, 0], x[1, 1, 1:] = -math.inf, -math.inf
    x.requires_grad_()
    y = oracles.softmax(x)
    y.square().sum().backward()
    assert (y[0, 0] == 0).all() and torch.equal(y[1, 1], torch.eye(20, dtype=y.dtype)[0])
    assert x.grad is not None and x.grad.isfinite().all() and (x.grad[0, 0] == 0).all()
    assert oracles.softmax(torch.ones(2, 0)).shape == (2, 0)


def test_cross_entropy_is_torchs_but_for_rows_of_minus_infinity() -> None:
    logits, targets = normal(6, 30).requires_grad_(), torch.tensor([0, 29, -100, 7, 7, -100])
    loss, lse = oracles.cross_entropy(logits, targets)
    assert torch.allclose(loss, F.cross_entropy(logits, targets, reduction="none"), rtol=1e-13)
    assert torch.allclose(lse, torch.logsumexp(logits, dim=-1), rtol=1e-14)
    weights = normal(6, seed=3)
    (grad,) = torch.autograd.grad((loss * weights).sum(), logits)
    expected = torch.softmax(logits, dim=-1) - F.one_hot(targets.clamp(min=0), 30)
    assert torch.allclose(grad, expected * (weights * (targets >= 0)).unsqueeze(-1), atol=1e-14)
    torch.testing.assert_close(oracles.cross_entropy(logits, targets, ignore_index=7)[0][3:5], torch.zeros(2).double())

    hidden = torch.full((3, 4), -math.inf, requires_grad=True)
    loss, lse = oracles.cross_entropy(hidden, torch.tensor([1, -100, 9]))
    (grad,) = torch.autograd.grad(loss[0] + lse[0], hidden)
    assert loss[:2].tolist() == [math.inf, 0.0] and loss[2].isnan() and (lse == -math.inf).all() and (grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_float32(dtype: torch.dtype) -> None:
    """Sums of squares beyond the range of float16, and of more ones than 8 bits can count."""
    x, weight = torch.full((1, 300), 3e4, dtype=dtype), torch.ones(300, dtype=dtype)
    assert torch.allclose(oracles.rms_norm(x, weight, 1e-5), torch.ones(1, 300, dtype=dtype))
    loss, lse = oracles.cross_entropy(torch.zeros(1, 3000, dtype=dtype), torch.tensor([3]))
    assert loss.dtype == lse.dtype == torch.float32 and abs(float(loss) - math.log(3000)) < 1e-5
    assert abs(float(oracles.softmax(torch.zeros(1, 3000, dtype=dtype))[0, 0]) * 3000 - 1) < 0.01


def test_they_import_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from minillm.kernels.fused_oracles import add_rms_norm, cross_entropy, rms_norm, rope, softmax, swiglu\n"
        "print(swiglu(torch.ones(2), torch.ones(2)).shape)\n"
        "import minillm.kernels\n"
        "minillm.kernels.rms_norm"
    )
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=100)
    assert result.stdout == "torch.Size([2])\n"
    assert result.stderr.splitlines()[-1].startswith("ValueError: rms_norm needs Triton")
