"""What the kernels between the products refuse, and with which words."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("numba")

from minillm import kernels
from minillm.kernels.processes import Worker
from tests.kernels.fused_in_child import loss_refuses_leaves, rope_arguments


def test_inputs_are_refused_with_what_was_expected(interpreter: Worker) -> None:
    x, row, targets = torch.ones(4, 6), torch.ones(6), torch.zeros(4, dtype=torch.long)
    q, k, cos, sin = rope_arguments()
    wide = torch.ones(1, 16385)
    for function, args, options, message in [
        (kernels.rms_norm, (x, torch.ones(5), 1e-5), {}, r"weight \(size,\), got \(4, 6\) and \(5,\)"),
        (kernels.rms_norm, (torch.tensor(1.0), row, 1e-5), {}, "expected x"),
        (kernels.rms_norm, (wide, wide[0], 1e-5), {}, "at most 16384 numbers, got 16385"),
        (kernels.rms_norm, (x.double(), row.double(), 1e-5), {}, "expected float32, float16 or bfloat16"),
        (kernels.rms_norm, (x, row.half(), 1e-5), {}, "one dtype on one device"),
        (kernels.add_rms_norm, (x, x[:3], row, 1e-5), {}, r"one shape, got \(4, 6\) and \(3, 6\)"),
        (kernels.add_rms_norm, (x, x.half(), row, 1e-5), {}, "one dtype on one device"),
        (kernels.rope, (q, k[:1], cos, sin), {}, "expected q"),
        (kernels.rope, (q[..., :11], k[..., :11], cos, sin), {}, "even"),
        (kernels.rope, (q, k, cos[..., :6], sin), {}, "broadcastable to q and k"),
        (kernels.rope, (q, k, cos, sin.expand(2, 3, 12)), {}, "broadcastable to q and k"),
        (kernels.rope, (q, k, cos.expand(1, 2, 2, 1, 12), sin), {}, "broadcastable to q and k"),
        (kernels.rope, (q, k, cos.clone().requires_grad_(), sin), {}, "without gradients"),
        (kernels.rope, (q, k, cos.half(), sin.half()), {}, "in torch.float32 or float32"),
        (kernels.swiglu, (x, x[:, :3]), {}, r"of one shape, got \(4, 6\) and \(4, 3\)"),
        (kernels.swiglu_halves, (x[:, :5],), {}, r"expected gate_up \(..., 2 · n\), got \(4, 5\)"),
        (kernels.softmax, (torch.tensor(1.0),), {}, "without axes"),
        (kernels.softmax, (x.long(),), {}, "expected float32, float16 or bfloat16"),
        (kernels.cross_entropy, (x, targets[:3]), {}, r"targets \(...\), got \(4, 6\) and \(3,\)"),
        (kernels.cross_entropy, (x[:, :0], targets), {}, "not empty"),
        (kernels.cross_entropy, (x, targets.float()), {}, "int32 or int64"),
        (kernels.cross_entropy, (x[:, ::2], targets), {"in_place": True}, "contiguous logits"),
        (loss_refuses_leaves, (True,), {}, "that another function made"),
    ]:
        with pytest.raises(ValueError, match=message):
            interpreter.call(function, *args, **options)
    interpreter.call(loss_refuses_leaves, False)


def test_cpu_tensors_need_the_interpreter(compiler: Worker) -> None:
    x = torch.ones(4, 4)
    for function, args in [(kernels.swiglu, (x, x)), (kernels.softmax, (x,)), (kernels.rms_norm, (x, x[0], 1e-5))]:
        with pytest.raises(ValueError, match="expected CUDA tensors, got .*TRITON_INTERPRET=1"):
            compiler.call(function, *args)
