"""Doctor, part 5: every registered kernel against its oracle, its builds, and the vendor's speed.

With a GPU, numbers are checked on it, in all dtypes, and speed is measured. Without one, Triton's interpreter and
numba's simulator run a sample of the problems on the CPU. A compiler builds variants for sm_80 and sm_90 in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from minillm.bench import doctor_children as children
from minillm.bench.doctor_children import KernelInfo
from minillm.bench.doctor_environment import installed
from minillm.bench.doctor_kernel_table import ADVICE, judge, remarks, table
from minillm.bench.doctor_section import FAILED, NOT_CHECKED, Check, Section, Settings, explained, paragraph
from minillm.bench.doctor_workers import Task, run_tasks
from minillm.kernels import processes

TITLE = "GPU kernels"
CAPABILITIES = (80, 90)
PLACES = {"triton": "interpreter", "numba": "simulator"}  # of a kernel's mode, without a GPU


def examine(settings: Settings) -> Section:
    """One row a kernel. Kernels need Triton and numba: NOT_CHECKED where one is missing."""
    if missing := [name for name in ("triton", "numba") if not installed(name)]:
        advice = "pip install 'minillm[kernels,fast]' brings them (Triton: Linux only)"
        check = Check("kernels", NOT_CHECKED, f"{' and '.join(missing)} not installed", advice)
        return Section("kernels", TITLE, tuple(paragraph(f"Not checked: {check.found}. {advice}")), (check,))
    on_gpu = torch.cuda.is_available()
    settings.on_step("starting processes", 0, 1)
    with ExitStack() as stack:
        compiler = stack.enter_context(processes.compiler())
        interpreter = stack.enter_context(processes.interpreter(OMP_NUM_THREADS="1"))
        simulator = stack.enter_context(processes.cuda_simulator(OMP_NUM_THREADS="1"))
        ask = Task("", "list", children.list_kernels, ())
        listed = run_tasks([(compiler, [ask])], timeout_s=settings.timeout_s, start=children.start)[0]
        if listed.problem:
            check = Check("kernels", FAILED, f"the registry can't be loaded: {listed.problem}", ADVICE)
            return Section("kernels", TITLE, tuple(explained([check])), (check,))
        numbers, builds, speeds = tasks_for(listed.result, settings, on_gpu=on_gpu)
        if on_gpu:
            everything = [task for modes in numbers.values() for task in modes]
            lists = [(compiler, [*everything, *speeds, *builds])]  # one after the other: speed is measured
        else:
            lists = [(interpreter, numbers["triton"]), (compiler, builds), (simulator, numbers["numba"])]
        total, begun = sum(len(tasks) for _, tasks in lists), 0

        def on_task(task: Task) -> None:
            nonlocal begun
            settings.on_step(f"{task.kernel}: {task.what}", begun, total)
            begun += 1

        outcomes = run_tasks(lists, timeout_s=settings.timeout_s, start=children.start, on_task=on_task)
    found = {(outcome.task.kernel, outcome.task.what): outcome for outcome in outcomes}
    checks = [
        judge(
            kernel.name,
            "GPU" if on_gpu else PLACES[kernel.mode],
            *(found.get((kernel.name, what)) for what in ("numbers", "builds", "speed")),
        )
        for kernel in listed.result
    ]
    return Section("kernels", TITLE, (*table(checks), *remarks(checks, on_gpu), *explained(checks)), tuple(checks))


def tasks_for(
    kernels: Sequence[KernelInfo], settings: Settings, *, on_gpu: bool
) -> tuple[dict[str, list[Task]], list[Task], list[Task]]:
    """What is to be done: checks of numbers by the kernels' mode, builds, comparisons with the vendor."""
    most = None if settings.every else 2 if settings.quick else 12 if on_gpu else 6
    device, large = ("cuda", settings.every) if on_gpu else ("cpu", False)
    numbers: dict[str, list[Task]] = {mode: [] for mode in PLACES}
    builds, speeds = [], []
    for kernel in kernels:
        dtypes = kernel.dtypes if on_gpu else interpreted_dtypes(kernel.dtypes, settings.every)
        arguments = (kernel.name, dtypes, device, most, large)
        numbers[kernel.mode].append(Task(kernel.name, "numbers", children.check_numbers, arguments))
        if kernel.has_builds:
            chosen = (kernel.name, CAPABILITIES, None if settings.every else 1)
            builds.append(Task(kernel.name, "builds", children.check_builds, chosen))
        if kernel.has_vendor:
            timed = (kernel.name, kernel.dtypes[-1], 3 if settings.quick else 10)
            speeds.append(Task(kernel.name, "speed", children.measure_speed, timed))
    return numbers, builds, speeds


def interpreted_dtypes(dtypes: Sequence[torch.dtype], every: bool) -> tuple[torch.dtype, ...]:
    """Those to check on a CPU: never bfloat16, which the interpreter gets wrong; float16 alone if not `every`, since it
    finds more than float32 does.
    """
    possible = tuple(dtype for dtype in dtypes if dtype != torch.bfloat16)
    return possible if every or torch.float16 not in possible else (torch.float16,)
