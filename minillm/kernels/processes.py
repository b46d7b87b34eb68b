"""Child processes that see other environment variables, for libraries that read them once, when they are imported.

    with interpreter() as child:
        c = child.call(minillm.kernels.matmul, a, b)      # on CPU tensors, whatever this process has imported

Triton decides at import between compiling and interpreting (TRITON_INTERPRET), numba between CUDA and its simulator
(NUMBA_ENABLE_CUDASIM). No process can have both, so that whoever wants both asks a child.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

TIMEOUT_S = 300.0


class Worker:
    """A process that runs functions for this one, one after the other. It starts at the first call.

    environment    variables set in it, before anything is imported there
    before_import  the module that reads them: a call raises RuntimeError if the child has it already, which happens
                   where the caller's main script imports it
    """

    def __init__(self, environment: Mapping[str, str], *, before_import: str) -> None:
        self.environment, self.before_import = dict(environment), before_import
        self.process: Any = None
        self.connection: Connection | None = None

    def call(self, function: Callable[..., Any], *args: Any, timeout_s: float = TIMEOUT_S, **kwargs: Any) -> Any:
        """`function(*args, **kwargs)` over there. Function, arguments and result are pickled: tensors are copied.

        Raises what the function raised, with the child's traceback as a note; TimeoutError after `timeout_s`, and
        RuntimeError if the process died. After these two the next call starts a new one.
        """
        if self.connection is None:
            self._start()
        assert self.connection is not None
        self.connection.send_bytes(pickle.dumps((function, args, kwargs)))
        try:
            if not self.connection.poll(timeout_s):
                raise TimeoutError(f"{function.__name__} took more than {timeout_s:g} s in its process")
            is_error, result, trace = pickle.loads(self.connection.recv_bytes())
        except (TimeoutError, EOFError, ConnectionError) as error:
            exit_code = self.close()
            if isinstance(error, TimeoutError):
                raise
            raise RuntimeError(f"the process of {function.__name__} died with exit code {exit_code}") from error
        if is_error:
            result.add_note(f"In the child process:\n{trace}")
            raise result
        return result

    def close(self) -> int | None:
        """End the process, if there is one; returns its exit code."""
        if self.connection is None:
            return None
        self.connection.close()
        self.connection = None
        self.process.join(timeout=1.0)  # it ends by itself when the connection does, unless it is busy
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return int(self.process.exitcode)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self.environment, self.before_import)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()


def interpreter(**environment: str) -> Worker:
    """A process in which Triton interprets kernels, on CPU tensors; with further variables if given."""
    return Worker({**environment, "TRITON_INTERPRET": "1"}, before_import="triton")


def compiler(**environment: str) -> Worker:
    """A process in which Triton and numba compile kernels: for a GPU that is there, or ahead of time."""
    settings = {**environment, "TRITON_INTERPRET": "0", "NUMBA_ENABLE_CUDASIM": "0"}
    return Worker(settings, before_import="triton")


def cuda_simulator(**environment: str) -> Worker:
    """A process in which numba simulates CUDA, slowly."""
    return Worker({**environment, "NUMBA_ENABLE_CUDASIM": "1"}, before_import="numba")


def _serve(connection: Connection, environment: Mapping[str, str], before_import: str) -> None:
    """The child: run what comes until the other end closes."""
    too_late = before_import in sys.modules
    os.environ.update(environment)
    while True:
        try:
            request = connection.recv_bytes()
        except (EOFError, ConnectionError):
            return
        try:
            if too_late:
                names = ", ".join(environment)
                raise RuntimeError(f"{before_import} was imported before {names} could be set: import it later")
            function, args, kwargs = pickle.loads(request)
            reply: tuple[bool, Any, str] = (False, function(*args, **kwargs), "")
        except Exception as error:
            reply = (True, error, traceback.format_exc())
        try:
            packed = pickle.dumps(reply)
        except Exception as error:  # a result or an exception that can't travel
            packed = pickle.dumps((True, RuntimeError(f"can't send {reply[1]!r}: {error}"), reply[2]))
        connection.send_bytes(packed)
