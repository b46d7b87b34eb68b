"""`minillm train`: settings from the command line, then `minillm.training.run`."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import signal
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minillm.config import ModelConfig
    from minillm.training.config import TrainConfig
    from minillm.training.run import RunSettings

DESCRIPTION = "Train a small model from nothing, on generated children's stories or on your own text."
EXAMPLES = """\
examples:
  minillm train --out runs/first --tokens 2_000_000          a first model in a few minutes
  minillm train --out runs/stories-5m                        the bundled model: the defaults are its recipe
  minillm train --out runs/mine --text book.txt notes.txt --tokens 5_000_000
  minillm train --out runs/more --init-from runs/first/model --seed 1 --lr 1e-3
  minillm train --out runs/first --resume                    go on after Ctrl-C, with the settings of that run
  minillm generate "Once upon a time" --model runs/first/model

text files are UTF-8; <|endoftext|> separates documents, otherwise a file is one document.
the last 5 % of the text is held out for evaluation.
"""
DEFAULT_PRESET = "stories-5m"
DEFAULT_TOKENS = 22_000_000


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds `train`. Options that are not given are absent from the result, so that a resumed run can tell."""
    parser = subparsers.add_parser(
        "train",
        help="train a model on generated stories or your own text",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for the run: log, checkpoints, model"
    )
    parser.add_argument(
        "--resume", action="store_true", default=False, help="go on from the newest checkpoint in --out"
    )

    source = parser.add_argument_group("what to train")
    model = source.add_mutually_exclusive_group()
    model.add_argument("--preset", help=f"shape of the model by name (default {DEFAULT_PRESET})")
    model.add_argument("--config", metavar="FILE", help="shape of the model from a Hugging Face config.json")
    model.add_argument(
        "--init-from", metavar="MODEL", help="start from the weights and tokenizer of a model: a name or a folder"
    )
    source.add_argument("--text", nargs="+", metavar="FILE", help="train on these files instead of generated stories")
    vocabulary = source.add_mutually_exclusive_group()
    vocabulary.add_argument(
        "--vocab-size", type=int, help="size of the tokenizer to train (default: the preset's, 2048)"
    )
    vocabulary.add_argument("--tokenizer", metavar="FILE", help="use this tokenizer.json instead of training one")

    length = parser.add_argument_group("how long")
    amount = length.add_mutually_exclusive_group()
    amount.add_argument(
        "--tokens", type=int, help=f"tokens to train on, rounded up to steps (default {DEFAULT_TOKENS:_})"
    )
    amount.add_argument("--steps", type=int, help="optimiser updates")
    length.add_argument("--batch-size", type=int, help="rows in a batch (default 8)")
    length.add_argument("--seq-len", type=int, help="tokens in a row (default 512)")
    length.add_argument("--grad-accum", type=int, help="batches in an update (default 1)")

    optimiser = parser.add_argument_group("optimiser (AdamW, warm-up then cosine)")
    optimiser.add_argument("--lr", type=float, help="highest learning rate (default 2e-3)")
    optimiser.add_argument(
        "--warmup-steps", type=int, help="updates until it is reached (default 100, at most a tenth of all)"
    )
    optimiser.add_argument("--min-lr-ratio", type=float, help="last learning rate over the highest (default 0.02)")
    optimiser.add_argument("--weight-decay", type=float, help="on matrices only (default 0.1)")
    optimiser.add_argument("--grad-clip", type=float, help="largest norm of the gradient (default 1)")
    optimiser.add_argument("--seed", type=int, help="decides stories, order and starting weights (default 0)")

    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--dtype", choices=("bf16", "fp32"), help="precision of products; weights stay fp32 (default bf16)"
    )
    machine.add_argument("--device", help="cpu, cuda, mps (default cpu)")
    machine.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    machine.add_argument(
        "--compile", action="store_true", help="torch.compile the model; needs a C++ compiler on a CPU"
    )

    watching = parser.add_argument_group("watching and saving")
    watching.add_argument("--eval-every", type=int, metavar="STEPS", help="evaluate this often (default 500)")
    watching.add_argument("--eval-stories", type=int, help="held-out stories during training (default 100)")
    watching.add_argument("--final-eval-stories", type=int, help="held-out stories after it (default 2000)")
    watching.add_argument("--save-every", metavar="N[s]", help="checkpoint every N steps, or N seconds (default 300s)")
    watching.add_argument("--log-every", type=int, metavar="STEPS", help="record in log.jsonl this often (default 10)")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Trains; returns 0, or 130 when interrupted. Raises `ValueError` or `OSError` for bad input."""
    from minillm.cli.options import read_device
    from minillm.training.run import check_inputs, run_training, write_train_json

    resume_command = f"minillm train --out {shlex.quote(str(args.out))} --resume"
    read_device(getattr(args, "device", "cpu"))
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # before the first step: as Ctrl-C
    try:
        if args.resume:
            settings = settings_of_resumed_run(args)
        else:
            settings = settings_of_new_run(args)
            check_inputs(settings)
            write_train_json(settings, args.out, command=["minillm", *sys.argv[1:]])
        finished = run_training(settings, args.out)
    except KeyboardInterrupt:
        finished = False
    finally:
        signal.signal(signal.SIGTERM, previous)
    if not finished:
        print(f"interrupted; to go on: {resume_command}", file=sys.stderr)
        return 130
    print(f'try it: minillm generate "Once upon a time" --model {shlex.quote(str(args.out / "model"))}')
    return 0


def settings_of_new_run(args: argparse.Namespace) -> RunSettings:
    """Settings from options and defaults. Raises `ValueError` when `--out` is already in use."""
    from minillm.training.run import RunSettings

    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        hint = "add --resume to go on with that run" if (args.out / "train.json").is_file() else "choose another --out"
        raise ValueError(f"{args.out} is not empty; {hint}")
    return RunSettings(
        train_config(args), model_config(args), text_files(args), tokenizer_file(args), init_folder(args)
    )


def settings_of_resumed_run(args: argparse.Namespace) -> RunSettings:
    """The stored settings, with those changed that do not decide the weights. Raises `ValueError` naming any other
    change.
    """
    from minillm.training.config import WATCHING_FIELDS
    from minillm.training.run import read_settings

    stored = read_settings(args.out)
    given = given_train_fields(args)
    if hasattr(args, "tokens"):
        given["steps"] = steps_for(args.tokens, stored.train.tokens_per_step)
    expected: dict[str, tuple[object, object]] = {
        name: (getattr(stored.train, name), value) for name, value in given.items() if name not in WATCHING_FIELDS
    }
    if hasattr(args, "text"):
        expected["text"] = (stored.text_files, text_files(args))
    if hasattr(args, "tokenizer"):
        expected["tokenizer"] = (stored.tokenizer_file, tokenizer_file(args))
    if hasattr(args, "init_from"):
        expected["init_from"] = (stored.init_from, init_folder(args))
    if hasattr(args, "preset") or hasattr(args, "config"):
        asked = replace(model_config(args), vocab_size=stored.model.vocab_size)
        expected["preset" if hasattr(args, "preset") else "config"] = (stored.model.to_hf(), asked.to_hf())
    if hasattr(args, "vocab_size"):
        expected["vocab-size"] = (stored.model.vocab_size, args.vocab_size)
    for name, (old, new) in expected.items():
        if old != new:
            detail = f" from {old!r} to {new!r}" if not isinstance(old, dict) else ""
            raise ValueError(
                f"--{name.replace('_', '-')} cannot change{detail} while resuming; start a new run in another --out"
            )
    changes = {name: value for name, value in given.items() if name in WATCHING_FIELDS}
    return replace(stored, train=replace(stored.train, **changes))


def given_train_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `TrainConfig` that the command line names."""
    from minillm.training.config import TrainConfig

    names = {field.name for field in fields(TrainConfig)} - {"save_every", "save_every_s"}
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if hasattr(args, "save_every"):
        given["save_every"], given["save_every_s"] = parse_save_every(args.save_every)
    return given


def parse_save_every(text: str) -> tuple[int | None, float | None]:
    """`"500"` -> (500, None): steps; `"60s"` -> (None, 60.0): seconds."""
    try:
        return (None, float(text[:-1])) if text.endswith("s") else (int(text), None)
    except ValueError:
        raise ValueError(f"--save-every must be a number of steps (500) or seconds (60s), got {text!r}") from None


def train_config(args: argparse.Namespace) -> TrainConfig:
    """`TrainConfig` from options and defaults; `--tokens` becomes steps, a short run a short warm-up."""
    from minillm.training.config import TrainConfig

    given = given_train_fields(args)
    if "steps" not in given:
        shape = TrainConfig(**(given | {"steps": 1}))
        given["steps"] = steps_for(getattr(args, "tokens", DEFAULT_TOKENS), shape.tokens_per_step)
    given.setdefault("warmup_steps", min(100, given["steps"] // 10))
    return TrainConfig(**given)


def steps_for(tokens: int, tokens_per_step: int) -> int:
    """Updates that consume at least `tokens` tokens."""
    if tokens < 1:
        raise ValueError(f"--tokens must be at least 1, got {tokens}")
    return math.ceil(tokens / tokens_per_step)


def model_config(args: argparse.Namespace) -> ModelConfig:
    """The shape of the model from `--config`, `--init-from` or `--preset`, with `--vocab-size`."""
    from minillm.config import PRESETS, ModelConfig

    folder = init_folder(args)
    if folder is not None:
        if hasattr(args, "vocab_size") or hasattr(args, "tokenizer"):
            raise ValueError("--init-from brings its own tokenizer; leave out --vocab-size and --tokenizer")
        return ModelConfig.from_pretrained(folder)
    if hasattr(args, "config"):
        try:
            shape = ModelConfig.from_hf(json.loads(Path(args.config).read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
            raise ValueError(f"{args.config} is not a config.json of a supported model ({error})") from error
    else:
        name = getattr(args, "preset", DEFAULT_PRESET)
        if name not in PRESETS:
            raise ValueError(f"--preset must be one of {', '.join(sorted(PRESETS))}, got {name!r}")
        shape = PRESETS[name]
    return replace(shape, vocab_size=args.vocab_size) if hasattr(args, "vocab_size") else shape


def text_files(args: argparse.Namespace) -> tuple[str, ...]:
    """Absolute paths of `--text`, so that the run can be resumed from another folder."""
    return tuple(str(Path(path).resolve()) for path in getattr(args, "text", ()))


def tokenizer_file(args: argparse.Namespace) -> str | None:
    """Absolute path of `--tokenizer`, or of the tokenizer that `--init-from` brings."""
    folder = init_folder(args)
    if folder is not None:
        return str(Path(folder) / "tokenizer.json")
    return str(Path(args.tokenizer).resolve()) if hasattr(args, "tokenizer") else None


def init_folder(args: argparse.Namespace) -> str | None:
    """Absolute path of the model folder that `--init-from` names."""
    from minillm.hf_config import resolve_model_path

    return str(Path(resolve_model_path(args.init_from)).resolve()) if hasattr(args, "init_from") else None
