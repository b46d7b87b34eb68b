"""The fused operators: numbers of the model's modules, gradients, fakes, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from minillm.fusion import operators
from minillm.fusion.overhead import Overhead, measure_overhead, tiny_calls
from minillm.model.norm import RMSNorm
from minillm.model.rope import rotate

OPS = torch.ops.minillm


def numbers(*shape: int, dtype: torch.dtype = torch.float64, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 2).to(dtype).requires_grad_(grad)


def arguments(name: str, dtype: torch.dtype = torch.float64, grad: bool = False) -> tuple:
    x, y, weight = (numbers(*shape, dtype=dtype, grad=grad) for shape in ((2, 3, 8), (2, 3, 8), (8,)))
    y = (y.detach() * 0.7 - 1).requires_grad_(grad)
    if name == "rope":
        q, k = numbers(2, 3, 4, 6, dtype=dtype, grad=grad), numbers(2, 3, 2, 6, dtype=dtype, grad=grad)
        return q, k, numbers(3, 1, 6, dtype=dtype), numbers(3, 1, 6, dtype=dtype) * 0.6
    return {"rms_norm": (x, weight, 1e-2), "add_rms_norm": (x, y, weight, 1e-2), "swiglu": (x, y)}[name]


def oracle(name: str, args: tuple) -> tuple[Tensor, ...]:
    if name == "swiglu":
        return (torch.nn.functional.silu(args[0]) * args[1],)
    if name == "rope":
        return rotate(args[0], *args[2:]), rotate(args[1], *args[2:])
    total = args[0] + args[1] if name == "add_rms_norm" else args[0]
    norm = RMSNorm(total.shape[-1], args[-1])
    return torch.func.functional_call(norm, {"weight": args[-2]}, (total,)), total


@pytest.mark.parametrize("name", operators.SCHEMAS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_numbers_are_those_of_the_modules(name: str, dtype: torch.dtype) -> None:
    args = arguments(name, dtype)
    found = getattr(operators, name)(*args)
    found = found if isinstance(found, tuple) else (found,)
    rtol = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
    for a, b in zip(found, oracle(name, args), strict=False):
        assert a.dtype == dtype and a.is_contiguous()
        torch.testing.assert_close(a, b, rtol=rtol, atol=4 * rtol)


def test_sixteen_bits_round_where_the_module_rounds() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        args = numbers(64, 96, dtype=dtype), numbers(96, dtype=dtype), 1e-6
        assert torch.equal(operators.rms_norm(*args), oracle("rms_norm", args)[0])


def test_strided_and_lonely_rows() -> None:
    for x in (numbers(4, 16)[:, ::2], numbers(8), numbers(0, 8), numbers(5, 1, 8)):
        args = (x, numbers(8), 1e-5)
        torch.testing.assert_close(operators.rms_norm(*args), oracle("rms_norm", args)[0])
    q, k = numbers(5, 12, 4).transpose(0, 1)[:3], numbers(3, 5, 4).transpose(1, 1)
    args = (q.transpose(1, 1), k, numbers(3, 1, 4), numbers(3, 1, 4))
    for a, b in zip(operators.rope(*args), oracle("rope", args), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", operators.SCHEMAS)
def test_torch_checks_the_registration(name: str) -> None:
    opcheck(getattr(OPS, name).default, arguments(name, torch.float32, grad=True))


@pytest.mark.parametrize("name", operators.SCHEMAS)
def test_gradients(name: str) -> None:
    args = arguments(name, grad=True)
    assert torch.autograd.gradcheck(getattr(operators, name), args)
    outputs = getattr(operators, name)(*args)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    tensors = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    weights = [numbers(*out.shape) for out in outputs]
    found = torch.autograd.grad(outputs, tensors, weights)
    expected = torch.autograd.grad(oracle(name, args)[: len(outputs)], tensors, weights)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_no_gradient_for_angles() -> None:
    q, k, cos, sin = arguments("rope", grad=True)
    turned, _ = operators.rope(q, k, cos, sin.requires_grad_())
    with pytest.raises(RuntimeError, match="cos and sin"):
        turned.sum().backward()


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("rms_norm", (torch.ones(2, 3), torch.ones(2), 1e-6)),
        ("rms_norm", (torch.ones(2, 3), torch.ones(3).double(), 1e-6)),
        ("add_rms_norm", (torch.ones(2, 3), torch.ones(1, 3), torch.ones(3), 1e-6)),
        ("swiglu", (torch.ones(2, 3), torch.ones(1, 3))),
        ("rope", (torch.ones(2, 1, 3), torch.ones(2, 1, 3), torch.ones(2, 1, 3), torch.ones(2, 1, 3))),
        ("rope", (torch.ones(2, 1, 4), torch.ones(2, 1, 4), torch.ones(2, 2, 4), torch.ones(2, 2, 4))),
    ],
)
def test_refusals(name: str, args: tuple) -> None:
    with pytest.raises(ValueError, match="expected .* got"):
        getattr(operators, name)(*args)


def test_overhead_adds_up() -> None:
    overhead = Overhead("cpu", {"view": 1e-6, "elementwise": 2e-6, "matmul": 5e-6})
    assert overhead.forward_s({"view": 3, "matmul": 2, "other": 1}) == pytest.approx(15e-6)
    with pytest.raises(ValueError, match="magic"):
        overhead.forward_s({"magic": 1})


def test_overhead_is_measured() -> None:
    overhead = measure_overhead(calls=20, rounds=3)
    assert set(overhead.call_s) == set(tiny_calls())
    assert all(0 < seconds < 0.01 for seconds in overhead.call_s.values())
    with pytest.raises(ValueError, match="at least 1"):
        measure_overhead(calls=0)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="CUDA"):
            measure_overhead(device="cuda")


@pytest.mark.gpu
def test_kernels_compute_what_the_cpu_does() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for name in operators.SCHEMAS:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            args = arguments(name, dtype)
            on_gpu = [x.cuda() if isinstance(x, Tensor) else x for x in args]
            found = getattr(operators, name)(*on_gpu)
            for a, b in zip(found if isinstance(found, tuple) else (found,), oracle(name, args), strict=False):
                torch.testing.assert_close(a.cpu(), b, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)
    overhead = measure_overhead(device="cuda")
    assert all(0 < seconds < 0.01 for seconds in overhead.call_s.values())
