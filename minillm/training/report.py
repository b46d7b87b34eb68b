"""What a run tells: a progress bar or plain lines on stdout, and one JSON line in `log.jsonl` every few steps."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

from tqdm import tqdm

from minillm.training.config import TrainConfig
from minillm.training.evaluate import StoryEvaluation, TextEvaluation
from minillm.training.loop import StepReport
from minillm.training.state import append_record

SECONDS_BETWEEN_LINES = 10.0
"""Without a terminal: at most one line of progress in this time."""


class Reporter:
    """Shows and logs a run. On a terminal a bar is redrawn; otherwise a line is printed now and then.

    The logged loss is the mean over the steps since the last record; the logged rate is that of the updates alone,
    without evaluations and checkpoints.
    """

    def __init__(self, config: TrainConfig, log_path: Path, *, first_step: int) -> None:
        self.config = config
        self.log_path = log_path
        self._steps: list[StepReport] = []
        self._rate: float = math.nan
        self._last_line_s = -math.inf
        self._bar = tqdm(
            total=config.steps,
            initial=first_step,
            unit="step",
            file=sys.stdout,
            disable=not sys.stdout.isatty(),
            dynamic_ncols=True,
        )

    def step(self, report: StepReport) -> None:
        """Takes in one update; writes a record every `log_every` steps and after the last."""
        self._steps.append(report)
        rate = self.config.tokens_per_step / report.elapsed_s
        self._rate = rate if math.isnan(self._rate) else 0.95 * self._rate + 0.05 * rate
        self._bar.update(1)
        self._bar.set_postfix_str(f"loss {report.loss:.3f}, {self._rate:,.0f} tokens/s", refresh=False)
        if report.step % self.config.log_every == 0 or report.step == self.config.steps:
            self._write_record()
        if self._bar.disable and time.monotonic() - self._last_line_s >= SECONDS_BETWEEN_LINES:
            remaining_s = (self.config.steps - report.step) * self.config.tokens_per_step / self._rate
            self.line(
                f"step {report.step}/{self.config.steps}  loss {report.loss:.4f}  lr {report.lr:.2e}  "
                f"grad norm {report.grad_norm:.2f}  {self._rate:,.0f} tokens/s  {format_duration(remaining_s)} left"
            )
            self._last_line_s = time.monotonic()

    def evaluation(self, step: int, result: StoryEvaluation | TextEvaluation) -> None:
        """Prints one line and writes one record."""
        self.line(f"step {step}: {result}")
        record: dict[str, object] = {"step": step, "tokens": step * self.config.tokens_per_step}
        record["eval_nats_per_token"] = result.model_nats_per_token
        if isinstance(result, StoryEvaluation):
            record["source_nats_per_token"] = result.source_nats_per_token
            record["eval_nats_per_story"] = result.model_nats_per_story
            record["source_nats_per_story"] = result.source_nats_per_story
            record["eval_stories"] = result.num_stories
        append_record(self.log_path, record)

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._bar.disable:
            print(text, flush=True)
        else:
            self._bar.write(text, file=sys.stdout)

    def close(self) -> None:
        self._bar.close()

    def _write_record(self) -> None:
        last, steps, self._steps = self._steps[-1], self._steps, []
        tokens_per_s = self.config.tokens_per_step * len(steps) / sum(report.elapsed_s for report in steps)
        record = {
            "step": last.step,
            "tokens": last.step * self.config.tokens_per_step,
            "loss": round(sum(report.loss for report in steps) / len(steps), 6),
            "lr": last.lr,
            "grad_norm": round(last.grad_norm, 6),
            "tokens_per_s": round(tokens_per_s, 1),
        }
        append_record(self.log_path, record)


def format_duration(seconds: float) -> str:
    """`"1 h 05 min"`, `"3 min 20 s"`, `"12 s"`."""
    total = round(seconds)
    if total >= 3600:
        return f"{total // 3600} h {total % 3600 // 60:02d} min"
    return f"{total // 60} min {total % 60:02d} s" if total >= 60 else f"{total} s"
