"""`minillm generate`: continue a text, and say how fast that went.

The text goes to stdout as it is chosen; everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import re
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from minillm.cli.options import add_machine_options, read_device, read_dtype, set_threads

if TYPE_CHECKING:
    from minillm.data import Tokenizer
    from minillm.model import Transformer
    from minillm.sampling import SamplingParams

EXAMPLES = """\
examples:
  minillm generate "Once upon a time"                       another story with --seed 1, 2, ...
  minillm generate "Once upon a time" --temperature 0       always the most likely token
  minillm generate "The fox" --top-p 0.9 --stop "." --no-echo
  minillm generate "The fox" --beams 4 --max-new-tokens 40
  minillm generate - --model path/to/hf-folder --dtype bf16 < prompt.txt
"""
DEFAULT_MODEL = "stories-5m"
DEFAULT_TEMPERATURE = 0.8
NEW_NAMES_ARE_FINE = "# new names are fine"  # first line of a words.txt: the model has learned to copy names


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add `generate` and its options. Those left at None are off."""
    parser = subparsers.add_parser(
        "generate",
        help="continue a text",
        description="Continue a text with a model, printing it as it is generated.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompt", help="the text to continue; - reads it from stdin")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="PATH", help=f"name or folder (default {DEFAULT_MODEL})"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="at most N (default 256)")
    parser.add_argument("--stop", action="append", default=[], metavar="STR", help="end before it; repeatable")
    parser.add_argument("--ignore-eos", action="store_true", help="go on after the model's end token")
    parser.add_argument("--no-echo", action="store_true", help="print the continuation only")
    parser.add_argument("--quiet", action="store_true", help="no warnings, no closing line")

    choice = parser.add_argument_group("choosing tokens")
    choice.add_argument("--temperature", type=float, metavar="T", help=f"0 = greedy (default {DEFAULT_TEMPERATURE})")
    choice.add_argument("--top-k", type=int, metavar="K", help="the K most likely")
    choice.add_argument("--top-p", type=float, metavar="P", help="the fewest that reach probability P")
    choice.add_argument("--min-p", type=float, metavar="P", help="those P times as likely as the best")
    choice.add_argument("--repetition-penalty", type=float, metavar="X", help="> 1 avoids what was said")
    choice.add_argument("--no-repeat-ngram-size", type=int, metavar="N", help="no N tokens in a row twice")
    choice.add_argument("--seed", type=int, default=0, help="same seed, same text (default 0)")
    choice.add_argument("--beams", type=int, metavar="N", help="beam search with N beams")

    add_machine_options(parser)
    parser.add_argument("--no-fast", action="store_true", help="leave the numba kernels out")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Generate and print; returns 0. Raises ValueError or OSError for bad input, before printing text."""
    from minillm.hf_config import resolve_model_path

    prompt = read_prompt(args.prompt)
    folder = resolve_model_path(args.model)

    from minillm.generation.generate import check_prompt  # imports torch: only once the above is in order

    params = sampling_params(args)
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2**63 - 1, got {args.seed}")
    set_threads(args.threads)
    model, tokenizer = load(args, folder)
    check_prompt(model.config, tokenizer.encode(prompt))

    if not args.quiet:
        unknown = unknown_words(prompt, folder)
        if unknown:
            print(warning(unknown), file=sys.stderr)
    if not args.no_fast:
        make_fast(model, quiet=args.quiet)
    measure = print_beam_search if args.beams is not None else print_stream
    summary = measure(args, model, tokenizer, prompt, params)
    if not args.quiet:
        print(summary, file=sys.stderr)
    return 0


def read_prompt(argument: str) -> str:
    """The prompt itself, or stdin for "-" (without its last line break). Raises ValueError if it is blank."""
    prompt = sys.stdin.read().removesuffix("\n") if argument == "-" else argument
    if not prompt.strip():
        raise ValueError("the prompt is empty: expected some text to continue")
    return prompt


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The options as `SamplingParams`. ValueError for bad values and for what beam search doesn't do."""
    from minillm.sampling import SamplingParams

    names = ("top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size", "ignore_eos")
    given = {name: getattr(args, name) for name in names}
    if args.beams is not None:
        refused = [name for name in (*names, "temperature", "stop") if getattr(args, name) not in (None, False, [])]
        if refused:
            options = ", ".join("--" + name.replace("_", "-") for name in refused)
            raise ValueError(f"--beams can't be combined with {options}")
        if args.beams < 1:
            raise ValueError(f"beams must be at least 1, got {args.beams}")
    temperature = DEFAULT_TEMPERATURE if args.temperature is None else args.temperature
    return SamplingParams(max_new_tokens=args.max_new_tokens, temperature=temperature, **given)


def load(args: argparse.Namespace, folder: Path) -> tuple[Transformer, Tokenizer]:
    from minillm.data import load_tokenizer
    from minillm.model.checkpoint import load_model

    device, dtype = read_device(args.device), read_dtype(args.dtype)
    return load_model(folder, dtype=dtype, device=device), load_tokenizer(folder)


def make_fast(model: Transformer, *, quiet: bool) -> None:
    """On a CPU, use fast linears and fused blocks; one forward compiles them, so that no token pays for it.

    The first time on a machine that takes some seconds, which a line on stderr explains unless `quiet`.
    """
    import torch

    from minillm.fast_linears import use_fast_linears
    from minillm.fused_blocks import use_fused_blocks

    if model.embed_tokens.weight.device.type == "cpu":
        use_fused_blocks(use_fast_linears(model))
        message = "compiling kernels for this processor (the first time only) ..."
        timer = threading.Timer(1.5, print, [message], {"file": sys.stderr, "flush": True})
        timer.daemon = True
        if not quiet:
            timer.start()
        with torch.inference_mode():
            model(torch.zeros(1, 1, dtype=torch.int64))
        timer.cancel()


def print_stream(
    args: argparse.Namespace, model: Transformer, tokenizer: Tokenizer, prompt: str, params: SamplingParams
) -> str:
    """Print prompt and text as they come; returns the closing line."""
    import torch

    from minillm.generation import stream

    generator = torch.Generator().manual_seed(args.seed)
    times: list[float] = []  # of each token
    started = time.perf_counter()
    pieces = stream(
        model,
        tokenizer,
        prompt,
        params,
        stop=args.stop,
        generator=generator,
        on_token=lambda token_id: times.append(time.perf_counter()),
    )
    print_text(prompt, pieces, echo=not args.no_echo)
    if not times:
        return "no new tokens"
    parts = [f"TTFT {(times[0] - started) * 1e3:.0f} ms"]
    if len(times) > 1:
        parts.append(f"{(len(times) - 1) / (times[-1] - times[0]):.1f} tokens/s")
    return ", ".join([*parts, bytes_moved(model, len(tokenizer.encode(prompt)) + len(times))])


def print_beam_search(
    args: argparse.Namespace, model: Transformer, tokenizer: Tokenizer, prompt: str, params: SamplingParams
) -> str:
    """Search, then print prompt and the best text; returns the closing line."""
    from minillm.generation import beam_search

    prompt_token_ids = tokenizer.encode(prompt)
    started = time.perf_counter()
    found = beam_search(model, prompt_token_ids, num_beams=args.beams, max_new_tokens=params.max_new_tokens)
    seconds = time.perf_counter() - started
    token_ids, score = found[0]
    text_ids = [token_id for token_id in token_ids if token_id not in model.config.eos_token_ids]
    print_text(prompt, [tokenizer.decode(text_ids)], echo=not args.no_echo)
    moved = bytes_moved(model, len(prompt_token_ids) + len(token_ids))
    return f"{args.beams} beams, score {score:.3f}, {len(token_ids) / seconds:.1f} tokens/s, {moved} (one beam)"


def print_text(prompt: str, pieces: Iterable[str], *, echo: bool) -> None:
    print(prompt if echo else "", end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def bytes_moved(model: Transformer, seq_len: int) -> str:
    """What decoding one token reads and writes when the sequence has `seq_len` tokens."""
    from minillm.perf.traffic import decode_bytes_per_token

    return f"{decode_bytes_per_token(model, seq_len) / 2**20:.1f} MiB moved per token"


# ---- words the model has never seen


def unknown_words(prompt: str, folder: Path) -> list[str]:
    """Words of the prompt that `words.txt` in the model's folder doesn't list; [] without that file.

    The file holds the words of the training text in lower case, one a line. If it begins with
    `# new names are fine`, a capitalised word is taken for a name and is welcome.
    """
    file = folder / "words.txt"
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    names_are_fine = lines[:1] == [NEW_NAMES_ARE_FINE]
    known = {line.lower() for line in lines}
    words = dict.fromkeys(re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", prompt))
    return [
        word
        for word in words
        if word.lower() not in known and not (names_are_fine and word.isalpha() and word[0].isupper())
    ]


def warning(words: list[str]) -> str:
    quoted = ", ".join(f'"{word}"' for word in words)
    return f"warning: the training text has no word {quoted}; expect odd results"
