"""Wrong solutions of chapter 05 that people write, each with the hint it deserves."""

from __future__ import annotations

from minillm.grading import edited, mistake

# ---- cache_bytes

edited(
    "cache_bytes",
    "forgets V",
    replace={"2 * num_kv_heads * head_dim": "num_kv_heads * head_dim"},
    hint="A cache keeps keys and values.",
)
edited(
    "cache_bytes",
    "counts query heads",
    replace={'config.get("num_key_value_heads", num_heads)': "num_heads"},
    hint="Only KV heads are kept: num_key_value_heads, if the file has it.",
)
edited(
    "cache_bytes",
    "takes head_dim to be hidden_size over heads",
    replace={'config.get("head_dim", config["hidden_size"] // num_heads)': 'config["hidden_size"] // num_heads'},
    hint="The file may say head_dim itself; then it can be anything (Qwen3-32B: 64 heads of 128, hidden size 5120).",
)
edited(
    "cache_bytes",
    "keeps the latent twice, for K and for V",
    replace={
        'config["kv_lora_rank"] + config["qk_rope_head_dim"]': (
            '2 * (config["kv_lora_rank"] + config["qk_rope_head_dim"])'
        )
    },
    hint="Keys and values are both made from the one latent: it is kept once, and so is the rotated key.",
)
edited(
    "cache_bytes",
    "keeps the latent twice and the rotated key once",
    replace={'config["kv_lora_rank"] + config': '2 * config["kv_lora_rank"] + config'},
    hint="There is no second latent for V: keys and values are both made from the one.",
)
edited(
    "cache_bytes",
    "forgets the rotated key beside the latent",
    replace={' + config["qk_rope_head_dim"]': ""},
    hint="Positions can't be read off the latent: qk_rope_head_dim numbers of a rotated key are kept beside it.",
)
edited(
    "cache_bytes",
    "keeps full heads although there is a latent",
    replace={'if "kv_lora_rank" in config': "if False"},
    hint="With latent attention no head is kept: kv_lora_rank + qk_rope_head_dim numbers a token and layer are all.",
)
edited(
    "cache_bytes",
    "counts one layer",
    replace={'config["num_hidden_layers"] * ': ""},
    hint="Every layer keeps its own keys and values.",
)

# ---- product_on_roof

edited(
    "product_on_roof",
    "counts a multiply-add as one FLOP",
    replace={"2 * num_rows * in_features": "num_rows * in_features"},
    hint="One multiplication and one addition: 2 FLOPs for each weight and row.",
)
edited(
    "product_on_roof",
    "counts the bytes of the weights only",
    replace={"activations * number_bits + in_features": "in_features"},
    hint="Inputs are read and results written: with many rows they are most of the bytes.",
)
edited(
    "product_on_roof",
    "forgets that results are written",
    replace={"num_rows * (in_features + out_features)": "num_rows * in_features"},
    hint="num_rows · out_features results go back to memory.",
)
edited(
    "product_on_roof",
    "quantizes the activations, too",
    replace={"activations * number_bits": "activations * weight_bits"},
    hint="weight_bits is about weights. Inputs and results have number_bits.",
)
edited(
    "product_on_roof",
    "puts no roof on it",
    replace={"min(card.flops_per_s, intensity * card.bytes_per_s)": "intensity * card.bytes_per_s"},
    hint="No intensity makes the units faster than flops_per_s.",
)
edited(
    "product_on_roof",
    "gives bytes/s for FLOP/s on the slope",
    replace={"min(card.flops_per_s, intensity * card.bytes_per_s)": "min(card.flops_per_s, card.bytes_per_s)"},
    hint="Every byte that arrives brings `intensity` FLOPs: multiply.",
)
edited(
    "product_on_roof",
    "calls the ridge bound by memory",
    replace={">= num_bytes / card.bytes_per_s": "> num_bytes / card.bytes_per_s"},
    hint='"At least as long" includes equally long.',
)
edited(
    "product_on_roof",
    "compares the intensity with 1",
    replace={"flops / card.flops_per_s >= num_bytes / card.bytes_per_s": "intensity >= 1"},
    hint="Whether an intensity is high depends on the card: compare with its ridge, flops_per_s / bytes_per_s.",
)

# ---- block_costs

edited(
    "block_costs",
    "counts a multiply-add of a linear layer as one FLOP",
    replace={"Cost(2 * num_tokens * num_in * num_out,": "Cost(num_tokens * num_in * num_out,"},
    hint="Multiplying and adding are 2 FLOPs.",
)
edited(
    "block_costs",
    "reads the weights once for each token",
    replace={
        "num_in * num_out + num_tokens * (num_in + num_out)": "num_tokens * (num_in * num_out + num_in + num_out)"
    },
    hint="That is what batching saves: a weight is read once and used for every row.",
)
edited(
    "block_costs",
    "reads the input and writes the result of one token only",
    replace={"num_in * num_out + num_tokens * (num_in + num_out)": "num_in * num_out + num_in + num_out"},
    hint="Weights are read once for all tokens; every token has an input and a result of its own.",
)
edited(
    "block_costs",
    "counts pairs that the mask hides",
    replace={"sum(range(seq_len - query_len + 1, seq_len + 1))": "query_len * seq_len"},
    hint="A token sees itself and what is before it: of n tokens, n (n + 1) / 2 pairs.",
)
edited(
    "block_costs",
    "lets no token see itself",
    replace={"sum(range(seq_len - query_len + 1, seq_len + 1))": "sum(range(seq_len - query_len, seq_len))"},
    hint="A token sees the earlier ones *and itself*: of q new tokens the last sees seq_len, not seq_len - 1.",
)
edited(
    "block_costs",
    "lets new tokens see new tokens only",
    replace={"sum(range(seq_len - query_len + 1, seq_len + 1))": "sum(range(1, query_len + 1))"},
    hint="A new token sees the earlier ones, too: the first of the new ones sees seq_len - query_len + 1.",
)
edited(
    "block_costs",
    "multiplies with KV heads only",
    replace={"Cost(2 * 2 * num_pairs * q_size": "Cost(2 * 2 * num_pairs * kv_size"},
    hint="Sharing a KV head saves bytes. Every query head still computes its own scores.",
)
edited(
    "block_costs",
    "forgets the weighted sum of the values",
    replace={"Cost(2 * 2 * num_pairs": "Cost(2 * num_pairs"},
    hint="Scores are half of the work: adding up the values is as much again.",
)
edited(
    "block_costs",
    "reads keys and values for every query head",
    replace={"kv_numbers = 2 * kv_size": "kv_numbers = 2 * q_size"},
    hint="A KV head is read once for the whole group of query heads that share it.",
)
edited(
    "block_costs",
    "reads the cache for every query head",
    replace={
        "2 * kv_size * (num_tokens + batch_size * seq_len)": "2 * (kv_size * num_tokens + q_size * batch_size * seq_len)"
    },
    hint="Writing is right. A KV head is read once, too, for the whole group of query heads that share it.",
)
edited(
    "block_costs",
    "forgets to write the new keys and values",
    replace={"kv_size * (num_tokens + batch_size * seq_len)": "kv_size * batch_size * seq_len"},
    hint="The new tokens' keys and values go into the cache first.",
)
edited(
    "block_costs",
    "reads the cache once for every new token",
    replace={"num_tokens + batch_size * seq_len": "num_tokens + num_tokens * seq_len"},
    hint="The new tokens of a sequence read its cache together, once.",
)
edited(
    "block_costs",
    "lets a batch share one cache",
    replace={"num_tokens + batch_size * seq_len": "num_tokens + seq_len"},
    hint="Each sequence has its own past.",
)
edited(
    "block_costs",
    "forgets the output of attention",
    replace={"2 * num_tokens * q_size": "num_tokens * q_size"},
    hint="Queries are read and results of the same size are written.",
)
edited(
    "block_costs",
    "makes wq and wo squares",
    replace={
        '"wq": linear(hidden, q_size)': '"wq": linear(hidden, hidden)',
        '"wo": linear(q_size, hidden)': '"wo": linear(hidden, hidden)',
    },
    hint="num_heads · head_dim need not be hidden_size.",
)
edited(
    "block_costs",
    "gives K and V as many heads as Q",
    replace={
        '"wk": linear(hidden, kv_size)': '"wk": linear(hidden, q_size)',
        '"wv": linear(hidden, kv_size)': '"wv": linear(hidden, q_size)',
    },
    hint="wk and wv make num_kv_heads heads, not num_heads.",
)

# ---- expected_experts


@mistake(
    "expected_experts",
    "lets no two tokens visit the same expert",
    hint="Tokens choose independently, so they meet: count different experts.",
)
def expected_experts(chances, num_tokens):
    return min(len(chances), num_tokens * sum(chances))


@mistake(
    "expected_experts",
    "treats all experts alike",
    hint="Favourites are visited again and again. Take each expert's own chance, then add up.",
)
def expected_experts(chances, num_tokens):  # noqa: F811
    mean = sum(chances) / len(chances)
    return len(chances) * (1 - (1 - mean) ** num_tokens)


edited(
    "expected_experts",
    "counts the experts that stay idle",
    replace={"1 - (1 - chance) ** num_tokens": "(1 - chance) ** num_tokens"},
    hint="(1 - chance) ** num_tokens is the probability that nobody comes.",
)


@mistake(
    "expected_experts",
    "takes a token's experts for independent draws",
    hint="One token's experts are all different: a token visits expert i with probability chances[i], not twice.",
)
def expected_experts(chances, num_tokens):  # noqa: F811
    each = sum(chances)
    return sum(1 - (1 - chance / each) ** (each * num_tokens) for chance in chances)


edited(
    "expected_experts",
    "counts experts that every token visits",
    replace={"1 - (1 - chance) ** num_tokens": "chance ** num_tokens"},
    hint="One visit is enough: 1 minus the probability of none.",
)

# ---- cost_sheet


@mistake(
    "cost_sheet",
    "six mistakes, as found",
    hint="GiB; K and V; KV heads; whole heads; weights once for all; two FLOPs a weight. Take them one at a time.",
)
def cost_sheet(model, card, batch_size, seq_len, tp_size):
    return hasty_sheet(model, card, batch_size, seq_len, tp_size)  # noqa: F821


edited(
    "cost_sheet",
    "gives GB for GiB",
    replace={"/ 2**30": "/ 1e9"},
    hint="1 GiB is 2**30 bytes, 7 % more than 1e9.",
)
edited(
    "cost_sheet",
    "forgets V, or the second byte",
    replace={"2 * 2 * batch_size * seq_len": "2 * batch_size * seq_len"},
    hint="K and V, of 2 bytes a number: 4 bytes for each number of a head.",
)
edited(
    "cost_sheet",
    "counts query heads",
    replace={"model.num_kv_heads // tp_size": "model.num_heads // tp_size"},
    hint="The cache holds KV heads. Llama-3-8B has 8 of them for 32 heads.",
)
edited(
    "cost_sheet",
    "lets a card hold a fraction of a head",
    replace={"max(1, model.num_kv_heads // tp_size)": "model.num_kv_heads / tp_size"},
    hint="8 KV heads on 16 cards are not half a head each: every card keeps a whole one.",
)
edited(
    "cost_sheet",
    "rounds the KV heads of a card down to none",
    replace={"max(1, model.num_kv_heads // tp_size)": "model.num_kv_heads // tp_size"},
    hint="8 // 16 is 0. With more cards than heads, heads are copied: at least one a card.",
)
edited(
    "cost_sheet",
    "reads the weights once for each sequence",
    replace={"memory_s = (2 * weights + kv_bytes)": "memory_s = (2 * batch_size * weights + kv_bytes)"},
    hint="The whole batch shares one reading of the weights: that is what a batch is for.",
)
edited(
    "cost_sheet",
    "counts a multiply-add as one FLOP",
    replace={"batch_size * 2 * weights / card.flops_per_s": "batch_size * weights / card.flops_per_s"},
    hint="Each weight is multiplied and added: 2 FLOPs.",
)
edited(
    "cost_sheet",
    "adds memory time and compute time",
    replace={"max(memory_s, compute_s)": "memory_s + compute_s"},
    hint="Reading and computing overlap: the step takes as long as the slower of the two.",
)
edited(
    "cost_sheet",
    "gives the tokens of one sequence",
    replace={"batch_size / step_s)": "1 / step_s)"},
    hint="Each of the batch's sequences gets a token from the step.",
)

# ---- plan_decode

edited(
    "plan_decode",
    "forgets that the output fills memory, too",
    replace={"seq_len = prompt_len + output_len": "seq_len = prompt_len"},
    hint="At the end a request holds prompt_len + output_len tokens.",
)
edited(
    "plan_decode",
    "times a step at the start of the output",
    replace={"block_costs(model, batch_size, 1, seq_len)": "block_costs(model, batch_size, 1, prompt_len)"},
    hint="The step to be timed is the last: its sequences hold prompt_len + output_len tokens.",
)
edited(
    "plan_decode",
    "fills all of the memory",
    replace={"0.9 * card.memory_bytes": "card.memory_bytes"},
    hint="Only 0.9 of the memory may be planned with; the rest is the runtime's.",
)
edited(
    "plan_decode",
    "forgets the embedding table",
    replace={"(model.num_weights + model.vocab_size * model.hidden_size)": "model.num_weights"},
    hint="The embedding table is read a row at a time, but it is stored in full.",
)
edited(
    "plan_decode",
    "forgets the output head",
    replace={"+ times[-1]\n": "+ 0\n"},
    hint="Every step ends with a product of vocab_size columns.",
)
edited(
    "plan_decode",
    "forgets that there are layers",
    replace={"model.num_layers * sum(times[:-1])": "sum(times[:-1])"},
    hint="block_costs is about one block; the model has num_layers of them.",
)
edited(
    "plan_decode",
    "takes the slower of all FLOPs and all bytes",
    replace={
        "        return model.num_layers * sum(times[:-1]) + times[-1]": (
            "        costs = [*block] * model.num_layers + [head]\n"
            "        flops, num_bytes = (sum(column) for column in zip(*costs))\n"
            "        return max(flops / card.flops_per_s, num_bytes / card.bytes_per_s)"
        ),
    },
    hint="Operations run one after another: each has its own maximum. Sum the times, not the costs.",
)
edited(
    "plan_decode",
    "ignores the deadline",
    replace={"if step_s(middle) <= itl_s else": "if True else"},
    hint="A batch that fits can still be too slow: step_s(batch_size) <= itl_s.",
)
edited(
    "plan_decode",
    "stops one short",
    replace={"low, high = 1, most + 1": "low, high = 1, most"},
    hint="`most` requests fit: they may be the answer.",
)
edited(
    "plan_decode",
    "says that the deadline is the limit whenever it is",
    replace={'"memory" if low == most else "itl"': '"itl" if step_s(low + 1) > itl_s else "memory"'},
    hint='limit is about one request more: "memory" if it would not fit, fast or not.',
)
edited(
    "plan_decode",
    "plans nothing where it should refuse",
    replace={'raise ValueError("not even one request fits")': 'return DecodePlan(0, "memory", 0.0, 0.0)'},
    hint="If not even one request fits, raise a ValueError: a batch of 0 is no plan.",
)
edited(
    "plan_decode",
    "serves one request however slow",
    replace={"if step_s(1) > itl_s:": "if False:"},
    hint="If a step with one request is too slow already, raise a ValueError.",
)
