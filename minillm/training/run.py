"""A whole run, from settings to a folder that `load_model` and `transformers` open.

Layout of the folder::

    train.json         settings, command, versions, machine      log.jsonl, loss.png   the loss curve
    data/              tokenizer.json, encoded documents         checkpoints/          for resuming
    model/             the result, in Hugging Face format
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from minillm.config import ModelConfig
from minillm.data import load_tokenizer
from minillm.model.checkpoint import load_model
from minillm.model.transformer import Transformer
from minillm.training.attend import BlockedAttend, DocumentAttend, document_starts
from minillm.training.config import TrainConfig, settings_hash
from minillm.training.corpus import read_text_files
from minillm.training.evaluate import StoryEvaluation, TextEvaluation
from minillm.training.export import export_model
from minillm.training.loop import AttendFor, StepReport, stop_requests, train
from minillm.training.optim import build_optimizer, initialize_weights
from minillm.training.plot import plot_losses
from minillm.training.prepare import Prepared, document_encoder, prepare
from minillm.training.report import Reporter, format_duration
from minillm.training.state import (
    find_checkpoints,
    load_checkpoint,
    rewind_log,
    save_checkpoint,
    write_text_atomically,
)


@dataclass(frozen=True)
class RunSettings:
    """Everything that a run is made from. `model.vocab_size` is what the tokenizer is trained to reach.

    `text_files` empty = the story grammar; `tokenizer_file` None = train a tokenizer on the text; `init_from` = the
    model folder whose weights the run starts from, None = random ones.
    """

    train: TrainConfig
    model: ModelConfig
    text_files: tuple[str, ...] = ()
    tokenizer_file: str | None = None
    init_from: str | None = None

    def __post_init__(self) -> None:
        if self.train.seq_len > self.model.max_seq_len:
            raise ValueError(
                f"seq_len must be at most the model's max_seq_len ({self.model.max_seq_len}), got {self.train.seq_len}"
            )

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the final weights, flat and JSON-like."""
        return {
            **self.train.deciding_fields(),
            "model": self.model.to_hf(),
            "text": list(self.text_files),
            "tokenizer": self.tokenizer_file,
            "init_from": self.init_from,
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "train": asdict(self.train),
            "model": self.model.to_hf(),
            "text": list(self.text_files),
            "tokenizer": self.tokenizer_file,
            "init_from": self.init_from,
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> RunSettings:
        model = ModelConfig.from_hf(stored["model"])
        texts = tuple(stored["text"])
        return cls(TrainConfig(**stored["train"]), model, texts, stored["tokenizer"], stored.get("init_from"))


def read_settings(directory: Path) -> RunSettings:
    """The settings of the run in `directory`. Raises `ValueError` when there is no run to resume."""
    path = directory / "train.json"
    if not path.is_file():
        raise ValueError(f"nothing to resume in {directory}: it has no train.json")
    try:
        return RunSettings.from_json(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not the record of a training run ({error})") from error


def check_inputs(settings: RunSettings) -> None:
    """Raises `ValueError` or `OSError` for files and machines that cannot work, before anything is written."""
    if settings.text_files:
        read_text_files(settings.text_files)
    if settings.tokenizer_file is not None:
        document_encoder(load_tokenizer(settings.tokenizer_file))
    if settings.train.compile:
        check_compiler(settings.train.device)


def run_training(settings: RunSettings, directory: Path, *, say: Callable[[str], None] = print) -> bool:
    """Trains as `settings` say, going on from the newest checkpoint, if any; writes `directory/model`.

    Returns True when the run is finished, False when SIGINT or SIGTERM ended it early (a checkpoint is then written).
    Raises `ValueError` for settings or data that cannot work. Effect: sets torch's number of threads.
    """
    config = settings.train
    if config.threads:
        torch.set_num_threads(config.threads)
    prepared = prepare(
        settings.train, settings.model, settings.text_files, settings.tokenizer_file, directory / "data", say
    )
    model, optimizer, first_step = build_or_resume(settings, prepared.model_config, directory, say)
    forward = cast(nn.Module, torch.compile(model)) if config.compile else model
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{num_parameters:,} parameters, {config.steps * config.tokens_per_step:,} tokens in {config.steps} steps")

    reporter = Reporter(config, directory / "log.jsonl", first_step=first_step)
    checkpoints = directory / "checkpoints"
    fingerprint = settings_hash(settings.deciding())
    last_save_s = time.monotonic()

    def save(step: int) -> None:
        nonlocal last_save_s
        save_checkpoint(checkpoints, step=step, model=model, optimizer=optimizer, settings_hash=fingerprint)
        last_save_s = time.monotonic()

    with stop_requests() as stop_requested:

        def after_step(report: StepReport) -> bool:
            reporter.step(report)
            finished = report.step == config.steps
            if report.step % config.eval_every == 0 and not finished:
                reporter.evaluation(report.step, prepared.evaluate(model, config.eval_stories, config.dtype))
            stop = stop_requested()
            by_steps = config.save_every is not None and report.step % config.save_every == 0
            by_time = config.save_every_s is not None and time.monotonic() - last_save_s >= config.save_every_s
            if by_steps or by_time or stop or finished:
                save(report.step)
            return not stop

        started_s = time.monotonic()
        try:
            step = train(
                forward,
                prepared.rows,
                optimizer,
                config,
                first_step=first_step,
                attend_for=choose_attend(settings, prepared.model_config),
                after_step=after_step,
            )
        finally:
            reporter.close()
    if step < config.steps:
        return False
    say(f"trained {step - first_step} steps in {format_duration(time.monotonic() - started_s)}")
    finish(model, prepared, config, directory, reporter, say)
    return True


def build_or_resume(
    settings: RunSettings, model_config: ModelConfig, directory: Path, say: Callable[[str], None]
) -> tuple[Transformer, torch.optim.Optimizer, int]:
    """The model and optimiser at the newest checkpoint, or at the start; and the number of updates they have seen."""
    config = settings.train
    torch.manual_seed(config.seed)
    model = Transformer(model_config)
    found = find_checkpoints(directory / "checkpoints")
    if settings.init_from is None:
        initialize_weights(model, num_layers=model_config.num_layers, seed=config.seed)
    elif not found:
        model.load_state_dict(load_model(settings.init_from).state_dict())
    model.to(config.device)
    optimizer = build_optimizer(model, config)
    if not found:
        rewind_log(directory / "log.jsonl", 0)
        return model, optimizer, 0
    fingerprint = settings_hash(settings.deciding())
    step = load_checkpoint(found[-1], model=model, optimizer=optimizer, settings_hash=fingerprint)
    rewind_log(directory / "log.jsonl", step)
    say(f"resuming at step {step} of {config.steps} ({found[-1]})")
    return model, optimizer, step


def choose_attend(settings: RunSettings, model_config: ModelConfig) -> AttendFor:
    """Attention within documents: in blocks where that is the faster way, with one mask elsewhere."""
    bos_token_id = model_config.bos_token_id
    windows = model_config.windows or (None,) * model_config.num_layers
    if can_use_blocks(settings):
        return lambda inputs: BlockedAttend(document_starts(inputs, bos_token_id))
    return lambda inputs: DocumentAttend(document_starts(inputs, bos_token_id), windows)


def can_use_blocks(settings: RunSettings) -> bool:
    """Whether the blocked attention is the faster one: bfloat16 on a CPU, without sliding windows.

    Compiled code would be compiled anew for each batch, since the blocks begin elsewhere.
    """
    config = settings.train
    has_windows = any(window is not None for window in settings.model.windows or ())
    return config.dtype == "bf16" and torch.device(config.device).type == "cpu" and not (has_windows or config.compile)


def check_compiler(device: str) -> None:
    """Raises `ValueError` where `torch.compile` would find no compiler."""
    if torch.device(device).type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++", "cl"))):
        raise ValueError("--compile needs a C++ compiler (g++ or clang++), none was found; train without it")


def finish(
    model: Transformer,
    prepared: Prepared,
    config: TrainConfig,
    directory: Path,
    reporter: Reporter,
    say: Callable[[str], None],
) -> None:
    """Evaluates in float32, writes `model/` and draws the curve."""
    result: StoryEvaluation | TextEvaluation = prepared.evaluate(model, config.final_eval_stories, "fp32")
    reporter.evaluation(config.steps, result)
    export_model(
        model,
        prepared.tokenizer,
        directory / "data" / "tokenizer.json",
        prepared.words(),
        directory / "model",
    )
    say(f"model written to {directory / 'model'}")
    if plot_losses(directory / "log.jsonl", directory / "loss.png", title=f"{directory.name}, {config.steps} steps"):
        say(f"loss curve drawn in {directory / 'loss.png'}")


def write_train_json(settings: RunSettings, directory: Path, *, command: list[str]) -> None:
    """Records settings, command line, versions and machine in `directory/train.json`."""
    record = {
        "settings": settings.to_json(),
        "command": command,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor(),
            "threads": torch.get_num_threads(),
        },
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_text_atomically(directory / "train.json", json.dumps(record, indent=2) + "\n")
