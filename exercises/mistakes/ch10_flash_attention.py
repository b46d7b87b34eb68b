"""Wrong solutions of chapter 10 that people write, each with the hint it deserves."""

from __future__ import annotations

import math

import torch

from minillm.grading import edited, mistake

# ---- online_step

edited(
    "online_step",
    "doesn't repair the sum when the maximum grows",
    replace={"row_sum * repair": "row_sum"},
    hint="row_sum is relative to the old maximum: times exp(row_max - new_max), and then the new weights.",
)
edited(
    "online_step",
    "repairs the sum and forgets the output",
    replace={"acc * repair[:, None]": "acc"},
    hint="acc holds the same old weights as row_sum: it needs the same factor.",
)
edited(
    "online_step",
    "repairs in the wrong direction",
    replace={"torch.exp(row_max - shift)": "torch.where(row_max == -math.inf, 0.0, torch.exp(shift - row_max))"},
    hint="A larger maximum makes old weights smaller: exp(old - new), which is at most 1.",
)
edited(
    "online_step",
    "forgets the old maximum",
    replace={"torch.maximum(row_max, scores.amax(dim=-1))": "scores.amax(dim=-1)"},
    hint="row_max is the largest score of all tiles so far, not of the last one.",
)
edited(
    "online_step",
    "weighs the new tile by its own maximum",
    replace={
        "torch.exp(scores - shift[:, None])": "torch.exp(scores - scores.amax(dim=-1, keepdim=True)).nan_to_num(0.0)"
    },
    hint="All sums are relative to one maximum, the new one: exp(score - new_max) for the tile, too.",
)
edited(
    "online_step",
    "takes -inf from -inf",
    replace={"torch.where(new_max == -math.inf, 0.0, new_max)": "new_max"},
    hint="A row without a visible key so far has the maximum -inf, and -inf - -inf is NaN. Subtract 0 there.",
)
edited(
    "online_step",
    "divides by the sum at every step",
    replace={
        "weights @ values\n": "weights @ values\n    new_acc = new_acc / torch.where(new_sum == 0, 1.0, new_sum)[:, None]\n"
    },
    hint="acc is not divided by anything: the division happens once, after the last tile.",
)
edited(
    "online_step",
    "leaves the maximum out",
    replace={
        "torch.where(new_max == -math.inf, 0.0, new_max)": "torch.zeros_like(new_max)",
        "torch.exp(row_max - shift)": "1.0 + 0.0 * shift",
    },
    hint="exp overflows: of 89 in float32, of 710 in float64. Scores are taken relative to the largest one.",
)
edited(
    "online_step",
    "repairs upside down",
    replace={"torch.exp(row_max - shift)": "torch.exp(shift - row_max)"},
    hint="A larger maximum makes old weights smaller: exp(old - new). exp(new - old) is infinite while old is -inf.",
)
edited(
    "online_step",
    "one maximum for all rows",
    replace={"scores.amax(dim=-1)": "scores.amax().expand_as(row_max)"},
    hint="Each row has a maximum of its own: amax(dim=-1), not amax().",
)
edited(
    "online_step",
    "hidden keys score 0",
    replace={
        "    new_max = torch.maximum(": (
            "    scores = scores.masked_fill(scores == -math.inf, 0.0)\n    new_max = torch.maximum("
        )
    },
    hint="exp(0) is 1: a hidden key would weigh as much as any. Its -inf is right; only -inf - -inf is to be avoided.",
)
edited(
    "online_step",
    "overwrites the sum",
    replace={"row_sum * repair + ": "row_sum.mul_(repair) + "},
    hint="The arguments belong to the caller: row_sum * repair makes a new tensor, *= and mul_ don't.",
)
edited(
    "online_step",
    "overwrites the output",
    replace={"acc * repair[:, None] + ": "acc.mul_(repair[:, None]) + "},
    hint="The arguments belong to the caller: acc * repair makes a new tensor, *= and mul_ don't.",
)
edited(
    "online_step",
    "overwrites the scores",
    replace={
        "torch.exp(scores - shift[:, None])": "scores.sub_(shift[:, None]).exp_()",
    },
    hint="The arguments belong to the caller: torch.exp(scores - …) makes a new tensor, sub_ and exp_ don't.",
)

# ---- merge_two

edited(
    "merge_two",
    "takes the mean of the two",
    replace={
        "(weight_a / total)[:, None] * out_a + (weight_b / total)[:, None] * out_b": "(out_a + out_b) / 2",
    },
    hint="A part with more weight counts for more: weigh each out by exp(its lse).",
)
edited(
    "merge_two",
    "adds without dividing",
    replace={
        "(weight_a / total)[:, None] * out_a + (weight_b / total)[:, None] * out_b": "weight_a[:, None] * out_a + weight_b[:, None] * out_b"
    },
    hint="Both outs were divided by their own sum. The whole is to be divided by the sum of both sums.",
)
edited(
    "merge_two",
    "weighs by lse instead of exp(lse)",
    replace={"torch.exp(lse_a - shift), torch.exp(lse_b - shift)": "lse_a.clamp(min=0), lse_b.clamp(min=0)"},
    hint="lse is a logarithm: the sum of a part's weights is exp(lse).",
)
edited(
    "merge_two",
    "adds the two logarithms",
    replace={
        "torch.where(is_empty, -math.inf, shift + torch.log(total))": "torch.where(is_empty, -math.inf, lse_a + lse_b)"
    },
    hint="The sums add up, not their logs: log(exp(lse_a) + exp(lse_b)).",
)
edited(
    "merge_two",
    "forgets the maximum that it subtracted",
    replace={"shift + torch.log(total)": "torch.log(total)"},
    hint="What was subtracted before exp is added again after log.",
)
edited(
    "merge_two",
    "takes exp of scores as they are",
    replace={"torch.where(is_empty, 0.0, top)": "torch.zeros_like(top)"},
    hint="exp(9000) is infinite. Subtract the larger of the two lse first.",
)
edited(
    "merge_two",
    "gives NaN where neither part has keys",
    replace={"shift = torch.where(is_empty, 0.0, top)": "shift = top"},
    hint="-inf - -inf is NaN. Where both are -inf, subtract 0, divide by 1, and return 0 and -inf.",
)
edited(
    "merge_two",
    "works in base 2",
    replace={
        "torch.exp(lse_a - shift), torch.exp(lse_b - shift)": "torch.exp2(lse_a - shift), torch.exp2(lse_b - shift)",
        "torch.log(total)": "torch.log2(total)",
    },
    hint="lse is a natural logarithm here. Kernels that use exp2 inside convert it before they return.",
)


@mistake(
    "merge_two",
    "takes exp of lse as it is",
    hint="exp(9000) is infinite and exp(-9000) is 0. Subtract the larger lse first, add it after the log.",
)
def merge_two(out_a, lse_a, out_b, lse_b):
    weight_a, weight_b = torch.exp(lse_a), torch.exp(lse_b)
    total = weight_a + weight_b
    return (weight_a / total)[:, None] * out_a + (weight_b / total)[:, None] * out_b, torch.log(total)


@mistake(
    "merge_two",
    "-inf minus -inf",
    hint="Where neither part has keys both lse are -inf, and -inf - -inf is NaN. Subtract 0 there, and divide by 1.",
)
def merge_two(out_a, lse_a, out_b, lse_b):  # noqa: F811
    top = torch.maximum(lse_a, lse_b)
    weight_a, weight_b = torch.exp(lse_a - top), torch.exp(lse_b - top)
    total = weight_a + weight_b
    return (weight_a / total)[:, None] * out_a + (weight_b / total)[:, None] * out_b, top + torch.log(total)


# ---- visited_tiles

edited(
    "visited_tiles",
    "skips the tile that begins at the last query's own key",
    replace={"first_key > last_row + shift:": "first_key >= last_row + shift:"},
    hint="The last query sees the key at its own place, last_row + shift. A tile that begins there is visited.",
)
edited(
    "visited_tiles",
    "one row too far",
    replace={"min(first_row + block_q, q_len) - 1": "min(first_row + block_q, q_len)"},
    hint="The last row of a block is first_row + block_q - 1.",
)
edited(
    "visited_tiles",
    "masks a tile that ends at the first query's own key",
    replace={"last_key <= first_row + shift\n": "last_key < first_row + shift\n"},
    hint="The first query sees the key at its own place, first_row + shift. A tile that ends there is full.",
)
edited(
    "visited_tiles",
    "aligns queries and keys at their beginnings",
    replace={"shift = k_len - q_len": "shift = 0"},
    hint="The last query sees the last key: query i stands at the place of key i + k_len - q_len.",
)
edited(
    "visited_tiles",
    "visits every tile",
    replace={"                break  # beyond": "                boundary += 1\n                continue  # beyond"},
    hint="A tile beyond the diagonal has no visible pair: it is skipped, not masked.",
)
edited(
    "visited_tiles",
    "judges a block of queries by its first one",
    replace={"first_key > last_row + shift:": "first_key > first_row + shift:"},
    hint="The last query of a block sees furthest: a tile is skipped if *it* doesn't see the first key.",
)
edited(
    "visited_tiles",
    "calls a tile full if its last query sees it all",
    replace={"last_key <= first_row + shift\n": "last_key <= last_row + shift\n"},
    hint="In a full tile the first query, too, sees the last key.",
)
edited(
    "visited_tiles",
    "leaves out the smaller tiles at the edges",
    replace={
        "range(0, q_len, block_q)": "range(0, q_len - block_q + 1, block_q)",
        "range(0, k_len, block_k)": "range(0, k_len - block_k + 1, block_k)",
    },
    hint="Lengths that no block divides leave smaller tiles at the bottom and on the right. They count.",
)
edited(
    "visited_tiles",
    "takes the last tiles for whole ones",
    replace={
        "min(first_row + block_q, q_len) - 1": "first_row + block_q - 1",
        "min(first_key + block_k, k_len) - 1": "first_key + block_k - 1",
    },
    hint="The last row of the last block is q_len - 1, the last key k_len - 1.",
)
edited(
    "visited_tiles",
    "forgets the window",
    replace={"    shift = k_len - q_len\n": "    shift = k_len - q_len\n    window = None\n"},
    hint="With a window, tiles far below the diagonal are skipped, too.",
)
edited(
    "visited_tiles",
    "a window of one key more",
    replace={
        "    shift = k_len - q_len\n": "    shift = k_len - q_len\n    window = None if window is None else window + 1\n"
    },
    hint="The window counts the key at the query's own place: query i sees i + shift - window + 1 … i + shift.",
)
edited(
    "visited_tiles",
    "masks below the diagonal, not at the window's edge",
    replace={" and sees_first:": ":"},
    hint="The window has an edge as well: where the last query no longer sees the first key, a mask is needed.",
)

# ---- padded_flash

edited(
    "padded_flash",
    "the draft as it was",
    replace={
        "    out = torch.zeros(q.shape[0], v.shape[1], dtype=q.dtype)\n": (
            "    return hasty_padded_flash(q, k, v, is_key, block_q=block_q, block_k=block_k)\n"
            "    out = torch.zeros(q.shape[0], v.shape[1], dtype=q.dtype)\n"
        )
    },
    hint="Start with keys whose largest score comes first: whose maximum are the weights relative to?",
)
edited(
    "padded_flash",
    "padding scores 0",
    replace={"scores.masked_fill(~is_key[keys], -math.inf)": "scores * is_key[keys]"},
    hint="exp(0) is 1: a score of 0 weighs as much as any ordinary one. Nothing weighs exp(-inf).",
)
edited(
    "padded_flash",
    "padding scores 0, with its values",
    replace={
        "scores.masked_fill(~is_key[keys], -math.inf)": "scores * is_key[keys]",
        "v[keys].masked_fill(~is_key[keys, None], 0.0)": "v[keys]",
    },
    hint="exp(0) is 1: a score of 0 weighs as much as any ordinary one. A hidden key scores -inf: masked_fill.",
)
edited(
    "padded_flash",
    "0 times NaN",
    replace={"v[keys].masked_fill(~is_key[keys, None], 0.0)": "v[keys]"},
    hint="A weight of 0 silences any number but inf and NaN: put 0 into the rows of v that are padding.",
)
edited(
    "padded_flash",
    "the weights of a tile are relative to its own maximum",
    replace={
        "            weights = torch.exp(scores - shift)": (
            "            tile_max = scores.amax(dim=1, keepdim=True)\n"
            "            weights = torch.exp(scores - torch.where(tile_max == -math.inf, 0.0, tile_max))"
        )
    },
    hint="If an earlier tile had a larger score, this tile's weights are too large by exp(new_max - tile_max).",
)
edited(
    "padded_flash",
    "the running maximum is the last tile's",
    replace={"row_max[rows] = new_max": "row_max[rows] = scores.amax(dim=1, keepdim=True)"},
    hint="The sums are relative to new_max: that is the number to remember.",
)
edited(
    "padded_flash",
    "lse in base 2",
    replace={"torch.log(row_sum)": "torch.log2(row_sum)"},
    hint="row_max is in nats, and so must the log be: torch.log.",
)
edited(
    "padded_flash",
    "-inf minus -inf",
    replace={"torch.where(new_max == -math.inf, 0.0, new_max)": "new_max"},
    hint="A first tile of padding leaves the maximum at -inf. exp(-inf - -inf) is NaN: subtract 0 there.",
)
edited(
    "padded_flash",
    "0 divided by 0 without keys",
    replace={"torch.where(new_sum == 0, 1.0, new_sum)": "new_sum"},
    hint="A row that has seen no key yet has the sum 0: divide by 1 there.",
)
edited(
    "padded_flash",
    "forgets to undo the last division",
    replace={"out[rows] * row_sum[rows] * repair": "out[rows] * repair"},
    hint="Version 1 keeps O divided. Before the next tile is added, O is multiplied by the old sum again.",
)


@mistake(
    "padded_flash",
    "the whole score matrix at once",
    hint="q @ k.T has q_len · k_len numbers. The point is that only a tile of it ever exists.",
)
def padded_flash(q, k, v, is_key, *, block_q, block_k):
    scores = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(~is_key, -math.inf)
    values = v.masked_fill(~is_key[:, None], 0.0)
    return torch.softmax(scores, dim=1).nan_to_num(0.0) @ values, torch.logsumexp(scores, dim=1)


# ---- flash_on_meter


@mistake(
    "flash_on_meter",
    "version 1: K and V outside, O rewritten",
    hint="One program for each block of q, which walks over k and v: out stays on the chip until it is finished.",
)
def flash_on_meter(meter, q, k, v, out, *, block_q, block_k, causal):
    (q_len, d), k_len = q.shape, k.shape[0]
    columns = {"sum": meter.empty("sum", (q_len, 1)), "max": meter.empty("max", (q_len, 1))}
    with meter.kernel("start") as kernel:
        for i in range(0, q_len, block_q):
            with kernel.program(i) as sram:
                rows = out[i : i + block_q].shape[0]
                sram.store(sram.zeros(rows, d), out[i : i + block_q])
                sram.store(sram.zeros(rows, 1), columns["sum"][i : i + block_q])
                sram.store(sram.full((rows, 1), -math.inf), columns["max"][i : i + block_q])
    with meter.kernel("flash") as kernel, kernel.program(0) as sram:
        for j in range(0, k_len, block_k):
            with sram.scope():
                k_tile, v_tile = sram.load(k[j : j + block_k]), sram.load(v[j : j + block_k])
                keys = k_tile.shape[0]
                for i in range(0, q_len, block_q):
                    if causal and j > i + block_q - 1:
                        continue
                    with sram.scope():
                        places = [x[i : i + block_q] for x in (out, columns["sum"], columns["max"])]
                        q_tile = sram.load(q[i : i + block_q])
                        scores = q_tile @ k_tile.T
                        rows = scores.shape[0]
                        sram.free(q_tile)
                        acc, row_sum, row_max = (sram.load(place) for place in places)
                        scores *= 1 / math.sqrt(d)
                        if causal:
                            hidden = torch.arange(j, j + keys)[None, :] > torch.arange(i, i + rows)[:, None]
                            scores.masked_fill_(hidden, -math.inf)
                        new_max = scores.row_max()
                        new_max.maximum_(row_max)
                        row_max -= new_max
                        row_max.exp_()
                        scores -= new_max
                        scores.exp_()
                        row_sum *= row_max
                        acc *= row_sum
                        row_sum += scores.row_sum()
                        sram.matmul(scores, v_tile, into=acc)
                        acc /= row_sum
                        for tile, place in zip((acc, row_sum, new_max), places, strict=True):
                            sram.store(tile, place)
    return meter.total


@mistake(
    "flash_on_meter",
    "the scores go to HBM and back",
    hint="A tile of scores is used where it is made: softmax step and product follow in the same scope.",
)
def flash_on_meter(meter, q, k, v, out, *, block_q, block_k, causal):  # noqa: F811
    (q_len, d), k_len = q.shape, k.shape[0]
    matrix = meter.empty("scores", (q_len, k_len))
    with meter.kernel("scores") as kernel:
        for i in range(0, q_len, block_q):
            for j in range(0, k_len, block_k):
                with kernel.program(i, j) as sram:
                    tile = sram.load(q[i : i + block_q]) @ sram.load(k[j : j + block_k]).T
                    tile *= 1 / math.sqrt(d)
                    if causal:
                        rows, keys = tile.shape
                        hidden = torch.arange(j, j + keys)[None, :] > torch.arange(i, i + rows)[:, None]
                        tile.masked_fill_(hidden, -math.inf)
                    sram.store(tile, matrix[i : i + block_q, j : j + block_k])
    with meter.kernel("flash") as kernel:
        for i in range(0, q_len, block_q):
            with kernel.program(i) as sram:
                acc = sram.zeros(out[i : i + block_q].shape)
                row_sum, row_max = sram.zeros(acc.shape[0], 1), sram.full((acc.shape[0], 1), -math.inf)
                for j in range(0, k_len, block_k):
                    with sram.scope():
                        scores = sram.load(matrix[i : i + block_q, j : j + block_k])
                        new_max = scores.row_max()
                        new_max.maximum_(row_max)
                        row_max -= new_max
                        row_max.exp_()
                        scores -= new_max
                        scores.exp_()
                        row_sum *= row_max
                        row_sum += scores.row_sum()
                        acc *= row_max
                        sram.matmul(scores, sram.load(v[j : j + block_k]), into=acc)
                        row_max.copy_(new_max)
                acc /= row_sum
                sram.store(acc, out[i : i + block_q])
    return meter.total


edited(
    "flash_on_meter",
    "refused by the meter, mostly because SRAM is full",
    replace={"scores *= 1 / math.sqrt(d)": "scores = scores * (1 / math.sqrt(d))"},
    hint=(
        "Read the list after 'held'. Two blocks of k or v: load them inside `with sram.scope()`. matmul beside exp, "
        "mul or sub: two tiles of scores, so work in place. A tile as wide as all keys: walk over k in blocks."
    ),
)
edited(
    "flash_on_meter",
    "starts the maximum at 0",
    replace={"sram.full((rows, 1), -math.inf)": "sram.zeros(rows, 1)"},
    hint="Where all scores of a row are very negative, exp(score - 0) is 0, and so is the sum. Start at -inf.",
)
edited(
    "flash_on_meter",
    "masks every block",
    replace={"if causal and j + keys - 1 > i:": "if causal:"},
    hint="A block whose last key the program's first row sees is full: it needs no mask.",
)
edited(
    "flash_on_meter",
    "loads q again for every block of keys",
    replace={
        "                q_tile = sram.load(q[i : i + block_q])\n                rows = q_tile.shape[0]\n": (
            "                rows = q[i : i + block_q].shape[0]\n"
        ),
        "                    with sram.scope():\n": (
            "                    with sram.scope():\n                        q_tile = sram.load(q[i : i + block_q])\n"
        ),
    },
    hint="The rows of q stay on the chip while k and v pass: load them outside of the inner loop.",
)
edited(
    "flash_on_meter",
    "forgets to scale",
    replace={"scores *= 1 / math.sqrt(d)": "scores *= 1.0"},
    hint="Scores are q · k / sqrt(d).",
)
edited(
    "flash_on_meter",
    "forgets to repair the output",
    replace={"acc *= row_max": "acc *= 1.0"},
    hint="When the maximum grows, acc is off by the same factor as row_sum.",
)
edited(
    "flash_on_meter",
    "forgets the last division",
    replace={"                acc /= row_sum\n": ""},
    hint="acc is the weighted sum of values: divide by the sum of weights before it is stored.",
)
edited(
    "flash_on_meter",
    "keeps the repair where the maximum should stand",
    replace={"                        row_max.copy_(new_max)\n": ""},
    hint="row_max was overwritten with the factor. row_max.copy_(new_max) puts the maximum back for the next step.",
)
edited(
    "flash_on_meter",
    "loads every block and masks",
    replace={"i + rows if causal else k_len": "k_len"},
    hint="Keys beyond the program's last row are seen by none of its queries: the loop ends there.",
)
edited(
    "flash_on_meter",
    "skips, and doesn't mask the diagonal",
    replace={"if causal and j + keys - 1 > i:": "if False:"},
    hint="The block on the diagonal holds pairs that are hidden: masked_fill_ them with -inf before row_max.",
)
edited(
    "flash_on_meter",
    "stops at the program's first row",
    replace={"i + rows if causal": "i + 1 if causal"},
    hint="The last query of the block sees furthest: keys 0 … i + rows - 1.",
)
edited(
    "flash_on_meter",
    "leaves the last, smaller blocks out",
    replace={"range(0, stop, block_k)": "range(0, max(1, stop - block_k + 1), block_k)"},
    hint="range(0, stop, block_k) reaches the last keys; slices end at the edge.",
)

# ---- flash_backward

edited(
    "flash_backward",
    "forgets delta",
    replace={"(d_out[rows] @ v[keys].T - delta[rows])": "(d_out[rows] @ v[keys].T)"},
    hint="A weight that grows takes from the others of its row: dS = P · (dP - delta).",
)
edited(
    "flash_backward",
    "delta of the tile instead of the row",
    replace={
        "            d_scores = weights * (d_out[rows] @ v[keys].T - delta[rows]) * scale": (
            "            d_weights = d_out[rows] @ v[keys].T\n"
            "            d_scores = weights * (d_weights - (weights * d_weights).sum(dim=1, keepdim=True)) * scale"
        )
    },
    hint="The sum of P · dP runs over all keys of a row, of which the tile has a few. rowsum(d_out · out) is that sum.",
)
edited(
    "flash_backward",
    "forgets the scale in the gradients",
    replace={"- delta[rows]) * scale": "- delta[rows])"},
    hint="scores = q · k · scale: dq and dk get the factor, too.",
)
edited(
    "flash_backward",
    "forgets the scale in dk",
    replace={"dk[keys] += d_scores.T @ q[rows]": "dk[keys] += d_scores.T @ q[rows] / scale"},
    hint="scores = q · k · scale: the factor belongs to dq and to dk.",
)
edited(
    "flash_backward",
    "forgets the scale in dq",
    replace={"dq[rows] += d_scores @ k[keys]": "dq[rows] += d_scores @ k[keys] / scale"},
    hint="scores = q · k · scale: the factor belongs to dk and to dq.",
)
edited(
    "flash_backward",
    "scales twice",
    replace={"dk[keys] += d_scores.T @ q[rows]": "dk[keys] += d_scores.T @ q[rows] * scale"},
    hint="The factor belongs into d_scores once, or into dq and dk once each.",
)
edited(
    "flash_backward",
    "softmax of the tile instead of exp(scores - lse)",
    replace={
        "torch.exp(q[rows] @ k[keys].T * scale - lse[rows, None])": "torch.softmax(q[rows] @ k[keys].T * scale, dim=1)"
    },
    hint="A weight is exp(score - lse), with the lse of the whole row; a tile's own softmax sums to 1 over the tile.",
)
edited(
    "flash_backward",
    "takes lse for a base-2 logarithm",
    replace={"torch.exp(q[rows]": "torch.exp2(q[rows]"},
    hint="lse is natural: exp, not exp2.",
)
edited(
    "flash_backward",
    "dv from the gradient of the weights",
    replace={
        "dv[keys] += weights.T @ d_out[rows]": "dv[keys] += (weights * (d_out[rows] @ v[keys].T)).T @ d_out[rows]"
    },
    hint="out = P V, so dV = Pᵀ dO, with the weights themselves.",
)
edited(
    "flash_backward",
    "the last block of keys overwrites dq",
    replace={"dq[rows] += d_scores": "dq[rows] = d_scores"},
    hint="Every block of keys adds to dq.",
)
edited(
    "flash_backward",
    "the last block of queries overwrites dk and dv",
    replace={"dv[keys] += weights": "dv[keys] = weights", "dk[keys] += d_scores": "dk[keys] = d_scores"},
    hint="Every block of queries adds to dk and dv.",
)
edited(
    "flash_backward",
    "no mask on the diagonal",
    replace={"if causal and keys.stop - 1 > i + shift:": "if False:"},
    hint="exp(score - lse) of a hidden key isn't 0 by itself: set the weight to 0.",
)
edited(
    "flash_backward",
    "aligns queries and keys at their beginnings",
    replace={"1 / math.sqrt(q.shape[1]), len(k) - len(q)": "1 / math.sqrt(q.shape[1]), 0"},
    hint="Query i stands at the place of key i + k_len - q_len.",
)


@mistake(
    "flash_backward",
    "the whole matrix of weights at once",
    hint="The weights of all pairs are q_len · k_len numbers. Make a tile of them, use it, forget it.",
)
def flash_backward(q, k, v, out, lse, d_out, *, block_q, block_k, causal):
    scale = 1 / math.sqrt(q.shape[1])
    weights = torch.exp(q @ k.T * scale - lse[:, None])
    if causal:
        weights = weights.tril(len(k) - len(q))
    d_scores = weights * (d_out @ v.T - (d_out * out).sum(dim=1, keepdim=True)) * scale
    return d_scores @ k, d_scores.T @ q, weights.T @ d_out
