"""`minillm bench` says what can be measured, and its measurements take the options that all share."""

from __future__ import annotations

import pytest

from minillm.cli import make_parser
from minillm.cli.bench import MEASUREMENTS

NAMES = [module.__name__.rpartition(".")[2].replace("_", "-") for module in MEASUREMENTS]


def test_names() -> None:
    assert {"decode", "gemm"} <= set(NAMES)


def test_help_lists_what_can_be_measured(minillm) -> None:
    result = minillm("bench", "--help")
    assert result.returncode == 0 and "examples:" in result.stdout
    for name in NAMES:
        assert f"\n    {name} " in result.stdout or f"\n    {name}\n" in result.stdout


@pytest.mark.parametrize("name", NAMES)
def test_each_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        make_parser().parse_args(["bench", name, "--help"])
    text = capsys.readouterr().out
    assert status.value.code == 0 and "examples:" in text and f"minillm bench {name}" in text


@pytest.mark.parametrize("name", NAMES)
def test_shared_options(name: str) -> None:
    words = ["bench", name, "--rounds", "3", "--threads", "2", "--json", "a.json", "--plot", "b.png", "--quick"]
    args = make_parser().parse_args([*words, "--debug"])
    assert (args.what, args.rounds, args.threads, args.quick, args.debug) == (name, 3, 2, True, True)
    assert args.json.name == "a.json" and args.plot.name == "b.png"


def test_what_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["bench"], ["bench", "luck"]):
        with pytest.raises(SystemExit) as status:
            make_parser().parse_args(words)
        error = capsys.readouterr().err
        assert status.value.code == 2 and error.count("\n") == 1 and "WHAT" in error and "--help" in error
