r"""Fewer KV heads for a finished model (Ainslie et al. 2023, arXiv:2305.13245, section 2.1).

    smaller = pool_kv_heads(load_model("stories-5m"), 2)        # 8 query heads; 4 KV heads become 2
    save_model(smaller, "runs/two")
    shutil.copy("minillm/weights/stories-5m/tokenizer.json", "runs/two")

    minillm train --init-from runs/two --out runs/two-tuned --seed 1 --lr 1e-3 --warmup-steps 10 --steps 500 \
        --eval-every 50

Query heads keep their places; neighbouring KV heads become one. Where they held different things, something is lost,
and a short training brings most of it back (the paper's "uptraining"). These 500 steps, 2 million tokens, a tenth of
what the bundled model was trained on, end at 131.5 nats a story; the model with four heads has 130.2, the source 126.7
(`book/results/two-kv-heads`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from minillm.model.hf_names import plain_weights
from minillm.model.transformer import Transformer

# heads (num_kv_heads, heads in a group, head_dim, …) -> (num_kv_heads, head_dim, …)
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda heads: heads.mean(dim=1),
    "first": lambda heads: heads[:, 0],
}


@torch.no_grad()
def pool_kv_heads(model: Transformer, num_kv_heads: int, *, pooling: str = "mean") -> Transformer:
    """A new model with `num_kv_heads` KV heads, each made from a group of neighbouring ones of `model`.

    `pooling` "mean" averages the projections wk and wv of a group (and their biases), "first" keeps its first head:
    the comparison that shows why one averages. The result is the same function when the heads of each group are equal.
    All other weights are copied, in their dtype and on their device; wrapped linears become plain. Raises ValueError
    for latent attention, an unknown pooling, and a number that doesn't divide the KV heads there are.
    """
    config = model.config
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    if config.mla is not None:
        raise ValueError("latent attention has no KV heads to pool")
    if num_kv_heads < 1 or config.num_kv_heads % num_kv_heads:
        raise ValueError(f"num_kv_heads must divide the model's {config.num_kv_heads}, got {num_kv_heads}")
    pooled = Transformer(replace(config, num_kv_heads=num_kv_heads))
    embedding = model.embed_tokens.weight
    pooled.to(device=embedding.device, dtype=embedding.dtype)
    weights = dict(plain_weights(model))
    for name, parameter in pooled.named_parameters():  # a tied lm_head comes once, as the embedding
        weight = weights[name]
        if name.rpartition(".")[0].endswith(("attention.wk", "attention.wv")):
            heads = weight.unflatten(0, (num_kv_heads, -1, config.head_dim))
            weight = POOLINGS[pooling](heads).flatten(0, 1)
        parameter.copy_(weight)
    return pooled.train(model.training)
