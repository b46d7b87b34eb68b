"""Wrong solutions of chapter 02 that people write, each with the hint it deserves."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from minillm.grading import edited, mistake

# ---- parameter_count

edited(
    "parameter_count",
    "counts the embedding once although it isn't tied",
    replace={'1 if hf_config.get("tie_word_embeddings") else 2': "1"},
    hint="Unless tie_word_embeddings is set, the output projection is a second matrix of vocab_size · hidden_size.",
)
edited(
    "parameter_count",
    "gives keys and values as many heads as queries",
    replace={"2 * hidden_size * num_kv_heads * head_dim": "2 * hidden_size * num_heads * head_dim"},
    hint="wk and wv have num_kv_heads heads. In Llama 3 8B that is a quarter of the query heads.",
)
edited(
    "parameter_count",
    "takes hidden_size / num_heads for head_dim although it is given",
    replace={'hf_config.get("head_dim") or ': ""},
    hint="head_dim stands in config.json for a reason: in Mistral NeMo, 32 · 128 isn't 5,120.",
)
edited(
    "parameter_count",
    "leaves a head_dim of None as it is",
    replace={
        'hf_config.get("head_dim") or hidden_size // num_heads': 'hf_config.get("head_dim", hidden_size // num_heads)'
    },
    hint="get(key, default) gives the default for a missing key, and None for a key that is there and None.",
)
edited(
    "parameter_count",
    "counts two matrices in the feed-forward",
    replace={"3 * hidden_size": "2 * hidden_size"},
    hint="SwiGLU has three: gate, up and down. Two are what the older networks with ReLU or GELU have.",
)
edited(
    "parameter_count",
    "forgets the norm after the last layer",
    replace={"layers + hidden_size": "layers"},
    hint="model.norm: one more vector of hidden_size, between the last layer and the head.",
)

# ---- rms_norm

edited(
    "rms_norm",
    "eps outside of the root",
    replace={"torch.sqrt(mean_square + eps)": "(torch.sqrt(mean_square) + eps)"},
    hint="eps is added to the mean square, before the root: sqrt(1e-6) is a thousand times 1e-6.",
)
edited(
    "rms_norm",
    "subtracts the mean",
    replace={
        "mean_square = (wide * wide)": "wide = wide - wide.mean(dim=-1, keepdim=True)\n    mean_square = (wide * wide)"
    },
    hint="That is LayerNorm without its bias. RMSNorm leaves the mean where it is.",
)
edited(
    "rms_norm",
    "statistics in the dtype of the input",
    replace={"wide = x.to(torch.promote_types(x.dtype, torch.float32))": "wide = x"},
    hint="Widen first: squares of float16 overflow above 255, and bfloat16 rounds at every step.",
)
edited(
    "rms_norm",
    "divides by the sum of squares and not by their mean",
    replace={"(wide * wide).mean(": "(wide * wide).sum("},
    hint="A mean: the result has a root mean square of 1, not a length of 1.",
)
edited(
    "rms_norm",
    "one statistic for all tokens",
    replace={".mean(dim=-1, keepdim=True)": ".mean()"},
    hint="Each token is divided by its own root mean square: dim=-1, keepdim=True.",
)
edited(
    "rms_norm",
    "forgets the weight",
    replace={"weight * (wide": "(wide"},
    hint="Each feature is multiplied by its learned weight at the end.",
)

# ---- rotate


@mistake(
    "rotate",
    "pairs of neighbours (interleaved) and not halves",
    hint="These weights want pair i in dimensions i and i + head_dim/2. Neighbours 2i, 2i + 1 are the other layout.",
)
def rotate(x, positions, theta):
    head_dim = x.shape[-1]
    speeds = theta ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = positions[:, None, None] * speeds
    cos, sin = angles.cos(), angles.sin()
    real, imaginary = x.float()[..., 0::2], x.float()[..., 1::2]
    pairs = torch.stack((real * cos - imaginary * sin, imaginary * cos + real * sin), dim=-1)
    return pairs.flatten(-2).to(x.dtype)


edited(
    "rotate",
    "positions count from 1",
    replace={"positions[:, None, None] * speeds": "(positions[:, None, None] + 1) * speeds"},
    hint="The positions are given. At position 0 nothing turns.",
)
edited(
    "rotate",
    "turns the other way",
    replace={
        "real * cos - imaginary * sin, imaginary * cos + real * sin": (
            "real * cos + imaginary * sin, imaginary * cos - real * sin"
        )
    },
    hint="(a + ib)(cos + i sin) has the real part a cos - b sin.",
)
edited(
    "rotate",
    "exponent i / head_dim and not 2i / head_dim",
    replace={"torch.arange(0, head_dim, 2) / head_dim": "torch.arange(head_dim // 2) / head_dim"},
    hint="The slowest pair turns by nearly 1 / theta a token; with i / head_dim it is only 1 / sqrt(theta).",
)
edited(
    "rotate",
    "angles in the dtype of x",
    replace={"positions[:, None, None] * speeds": "positions[:, None, None].to(x.dtype) * speeds.to(x.dtype)"},
    hint="bfloat16 holds 8 bits: position 1001 becomes 1000, one radian off for the fastest pair. Angles are float32.",
)
edited(
    "rotate",
    "every token at its place in the tensor",
    replace={"positions[:, None, None] * speeds": "torch.arange(len(x))[:, None, None] * speeds"},
    hint="Use `positions`. In chapter 08 a token comes alone, at position 137, say.",
)

# ---- grouped_attention

edited(
    "grouped_attention",
    "KV heads tiled instead of repeated",
    replace={
        "k.repeat_interleave(group, dim=1)": "k.repeat(1, group, 1)",
        "v.repeat_interleave(group, dim=1)": "v.repeat(1, group, 1)",
    },
    hint="Neighbouring query heads share a KV head: 0 0 1 1, not 0 1 0 1.",
)
edited(
    "grouped_attention",
    "scales by all heads together and not by head_dim",
    replace={"/ head_dim**0.5": "/ (num_heads * head_dim) ** 0.5"},
    hint="A score is a sum of head_dim products, so sqrt(head_dim) brings it back to unit size.",
)
edited(
    "grouped_attention",
    "forgets to scale",
    replace={" / head_dim**0.5": ""},
    hint="Divide the scores by sqrt(head_dim) before the softmax.",
)
edited(
    "grouped_attention",
    "looks into the future",
    replace={'scores.masked_fill(is_future, float("-inf"))': "scores"},
    hint="Token i sees tokens 0 to i. Scores of later ones become minus infinity before the softmax.",
)
edited(
    "grouped_attention",
    "hides a token from itself",
    replace={"triu(diagonal=1)": "triu(diagonal=0)"},
    hint="A token sees itself; the first one would see nothing at all otherwise, and become NaN.",
)
edited(
    "grouped_attention",
    "softmax over the queries",
    replace={'float("-inf")), dim=-1)': 'float("-inf")), dim=-2)'},
    hint="The weights of one query over all keys add up to 1: softmax over the last axis of (heads, queries, keys).",
)
edited(
    "grouped_attention",
    "scores in the dtype of q",
    replace={"wide = torch.promote_types(q.dtype, torch.float32)": "wide = q.dtype"},
    hint="bfloat16 scores near 50 have steps of 1/4: their exponentials err by a quarter. Widen before the product.",
)

# ---- feed_forward

edited(
    "feed_forward",
    "adds to the normed stream",
    replace={"return x + ": "return h + "},
    hint="The norm is for the branch only. What is added to is x itself, as it came.",
)
edited(
    "feed_forward",
    "silu on the wrong branch",
    replace={"F.silu(h @ gate.T) * (h @ up.T)": "(h @ gate.T) * F.silu(h @ up.T)"},
    hint="The gate goes through silu, the up projection stays linear.",
)
edited(
    "feed_forward",
    "sigmoid and not silu",
    replace={"F.silu(h @ gate.T)": "torch.sigmoid(h @ gate.T)"},
    hint="silu(z) = z · sigmoid(z). With the sigmoid alone it is GLU, another network.",
)
edited(
    "feed_forward",
    "forgets the residual",
    replace={"return x + ": "return "},
    hint="The block adds to the stream; it doesn't replace it.",
)
edited(
    "feed_forward",
    "writes into the caller's x",
    replace={
        "return x + (F.silu(h @ gate.T) * (h @ up.T)) @ down.T": (
            "x += (F.silu(h @ gate.T) * (h @ up.T)) @ down.T\n    return x"
        )
    },
    hint="x += changes the tensor that was passed in. x + ... makes a new one.",
)
edited(
    "feed_forward",
    "norm after the sum (post-norm)",
    replace={
        "h = rms_norm(x, norm, eps)": "h = x",
        "return x + (F.silu(h @ gate.T) * (h @ up.T)) @ down.T": (
            "return rms_norm(x + (F.silu(h @ gate.T) * (h @ up.T)) @ down.T, norm, eps)"
        ),
    },
    hint="Llama is pre-norm: the branch reads the normed stream, the stream itself is never normed.",
)

# ---- forward

edited(
    "forward",
    "forgets the norm after the last layer",
    replace={'    x = rms_norm(x, weights["model.norm.weight"], config.norm_eps)\n': ""},
    hint="model.norm stands between the last layer and the head.",
)
edited(
    "forward",
    "rotates the values too",
    replace={
        "q, k = rotate(q, positions, config.rope.theta), rotate(k, positions, config.rope.theta)": (
            "q, k, v = (rotate(part, positions, config.rope.theta) for part in (q, k, v))"
        )
    },
    hint="Only scores need positions. A value that is turned arrives at the output turned.",
)
edited(
    "forward",
    "queries stand one position too far",
    replace={"rotate(q, positions, config.rope.theta)": "rotate(q, positions + 1, config.rope.theta)"},
    hint="Query and key of one token stand at the same position. All of them moved together would change nothing.",
)
edited(
    "forward",
    "rotates the keys and not the queries",
    replace={"q, k = rotate(q, positions, config.rope.theta), rotate(": "k = rotate("},
    hint="Both turn; only then does their scalar product depend on the distance.",
)
edited(
    "forward",
    "the two norms of a layer exchanged",
    replace={
        'h = rms_norm(x, weights[f"{layer}.input_layernorm.weight"]': (
            'h = rms_norm(x, weights[f"{layer}.post_attention_layernorm.weight"]'
        ),
        '            weights[f"{layer}.post_attention_layernorm.weight"],\n': (
            '            weights[f"{layer}.input_layernorm.weight"],\n'
        ),
    },
    hint="input_layernorm stands before attention, post_attention_layernorm before the feed-forward.",
)
edited(
    "forward",
    "gate and up exchanged",
    replace={
        'mlp.gate_proj.weight"],\n            weights[f"{layer}.mlp.up_proj': (
            'mlp.up_proj.weight"],\n            weights[f"{layer}.mlp.gate_proj'
        )
    },
    hint="feed_forward takes gate first, then up.",
)
edited(
    "forward",
    "no residual around attention",
    replace={"x = x + out @ ": "x = out @ "},
    hint="Attention adds to the stream: x = x + ...",
)
edited(
    "forward",
    "adds the stream twice around the feed-forward",
    replace={"x = feed_forward(": "x = x + feed_forward("},
    hint="feed_forward returns the stream with its share added already.",
)
edited(
    "forward",
    "always uses the embedding as the head",
    replace={
        '"model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"': '"model.embed_tokens.weight"'
    },
    hint="Only where config.tie_embeddings is set. Otherwise there is lm_head.weight.",
)
edited(
    "forward",
    "eps of 1e-6 whatever the config says",
    replace={
        'x = rms_norm(x, weights["model.norm.weight"], config.norm_eps)': (
            'x = rms_norm(x, weights["model.norm.weight"], 1e-6)'
        )
    },
    hint="Take norm_eps from the config, everywhere.",
)
edited(
    "forward",
    "theta of 10,000 whatever the config says",
    replace={
        "rotate(q, positions, config.rope.theta), rotate(k, positions, config.rope.theta)": (
            "rotate(q, positions, 10_000.0), rotate(k, positions, 10_000.0)"
        )
    },
    hint="config.rope.theta: Llama 3 has 500,000.",
)


@mistake(
    "forward",
    "views heads and tokens in the wrong order",
    hint="The projection of one token is num_heads pieces of head_dim: unflatten(-1, (num_heads, head_dim)).",
)
def forward(weights, config, tokens):
    positions = torch.arange(len(tokens))
    x = weights["model.embed_tokens.weight"][tokens]
    for layer_idx in range(config.num_layers):
        layer = f"model.layers.{layer_idx}"
        h = rms_norm(x, weights[f"{layer}.input_layernorm.weight"], config.norm_eps)
        q, k, v = (h @ weights[f"{layer}.self_attn.{part}_proj.weight"].T for part in "qkv")
        q, k, v = (part.unflatten(-1, (config.head_dim, -1)).transpose(-1, -2) for part in (q, k, v))
        q, k = rotate(q, positions, config.rope.theta), rotate(k, positions, config.rope.theta)
        x = x + grouped_attention(q, k, v).flatten(-2) @ weights[f"{layer}.self_attn.o_proj.weight"].T
        mlp = [weights[f"{layer}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down")]
        x = feed_forward(x, weights[f"{layer}.post_attention_layernorm.weight"], *mlp, config.norm_eps)
    x = rms_norm(x, weights["model.norm.weight"], config.norm_eps)
    return x @ weights["model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"].T
