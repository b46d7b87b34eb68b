"""The demo's table: what it computes, how it reads, and that a new method is one entry."""

from __future__ import annotations

import pytest

from minillm.bench import registry
from minillm.bench.decode import SIZES, random_model
from minillm.bench.demo import Row, run_methods, table
from minillm.bench.registry import DecodingMethod, decoding_methods, register
from minillm.cli.demo import print_wrapped

torch = pytest.importorskip("torch")


def test_every_registered_method_decodes_the_same_text() -> None:
    model = random_model(SIZES["tiny"], torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    seen: list[str] = []
    rows = run_methods(model, [1, 2, 3], 6, repeats=1, on_method=seen.append)
    assert [row.name for row in rows] == seen == [method.name for method in decoding_methods()]
    assert {"no cache", "KV cache"} <= set(seen) and all(row.is_identical for row in rows)
    assert rows[0].speedup == 1.0 and all(row.bandwidth_share is None for row in rows)
    by_name = {row.name: row for row in rows}
    assert by_name["  and a batch of 8"].bytes_per_token < by_name["KV cache"].bytes_per_token
    assert isinstance(model.lm_head, torch.nn.Linear)  # no method changed the model it was given


def test_a_wrong_method_is_shown_up() -> None:
    model = random_model(SIZES["tiny"], torch.float32)
    honest = DecodingMethod("honest", decode=lambda model, prompt, params: [[7] * params.max_new_tokens])
    partly = DecodingMethod(
        "partly", decode=lambda model, prompt, params: [[7] * params.max_new_tokens, [7, 8] * params.max_new_tokens]
    )
    rows = run_methods(model, [1], 4, methods=[honest, partly], repeats=1)
    assert [row.is_identical for row in rows] == [True, False]
    assert "NO" in table(rows)


def test_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    method = DecodingMethod("by hand", decode=lambda model, prompt, params: [[]], can_run=lambda: False)
    assert register(method) is method and method not in decoding_methods()
    with pytest.raises(ValueError, match="registered already"):
        register(method)


def test_the_table_reads_well() -> None:
    rows = [Row("no cache", True, 50.0, 1.0, 2**24, 0.123), Row("KV cache", True, 400.0, 8.0, 2**24, None)]
    lines = table(rows).splitlines()
    assert {len(line) for line in lines} == {len(lines[0])} and len(lines[0]) < 100
    assert "12%" in lines[2] and "in cache" in lines[3] and "8.0×" in lines[3]


def test_text_is_wrapped_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    print_wrapped(["One fine d", "ay the fox ", "ran.\nThen", " it slept"], width=11)
    assert capsys.readouterr().out == "One fine\nday the fox\nran.\nThen it\nslept"
