"""The side-by-side peer: the same weights in `transformers`' Llama, decoding eagerly with its own cache."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from minillm.config import ModelConfig
from minillm.model.hf_names import hf_name
from minillm.model.transformer import Transformer


def can_use_peer() -> bool:
    """Whether `transformers` is installed."""
    return importlib.util.find_spec("transformers") is not None


def make_peer(model: Transformer) -> Any:
    """`LlamaForCausalLM` over the parameters of `model` (shared, not copied). For models of type llama:
    ValueError else.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config: ModelConfig = model.config
    if config.model_type != "llama":
        raise ValueError(f"the peer is a Llama, got a model of type {config.model_type!r}")
    fields = {key: value for key, value in config.to_hf().items() if key not in ("architectures", "model_type")}
    fields["dtype"] = model.embed_tokens.weight.dtype
    peer = LlamaForCausalLM(LlamaConfig(**fields))
    weights: dict[str, torch.Tensor] = {hf_name(name): parameter for name, parameter in model.named_parameters()}
    if config.tie_embeddings:
        weights["lm_head.weight"] = model.embed_tokens.weight
    peer.load_state_dict(weights, assign=True)
    return peer.eval()


@torch.inference_mode()
def peer_generate(peer: Any, prompt_token_ids: list[int], num_new_tokens: int) -> list[int]:
    """Greedy `peer.generate()`: what a user of the library calls. New tokens only."""
    prompt = torch.tensor([prompt_token_ids])
    output = peer.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=num_new_tokens,
        min_new_tokens=num_new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return output[0, prompt.shape[1] :].tolist()


@torch.inference_mode()
def peer_loop(peer: Any, prompt_token_ids: list[int], num_new_tokens: int, *, batch_size: int = 1) -> list[int]:
    """Greedy decoding by calling the peer in a bare loop with its cache: less work around each step than
    `generate()`.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=peer.config)
    tokens = torch.tensor([prompt_token_ids] * batch_size)
    token_ids = []
    for _ in range(num_new_tokens):
        logits = peer(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        tokens = logits[:, -1:].argmax(dim=-1)  # (batch, 1)
        token_ids.append(int(tokens[0, 0]))
    return token_ids
