"""`minillm generate` on a tiny random model: what it prints, and that it is what the library generates."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minillm import SamplingParams, generate, generate_text, load_model, load_tokenizer
from minillm.cli import main
from minillm.cli.generate import NEW_NAMES_ARE_FINE, unknown_words
from minillm.generation import beam_search

STORY = "Once upon a time"
SUMMARY = re.compile(r"(compiling kernels [^\n]*\n)?TTFT \d+ ms, [\d.]+ tokens/s, [\d.]+ MiB moved per token\n")


def command(folder: Path, *options: str, prompt: str = STORY) -> list[str]:
    return ["generate", prompt, "--model", str(folder), "--max-new-tokens", "12", "--ignore-eos", *options]


def run(capsys, folder: Path, *options: str, prompt: str = STORY) -> tuple[str, str]:
    """(stdout, stderr) of a run that succeeds, without the line about compiling (the first run of a machine)."""
    assert main(command(folder, *options, prompt=prompt)) == 0
    captured = capsys.readouterr()
    return captured.out, re.sub(r"^compiling kernels .*\n", "", captured.err)


def expected_text(folder: Path, params: SamplingParams, seed: int = 0, stop: tuple[str, ...] = ()) -> str:
    generator = torch.Generator().manual_seed(seed)
    return generate_text(load_model(folder), load_tokenizer(folder), STORY, params, stop=stop, generator=generator)


def test_as_a_command(minillm, model_folder: Path) -> None:
    result = minillm(*command(model_folder, "--temperature", "0"), encoding="utf-8")
    params = SamplingParams(max_new_tokens=12, temperature=0.0, ignore_eos=True)
    assert result.returncode == 0
    assert result.stdout == STORY + expected_text(model_folder, params) + "\n"
    assert SUMMARY.fullmatch(result.stderr), result.stderr


def test_prompt_from_stdin(minillm, model_folder: Path) -> None:
    options = command(model_folder, "--quiet", prompt="-")
    result = minillm(*options, input=STORY + "\n", encoding="utf-8")
    params = SamplingParams(max_new_tokens=12, temperature=0.8, ignore_eos=True)
    assert result.stdout == STORY + expected_text(model_folder, params) + "\n" and result.stderr == ""


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ([], {}),
        (["--temperature", "1.7"], {"temperature": 1.7}),
        (["--temperature", "3", "--top-k", "3"], {"temperature": 3.0, "top_k": 3}),
        (["--temperature", "3", "--top-p", "0.4"], {"temperature": 3.0, "top_p": 0.4}),
        (["--temperature", "3", "--min-p", "0.3"], {"temperature": 3.0, "min_p": 0.3}),
        (
            ["--temperature", "0", "--repetition-penalty", "5"],
            {"temperature": 0.0, "repetition_penalty": 5.0},
        ),
        (
            ["--temperature", "0", "--no-repeat-ngram-size", "1"],
            {"temperature": 0.0, "no_repeat_ngram_size": 1},
        ),
        (["--max-new-tokens", "5"], {"max_new_tokens": 5}),
        (["--no-fast"], {}),
    ],
)
def test_options_reach_the_sampler(model_folder: Path, capsys, options, changes) -> None:
    plain = {"max_new_tokens": 12, "temperature": 0.8, "ignore_eos": True}
    expected = expected_text(model_folder, SamplingParams(**(plain | changes)))
    if changes:
        assert expected != expected_text(model_folder, SamplingParams(**plain)), "the option changes nothing"
    out, _ = run(capsys, model_folder, *options)
    assert out == STORY + expected + "\n"


def test_seed(model_folder: Path, capsys) -> None:
    hot = ["--temperature", "3", "--quiet"]
    texts = [run(capsys, model_folder, *hot, "--seed", seed)[0] for seed in ("0", "0", "1")]
    assert texts[0] == texts[1] == run(capsys, model_folder, *hot)[0]
    assert texts[0] != texts[2]


def test_ends_at_the_models_end_token(model_folder: Path, tmp_path: Path, capsys) -> None:
    """The end token is read from the folder: here, a token that greedy decoding reaches."""
    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    greedy = SamplingParams(max_new_tokens=12, temperature=0.0, ignore_eos=True)
    token_ids = generate(model, tokenizer.encode(STORY), greedy)
    num_kept = next(n for n in range(1, 12) if token_ids[n] not in token_ids[:n])
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": token_ids[num_kept]}))
    assert main(["generate", STORY, "--model", str(tmp_path), "--temperature", "0", "--quiet"]) == 0
    assert capsys.readouterr().out == STORY + tokenizer.decode(token_ids[:num_kept]) + "\n"


def test_stop_strings_and_no_echo(model_folder: Path, capsys) -> None:
    whole, _ = run(capsys, model_folder, "--temperature", "0", "--no-echo")
    stop = whole[4]
    out, _ = run(capsys, model_folder, "--temperature", "0", "--no-echo", "--stop", "never said", "--stop", stop)
    assert out == whole[: whole.index(stop)] + "\n"


def test_beams(model_folder: Path, tmp_path: Path, capsys) -> None:
    """The best text of the library's search, without the end token that closes it."""
    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    prompt_token_ids = tokenizer.encode(STORY)
    found = beam_search(model, prompt_token_ids, num_beams=3, max_new_tokens=2)
    eos_token_id = found[0][0][-1]  # as the end token, it closes the same two tokens
    model.config = replace(model.config, eos_token_ids=(eos_token_id,))
    (token_ids, score), *_ = beam_search(model, prompt_token_ids, num_beams=3, max_new_tokens=2)
    assert token_ids[-1] == eos_token_id
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_token_id}))
    assert main(["generate", STORY, "--model", str(tmp_path), "--beams", "3", "--max-new-tokens", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out == STORY + tokenizer.decode(token_ids[:-1]) + "\n"
    last_line = captured.err.splitlines()[-1]  # the first process of all also says that it compiles kernels
    assert last_line.startswith(f"3 beams, score {score:.3f}, ")


def test_prompt_that_fills_the_context(model_folder: Path, capsys) -> None:
    tokenizer = load_tokenizer(model_folder)
    prompt = next(text for n in range(1, 64) if len(tokenizer.encode(text := "fox" + " z" * n)) == 64)
    out, err = run(capsys, model_folder, prompt=prompt)
    assert out == prompt + "\n" and err == "no new tokens\n"


def test_bf16(model_folder: Path, capsys) -> None:
    out, err = run(capsys, model_folder, "--dtype", "bf16", "--threads", str(torch.get_num_threads()))
    assert out.startswith(STORY) and SUMMARY.fullmatch(err)


# ---- words the model has never seen


@pytest.fixture
def lexicon(tmp_path: Path):
    def write(*lines: str) -> Path:
        (tmp_path / "words.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return tmp_path

    return write


def test_unknown_words(lexicon, tmp_path: Path) -> None:
    assert unknown_words("Anything goes", tmp_path) == [], "a model without words.txt"
    folder = lexicon("a", "don't", "fox", "once")
    assert unknown_words("Once a FOX, once a fox. 12!", folder) == []
    assert unknown_words("I don't can't", folder) == ["I", "can't"]
    assert unknown_words("a zebra, a zebra and Lila", folder) == ["zebra", "and", "Lila"]


def test_new_names_are_welcome_where_the_model_has_learned_them(lexicon) -> None:
    folder = lexicon(NEW_NAMES_ARE_FINE, "fox", "the")
    assert unknown_words("The fox Lila", folder) == []
    assert unknown_words("The fox names Lila's zebra", folder) == ["names", "Lila's", "zebra"]


def test_warning_comes_first_and_quiet_drops_it(model_folder: Path, tmp_path: Path, capsys) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "words.txt").write_text("once\nupon\na\n")
    _, err = run(capsys, tmp_path)
    first, summary = err.splitlines(keepends=True)
    assert first == 'warning: the training text has no word "time"; expect odd results\n'
    assert SUMMARY.fullmatch(summary)
    assert run(capsys, tmp_path, "--quiet")[1] == ""
