"""Child processes: results, errors, ends, and the environment that they see."""

from __future__ import annotations

import os
import time

import pytest
import torch

from minillm.kernels import processes
from minillm.kernels.processes import Worker


def test_a_call_gives_what_the_function_gives() -> None:
    with Worker({"MINILLM_TEST": "seen"}, before_import="triton") as worker:
        assert worker.call(os.getenv, "MINILLM_TEST") == "seen" and os.getenv("MINILLM_TEST") is None
        x = torch.arange(12.0).reshape(3, 4)
        assert torch.equal(worker.call(torch.add, x.T, 1), x.T + 1)
        assert torch.equal(x, torch.arange(12.0).reshape(3, 4))

        with pytest.raises(ZeroDivisionError) as caught:
            worker.call(divmod, 1, 0)
        assert "child process" in caught.value.__notes__[0] and "Traceback" in caught.value.__notes__[0]
        assert worker.call(divmod, 7, 2) == (3, 1)

        with pytest.raises(RuntimeError, match="can't send"):
            worker.call(compile, "x = 1", "<no file>", "exec")

        with pytest.raises(TimeoutError, match="sleep took more than 0.2 s"):
            worker.call(time.sleep, 60, timeout_s=0.2)
        with pytest.raises(RuntimeError, match="died with exit code 3"):
            worker.call(os._exit, 3)
        assert worker.call(divmod, 7, 2) == (3, 1)  # a new process
        process = worker.process
    assert not process.is_alive()


def test_closing_twice_is_no_error() -> None:
    worker = processes.interpreter()
    assert worker.close() is None
    assert worker.call(os.getenv, "TRITON_INTERPRET") == "1"
    assert worker.close() == 0 and worker.close() is None
