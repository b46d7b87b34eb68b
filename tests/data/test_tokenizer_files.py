"""`tokenizer.json`: written, read, passed on to the library, refused."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from minillm.data import BPETokenizer, load_tokenizer
from minillm.data import bpe_tokenizer as bpe_tokenizer_module
from minillm.data.tokenizer import LibraryTokenizer
from minillm.data.tokenizer_json import UnsupportedTokenizerError
from minillm.hf_config import resolve_model_path
from tests.data.tokenizer_oracles import (
    CORPUS,
    EOS,
    PIECES,
    STYLES,
    oracles,
    pairs,
)


@pytest.mark.parametrize("style", STYLES)
def test_saved_file_loads_everywhere(style, tmp_path):
    oracle, tokenizer = pairs()[style]
    tokenizer.save(tmp_path / "tokenizer.json")
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]  # no temporary file is left
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    again = BPETokenizer.from_file(tmp_path / "tokenizer.json")
    assert again.settings == tokenizer.settings
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in ["", "zebra aaaaaa", *PIECES, *CORPUS, EOS.join(CORPUS)]:
        expected = oracle.encode(text).ids
        assert library.encode(text).ids == again.encode(text) == fast.encode(text) == expected
        for skip in (True, False):
            assert library.decode(expected, skip_special_tokens=skip) == again.decode(
                expected, skip_special_tokens=skip
            )


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(bpe_tokenizer_module.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        pairs()["gpt2"][1].save(tmp_path / "tokenizer.json")
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    assert (tmp_path / "tokenizer.json").read_text() == "old"


def test_older_spellings(tmp_path):
    """Merges as strings, a model without its type, empty affixes: as in the file of GPT-2."""
    content = json.loads(oracles()["gpt2"].to_str())
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    content["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    del content["model"]["type"], content["model"]["ignore_merges"], content["model"]["byte_fallback"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer = BPETokenizer.from_file(tmp_path / "tokenizer.json")
    for text in CORPUS:
        assert tokenizer.encode(text) == library.encode(text).ids


def _set(content: dict, path: str, value: object) -> None:
    *parents, last = path.split(".")
    for key in parents:
        content = content[key]
    content[last] = value


UNSUPPORTED = {
    "model.byte_fallback": True,
    "model.dropout": 0.1,
    "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
    "pre_tokenizer.add_prefix_space": True,
    "pre_tokenizer.use_regex": False,
    "decoder": None,
    "post_processor": {"type": "BertProcessing", "sep": ["<|pad|>", 1], "cls": [EOS, 0]},
    "added_tokens": [
        {"id": 0, "content": EOS, "single_word": False, "lstrip": True, "rstrip": False, "normalized": False,
         "special": True}
    ],
}  # fmt: skip


def test_added_tokens_that_the_normalizer_rewrites_go_to_the_library(tmp_path):
    content = json.loads(oracles()["qwen2"].to_str())
    content["added_tokens"][-1]["content"] = "cafe\u0301"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert isinstance(load_tokenizer(tmp_path), LibraryTokenizer)


@pytest.mark.parametrize("path", UNSUPPORTED)
def test_other_pipelines_go_to_the_library(tmp_path, path):
    content = json.loads(oracles()["gpt2"].to_str())
    _set(content, path, UNSUPPORTED[path])
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UnsupportedTokenizerError, match="tokenizer.json: byte-level BPE does not do this"):
        BPETokenizer.from_file(file)
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, LibraryTokenizer)
    if path != "model.dropout":
        assert (
            tokenizer.encode(f"The  fox {EOS} 123") == Tokenizer.from_file(str(file)).encode(f"The  fox {EOS} 123").ids
        )


def test_library_tokenizer(tmp_path):
    library = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "fo": 2, "##x": 3, "a": 4}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.decoder = decoders.WordPiece()
    library.add_special_tokens(["[CLS]"])
    library.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    library.enable_truncation(2)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode("a fox fox") == [1, 4, 2, 3, 2, 3]
    assert tokenizer.encode("a", add_special_tokens=False) == [4]
    assert tokenizer.encode("[CLS]", add_special_tokens=False) == [1]
    assert 1 not in tokenizer.encode("[CLS]", add_special_tokens=False, allow_special=False)
    assert tokenizer.decode([1, 4, 2, 3]) == "a fox"
    assert tokenizer.decode([1, 4], skip_special_tokens=False) == "[CLS] a"
    assert (tokenizer.vocab_size, tokenizer.special_tokens) == (5, {"[CLS]": 1})
    for token_id in (-1, 5):
        with pytest.raises(ValueError, match=f"got {token_id}"):
            tokenizer.decode([token_id])


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.pop("model"),
        lambda content: content["model"].pop("vocab"),
        lambda content: content["model"]["merges"].append(["a", "\u4e00"]),
        lambda content: content["model"]["merges"].append(["a", "b", "c"]),
        lambda content: content["model"]["vocab"].update(zz=5),
        lambda content: content["added_tokens"][0].pop("id"),
        lambda content: content["added_tokens"][0].update(id=77),
        lambda content: content.update(pre_tokenizer=[1]),
    ],
)
def test_broken_files_are_named(tmp_path, edit):
    content = json.loads(oracles()["gpt2"].to_str())
    edit(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b'"text"'])
def test_files_of_other_kinds_are_named(tmp_path, content):
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.txt is not a (JSON file|tokenizer\.json)"):
        load_tokenizer(tmp_path / "notes.txt")


def test_load_tokenizer_finds_bundled_names_and_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("minillm.hf_config.WEIGHTS_DIR", tmp_path / "weights")
    for name in ("weights/tiny", "mine"):
        (tmp_path / name).mkdir(parents=True)
        pairs()["gpt2"][1].save(tmp_path / name / "tokenizer.json")
    for path in ("tiny", tmp_path / "mine", str(tmp_path / "mine" / "tokenizer.json")):
        assert load_tokenizer(path).encode("a fox") == pairs()["gpt2"][1].encode("a fox")
    for path in ("huge", tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="bundled models: tiny"):
            load_tokenizer(path)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(tmp_path)


def test_a_bundled_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    """`minillm train --out tiny` makes a folder `tiny` that is no model; `./tiny` still reaches it."""
    monkeypatch.setattr("minillm.hf_config.WEIGHTS_DIR", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    for name in ("weights/tiny", "tiny"):
        (tmp_path / name).mkdir(parents=True)
    assert resolve_model_path("tiny") == tmp_path / "weights" / "tiny"
    assert resolve_model_path("./tiny").resolve() == (tmp_path / "tiny").resolve()


def test_tokens_that_begin_and_end_come_from_the_first_file_that_tells(tmp_path):
    def load(**files: dict) -> tuple[int | None, tuple[int, ...]]:
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        tokenizer = load_tokenizer(tmp_path)
        return tokenizer.bos_token_id, tokenizer.eos_token_ids

    pairs()["gpt2"][1].save(tmp_path / "tokenizer.json")
    assert load() == (None, ())
    config = {"bos_token": None, "eos_token": {"content": "<|pad|>"}}
    assert load(tokenizer_config=config) == (None, (1,))
    assert load(config={"bos_token_id": 7, "eos_token_id": 8}) == (7, (8,))
    assert load(generation_config={"eos_token_id": [3, 4]}) == (7, (3, 4))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not a JSON file"):
        load_tokenizer(tmp_path)


def test_first_token_of_the_post_processor_begins_a_text():
    oracle, tokenizer = pairs()["llama3"]
    assert tokenizer.bos_token_id == oracle.token_to_id("<|pad|>")
    assert tokenizer.encode("") == [oracle.token_to_id("<|pad|>"), oracle.token_to_id(EOS)]
