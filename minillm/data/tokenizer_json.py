"""Read and write `tokenizer.json`, the file format of the `tokenizers` library, for byte-level BPE.

The file describes a pipeline: added tokens are found in the text, a *normalizer* rewrites the rest, a
*pre-tokenizer* cuts it into words, the *model* turns words into ids, a *post-processor* adds ids such as the
beginning of the sequence, and a *decoder* goes back. `BPESettings` holds the part of it that byte-level BPE
uses; `parse` refuses whatever it would not carry out exactly.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minillm.data.bpe import Pair
from minillm.data.pretokenize import BYTE_TO_CHAR, GPT2_PATTERN


class UnsupportedTokenizerError(ValueError):
    """A valid `tokenizer.json` that asks for something other than plain byte-level BPE."""


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text as it stands, before any word is cut.

    `special`: it marks structure and `decode` can leave it out. `normalized`: it is looked for after the
    normalizer, not before it.
    """

    content: str
    token_id: int
    special: bool = True
    normalized: bool = False


@dataclass(frozen=True)
class BPESettings:
    """All that byte-level BPE needs to encode and decode.

    `vocab` maps tokens, written in the characters of `minillm.data.pretokenize.BYTE_TO_CHAR`, to ids;
    `merges` are pairs of ids in order of rank. `nfc` composes characters (Unicode normalization form C)
    before encoding. `ignore_merges` takes a word that is itself in the vocabulary as one token, whatever the
    merges say. `prefix_ids` and `suffix_ids` are put around an encoded text.
    """

    vocab: dict[str, int]
    merges: tuple[Pair, ...]
    pattern: str = GPT2_PATTERN
    added_tokens: tuple[AddedToken, ...] = ()
    nfc: bool = False
    ignore_merges: bool = False
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()


# Reading ----------------------------------------------------------------------------------------------------


def parse(content: Any) -> BPESettings:
    """The settings in the parsed JSON `content` of a `tokenizer.json`.

    Truncation and padding, should the file ask for them, are left to the caller of `encode`.

    Raises:
        UnsupportedTokenizerError: a tokenizer of another kind; the message names the part.
        ValueError: not a `tokenizer.json`, or one that contradicts itself.
    """
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError("expected a JSON object with an object 'model'")
    model = content["model"]
    # Old files do not name the type; byte-level BPE is the kind that has merges.
    kind = model.get("type", "BPE" if "merges" in model else None)
    _require(kind == "BPE", f"a model of type {kind!r}")
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(type(token_id) is int for token_id in vocab.values()):
        raise ValueError("expected model.vocab to map tokens to ids")
    _require(not model.get("byte_fallback"), "byte_fallback")
    _require(not model.get("dropout"), "dropout")
    _require(not model.get("continuing_subword_prefix"), "a continuing_subword_prefix")
    _require(not model.get("end_of_word_suffix"), "an end_of_word_suffix")
    _require(all(char in vocab for char in BYTE_TO_CHAR), "a vocabulary without all 256 bytes")
    decoder = content.get("decoder") or {}
    _require(decoder.get("type") == "ByteLevel", f"a decoder of type {decoder.get('type')!r}")

    prefix_ids, suffix_ids = _parse_post_processor(content.get("post_processor"))
    nfc = _parse_normalizer(content.get("normalizer"))
    settings = BPESettings(
        vocab=vocab,
        merges=tuple(_parse_merge(merge, vocab) for merge in model.get("merges", [])),
        pattern=_parse_pre_tokenizer(content.get("pre_tokenizer")),
        added_tokens=tuple(_parse_added_token(entry, vocab) for entry in content.get("added_tokens") or []),
        nfc=nfc,
        ignore_merges=bool(model.get("ignore_merges")),
        prefix_ids=prefix_ids,
        suffix_ids=suffix_ids,
    )
    for token in settings.added_tokens if nfc else ():
        rewritten = token.normalized and not unicodedata.is_normalized("NFC", token.content)
        _require(not rewritten, f"the added token {token.content!r}, which NFC rewrites")
    known_ids = {*vocab.values(), *(token.token_id for token in settings.added_tokens)}
    if len(known_ids) < len({*vocab, *(token.content for token in settings.added_tokens)}):
        raise ValueError("two tokens have the same id")
    if unknown := {*prefix_ids, *suffix_ids} - known_ids:
        raise ValueError(f"the post_processor adds ids that no token has: {sorted(unknown)}")
    return settings


def _require(supported: bool, feature: str) -> None:
    if not supported:
        raise UnsupportedTokenizerError(f"byte-level BPE does not do this: {feature}")


def _parse_merge(merge: Any, vocab: dict[str, int]) -> Pair:
    """A merge is written `"Ġt he"` in older files and `["Ġt", "he"]` in newer ones."""
    halves = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(halves, list) or len(halves) != 2:
        raise ValueError(f"expected a merge to have two halves, got {merge!r}")
    left, right = halves
    for token in (left, right, left + right):
        if token not in vocab:
            raise ValueError(f"the merge {merge!r} needs the token {token!r}, which is not in the vocabulary")
    return vocab[left], vocab[right]


def _parse_added_token(entry: dict[str, Any], vocab: dict[str, int]) -> AddedToken:
    content, token_id = entry["content"], entry["id"]
    for flag in ("single_word", "lstrip", "rstrip"):
        _require(not entry.get(flag), f"the added token {content!r} with {flag}")
    if vocab.get(content, token_id) != token_id:
        raise ValueError(f"the token {content!r} has id {token_id} in added_tokens and {vocab[content]} in model.vocab")
    special = bool(entry.get("special"))
    return AddedToken(content, token_id, special, bool(entry.get("normalized", not special)))


def _parse_normalizer(normalizer: dict[str, Any] | None) -> bool:
    """Whether to apply NFC, the one normalizer supported."""
    if normalizer is None:
        return False
    _require(normalizer.get("type") == "NFC", f"a normalizer of type {normalizer.get('type')!r}")
    return True


def _parse_pre_tokenizer(pre_tokenizer: dict[str, Any] | None) -> str:
    """The pattern: GPT-2's where `ByteLevel` stands alone, else that of the `Split` before it."""
    pre_tokenizer = pre_tokenizer or {}
    steps = pre_tokenizer.get("pretokenizers", []) if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    kinds = [step.get("type") for step in steps]
    _require(kinds in (["ByteLevel"], ["Split", "ByteLevel"]), f"pre-tokenizers {kinds}")
    _require(not steps[-1].get("add_prefix_space", True), "add_prefix_space")
    uses_gpt2_pattern = steps[-1].get("use_regex", True)
    if len(steps) == 1:
        _require(uses_gpt2_pattern, "ByteLevel without a pattern")
        return GPT2_PATTERN
    _require(not uses_gpt2_pattern, "two patterns, one after the other")
    split = steps[0]
    _require(split.get("behavior") == "Isolated" and not split.get("invert"), "a Split that drops or joins pieces")
    _require("Regex" in split.get("pattern", {}), "a Split at a fixed string")
    return split["pattern"]["Regex"]


def _parse_post_processor(processor: dict[str, Any] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after a text: those of `TemplateProcessing`; `ByteLevel` adds none."""
    processor = processor or {"type": "ByteLevel"}
    steps = processor.get("processors", []) if processor.get("type") == "Sequence" else [processor]
    steps = [step for step in steps if step.get("type") != "ByteLevel"]
    if not steps:
        return (), ()
    kinds = [step.get("type") for step in steps]
    _require(kinds == ["TemplateProcessing"], f"post-processors {kinds}")
    around: tuple[list[int], list[int]] = ([], [])
    num_texts = 0
    for piece in steps[0]["single"]:
        if "Sequence" in piece:
            num_texts += 1
        else:
            around[min(num_texts, 1)].extend(steps[0]["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    _require(num_texts == 1, f"a template with the text {num_texts} times")
    return tuple(around[0]), tuple(around[1])


# Writing ----------------------------------------------------------------------------------------------------


def build(settings: BPESettings) -> dict[str, Any]:
    """The content of a `tokenizer.json`, as `tokenizers.Tokenizer.from_file` and `parse` read it."""
    tokens = {token_id: token for token, token_id in settings.vocab.items()}
    names = tokens | {token.token_id: token.content for token in settings.added_tokens}
    uses_gpt2_pattern = settings.pattern == GPT2_PATTERN
    pre_tokenizer: dict[str, Any] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": uses_gpt2_pattern,
    }
    if not uses_gpt2_pattern:
        split = {
            "type": "Split",
            "pattern": {"Regex": settings.pattern},
            "behavior": "Isolated",
            "invert": False,
        }
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, pre_tokenizer]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token.token_id,
                "content": token.content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": token.normalized,
                "special": token.special,
            }
            for token in sorted(settings.added_tokens, key=lambda token: token.token_id)
        ],
        "normalizer": {"type": "NFC"} if settings.nfc else None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": _build_post_processor(settings.prefix_ids, settings.suffix_ids, names),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": settings.ignore_merges,
            "vocab": dict(sorted(settings.vocab.items(), key=lambda item: item[1])),
            "merges": [[tokens[left], tokens[right]] for left, right in settings.merges],
        },
    }


def _build_post_processor(
    prefix_ids: Sequence[int], suffix_ids: Sequence[int], names: dict[int, str]
) -> dict[str, Any] | None:
    """`TemplateProcessing` that puts the ids around a text, and around each text of a pair."""
    if not prefix_ids and not suffix_ids:
        return None

    def template(sequence: str, type_id: int) -> list[dict[str, Any]]:
        before, after = (
            [{"SpecialToken": {"id": names[token_id], "type_id": type_id}} for token_id in ids]
            for ids in (prefix_ids, suffix_ids)
        )
        return [*before, {"Sequence": {"id": sequence, "type_id": type_id}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": template("A", 0),
        "pair": template("A", 0) + template("B", 1),
        "special_tokens": {
            names[token_id]: {"id": names[token_id], "ids": [token_id], "tokens": [names[token_id]]}
            for token_id in (*prefix_ids, *suffix_ids)
        },
    }
