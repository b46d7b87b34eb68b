"""Chapter 02: building the model.

Complete the functions below, then run `python3 tasks.py grade ch02`. The chapter is
`chapters/02_building_the_model.ipynb`; each task names the section that prepares it. Tasks 2 to 5 are the parts of a
Llama, and Task 6 puts them together. Everything here is about one sequence, without a batch, in plain functions.

When all of it works, `python -m exercises.ch02_building_the_model`, from the folder that holds `exercises/` and
with the Python of its environment, tells a story with nothing but your own code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from minillm import ModelConfig, load_tokenizer
from minillm.hf_config import resolve_model_path

# ---- Task 1 (prediction): how many parameters? Prepared by "Napkin".


def parameter_count(hf_config: dict) -> int:
    """The number of parameters of the Llama that a Hugging Face `config.json` describes. No biases anywhere.

    Keys: vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, and three that may be
    missing or None:

        num_key_value_heads   then as many as num_attention_heads
        head_dim              then hidden_size // num_attention_heads
        tie_word_embeddings   then False: the output projection is a matrix of its own

    A layer has two norms, and there is one more after the last layer.

    Example: vocab_size 10, hidden_size 4, intermediate_size 6, one layer, 2 heads, 1 KV head, head_dim 2, tied:
    embedding 40; wq 16, wk 8, wv 8, wo 16; feed-forward 72; norms 4 + 4 + 4; together 172.
    """
    # BEGIN SOLUTION
    hidden_size, num_heads = hf_config["hidden_size"], hf_config["num_attention_heads"]
    num_kv_heads = hf_config.get("num_key_value_heads") or num_heads
    head_dim = hf_config.get("head_dim") or hidden_size // num_heads
    embeddings = 1 if hf_config.get("tie_word_embeddings") else 2
    attention = 2 * hidden_size * num_heads * head_dim + 2 * hidden_size * num_kv_heads * head_dim
    feed_forward = 3 * hidden_size * hf_config["intermediate_size"]
    norms = 2 * hidden_size
    layers = hf_config["num_hidden_layers"] * (attention + feed_forward + norms)
    return embeddings * hf_config["vocab_size"] * hidden_size + layers + hidden_size
    # END SOLUTION


# ---- Task 2: divide by the root mean square. Prepared by "RMSNorm".


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight, over the last axis.

    x (..., size) and weight (size,), both of one dtype: float64, float32, bfloat16 or float16. The result has the
    shape and dtype of x.
    The quotient is computed in float32 at least (float64 for float64) from start to end. It is rounded to the dtype
    of x before the weight comes in: the last product is one of two tensors of that dtype.

    Example: x = [3, 4], weight = [1, 10], eps = 0: mean square 12.5, its root 3.5355, result [0.8485, 11.3137].
    """
    # BEGIN SOLUTION
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean_square = (wide * wide).mean(dim=-1, keepdim=True)
    return weight * (wide / torch.sqrt(mean_square + eps)).to(x.dtype)
    # END SOLUTION


# ---- Task 3: turn a query or a key to its position. Prepared by "RoPE".


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """RoPE in the layout of halves (Hugging Face): dimensions i and i + head_dim/2 of every head form pair i.

    x (seq_len, num_heads, head_dim), float32 or bfloat16; positions (seq_len,) int64. Pair i of the token at
    position p, read as the complex number x[i] + 1j · x[i + head_dim/2], turns by the angle p · theta^(-2i / head_dim).
    Angles, cos and sin are computed in float32; the result has the shape and dtype of x.

    Example: one head of head_dim 4 at position 1 with theta = 100 has pairs (0, 2) and (1, 3), which turn by 1 and 0.1:
    [1, 1, 0, 0] becomes [cos 1, cos 0.1, sin 1, sin 0.1].
    """
    # BEGIN SOLUTION
    head_dim = x.shape[-1]
    speeds = theta ** (-torch.arange(0, head_dim, 2) / head_dim)  # (head_dim / 2,)
    angles = positions[:, None, None] * speeds  # (seq_len, 1, head_dim / 2): the heads share them
    cos, sin = angles.cos(), angles.sin()
    real, imaginary = x.float().chunk(2, dim=-1)
    return torch.cat((real * cos - imaginary * sin, imaginary * cos + real * sin), dim=-1).to(x.dtype)
    # END SOLUTION


# ---- Task 4: attention with shared KV heads. Prepared by "Attention" and "One key for two queries".


def grouped_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal grouped-query attention of one sequence to itself.

    q (seq_len, num_heads, head_dim); k, v (seq_len, num_kv_heads, head_dim), where num_heads is a multiple of
    num_kv_heads. Neighbouring query heads share a KV head: with 4 heads and 2 KV heads, they read 0 0 1 1.
    Token i sees tokens 0 ... i. Scores are divided by sqrt(head_dim).

    Scores, softmax and weighted sum are computed in float32 at least (float64 for float64); the result (seq_len,
    num_heads, head_dim) has the dtype of q.

    Example: one head, two tokens, q all zeros, v = [[2], [4]]: token 0 sees itself and gets 2, token 1 the mean, 3.
    """
    # BEGIN SOLUTION
    seq_len, num_heads, head_dim = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    group = num_heads // k.shape[1]
    k = k.repeat_interleave(group, dim=1).to(wide)
    v = v.repeat_interleave(group, dim=1).to(wide)
    scores = torch.einsum("qhd,khd->hqk", q.to(wide), k) / head_dim**0.5
    is_future = torch.ones(seq_len, seq_len, dtype=torch.bool).triu(diagonal=1)
    weights = torch.softmax(scores.masked_fill(is_future, float("-inf")), dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)
    # END SOLUTION


# ---- Task 5 (bug hunt): the second half of a block. Prepared by "The residual stream" and "SwiGLU".


def hasty_feed_forward(x: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor, eps: float) -> Tensor:
    """Somebody's draft of `feed_forward`. It runs without an error. Three things in it are wrong, and a fourth does
    no harm until the first is repaired."""
    x = rms_norm(x, norm, eps)
    opening = torch.sigmoid(x @ up.T)
    x += (opening * (x @ gate.T)) @ down.T
    return x


def feed_forward(x: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor, eps: float) -> Tensor:
    """`hasty_feed_forward`, repaired: x plus what SwiGLU makes of the normed x. The tensors passed in stay as they are.

    x (seq_len, hidden_size); norm (hidden_size,); gate and up (intermediate_size, hidden_size), down (hidden_size,
    intermediate_size): weights lie as torch.nn.Linear and checkpoints keep them, (outputs, inputs).

    Example: one number each, x = 2, norm = gate = up = down = 1, eps = 0. The norm gives 1; silu(1) · 1 = 0.7311;
    the result is 2.7311.
    """
    # BEGIN SOLUTION
    h = rms_norm(x, norm, eps)
    return x + (F.silu(h @ gate.T) * (h @ up.T)) @ down.T
    # END SOLUTION


# ---- Task 6: a Llama. Prepared by "The real version" and "The names in a checkpoint".


def forward(weights: dict[str, Tensor], config: ModelConfig, tokens: Tensor) -> Tensor:
    """tokens (seq_len,) int64 -> logits (seq_len, vocab_size), from the weights of a Hugging Face checkpoint.

    `weights` maps the checkpoint's names to tensors, matrices as (outputs, inputs):

        model.embed_tokens.weight                          lm_head.weight (missing where config.tie_embeddings)
        model.layers.{i}.input_layernorm.weight            model.layers.{i}.post_attention_layernorm.weight
        model.layers.{i}.self_attn.{q,k,v,o}_proj.weight   model.layers.{i}.mlp.{gate,up,down}_proj.weight
        model.norm.weight

    `config` has num_layers, num_heads, num_kv_heads, head_dim, norm_eps, rope.theta and tie_embeddings. The tokens
    stand at positions 0, 1, 2, ... Build on the tasks above.
    """
    # BEGIN SOLUTION
    positions = torch.arange(len(tokens))
    x = weights["model.embed_tokens.weight"][tokens]
    for layer_idx in range(config.num_layers):
        layer = f"model.layers.{layer_idx}"
        h = rms_norm(x, weights[f"{layer}.input_layernorm.weight"], config.norm_eps)
        q = (h @ weights[f"{layer}.self_attn.q_proj.weight"].T).unflatten(-1, (config.num_heads, config.head_dim))
        k = (h @ weights[f"{layer}.self_attn.k_proj.weight"].T).unflatten(-1, (config.num_kv_heads, config.head_dim))
        v = (h @ weights[f"{layer}.self_attn.v_proj.weight"].T).unflatten(-1, (config.num_kv_heads, config.head_dim))
        q, k = rotate(q, positions, config.rope.theta), rotate(k, positions, config.rope.theta)
        out = grouped_attention(q, k, v).flatten(-2)
        x = x + out @ weights[f"{layer}.self_attn.o_proj.weight"].T
        x = feed_forward(
            x,
            weights[f"{layer}.post_attention_layernorm.weight"],
            weights[f"{layer}.mlp.gate_proj.weight"],
            weights[f"{layer}.mlp.up_proj.weight"],
            weights[f"{layer}.mlp.down_proj.weight"],
            config.norm_eps,
        )
    x = rms_norm(x, weights["model.norm.weight"], config.norm_eps)
    head = "model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"
    return x @ weights[head].T
    # END SOLUTION


def tell_with_your_model(opening: str, num_new_tokens: int = 60) -> str:
    """Continues a story with `forward`, always by the likeliest token, from scratch at each step (see chapter 08)."""
    folder = resolve_model_path("stories-5m")
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    config, tokenizer = ModelConfig.from_pretrained(folder), load_tokenizer(folder)
    token_ids = tokenizer.encode(opening)
    for _ in range(num_new_tokens):
        token_ids.append(int(forward(weights, config, torch.tensor(token_ids))[-1].argmax()))
    return tokenizer.decode(token_ids)


if __name__ == "__main__":
    print(tell_with_your_model("Once upon a time, there was a girl named Ivy"))
