"""Cut a text into words, and write bytes as printable characters.

Byte-level BPE (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2) works
on the UTF-8 bytes of a text, so that 256 tokens suffice to write anything. Before the merges:

1. *Added tokens*, such as `<|endoftext|>`, are found as they stand and cut out.
2. *Pre-tokenization.* A regular expression cuts the text into words, numbers, punctuation and white space,
   each with the space before it. Merges never cross these cuts, which keeps "dog." and "dog!" from becoming
   tokens.
3. *Bytes as characters.* Vocabulary files are text, and a byte such as 0x0A or 0xE2 is not. Each byte is
   therefore written as one printable character: a space as `Ġ`, a line feed as `Ċ`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2: a contraction; letters, digits or other signs, with one space before; white space, of which the last
space is left to the word that follows."""

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3: contractions in either case, at most three digits together, line ends kept with signs."""

QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
"""Qwen 2 and 3: as Llama 3, each digit alone."""

NAMED_PATTERNS = {"gpt2": GPT2_PATTERN, "llama3": LLAMA3_PATTERN, "qwen2": QWEN2_PATTERN}

# Python's `re` has no \p{L} (a letter of any script) and \p{N} (a number sign of any script). Text that
# is all ASCII needs neither, and `re` cuts it ten times faster than the general way.
_GPT2_ASCII = r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
_LLAMA3_ASCII = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]{1,3}| ?[^\sA-Za-z0-9]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ASCII_PATTERNS = {
    GPT2_PATTERN: _GPT2_ASCII,
    LLAMA3_PATTERN: _LLAMA3_ASCII,
    QWEN2_PATTERN: _LLAMA3_ASCII.replace("{1,3}", ""),
}


def make_splitter(pattern: str) -> Callable[[str], list[str]]:
    """A function that cuts a text into the matches of `pattern` and the pieces between them.

    The pieces joined give the text again. The general way runs the regular expression in the `tokenizers`
    library (its engine, Oniguruma, knows the Unicode classes); the three patterns above take a shorter way
    for ASCII text.

    Raises:
        ValueError: `pattern` is not a regular expression.
    """
    try:
        split = Split(Regex(pattern), behavior="isolated")
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"not a regular expression: {pattern!r} ({error})") from None

    def split_any(text: str) -> list[str]:
        return [piece for piece, _ in split.pre_tokenize_str(text)]

    if pattern not in _ASCII_PATTERNS:
        return split_any
    split_ascii = re.compile(_ASCII_PATTERNS[pattern], re.ASCII).findall
    return lambda text: split_ascii(text) if text.isascii() else split_any(text)


def make_finder(tokens: dict[str, int]) -> Callable[[str], list[str | int]]:
    """A function that cuts a text at the given tokens: the text between stays str, a token becomes its id.

    Where several tokens begin at one place the longest is taken.
    """
    contents = sorted(filter(None, tokens), key=len, reverse=True)
    if not contents:
        return lambda text: [text]
    split = re.compile("(" + "|".join(map(re.escape, contents)) + ")").split

    def find(text: str) -> list[str | int]:
        return [tokens[part] if idx % 2 else part for idx, part in enumerate(split(text))]

    return find


def check_no_surrogates(text: str) -> None:
    """Raise ValueError if `text` has half a surrogate pair, which no UTF-8 can write."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"expected text that UTF-8 can write, got the lone surrogate {text[error.start]!r} "
            f"at position {error.start}"
        ) from None


def _byte_to_char() -> list[str]:
    """The character for each byte: the same one where it prints and is no space, else one from U+0100 on."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    substitutes = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(substitutes)) for byte in range(256)]


BYTE_TO_CHAR = _byte_to_char()
CHAR_TO_BYTE = {char: byte for byte, char in enumerate(BYTE_TO_CHAR)}


def bytes_to_chars(data: bytes) -> str:
    """`data` with each byte written as its printable character: `b" caf\\xc3\\xa9"` becomes `"ĠcafÃ©"`."""
    return "".join([BYTE_TO_CHAR[byte] for byte in data])


def chars_to_bytes(token: str) -> bytes:
    """The bytes that a token of the vocabulary stands for.

    A token with a character outside the table, such as a special token with a space in it, stands for its own
    UTF-8 bytes (as in the `tokenizers` library).
    """
    try:
        return bytes([CHAR_TO_BYTE[char] for char in token])
    except KeyError:
        return token.encode("utf-8")
