"""Doctor, the rows of part 5: what came of a kernel's checks, as a verdict and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from minillm.bench.doctor_section import FAILED, OK, Check, brief, columns, paragraph

DTYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
ADVICE = "minillm doctor --only kernels --all looks closer; pip install -U triton brings another compiler"
SLOW_ADVICE = "a busy machine? minillm doctor --only kernels --timeout 600 waits longer"


def judge(name: str, where: str, numbers: Any, builds: Any = None, speed: Any = None) -> Check:
    """One kernel's outcomes as a check. Being slower than the vendor is no failure; not being measurable is one."""
    problems: list[str] = []
    seen: dict[str, Any] = {"where": where}
    if numbers is not None and numbers.problem:
        problems.append(f"{where}: {numbers.problem}")
    elif numbers is not None:
        results, num_problems = numbers.result
        worst = max(results, key=lambda check: check.share_of_bound, default=None)
        seen |= {
            "problems_checked": len(results),
            "problems": num_problems,
            "dtypes": sorted({DTYPE_NAMES[check.dtype] for check in results}),
            "max_error": max((check.max_error for check in results), default=0.0),
            "share_of_allowed": worst.share_of_bound if worst else 0.0,
        }
        bad = [check for check in results if not check.passed]
        if bad:
            first = bad[0]
            what = first.problem_found or f"error {first.max_error:.1e}, {first.share_of_bound:.3g} times the allowed"
            place = f"“{first.problem}”, {DTYPE_NAMES[first.dtype]}"
            problems.append(f"{len(bad)} of {len(results)} problems wrong, first {place}: {brief_text(what)}")
        if not results:
            problems.append("no problem was checked")
    if builds is not None and builds.problem:
        problems.append(f"builds: {builds.problem}")
    elif builds is not None:
        results, num_builds = builds.result
        bad_builds = [build for build in results if build.problem]
        seen |= {"builds_passed": len(results) - len(bad_builds), "builds_tried": len(results), "builds": num_builds}
        if bad_builds:
            build = bad_builds[0]
            problems.append(f"build “{build.label}” for sm_{build.capability}: {brief_text(build.problem)}")
    if speed is not None and speed.problem:
        problems.append(f"speed: {speed.problem}")
    elif speed is not None:
        result = speed.result
        seen |= {
            "over_vendor": result.ratio,
            "ours_s": result.ours_s,
            "vendor_s": result.vendor_s,
            "speed_problem": result.problem,
            "speed_dtype": DTYPE_NAMES[result.dtype],
        }
    if problems:
        late = any("took more than" in problem for problem in problems)
        return Check(name, FAILED, "; ".join(problems), SLOW_ADVICE if late else ADVICE, seen)
    return Check(name, OK, f"right in the {where}" if where != "GPU" else "right on the GPU", numbers=seen)


def table(checks: Sequence[Check]) -> list[str]:
    """The checks in 80 columns. × vendor: 0.9 means 90 % of the speed of the vendor's library."""
    rows = [["kernel", "checked by", "error", "of allowed", "builds", "verdict", "× vendor"]]
    for check in checks:
        seen = check.numbers
        rows.append(
            [
                check.name,
                seen["where"],
                f"{seen['max_error']:.0e}" if "max_error" in seen else "",
                f"{seen['share_of_allowed']:.0%}" if "share_of_allowed" in seen else "",
                f"{seen['builds_passed']}/{seen['builds_tried']}" if "builds_tried" in seen else "",
                check.verdict,
                f"{seen['over_vendor']:.2f}" if "over_vendor" in seen else "",
            ]
        )
    return columns(rows, right=(2, 3, 4, 6), gap=1)


def remarks(checks: Sequence[Check], on_gpu: bool) -> list[str]:
    """What the table means, and what it leaves out."""
    checked = sum(check.numbers.get("problems_checked", 0) for check in checks)
    problems = sum(check.numbers.get("problems", 0) for check in checks)
    tried = sum(check.numbers.get("builds_tried", 0) for check in checks)
    builds = sum(check.numbers.get("builds", 0) for check in checks)
    text = f"Errors are against float64. Checked: {checked} of {problems} problems"
    text += f" and {tried} of {builds} builds for sm_80 and sm_90"
    text += "." if checked == problems and tried == builds else "; --all checks every one."
    lines = ["", *paragraph(text)]
    if not on_gpu:
        lines += paragraph(
            "No GPU here: the kernels ran on the CPU, in Triton's interpreter and numba's simulator. Results are "
            "checked so, speed and bfloat16 are not."
        )
    return lines


def brief_text(text: str) -> str:
    """The beginning of a long message."""
    return brief(Exception(text)).removeprefix("Exception: ")
