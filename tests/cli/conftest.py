"""A model folder of random weights, small enough to make on the spot, and the two ways to run the command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["Once upon a time there was a small fox.", "The fox had a red ball and lost it in the wood."] * 4
MAX_SEQ_LEN = 64

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights are large enough that sampling has clear favourites, and EOS is id 0."""
    from minillm import ModelConfig, save_model
    from minillm.data import BPETokenizer
    from minillm.model import Transformer

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = BPETokenizer.train(TEXTS, 300, special_tokens=("<eos>",))
    tokenizer.save(folder / "tokenizer.json")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_seq_len=MAX_SEQ_LEN,
        tie_embeddings=True,
        eos_token_ids=(0,),
    )
    torch.manual_seed(0)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    save_model(model, folder)
    return folder


@pytest.fixture
def minillm() -> Run:
    """Run `python -m minillm ARGS` in a process of its own."""

    def run(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "minillm", *args]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, **options)

    return run
