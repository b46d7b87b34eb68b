"""`minillm demo`: a story, then every way of decoding its beginning, side by side."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable

EXAMPLES = """\
examples:
  minillm demo
  minillm demo --prompt "Once upon a time there was a dog named" --seed 3
"""

EXPLANATION = """\
Each row decodes the same {new} tokens, greedily, with {parameters:.1f} M parameters on {threads} threads.
"same text?" compares them with the first row's, token by token. "MiB per token" is the least that must be
read and written for one token: all weights, and the keys and values of the tokens before it. {limit}"""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the command to `minillm`."""
    parser = subparsers.add_parser(
        "demo",
        help="tell a story, then compare ways of decoding",
        description="Tell a story with the bundled model, then decode one text in every way that exists.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="stories-5m", metavar="PATH", help="bundled name or folder")
    parser.add_argument("--prompt", default="Once upon a time", help='default "Once upon a time"')
    parser.add_argument("--seed", type=int, default=0, help="of the story (default 0)")
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="tokens in the table (default 128)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Stream the story, print the table; returns 0. Raises ValueError or OSError for bad input."""
    from minillm.cli.options import set_threads

    if args.tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {args.tokens}")
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2**63 - 1, got {args.seed}")
    if not args.prompt.strip():
        raise ValueError("the prompt is empty: expected some text to continue")

    import torch

    from minillm.bench.demo import run_methods, table
    from minillm.data import load_tokenizer
    from minillm.generation.generate import check_prompt
    from minillm.generation.stream import stream
    from minillm.model.checkpoint import load_model
    from minillm.sampling import SamplingParams

    set_threads(args.threads)
    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    prompt_token_ids = check_prompt(model.config, tokenizer.encode(args.prompt))
    num_new_tokens = min(args.tokens, model.config.max_seq_len - len(prompt_token_ids))
    if num_new_tokens < 1:
        raise ValueError(f"the prompt fills the model's {model.config.max_seq_len} tokens: nothing to decode")

    generator = torch.Generator().manual_seed(args.seed)
    params = SamplingParams(max_new_tokens=300, temperature=0.8)
    print_wrapped([args.prompt, *stream(model, tokenizer, args.prompt, params, generator=generator)])
    print("\n")

    rows = run_methods(model, prompt_token_ids, num_new_tokens, on_method=_show_progress)
    _show_progress("")
    print(table(rows))
    in_cache = rows[0].bandwidth_share is None
    limit = (
        "The weights\nfit the processor's cache, so memory bandwidth is not the limit here."
        if in_cache
        else '"bandwidth" is the\nshare of this machine\'s read bandwidth that this amounts to.'
    )
    print(
        "\n"
        + EXPLANATION.format(
            new=num_new_tokens,
            parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
            threads=torch.get_num_threads(),
            limit=limit,
        )
    )
    return 0


def print_wrapped(pieces: Iterable[str], width: int = 96) -> None:
    """Print text as it comes, breaking lines at spaces: a word is shown once it can't grow any more."""
    column, word = 0, ""

    def show(word: str) -> None:
        nonlocal column
        if column + len(word) > width and column > 0:
            print()
            column, word = 0, word.lstrip(" ")
        print(word, end="", flush=True)
        column += len(word)

    for character in (character for piece in pieces for character in piece):
        if character in " \n":
            show(word)
            word = ""
        if character == "\n":
            print(flush=True)
            column = 0
        else:
            word += character
    show(word)


def _show_progress(name: str) -> None:
    if sys.stderr.isatty():
        message = f"measuring: {name}" if name else ""
        print("\r" + textwrap.shorten(message, 60).ljust(60) + "\r", end="", file=sys.stderr, flush=True)
