"""The names that a Hugging Face checkpoint gives to the weights of a `Transformer`.

    blocks.3.attention.wq.weight  ->  model.layers.3.self_attn.q_proj.weight
    lm_head.weight                ->  lm_head.weight

One table serves all families: a model has the modules of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

OUTER_NAMES = {"embed_tokens": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
BLOCK_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wq.a": "self_attn.q_a_proj",
    "attention.wq.norm": "self_attn.q_a_layernorm",
    "attention.wq.b": "self_attn.q_b_proj",
    "attention.wkv_a": "self_attn.kv_a_proj_with_mqa",
    "attention.kv_norm": "self_attn.kv_a_layernorm",
    "attention.wkv_b": "self_attn.kv_b_proj",
    "attention.wo": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn.w_gate": "mlp.gate_proj",
    "ffn.w_up": "mlp.up_proj",
    "ffn.w_down": "mlp.down_proj",
}


def hf_name(name: str) -> str:
    """The checkpoint's name of the parameter `name`. Raises ValueError for one that no family stores."""
    module_name, _, leaf = name.rpartition(".")
    if module_name in OUTER_NAMES:
        return f"{OUTER_NAMES[module_name]}.{leaf}"
    container, _, rest = module_name.partition(".")
    layer_idx, _, part = rest.partition(".")
    if container == "blocks" and part in BLOCK_NAMES:
        return f"model.layers.{layer_idx}.{BLOCK_NAMES[part]}.{leaf}"
    raise ValueError(f"no Hugging Face name for parameter {name!r}")


def plain_weights(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every weight as an unwrapped model would hold it, one at a time.

    A wrapped linear counts as its `dense_weight()` and its `bias`, if any; what is inside stays hidden. Any other
    wrapper offers `plain_module()`, the module that it stands for.
    """
    if callable(plain_module := getattr(module, "plain_module", None)):
        module = plain_module()
    if callable(dense_weight := getattr(module, "dense_weight", None)):
        yield f"{prefix}weight", dense_weight()
        if isinstance(bias := getattr(module, "bias", None), Tensor):
            yield f"{prefix}bias", bias
        return
    for leaf, parameter in module.named_parameters(recurse=False):
        yield f"{prefix}{leaf}", parameter
    for child_name, child in module.named_children():
        yield from plain_weights(child, f"{prefix}{child_name}.")
