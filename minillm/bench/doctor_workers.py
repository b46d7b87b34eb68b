"""Doctor, how kernels' checks are shared out: one list of tasks for each child process, the processes side by side.

thread 0   interpreter   matmul numbers │ tile_matmul numbers │ …           each thread waits for its own child;
thread 1   compiler      tile_matmul builds │ flash_attention builds │ …    Ctrl-C reaches the main thread alone,
thread 2   simulator     simt_naive numbers │ …                             which then ends the children
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

from minillm.bench.doctor_section import brief
from minillm.kernels.processes import Worker

START_S = 120.0  # for a process to begin and to import what it needs


@dataclass(frozen=True)
class Task:
    """`function(*args)` for a kernel in a child process; `what` it is about: "numbers", "builds" or "speed"."""

    kernel: str
    what: str
    function: Callable[..., Any]
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of a task: its result, or why there is none."""

    task: Task
    result: Any = None
    problem: str = ""


def run_tasks(
    lists: Sequence[tuple[Worker, Sequence[Task]]],
    *,
    timeout_s: float,
    start: Callable[[], object] | None = None,
    on_task: Callable[[Task], object] = lambda task: None,
) -> list[Outcome]:
    """Run each worker's list in order, the workers side by side; outcomes in the order of the lists.

    A task that raises, dies or takes more than `timeout_s` is an outcome, and the next one gets a new process if it
    must. `start` is what a new process does first, imports say, in up to `START_S` of its own. `on_task` is called as
    each task starts, by one thread at a time. The caller closes the workers; if this ends by an exception, Ctrl-C for
    one, their processes are ended already.
    """
    stop, lock = threading.Event(), threading.Lock()
    can_block = hasattr(signal, "pthread_sigmask")
    if can_block:
        resource_tracker.ensure_running()  # started by the first child, it would unblock what is blocked below

    def run_list(worker: Worker, tasks: Sequence[Task]) -> list[Outcome]:
        # A child inherits what its starter blocks: Ctrl-C in the terminal must not fill it with its tracebacks.
        if can_block:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        outcomes = []
        for task in tasks:
            if stop.is_set():
                break
            with lock:
                on_task(task)
            problem = ""
            if start is not None and worker.connection is None:
                problem = _run(worker, Task(task.kernel, "start", start, ()), START_S).problem
            outcomes.append(Outcome(task, problem=problem) if problem else _run(worker, task, timeout_s))
        return outcomes

    pool = ThreadPoolExecutor(max(1, len(lists)))
    futures: list[Future[list[Outcome]]] = []
    try:
        futures += [pool.submit(run_list, worker, tasks) for worker, tasks in lists]
        return [outcome for future in futures for outcome in future.result()]
    finally:
        stop.set()
        while not all(future.done() for future in futures):
            for worker, _ in lists:
                if worker.process is not None and worker.process.is_alive():
                    worker.process.kill()  # its thread notices and ends
            time.sleep(0.05)
        pool.shutdown()


def _run(worker: Worker, task: Task, timeout_s: float) -> Outcome:
    try:
        return Outcome(task, worker.call(task.function, *task.args, timeout_s=timeout_s))
    except TimeoutError:
        return Outcome(task, problem=f"took more than {timeout_s:g} s")
    except Exception as error:
        return Outcome(task, problem=brief(error))
