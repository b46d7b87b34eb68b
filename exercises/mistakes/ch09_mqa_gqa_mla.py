"""Wrong solutions of chapter 09 that people write, each with the hint it deserves."""

from __future__ import annotations

from itertools import combinations

import torch

from minillm.grading import edited, mistake

# ---- decode_cost

edited(
    "decode_cost",
    "lets KV heads do the arithmetic",
    replace={"2 * num_keys * num_heads": "2 * num_keys * num_kv_heads"},
    hint="Sharing saves bytes and no FLOP: every query head still multiplies with the key of its group.",
)
edited(
    "decode_cost",
    "reads K and V once for every query head",
    replace={"num_keys * num_kv_heads * numbers": "num_keys * num_heads * numbers"},
    hint="The cache holds num_kv_heads heads, and each is read once, for its whole group.",
)
edited(
    "decode_cost",
    "reads the latent twice",
    replace={"k_head_dim if v_from_k else k_head_dim + v_head_dim": "k_head_dim + v_head_dim"},
    hint="With v_from_k the value lies inside the key: what was read as a key needn't be read again.",
)
edited(
    "decode_cost",
    "forgets the weighted sum",
    replace={"num_heads * (k_head_dim + v_head_dim)": "num_heads * k_head_dim"},
    hint="Scores multiply with keys; then the values are mixed: v_head_dim more multiplications a head and key.",
)
edited(
    "decode_cost",
    "counts a multiplication and its addition as one FLOP",
    replace={"2 * num_keys * num_heads": "num_keys * num_heads"},
    hint="Two FLOPs for a multiplication and its addition.",
)
# ---- heads_of_rank

edited(
    "heads_of_rank",
    "deals KV heads out in turn",
    replace={
        "range(query_heads[0] // group, query_heads[-1] // group + 1)": (
            "range(tp_rank * num_kv_heads // tp_size, (tp_rank + 1) * num_kv_heads // tp_size)"
            " if num_kv_heads >= tp_size else range(tp_rank % num_kv_heads, tp_rank % num_kv_heads + 1)"
        )
    },
    hint="A device needs the KV heads that its own query heads read: 2 of them on 4 devices are 0 0 1 1, not 0 1 0 1.",
)
edited(
    "heads_of_rank",
    "gives every device all KV heads",
    replace={"range(query_heads[0] // group, query_heads[-1] // group + 1)": "range(num_kv_heads)"},
    hint="KV heads are divided like query heads, as long as there are enough: the cache is what must get smaller.",
)
edited(
    "heads_of_rank",
    "gives devices nothing when KV heads run out",
    replace={
        "range(query_heads[0] // group, query_heads[-1] // group + 1)": (
            "range(tp_rank * (num_kv_heads // tp_size), (tp_rank + 1) * (num_kv_heads // tp_size))"
        )
    },
    hint="num_kv_heads // tp_size is 0 when devices outnumber KV heads. Each device still needs one: it is replicated.",
)
edited(
    "heads_of_rank",
    "takes the group from the device's own query heads",
    replace={"group = num_heads // num_kv_heads": "group = max(1, heads_per_device // num_kv_heads)"},
    hint="The group is num_heads // num_kv_heads of the whole model; sharding doesn't change who reads whom.",
)
edited(
    "heads_of_rank",
    "does not refuse groups that are torn",
    replace={" or (num_kv_heads % tp_size and tp_size % num_kv_heads)": ""},
    hint="With 12 heads, 4 KV heads and 3 devices some group would lie on two devices, unevenly: raise ValueError.",
)

edited(
    "heads_of_rank",
    "counts KV heads on past the last",
    replace={
        "range(query_heads[0] // group, query_heads[-1] // group + 1)": (
            "range(tp_rank * max(1, num_kv_heads // tp_size), (tp_rank + 1) * max(1, num_kv_heads // tp_size))"
        )
    },
    hint="With more devices than KV heads several devices hold the same one: 2 of them on 4 devices are 0 0 1 1.",
)
edited(
    "heads_of_rank",
    "numbers the heads of each device from 0",
    replace={
        "return query_heads, range(query_heads[0] // group, query_heads[-1] // group + 1)": (
            "return range(heads_per_device), range(max(1, num_kv_heads // tp_size))"
        )
    },
    hint="A device's own code does count from 0. The task asks which heads of the whole model these are.",
)
edited(
    "heads_of_rank",
    "does not check that the devices divide the query heads",
    replace={
        "num_heads % tp_size or (num_kv_heads % tp_size and tp_size % num_kv_heads)": (
            "num_kv_heads % tp_size and tp_size % num_kv_heads"
        )
    },
    hint="71 query heads on 2 devices leave one over: raise ValueError.",
)

# ---- grouped_decode

edited(
    "grouped_decode",
    "KV heads tiled instead of shared by neighbours",
    replace={
        "q.unflatten(0, (k.shape[1], -1))": "q.unflatten(0, (-1, k.shape[1])).transpose(0, 1)",
        "out.flatten(0, 1)": "out.transpose(0, 1).flatten(0, 1)",
    },
    hint="Query heads that share a KV head are neighbours: 0 0 1 1, not 0 1 0 1.",
)
edited(
    "grouped_decode",
    "repeats K and V for every query head",
    replace={
        "grouped = q.unflatten(0, (k.shape[1], -1))  # (num_kv_heads, group, head_dim)\n": (
            "group = len(q) // k.shape[1]\n"
            "    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))\n"
            "    grouped = q.unflatten(0, (k.shape[1], -1))\n"
        )
    },
    hint="repeat_interleave writes the cache of multi-head attention, every step. Give q a group axis instead.",
)
edited(
    "grouped_decode",
    "softmax over the group",
    replace={"softmax(dim=-1)": "softmax(dim=1)"},
    hint="A head's weights over the keys sum to 1; heads of a group don't compete.",
)
edited(
    "grouped_decode",
    "scales by 1/sqrt(head_dim) whatever the caller says",
    replace={" * softmax_scale": " / q.shape[-1] ** 0.5"},
    hint="softmax_scale is an argument: with latent attention it isn't 1/sqrt of any width you see here.",
)
edited(
    "grouped_decode",
    "averages the queries of a group",
    replace={
        "scores = torch.einsum": (
            "grouped = grouped.mean(dim=1, keepdim=True).expand_as(grouped)\n    scores = torch.einsum"
        )
    },
    hint="Only K and V are shared. Each query head keeps its own query, and gets its own output.",
)

edited(
    "grouped_decode",
    "leaves softmax_scale out",
    replace={" * softmax_scale": ""},
    hint="The scores are multiplied by softmax_scale before the softmax.",
)
edited(
    "grouped_decode",
    "puts the outputs in another order than the queries",
    replace={"out.flatten(0, 1)": "out.transpose(0, 1).flatten(0, 1)"},
    hint="Outputs stand where their queries stood: KV head first, then the place in the group.",
)

# ---- pool_heads

edited(
    "pool_heads",
    "pools heads that are far apart",
    replace={
        "weight.unflatten(0, (num_kv_heads, -1, head_dim))": (
            "weight.unflatten(0, (-1, num_kv_heads, head_dim)).transpose(0, 1)"
        )
    },
    hint="Neighbours become one: query heads 0 … keep reading the first KV head, so it must come from the first heads.",
)
edited(
    "pool_heads",
    "averages the rows inside of a head",
    replace={"(num_kv_heads, -1, head_dim)": "(num_kv_heads, head_dim, -1)", "mean(dim=1)": "mean(dim=2)"},
    hint="Rows of one head lie side by side: the axes are new head, head in its group, row in the head, in this order.",
)
edited(
    "pool_heads",
    "adds instead of averaging",
    replace={".mean(dim=1)": ".sum(dim=1)"},
    hint="The mean, so that a group of equal heads stays what it was.",
)
edited(
    "pool_heads",
    "keeps the first head of each group",
    replace={".mean(dim=1)": "[:, 0]"},
    hint="Choosing one head throws the others away; the task asks for their mean.",
)
edited(
    "pool_heads",
    "gives a bias a second axis",
    replace={".flatten(0, 1)": ".reshape(num_kv_heads * head_dim, -1)"},
    hint="A bias has one axis, before and after. Flatten the first axes, and leave the others as they are.",
)
edited(
    "pool_heads",
    "does not check the division",
    replace={
        "    if old_num_kv_heads % num_kv_heads:\n": "    if False:\n",
        "weight.unflatten(0, (num_kv_heads, -1, head_dim))": (
            "weight[: old_num_kv_heads // num_kv_heads * num_kv_heads * head_dim]"
            ".unflatten(0, (num_kv_heads, -1, head_dim))"
        ),
    },
    hint="4 heads don't make 3 equal groups: raise ValueError rather than dropping a head.",
)

# ---- latent_step

edited(
    "latent_step",
    "normalises the shared key with the latent",
    replace={
        "(w.w_down @ x).split(": "unit_rms(w.w_down @ x).split(",
        "unit_rms(latent) * w.norm": "latent * w.norm",
    },
    hint="The norm is the latent's: split first, then normalise its kv_lora_rank numbers alone.",
)
edited(
    "latent_step",
    "stores the shared key unrotated",
    replace={"rotate_to(k_rope[None], position)[0]": "k_rope"},
    hint="Keys are cached as they will be multiplied: rotated, each to its own position, while that is still known.",
)
edited(
    "latent_step",
    "takes the values for keys and the keys for values",
    replace={"k_nope, v = expanded.split((w.nope_dim, w.v_dim)": "v, k_nope = expanded.split((w.v_dim, w.nope_dim)"},
    hint="w_up holds W_UK over W_UV: the first nope_dim rows of a head make its key, the last v_dim its value.",
)
edited(
    "latent_step",
    "scales by the part without position only",
    replace={"(w.nope_dim + w.rope_dim) ** -0.5": "w.nope_dim**-0.5"},
    hint="A query head is nope_dim + rope_dim numbers wide; both parts add to the score.",
)
edited(
    "latent_step",
    "does not rotate the query",
    replace={"rotate_to(q_rope, position) @": "q_rope @"},
    hint="Query and key are both rotated, each to its own position: their product then knows the distance.",
)
edited(
    "latent_step",
    "forgets the latent's norm",
    replace={"unit_rms(latent) * w.norm": "latent"},
    hint="The latent goes through an RMSNorm with a weight before it is stored.",
)
edited(
    "latent_step",
    "does not let the token see itself",
    replace={
        "cache[:, : w.kv_lora_rank])": "(cache[:-1] if len(cache) > 1 else cache)[:, : w.kv_lora_rank])",
        "cache[:, w.kv_lora_rank :].T": "(cache[:-1] if len(cache) > 1 else cache)[:, w.kv_lora_rank :].T",
    },
    hint="The new token's row is stored first, and attended to like the others.",
)


@mistake(
    "latent_step",
    "is still the draft",
    hint="The draft returned as it is: it has four mistakes.",
)
def latent_step(x, position, cache, w):
    return hasty_latent_step(x, position, cache, w)  # noqa: F821


DRAFT = {  # its four mistakes, by the place that they are in
    "the norm": {
        "(w.w_down @ x).split(": "unit_rms(w.w_down @ x).split(",
        "unit_rms(latent) * w.norm": "latent * w.norm",
    },
    "the cached key": {"rotate_to(k_rope[None], position)[0]": "k_rope"},
    "the use of w_up": {
        "k_nope, v = expanded.split((w.nope_dim, w.v_dim)": "v, k_nope = expanded.split((w.v_dim, w.nope_dim)"
    },
    "the scale": {"(w.nope_dim + w.rope_dim) ** -0.5": "w.nope_dim**-0.5"},
}
for size in (2, 3):
    for places in combinations(DRAFT, size):
        edited(
            "latent_step",
            f"is repaired in part: {' and '.join(places)} are still the draft's",
            replace={old: new for place in places for old, new in DRAFT[place].items()},
            hint=f"{size} of the draft's four mistakes are left. Compare these places with the chapter.",
        )


@mistake(
    "latent_step",
    "turns the shared keys when they are read",
    hint="The output is right, but every step turns the whole cache again. Store each key rotated, once.",
)
def latent_step(x, position, cache, w):  # noqa: F811
    q_nope, q_rope = torch.einsum("hdm,m->hd", w.w_q, x).split((w.nope_dim, w.rope_dim), dim=-1)
    latent, k_rope = (w.w_down @ x).split((w.kv_lora_rank, w.rope_dim))
    cache = torch.cat((cache, torch.cat((unit_rms(latent) * w.norm, k_rope))[None]))  # noqa: F821
    expanded = torch.einsum("hdr,nr->nhd", w.w_up, cache[:, : w.kv_lora_rank])
    k_nope, v = expanded.split((w.nope_dim, w.v_dim), dim=-1)
    keys = [rotate_to(row[None], p)[0] for p, row in enumerate(cache[:, w.kv_lora_rank :])]  # noqa: F821
    scores = torch.einsum("hd,nhd->hn", q_nope, k_nope) + rotate_to(q_rope, position) @ torch.stack(keys).T  # noqa: F821
    weights = (scores * (w.nope_dim + w.rope_dim) ** -0.5).softmax(dim=-1)
    return torch.einsum("mhd,hd->m", w.w_o, torch.einsum("hn,nhd->hd", weights, v)), cache


# ---- absorbed_attention


@mistake(
    "absorbed_attention",
    "expands keys or values, or copies the cache",
    hint="Move W_UK to the query, which is one token, and W_UV behind the weighted sum; and a slice of the cache is a "
    "view: multiply with it as it is. The shape in the message says which of these is missing.",
)
def absorbed_attention(q_nope, q_rope, cache, w_up, softmax_scale):
    nope, rank = q_nope.shape[1], w_up.shape[2]
    per_head = torch.einsum("hdr,nr->nhd", w_up, cache[:, :rank])
    scores = torch.einsum("hd,nhd->hn", q_nope, per_head[..., :nope]) + q_rope @ cache[:, rank:].T
    return torch.einsum("hn,nhd->hd", (scores * softmax_scale).softmax(-1), per_head[..., nope:])


edited(
    "absorbed_attention",
    "leaves the rotated part out of the scores",
    replace={"torch.cat((q_latent, q_rope), dim=-1)": "q_latent", "query @ cache.T": "query @ latents.T"},
    hint="A score has two parts: the latent's, and the one with the rotated key that all heads share.",
)
edited(
    "absorbed_attention",
    "mixes the whole cache rows, rotated keys and all",
    replace={
        'torch.einsum("hr,hdr->hd", weights @ latents, w_uv)': (
            'torch.einsum("hr,hdr->hd", (weights @ cache)[:, -kv_lora_rank:], w_uv)'
        )
    },
    hint="The value is made from the latent: the first kv_lora_rank numbers of a row, and not the last.",
)
edited(
    "absorbed_attention",
    "gives every head the W_UK of head 0",
    replace={'torch.einsum("hd,hdr->hr", q_nope, w_uk)': "q_nope @ w_uk[0]"},
    hint="The latent is shared, W_UK is not: each head's query goes through its own.",
)
edited(
    "absorbed_attention",
    "takes W_UV for W_UK",
    replace={
        "w_uk, w_uv = w_up[:, :nope_dim], w_up[:, nope_dim:]": (
            "w_uk, w_uv = w_up[:, -nope_dim:], w_up[:, : w_up.shape[1] - nope_dim]"
        )
    },
    hint="w_up holds W_UK over W_UV: the first nope_dim rows of a head belong to its key.",
)
edited(
    "absorbed_attention",
    "scales by the width of the absorbed query",
    replace={" * softmax_scale": " / query.shape[1] ** 0.5"},
    hint="Absorbed or not, it is the same function: softmax_scale is that of the expanded heads, and it is given.",
)
edited(
    "absorbed_attention",
    "scales the latent part only",
    replace={
        "(query @ cache.T * softmax_scale)": (
            "(q_latent @ latents.T * softmax_scale + q_rope @ cache[:, kv_lora_rank:].T)"
        )
    },
    hint="The sum of both parts is scaled, not one of them.",
)
