"""Loading a large checkpoint takes hardly more memory than its weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minillm.config import ModelConfig
from minillm.model.checkpoint import save_model
from minillm.model.transformer import Transformer

# 130 M parameters, 519 MB in float32, a quarter of them in the embedding and the output projection.
CONFIG = ModelConfig(
    vocab_size=16_000, hidden_size=1024, intermediate_size=2944, num_layers=8,
    num_heads=16, num_kv_heads=8, head_dim=64, max_seq_len=64,
)  # fmt: skip

# Anonymous memory is what a process allocates; pages of a mapped file are the file's and can be given back.
MEASURE = """
import json, sys, threading
import torch
from minillm.model.checkpoint import load_model

def anonymous_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

def watch():
    while not done.is_set():
        samples.append(anonymous_bytes())
        done.wait(0.002)

ratios = []
for folder in sys.argv[1:]:
    samples, done = [anonymous_bytes()], threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load_model(folder)
    samples.append(anonymous_bytes())
    done.set()
    watcher.join()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    ratios.append((max(samples) - samples[0]) / weights)
    del model
imported = "torch._dynamo" in sys.modules
print(json.dumps({"weights": weights, "ratios": ratios, "samples": len(samples), "imported": imported}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads RssAnon from /proc: Linux only")
def test_peak_memory_of_loading(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Transformer(CONFIG)
    model.to_empty(device="cpu")  # whatever the memory holds: the values don't matter
    folders = [tmp_path / "float32", tmp_path / "bfloat16"]
    try:
        save_model(model, folders[0])
        save_model(model.to(torch.bfloat16), folders[1])
        del model
        result = subprocess.run(
            [sys.executable, "-c", MEASURE, *map(str, folders)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        for file in tmp_path.glob("*/*.safetensors"):
            file.unlink()
    measured = json.loads(result.stdout)
    assert measured["weights"] >= 500_000_000
    assert measured["samples"] >= 20
    assert not measured["imported"]  # an initialisation on "meta" loads a compiler: a second, and 70 MB
    assert all(0.9 < ratio < 1.3 for ratio in measured["ratios"]), measured
