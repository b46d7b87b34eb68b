"""The pieces are those of a step, no more and no less; sums and lines are right; the command writes whole files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minillm.bench.compare import Comparison, Parts
from minillm.bench.decode import SIZES, fast_copy, random_model
from minillm.bench.pieces import attention, products, the_rest, whole_step
from minillm.bench.predict import QUICK, InTurn, Step, forecast, interpolate, measure
from minillm.bench.predict_report import as_document, error, table, write_plot
from minillm.cli import main
from minillm.model.transformer import Transformer
from minillm.perf.cost import Phase, operations, total
from minillm.perf.flops import count_flops
from minillm.perf.model_shape import read_shape
from minillm.perf.precision import Precision
from minillm.perf.probe import ReadProbe


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model(SIZES["tiny"], torch.float32)


@pytest.mark.parametrize("step", [Step(1, 1, 7), Step(3, 1, 12), Step(1, 9, 9), Step(2, 5, 5)], ids=str)
def test_pieces_compute_what_a_step_computes(model: Transformer, step: Step) -> None:
    """Counted from outside, by torch: products and attention of the pieces make up those of the whole step."""
    batch_size, query_len, seq_len = step.batch_size, step.query_len, step.seq_len
    parts = [
        count_flops(products(model, batch_size, query_len)),
        count_flops(attention(model, batch_size, query_len, seq_len)),
        count_flops(the_rest(model, batch_size, query_len)),
    ]
    whole = whole_step(model, batch_size, query_len, seq_len)
    assert [count_flops(whole) for _ in range(2)] == 2 * [sum(parts)]  # repeated, it is the same step
    assert parts[2] == 0
    expected = operations(read_shape(model.config.to_hf()), Phase(batch_size, query_len, seq_len), Precision(bits=32))
    assert parts[0] == total(part for part in expected if part.kind == "linear").flops


def test_pieces_touch_every_module_once(model: Transformer) -> None:
    calls: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: object, output: object) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    linears = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    handles = [module.register_forward_hook(count(name)) for name, module in linears.items()]
    products(model, 2, 3)()
    assert calls == dict.fromkeys(linears, 1) and len(linears) == 15
    the_rest(model, 2, 3)()
    assert calls == dict.fromkeys(linears, 1)  # none of them
    for handle in handles:
        handle.remove()


def test_pieces_leave_the_model_alone_and_can_be_repeated(model: Transformer) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [type(module) for module in model.modules()]
    for copy in (model, fast_copy(model)):
        for call in (products(copy, 2, 1), attention(copy, 2, 1, 6), the_rest(copy, 2, 1), whole_step(copy, 2, 1, 6)):
            call()
            call()
    assert [type(module) for module in model.modules()] == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_pieces_in_turn() -> None:
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "pqr"}
    turn = InTurn([("p", calls["p"]), ("q", calls["q"]), ("p", calls["p"]), ("r", calls["r"])], least_s=0.0)
    called.clear()
    parts = turn()
    assert called == list("pqpr") and set(parts) == set("pqr") and isinstance(parts, Parts)
    slow = InTurn([("slow", lambda: time.sleep(2e-3)), ("p", calls["p"])], least_s=9e-3)
    assert 2 <= slow.repeats <= 5 and 2e-3 <= slow()["slow"] < 8e-3  # seconds of one call, not of several


def test_lines() -> None:
    xs, ys = (1, 2, 8), (1.0, 3.0, 9.0)
    assert [interpolate(xs, ys, x) for x in (1, 2, 5, 8)] == [1.0, 3.0, 6.0, 9.0]
    assert interpolate(xs, ys, 10) == 11.0 and interpolate((4,), (7.0,), 100) == 7.0
    assert interpolate((2, 4), (1.0, 2.0), 1) == 0.5


def test_a_forecast_adds_its_pieces_round_by_round(model: Transformer) -> None:
    comparison = Comparison(
        {
            "products 1": [1.0, 10.0],
            "products 4": [4.0, 40.0],
            "rest 1": [0.5, 5.0],
            "rest 4": [0.5, 5.0],
            "attention 3 4": [1.0, 10.0],
            "attention 3 8": [3.0, 30.0],
            "attention 4": [7.0, 70.0],
            "whole 3 1 6": [5.0, 60.0],
            "whole 1 4 4": [23.0, 230.0],
        },
        [100.0, 100.0],
        0,
    )
    decode = forecast(model, Step(3, 1, 6), comparison, (1, 4), (4, 8))
    # Rows 3 on the line from 1 to 4, six keys half-way between 4 and 8: 3 + 2 + 0.5 and ten times that.
    assert decode.ratio.low == pytest.approx((5.5 / 5 + 55 / 60) / 2 - (5.5 / 5 - 55 / 60) / 4)
    assert (decode.products_s, decode.attention_s, decode.rest_s) == (16.5, 11.0, 2.75)
    assert decode.predicted_s == 30.25 and decode.measured_s == 32.5
    assert decode.read_s is None  # the weights of the tiny model stay in the cache
    prefill = forecast(model, Step(1, 4, 4), comparison, (1, 4), (4, 8))
    assert prefill.ratio.median == pytest.approx(11.5 / 23) and error(prefill) == pytest.approx(0.5)


def test_bytes_over_bandwidth_is_a_bound_for_large_models(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    from minillm.bench import predict
    from minillm.perf.traffic import decode_bytes_per_step

    monkeypatch.setattr(predict, "last_cache_bytes", lambda: 0)
    names = ("products 1", "rest 1", "attention 1 4", "attention 4", "whole 1 1 4", "whole 1 4 4")
    comparison = Comparison({name: [1.0] for name in names}, [1e6], 0)
    decode = forecast(model, Step(1, 1, 4), comparison, (1,), (4,))
    assert decode.read_s == pytest.approx(decode_bytes_per_step(model, 4) / 1e6)
    assert forecast(model, Step(1, 4, 4), comparison, (1,), (4,)).read_s is None


def test_measuring(tmp_path: Path) -> None:
    rounds = []
    result = measure("tiny", QUICK, ReadProbe(QUICK.probe_bytes), on_round=lambda: rounds.append(1))
    assert [f.step for f in result.forecasts] == [Step(1, 1, 12), Step(2, 1, 12), Step(1, 8, 8)]
    assert QUICK.rounds <= len(rounds) <= 2 * QUICK.rounds
    assert all(f.measured_s > 0 and f.ratio.median > 0 for f in result.forecasts)
    text = table(result)
    assert max(map(len, text.splitlines())) <= 100 and "decode, batch 2, 12" in text and "prefill of 8" in text
    json.dumps(as_document([result], {}, {}), allow_nan=False)
    pytest.importorskip("matplotlib")
    write_plot([result, result], tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.json"
    threads = torch.get_num_threads()
    try:
        assert main(["bench", "plan", "--quick", "--threads", "1", "--json", str(file)]) == 0
    finally:
        torch.set_num_threads(threads)
    assert "tiny, float32" in capsys.readouterr().out
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["settings"]["threads"] == 1 and document["results"][0]["forecasts"][0]["predicted_s"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sizes", "enormous"], "size must be one of"),
        (["--sizes", ","], "expected names"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--threads", "0"], "threads must be at least 1"),
        (["--plot", "nowhere/at/all.png"], "no folder"),
    ],
)
def test_bad_options(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "plan", "--quick", *args]) == 2
    captured = capsys.readouterr().err
    assert message in captured and len(captured.splitlines()) == 1


def test_an_interrupted_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minillm.bench import predict

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "measure", interrupted)
    assert main(["bench", "plan", "--quick", "--json", str(tmp_path / "out.json")]) == 130
    assert list(tmp_path.iterdir()) == []
