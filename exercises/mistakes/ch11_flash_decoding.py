"""Wrong solutions of chapter 11 that people write, each with the hint it deserves."""

from __future__ import annotations

from minillm.grading import edited, mistake

# ---- choose_splits

edited(
    "choose_splits",
    "counts fractions of waves",
    replace={"waves = math.ceil(units * splits / num_sms)": "waves = units * splits / num_sms"},
    hint="A partly filled wave takes as long as a full one: round up.",
)
edited(
    "choose_splits",
    "forgets the merge",
    replace={" + merging_waves * splits * part_cost": ""},
    hint="The second launch reads the partial results again: part_cost for each split of a unit.",
)
edited(
    "choose_splits",
    "forgets that parts are written",
    replace={"(math.ceil(k_len / splits) + part_cost)": "math.ceil(k_len / splits)"},
    hint="Each program of the first launch writes one partial result: its keys take part_cost more.",
)
edited(
    "choose_splits",
    "prefers more splits when they are as fast",
    replace={"time < best[1]": "time <= best[1]"},
    hint="If several numbers of splits are equally fast, take the fewest.",
)
edited(
    "choose_splits",
    "rounds the keys of a split down",
    replace={"math.ceil(k_len / splits)": "k_len // splits"},
    hint="The longest split decides: ceil(k_len / s) keys.",
)
edited(
    "choose_splits",
    "always splits",
    replace={
        "(1, launch_cost + merging_waves * k_len)": "(1, launch_cost + merging_waves * k_len + 10**9 * (max_splits > 1))"
    },
    hint="One split has no partial results and no second launch: often that is the fastest.",
)
edited(
    "choose_splits",
    "merges all units at once",
    replace={"+ merging_waves * splits": "+ splits"},
    hint="The second launch has a program for each unit, and these run in waves, too.",
)

edited(
    "choose_splits",
    "counts one launch for a split step",
    replace={"2 * launch_cost": "launch_cost"},
    hint="With more than one split there are two launches: the splits, and the merge.",
)
edited(
    "choose_splits",
    "forgets the launch of one split",
    replace={"(1, launch_cost + merging_waves * k_len)": "(1, merging_waves * k_len)"},
    hint="One split is a launch, too: launch_cost once.",
)

# ---- decode_on_meter

edited(
    "decode_on_meter",
    "adds up the parts' outs without weights",
    replace={"                part_out *= weight\n": ""},
    hint="A part's out was divided by the part's own sum. It counts by exp(lse - top).",
)
edited(
    "decode_on_meter",
    "averages the parts",
    replace={
        "                weight -= new_top\n                weight.exp_()\n": "                weight *= 0.0\n                weight += 1.0\n",
        "                total *= top\n                acc *= top\n": "",
    },
    hint="Parts aren't equal: each counts with e^(lse_s - lse).",
)
edited(
    "decode_on_meter",
    "writes the maximum in place of lse",
    replace={
        "                    row_sum.log_()\n                    row_sum += row_max\n": "                    row_sum.copy_(row_max)\n"
    },
    hint="lse is the maximum plus the log of the sum; the maximum alone forgets how many keys there were.",
)
edited(
    "decode_on_meter",
    "forgets the maximum in lse",
    replace={"                    row_sum += row_max\n": ""},
    hint="The sum is relative to the row's maximum in this split: lse = row_max + log(row_sum).",
)
edited(
    "decode_on_meter",
    "doesn't repair when a part with a larger lse arrives",
    replace={"                total *= top\n                acc *= top\n": ""},
    hint="The merge is an online softmax, too: total and acc are relative to the largest lse so far.",
)
edited(
    "decode_on_meter",
    "takes exp(lse) as it is",
    replace={"new_top = weight.maximum(top)": "new_top = weight.maximum(top)\n                new_top *= 0.0"},
    hint="exp of an lse of 800 is infinite. Subtract the largest lse.",
)
edited(
    "decode_on_meter",
    "merges one split as well",
    replace={"len(parts) > 1": "len(parts) > 0"},
    hint="With one split its program stores out itself: no partial results, no second launch.",
)
edited(
    "decode_on_meter",
    "loads q again for each block",
    replace={
        "scores = q_tile @ sram.load(k[block]).T": "q_tile = sram.load(q)\n                        scores = q_tile @ sram.load(k[block]).T"
    },
    hint="q stays on the chip for the whole program: load it once, outside the loop.",
)

edited(
    "decode_on_meter",
    "loads q for each block only",
    replace={
        "                q_tile = sram.load(q)\n": "",
        "scores = q_tile @ sram.load(k[block]).T": "scores = sram.load(q) @ sram.load(k[block]).T",
    },
    hint="q stays on the chip for the whole program: load it once, outside the loop.",
)

# ---- split_decode

edited(
    "split_decode",
    "leaves a lse in base 2",
    replace={
        "    lse = torch.logsumexp(parts, dim=0)\n": "    lse = torch.logsumexp(parts, dim=0)\n    log2 = lse / math.log(2)\n",
        "lse.reshape(q_len, group)": "log2.reshape(q_len, group)",
    },
    hint="lse is a natural logarithm here. Kernels with exp2 inside convert it before they return.",
)
edited(
    "split_decode",
    "places the new tokens at the beginning",
    replace={" + seq_len - q_len": ""},
    hint="The new tokens are the last ones: token i is at place seq_len - q_len + i.",
)
edited(
    "split_decode",
    "takes the rows for heads first",
    replace={"torch.arange(q_len * group) // group": "torch.arange(q_len * group) % q_len"},
    hint="q.reshape puts the heads of one token side by side: row r belongs to token r // group.",
)
edited(
    "split_decode",
    "splits the whole slab",
    replace={
        "size = math.ceil(seq_len / num_splits)": "size = math.ceil(k.shape[0] / num_splits)",
        "torch.arange(min(s * size, seq_len), min((s + 1) * size, seq_len))": "torch.arange(min(s * size, k.shape[0]), min((s + 1) * size, k.shape[0]))",
    },
    hint="What stands behind seq_len may be anything: 0 times NaN is NaN. Don't read it.",
)
edited(
    "split_decode",
    "takes -inf from -inf",
    replace={"scores - torch.where(lse == -math.inf, 0.0, lse)[:, None]": "scores - lse[:, None]"},
    hint="A split may lie behind a token's place. Its lse is -inf, and -inf - -inf is NaN: subtract 0 there.",
)
edited(
    "split_decode",
    "gives NaN to a token without keys",
    replace={"parts - torch.where(lse == -math.inf, 0.0, lse)": "parts - lse"},
    hint="Where every split is empty, the merged lse is -inf: subtract 0 in the merge, too.",
)
edited(
    "split_decode",
    "merges without a maximum",
    replace={
        "    lse = torch.logsumexp(parts, dim=0)\n": "    lse = torch.log(torch.exp(parts).sum(dim=0))\n",
    },
    hint="exp(lse) of a part overflows as soon as scores do. Merge relative to the largest lse.",
)
edited(
    "split_decode",
    "takes the mean of the parts",
    replace={"(weights[:, :, None] * torch.stack(outs)).sum(dim=0)": "torch.stack(outs).mean(dim=0)"},
    hint="A part counts by exp(its lse - the merged lse).",
)
edited(
    "split_decode",
    "runs out of keys before it runs out of splits",
    replace={"torch.arange(min(s * size, seq_len),": "torch.arange(s * size,"},
    hint="With ceil(seq_len / num_splits) keys each, the last splits may begin behind the last key: they are empty.",
)

edited(
    "split_decode",
    "takes the maximum of no key",
    replace={
        "lse = torch.logsumexp(scores, dim=1)": "top = torch.cat([scores, scores.new_full((len(scores), 1), -math.inf)], 1).amax(1)\n        lse = top + torch.exp(scores - top[:, None]).sum(1).log()"
    },
    hint="The maximum of a split without visible keys is -inf, and -inf - -inf is NaN: subtract 0 there.",
)
edited(
    "split_decode",
    "stacks no parts when there is no key",
    replace={"for s in range(num_splits)": "for s in range(min(num_splits, seq_len))"},
    hint="With seq_len = 0 there is no part to stack: out is 0 and lse -inf.",
)
edited(
    "split_decode",
    "makes the whole score matrix and cuts that",
    replace={"rows @ k[keys].T": "(rows @ k[:seq_len].T)[:, keys]"},
    hint="A split multiplies its own keys only: k[keys]. The whole matrix is what the splits avoid.",
)

# ---- unified_decode

edited(
    "unified_decode",
    "has no second run",
    replace={"if fell_back.any()": "if not fits.any() and fits.any()"},
    hint="What overflowed has to be computed again, with maxima.",
)
edited(
    "unified_decode",
    "tests only for infinity",
    replace={"(log_sum > band[0]) & (log_sum < band[1])": "log_sum.isfinite()"},
    hint="Far below phi the sum is finite and has lost its digits: test it against both ends of the band.",
)
edited(
    "unified_decode",
    "tests lse and not lse - phi",
    replace={"(log_sum > band[0]) & (log_sum < band[1])": "(log_sum + phi > band[0]) & (log_sum + phi < band[1])"},
    hint="What overflows is the sum of exp(score - phi): its log, lse - phi, has to be inside the band.",
)
edited(
    "unified_decode",
    "doesn't look at the weighted sum",
    replace={" & weighted.isfinite().all(dim=1)": ""},
    hint="A sum of e^74 fits, times a value of 10^9 it doesn't. Look at both sums.",
)
edited(
    "unified_decode",
    "computes everything again if one row doesn't fit",
    replace={
        "rows = q[fell_back]": "rows = q",
        "out[fell_back], lse[fell_back] = acc": "out[:], lse[:] = acc",
    },
    hint="The rows that fit are finished: select the others, q[fell_back], before the second run.",
)
edited(
    "unified_decode",
    "forgets phi in lse",
    replace={"log_sum + phi": "log_sum"},
    hint="The sum is relative to phi: lse = phi + log(sum).",
)
edited(
    "unified_decode",
    "always runs twice",
    replace={"fell_back = ~fits": "fell_back = ~fits | True"},
    hint="The point is to have no maximum for the rows that fit: fell_back is for the others only.",
)
edited(
    "unified_decode",
    "divides the parts by their own sums",
    replace={"weighted += weights @ v[part]": "weighted += weights @ v[part] / weights.sum(dim=1, keepdim=True)"},
    hint="With one phi for all splits both sums simply add up. Divide once, at the end.",
)
edited(
    "unified_decode",
    "forgets a side of the band",
    replace={"(log_sum > band[0]) & (log_sum < band[1])": "(log_sum < band[1])"},
    hint="Underflow is silent: below the band digits are lost without an infinity.",
)

edited(
    "unified_decode",
    "subtracts each split's own maximum",
    replace={
        "weights = torch.exp(q @ k[part].T * scale - phi)": "weights = q @ k[part].T * scale\n        weights = torch.exp(weights - weights.amax(dim=1, keepdim=True))"
    },
    hint="Sums relative to different maxima can't be added. The first run subtracts phi, in every split.",
)

# ---- pick_kernel

edited(
    "pick_kernel",
    "takes the next smaller number of rows",
    replace={
        "times[min(count for count in times if count >= rows)]": "times[max((count for count in times if count <= rows), default=min(times))]"
    },
    hint="Time grows with the rows: only a larger number of rows says what a product takes at most.",
)
edited(
    "pick_kernel",
    "finds nothing beyond the table",
    replace={"min(num_rows, max(max(times) for times in seconds.values()))": "num_rows"},
    hint="For more rows than were measured, the times at the largest number decide.",
)
edited(
    "pick_kernel",
    "takes the last of equals",
    replace={"min(at_most,": "min(reversed(at_most),"},
    hint="If two kernels are equally fast, the first one in `seconds` is taken.",
)
edited(
    "pick_kernel",
    "looks only at kernels that were measured at the next number of all",
    replace={
        "        if max(times) >= rows\n": "        if min(c for t in seconds.values() for c in t if c >= rows) in times\n"
    },
    hint="A kernel that was measured at a larger number still is a candidate: it takes at most that long.",
)
edited(
    "pick_kernel",
    "lets a kernel for few rows try many",
    replace={
        "times[min(count for count in times if count >= rows)]": "times[min((count for count in times if count >= rows), default=max(times))]",
        "        if max(times) >= rows\n": "",
    },
    hint="A kernel that wasn't measured at so many rows isn't made for them: leave it out.",
)
edited(
    "pick_kernel",
    "finds no time beyond the table",
    replace={
        "min(num_rows, max(max(times) for times in seconds.values()))": "num_rows",
        "times[min(count for count in times if count >= rows)]": "times.get(min((count for count in times if count >= rows), default=None))",
        "        if max(times) >= rows\n": "        if max(times) >= rows or rows > max(max(t) for t in seconds.values())\n",
    },
    hint="For more rows than were measured, the times at the largest number decide.",
)


@mistake(
    "pick_kernel",
    "draws a line between two measured numbers",
    hint="A kernel's time between two measurements may be a step. At most it takes what the next larger number took.",
)
def pick_kernel(seconds, num_rows):
    rows = min(num_rows, max(max(times) for times in seconds.values()))
    found = {}
    for name, times in seconds.items():
        if max(times) < rows:
            continue
        above = min(count for count in times if count >= rows)
        below = max((count for count in times if count <= rows), default=above)
        share = (rows - below) / (above - below) if above > below else 0.0
        found[name] = times[below] + share * (times[above] - times[below])
    return min(found, key=lambda name: found[name])
