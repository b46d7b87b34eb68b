"""Bytes counted by hand on small models; the probe and the machine's description keep their promises."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from minillm.config import ModelConfig
from minillm.fast_linears import use_fast_linears
from minillm.model.transformer import Transformer
from minillm.perf import machine
from minillm.perf.probe import ReadProbe
from minillm.perf.traffic import decode_bytes_per_step, decode_bytes_per_token, weight_bytes_per_step

CONFIG = ModelConfig(
    vocab_size=50,
    hidden_size=12,
    intermediate_size=20,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    max_seq_len=64,
    qkv_bias=True,
    windows=(None, 3),
)
# By hand, in numbers. A layer: wq 12·24, wk and wv 12·12 each, wo 24·12, biases 24 + 12 + 12, three of
# 12·20, two norms.
LAYER = 288 + 144 + 144 + 288 + 48 + 3 * 240 + 24
WEIGHTS = 2 * LAYER + 12 + 50 * 12  # the final norm, lm_head
KV_PER_TOKEN = 2 * (6 + 6)  # of one layer


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_bytes_by_hand(tie: bool, dtype: torch.dtype, size: int, batch_size: int) -> None:
    model = Transformer(replace(CONFIG, tie_embeddings=tie)).to(dtype)
    weights = size * (WEIGHTS + batch_size * 12)  # and one row of the embedding each
    assert weight_bytes_per_step(model, batch_size=batch_size) == weights
    # Ten tokens: the first layer reads 10 and writes 1, the second sees 3 and writes 1.
    step = weights + batch_size * size * KV_PER_TOKEN * ((10 + 1) + (3 + 1))
    assert decode_bytes_per_step(model, 10, batch_size=batch_size) == step
    assert decode_bytes_per_token(model, 10, batch_size=batch_size) == step // batch_size
    # In front of the window's edge both layers read all.
    short = weights + batch_size * size * KV_PER_TOKEN * 2 * (2 + 1)
    assert decode_bytes_per_step(model, 2, batch_size=batch_size) == short


@pytest.mark.parametrize("tie", [False, True])
def test_wrapping_moves_the_same_bytes(tie: bool) -> None:
    model = Transformer(replace(CONFIG, tie_embeddings=tie))
    before = decode_bytes_per_token(model, 7)
    assert decode_bytes_per_token(use_fast_linears(model), 7) == before


def test_values_inside_keys_move_once() -> None:
    model = Transformer(CONFIG)
    with_v = decode_bytes_per_step(model, 5)

    class Absorbed(Transformer):
        @property
        def layer_specs(self) -> list:
            return [replace(spec, v_from_k=True) for spec in super().layer_specs]

    without_v = decode_bytes_per_step(Absorbed(CONFIG), 5)
    assert with_v - without_v == 4 * 2 * 6 * ((5 + 1) + (3 + 1))


@pytest.mark.parametrize(("seq_len", "batch_size"), [(0, 1), (1, 0)])
def test_nothing_to_decode(seq_len: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        decode_bytes_per_token(Transformer(CONFIG), seq_len, batch_size=batch_size)


@pytest.mark.parametrize("uses_numba", [False, True])
def test_the_probe_reads_everything(uses_numba: bool) -> None:
    if uses_numba:
        pytest.importorskip("numba")
    probe = ReadProbe(2**16, num_threads=3)
    probe.uses_numba = uses_numba
    assert probe._read() == 2**14
    probe.numbers[::1000] = 0
    assert probe._read() == 2**14 - 17
    assert probe.bytes_per_s(repeats=1) > 0
    with pytest.raises(ValueError, match="at least 4096"):
        ReadProbe(1)


def test_the_machine_describes_itself() -> None:
    description = machine.describe_machine()
    assert json.loads(json.dumps(description)) == description
    assert description["packages"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert description["torch_threads"] == torch.get_num_threads()
    assert description["logical_cpus"] >= 1 and machine.last_cache_bytes() >= 2**15


def test_an_unknown_system_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for system in ("Windows", "Darwin", "Plan 9"):
        monkeypatch.setattr(machine.platform, "system", lambda system=system: system)
        assert "cpu" in machine.describe_machine()
