"""Wrong solutions of chapter 07 that people write, each with the hint it deserves."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx

from minillm.grading import edited, mistake

# ---- fusion_bytes

edited(
    "fusion_bytes",
    "reads an operand once for each time it is named",
    replace={"for name in set(names))": "for name in names)"},
    hint="x · x names x twice and loads it once: what is loaded stays on the chip while the kernel uses it.",
)
edited(
    "fusion_bytes",
    "reads a weight once for all programs",
    replace={"(num_programs if shapes[name][0] == 1 else 1)": "1"},
    hint="Programs share rows, not a weight: each of them loads the single row for itself.",
)
edited(
    "fusion_bytes",
    "reads a weight once for all programs of the fused kernel",
    replace={"fused = read(outside)": "fused = sum(math.prod(shapes[name]) for name in outside)"},
    hint="The fused kernel has as many programs as the others, and each of them loads the weight for itself.",
)
edited(
    "fusion_bytes",
    "reads everything once for each program",
    replace={"(num_programs if shapes[name][0] == 1 else 1)": "num_programs"},
    hint="A tensor with all the rows is shared among the programs: together they load it once.",
)
edited(
    "fusion_bytes",
    "writes everything in the fused kernel, too",
    replace={"for name in set(kept) & set(made))": "for name in set(made))"},
    hint="A value that nobody reads after the chain is neither written nor read again: it never leaves the chip.",
)
edited(
    "fusion_bytes",
    "writes only the last result",
    replace={"for name in set(kept) & set(made))": "for name in made[-1:])"},
    hint="Everything in `kept` is written: a residual sum goes on beside the norm that is made of it.",
)
edited(
    "fusion_bytes",
    "writes inputs that are kept",
    replace={"for name in set(kept) & set(made))": "for name in set(kept))"},
    hint="An input lies in HBM already: kept or not, the kernel doesn't write it.",
)
edited(
    "fusion_bytes",
    "forgets that an eager call writes",
    replace={"read(operands) + math.prod(shapes[result]) for": "read(operands) for"},
    hint="A call of its own reads its operands and writes its result, for the next call to read again.",
)
edited(
    "fusion_bytes",
    "counts numbers, not bytes",
    replace={
        "(len(calls), bytes_per_number * eager), (1, bytes_per_number * fused)": "(len(calls), eager), (1, fused)"
    },
    hint="Numbers times bytes_per_number.",
)
edited(
    "fusion_bytes",
    "writes only what is kept, in eager calls too",
    replace={
        "read(operands) + math.prod(shapes[result]) for": "read(operands) + math.prod(shapes[result]) * (result in kept) for"
    },
    hint="A kernel of its own has nowhere to leave its result but HBM, whether anybody reads it later or not.",
)

# ---- add_rms_norm_on_meter

edited(
    "add_rms_norm_on_meter",
    "norms x without the residual",
    replace={
        "                    tile += sram.load(residual[rows])\n                sram.store(tile, total[rows])\n": (
            "                    both = tile + sram.load(residual[rows])\n                    sram.store(both, total[rows])\n"
        )
    },
    hint="The norm is of the sum: add the residual into the tile, and go on with it.",
)
edited(
    "add_rms_norm_on_meter",
    "stores the sum after the norm",
    replace={
        "                sram.store(tile, total[rows])\n": "",
        "sram.store(tile, out[rows])\n": "sram.store(tile, out[rows])\n                sram.store(tile, total[rows])\n",
    },
    hint="`tile *= …` overwrites the sum: store it before.",
)
edited(
    "add_rms_norm_on_meter",
    "the sum of squares instead of their mean",
    replace={"                    mean *= 1 / size\n": ""},
    hint="RMS is the root of the *mean* square: divide by the size of a row.",
)
edited(
    "add_rms_norm_on_meter",
    "leaves eps out",
    replace={"                    mean += eps\n": ""},
    hint="eps is added to the mean square, before the root.",
)
edited(
    "add_rms_norm_on_meter",
    "adds eps after the root",
    replace={
        "                    mean += eps\n": "",
        "                    tile *= mean.rsqrt()\n": (
            "                    root = mean.sqrt()\n                    root += eps\n                    tile /= root\n"
        ),
    },
    hint="1 / sqrt(mean + eps), not 1 / (sqrt(mean) + eps).",
)
edited(
    "add_rms_norm_on_meter",
    "adds eps to the factor",
    replace={
        "                    mean += eps\n": "",
        "                    tile *= mean.rsqrt()\n": (
            "                    factor = mean.rsqrt()\n"
            "                    factor += eps\n"
            "                    tile *= factor\n"
        ),
    },
    hint="eps belongs under the root: 1 / sqrt(mean + eps), not 1 / sqrt(mean) + eps.",
)
edited(
    "add_rms_norm_on_meter",
    "forgets the weight",
    replace={"                with sram.scope():\n                    tile *= sram.load(weight)\n": ""},
    hint="Each column is multiplied by its weight in the end.",
)
edited(
    "add_rms_norm_on_meter",
    "holds the squares to the end",
    replace={
        "                with sram.scope():\n                    mean = ": "                if True:\n                    mean = ",
    },
    hint="tile * tile is a tile of its own, and the chip has room for two: free it, with a scope, before the weight comes.",
)
edited(
    "add_rms_norm_on_meter",
    "keeps the residual on the chip",
    replace={
        "                with sram.scope():\n                    tile += ": "                if True:\n                    tile += ",
    },
    hint="The residual is needed for the sum only: load it in a scope, and its room is free for the squares.",
)
edited(
    "add_rms_norm_on_meter",
    "one program for everything",
    replace={"range(0, num_rows, block_rows)": "range(0, num_rows, num_rows)", "start + block_rows": "num_rows"},
    hint="A program for each block_rows rows: the chip has no room for all of them.",
)


@mistake(
    "add_rms_norm_on_meter",
    "two launches: the sum, then the norm",
    hint="The second launch reads from HBM what the first one had on the chip. Do both in one program.",
)
def add_rms_norm_on_meter(meter, x, residual, weight, total, out, *, block_rows, eps):
    num_rows, size = x.shape
    blocks = [slice(start, min(start + block_rows, num_rows)) for start in range(0, num_rows, block_rows)]
    with meter.kernel("add") as kernel:
        for number, rows in enumerate(blocks):
            with kernel.program(number) as sram:
                tile = sram.load(x[rows])
                tile += sram.load(residual[rows])
                sram.store(tile, total[rows])
    with meter.kernel("rms_norm") as kernel:
        for number, rows in enumerate(blocks):
            with kernel.program(number) as sram:
                tile = sram.load(total[rows])
                with sram.scope():
                    mean = (tile * tile).row_sum()
                    mean *= 1 / size
                    mean += eps
                    tile *= mean.rsqrt()
                tile *= sram.load(weight)
                sram.store(tile, out[rows])
    return meter.total, total.result(), out.result()


# ---- loss_by_blocks

edited(
    "loss_by_blocks",
    "doesn't repair the sum",
    replace={"total * repair +": "total +"},
    hint="The sum is relative to the old maximum: times exp(largest - new) before anything is added.",
)
edited(
    "loss_by_blocks",
    "repairs the sum and forgets the weighted rows",
    replace={"weighted * repair +": "weighted +"},
    hint="The weighted sum of lm_head's rows holds the same weights as the sum: the same factor repairs it.",
)
edited(
    "loss_by_blocks",
    "repairs in the wrong direction",
    replace={"torch.exp(largest - new)": "torch.exp(new - largest).nan_to_num(0, 0, 0)"},
    hint="A larger maximum makes old weights smaller: exp(old - new), at most 1.",
)
edited(
    "loss_by_blocks",
    "forgets the largest so far",
    replace={"torch.maximum(largest, logits.amax(dim=1, keepdim=True))": "logits.amax(dim=1, keepdim=True)"},
    hint="The maximum is that of all blocks so far, not of the last one.",
)
edited(
    "loss_by_blocks",
    "takes exp of logits as they are",
    replace={
        "torch.maximum(largest, logits.amax(dim=1, keepdim=True))": "torch.zeros_like(largest)",
        "torch.exp(largest - new)": "1.0",
        "largest = torch.full((len(hidden), 1), -math.inf, dtype=hidden.dtype)": "largest = torch.zeros(len(hidden), 1, dtype=hidden.dtype)",
    },
    hint="exp(3000) is infinite, and exp(-3000) is 0 for all words at once. Subtract the largest logit.",
)
edited(
    "loss_by_blocks",
    "starts with a maximum of 0",
    replace={
        "torch.full((len(hidden), 1), -math.inf, dtype=hidden.dtype)": "torch.zeros(len(hidden), 1, dtype=hidden.dtype)"
    },
    hint="Where all logits lie far below 0, exp(logit − 0) is 0 for all words. Before the first block the largest is −inf.",
)
edited(
    "loss_by_blocks",
    "one maximum for all tokens",
    replace={"logits.amax(dim=1, keepdim=True)": "logits.amax().expand(len(hidden), 1)"},
    hint="Each token has its own largest logit: amax(dim=1, keepdim=True).",
)
edited(
    "loss_by_blocks",
    "forgets the maximum it subtracted",
    replace={"(largest + total.log())": "total.log()"},
    hint="What was subtracted before exp is added again after log: lse = largest + log(sum).",
)
edited(
    "loss_by_blocks",
    "the gradient without the target",
    replace={"weighted / total - target_rows": "weighted / total"},
    hint="d_hidden is the mean of lm_head's rows under the probabilities minus the target's own row.",
)
edited(
    "loss_by_blocks",
    "doesn't divide the weighted rows",
    replace={"weighted / total - target_rows": "weighted - target_rows"},
    hint="The weights add up to the sum, not to 1: divide once, at the end.",
)
edited(
    "loss_by_blocks",
    "a gradient of the mean",
    replace={
        "d_hidden.masked_fill(~counts[:, None], 0.0)": "d_hidden.masked_fill(~counts[:, None], 0.0) / len(hidden)"
    },
    hint="The gradient of the sum of the losses was asked for, not of their mean.",
)
edited(
    "loss_by_blocks",
    "a loss for tokens that don't count",
    replace={"losses.masked_fill(~counts, 0.0)": "losses"},
    hint="Where the target is -100 the loss is 0.",
)
edited(
    "loss_by_blocks",
    "a gradient for tokens that don't count",
    replace={"d_hidden.masked_fill(~counts[:, None], 0.0)": "d_hidden"},
    hint="Where the target is -100 the loss is 0 whatever hidden is, so its gradient is 0.",
)
edited(
    "loss_by_blocks",
    "takes only the target's row from tokens that don't count",
    replace={
        "lm_head[targets.masked_fill(~counts, 0)]": "lm_head[targets.masked_fill(~counts, 0)] * counts[:, None]",
        "d_hidden.masked_fill(~counts[:, None], 0.0)": "d_hidden",
    },
    hint="Where the target is -100 the whole gradient is 0, the weighted mean of lm_head's rows included.",
)
edited(
    "loss_by_blocks",
    "-100 is the hundredth row from the end",
    replace={
        "lm_head[targets.masked_fill(~counts, 0)]": "lm_head[targets % len(lm_head)]",
        "counts = targets != -100": "counts = targets == targets",
    },
    hint="-100 marks a token that doesn't count; it is no row of lm_head.",
)
edited(
    "loss_by_blocks",
    "leaves the last, smaller block out",
    replace={"in lm_head.split(block)": "in lm_head[: max(1, len(lm_head) // block) * block].split(block)"},
    hint="The vocabulary need not be a multiple of the block: the last one is smaller.",
)


@mistake(
    "loss_by_blocks",
    "all logits at once",
    hint="hidden @ lm_head.T has tokens × vocab_size numbers. Only a block of columns of it may exist.",
)
def loss_by_blocks(hidden, lm_head, targets, *, block):
    logits = hidden @ lm_head.T
    counts = targets != -100
    safe = targets.masked_fill(~counts, 0)
    logits = logits - logits.amax(dim=1, keepdim=True)
    probabilities = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    losses = logits.exp().sum(dim=1).log() - logits.gather(1, safe[:, None]).squeeze(1)
    d_hidden = probabilities @ lm_head - lm_head[safe]
    return losses.masked_fill(~counts, 0.0), d_hidden.masked_fill(~counts[:, None], 0.0)


# ---- match_chain

edited(
    "match_chain",
    "one order only",
    replace={"[operands, operands[::-1]] if name in COMMUTATIVE else [operands]": "[operands]"},
    hint="silu(gate) · up may have been written up · silu(gate): try add and mul both ways round.",
)
edited(
    "match_chain",
    "any operation will do",
    replace={"name == wanted[0] and": "True and"},
    hint="The operation's name has to be the pattern's.",
)
edited(
    "match_chain",
    "a wildcard may mean two things",
    replace={"isinstance(value, str) and binding.get(wanted, value) == value": "isinstance(value, str)"},
    hint="A wildcard that is used twice stands for the same name twice: look it up before it is bound.",
)
edited(
    "match_chain",
    "a wildcard for numbers",
    replace={"isinstance(value, str) and binding.get(wanted, value) == value": "binding.get(wanted, value) == value"},
    hint="A wildcard stands for a name, a node or an input. The fused operator couldn't take a Python number there.",
)
edited(
    "match_chain",
    "numbers needn't be equal",
    replace={"not isinstance(value, str) and wanted == value": "not isinstance(value, str)"},
    hint="An eps of 1e-5 is not an eps of 1e-6: a number in the pattern stands for itself.",
)
edited(
    "match_chain",
    "an inner value may be returned",
    replace={"(users | set(outputs) | set(binding.values()))": "(users | set(binding.values()))"},
    hint="The graph's outputs are uses, too.",
)
edited(
    "match_chain",
    "an inner value may be used elsewhere",
    replace={"(users | set(outputs) | set(binding.values()))": "(set(outputs) | set(binding.values()))"},
    hint="The fused operator doesn't compute the values inside. If another node uses one, the match is forbidden.",
)
edited(
    "match_chain",
    "a wildcard may stand for a node inside",
    replace={"(users | set(outputs) | set(binding.values()))": "(users | set(outputs))"},
    hint="In silu(g) · silu(g), one node on both sides, `up` would be a value that is gone: forbidden.",
)
edited(
    "match_chain",
    "the result may not be used either",
    replace={"inner = inside - {root}": "inner = inside"},
    hint="The root is what the fused operator returns: whoever uses it gets that.",
)
edited(
    "match_chain",
    "gives up after the first way",
    replace={
        "            return binding\n    return None": "            return binding\n        return None\n    return None"
    },
    hint="A forbidden way is no reason to stop: another order of the operands may be allowed.",
)
edited(
    "match_chain",
    "commits to the first order that fits",
    replace={
        "        for extended, members in fits(*pairs[0], binding, inside):\n": "        for extended, members in list(fits(*pairs[0], binding, inside))[:1]:\n"
    },
    hint="?a · ?b fits p · q in two ways, and which one is right shows only later: keep all of them (a generator).",
)

# ---- swap_swiglu

edited(
    "swap_swiglu",
    "the silu on the left only",
    replace={"in (product.args, product.args[::-1])": "in (product.args,)"},
    hint="up * F.silu(gate) is the same: look at both sides.",
)
edited(
    "swap_swiglu",
    "the silu's other uses are forgotten",
    replace={"and list(silu.users) == [product]:": ":"},
    hint="If somebody else uses the silu it has to stay. graph.erase_node refuses a node that has users.",
)
edited(
    "swap_swiglu",
    "swaps where the silu stays",
    replace={
        "and list(silu.users) == [product]:": ":",
        "                module.graph.erase_node(silu)\n": "                if not silu.users:\n                    module.graph.erase_node(silu)\n",
    },
    hint="A silu that is used elsewhere is computed anyway: fusing it would compute it twice. Leave it.",
)
edited(
    "swap_swiglu",
    "both sides of the product are the silu",
    replace={" and silu is not up and": " and"},
    hint="In s * s the other operand is the silu itself, which is about to go. That is no SwiGLU.",
)
edited(
    "swap_swiglu",
    "a product with a number",
    replace={"isinstance(silu, fx.Node) and isinstance(up, fx.Node)": "isinstance(silu, fx.Node)"},
    hint="`up` has to be a node: F.silu(g) * 2 isn't a SwiGLU.",
)
edited(
    "swap_swiglu",
    "up and gate exchanged",
    replace={"(silu.args[0], up))": "(up, silu.args[0]))"},
    hint="fused(gate, up): the silu's operand comes first.",
)
edited(
    "swap_swiglu",
    "calls fused with the silu",
    replace={"(silu.args[0], up))": "(silu, up))", "                module.graph.erase_node(silu)\n": ""},
    hint="The fused operator applies silu itself: give it what the silu was given.",
)
edited(
    "swap_swiglu",
    "puts the call where the silu was",
    replace={"inserting_before(product)": "inserting_before(silu)"},
    hint="`up` may be computed between the silu and the product: the call goes where the product is.",
)
edited(
    "swap_swiglu",
    "leaves the silu behind",
    replace={"                module.graph.erase_node(silu)\n": ""},
    hint="The silu has no user left, and still runs: erase it.",
)
edited(
    "swap_swiglu",
    "torch.mul is a product, too",
    replace={"(operator.mul, torch.mul)": "(operator.mul,)"},
    hint="g * u and torch.mul(g, u) are different targets of the same operation.",
)
edited(
    "swap_swiglu",
    "stops after one",
    replace={
        "                count += 1\n                break\n": "                count += 1\n                module.recompile()\n                return count, module.code\n"
    },
    hint="A model has one in each layer: go on to the end of the graph.",
)


edited(
    "swap_swiglu",
    "forgets to recompile",
    replace={"    module.recompile()\n": ""},
    hint="The graph is new, but the Python that runs, module.code, is the old one: module.recompile() makes it again.",
)
edited(
    "swap_swiglu",
    "tries the right side first",
    replace={"in (product.args, product.args[::-1])": "in (product.args[::-1], product.args)"},
    hint="In F.silu(a) * F.silu(b) either could go: look at the left operand first.",
)


@mistake(
    "swap_swiglu", "any activation", hint="Only F.silu is in the fused operator; a gelu times up is something else."
)
def swap_swiglu(module, fused):
    count = 0
    for product in list(module.graph.nodes):
        if product.target not in (operator.mul, torch.mul):
            continue
        for silu, up in (product.args, product.args[::-1]):
            nodes = isinstance(silu, fx.Node) and isinstance(up, fx.Node)
            if nodes and silu is not up and silu.target in (F.silu, F.gelu) and list(silu.users) == [product]:
                with module.graph.inserting_before(product):
                    new = module.graph.call_function(fused, (silu.args[0], up))
                product.replace_all_uses_with(new)
                module.graph.erase_node(product)
                module.graph.erase_node(silu)
                count += 1
                break
    module.graph.lint()
    module.recompile()
    return count, module.code


# ---- replayed

edited(
    "replayed",
    "the draft as it was",
    replace={
        "    rows = torch.zeros(capacity, embed.shape[1], dtype=embed.dtype)\n": (
            "    return hasty_replayed(embed, unembed, tokens, capacity=capacity, record=record)\n"
            "    rows = torch.zeros(capacity, embed.shape[1], dtype=embed.dtype)\n"
        )
    },
    hint="Start with the token: between replays the draft gives the name to a new tensor. The recording knows the old one.",
)
edited(
    "replayed",
    "a new token tensor for each replay",
    replace={"        token.fill_(token_id)\n": "        token = torch.tensor([token_id])\n"},
    hint="The recording reads the tensor that it saw: write the new token into it, with fill_ or copy_.",
)
edited(
    "replayed",
    "the length is never told",
    replace={"        length.fill_(count)\n": ""},
    hint="The length of the recording is 0 for ever, unless somebody writes the new one into its tensor.",
)
edited(
    "replayed",
    "results that are overwritten",
    replace={"graph.replay().clone()": "graph.replay()"},
    hint="Each replay returns the same tensor. What is wanted later has to be copied: clone().",
)
edited(
    "replayed",
    "no warm-up",
    replace={"num_warmups=1": "num_warmups=0"},
    hint="What happens only the first time would be recorded: record(step, num_warmups=1) at least.",
)
edited(
    "replayed",
    "only the newest token is remembered",
    replace={
        "rows.index_copy_(0, length, embed.index_select(0, token))": "rows[int(0)] = embed.index_select(0, token)[0]"
    },
    hint="Either rows[length] with a Python number writes into the slot of the recording each time: index_copy_ with a "
    "tensor. Or rows is made inside the step, and each replay makes it again, full of zeros: make it before record.",
)
edited(
    "replayed",
    "memory made inside the recording",
    replace={
        "    rows = torch.zeros(capacity, embed.shape[1], dtype=embed.dtype)\n": "    memory = Memory()\n",
        "    def step() -> Tensor:\n": (
            "    def step() -> Tensor:\n"
            "        if memory.rows is None:\n"
            "            memory.rows = torch.zeros(capacity, embed.shape[1], dtype=embed.dtype)\n"
            "        rows = memory.rows\n"
        ),
        "num_warmups=1": "num_warmups=0",
    },
    hint="rows is made while recording, so each replay makes it again, full of zeros: make it before record, or warm "
    "up once.",
)
edited(
    "replayed",
    "the slice was frozen",
    replace={"rows.masked_fill((places > length)[:, None], 0.0)": "rows[:1]"},
    hint="rows[: length + 1] has the length of the recording for ever. Take all rows, and mask those beyond the length.",
)
edited(
    "replayed",
    "the divisor was frozen",
    replace={"/ (length + 1)": "/ 1"},
    hint="The number of tokens seen is part of the recording: divide by a tensor, length + 1.",
)
edited(
    "replayed",
    "divides by the capacity",
    replace={"/ (length + 1)": "/ capacity"},
    hint="The mean is over the tokens seen so far, length + 1 of them, and not over all rows of the memory.",
)
edited(
    "replayed",
    "one token short",
    replace={"places > length": "places >= length"},
    hint="The new token is in row `length`, and counts: only rows beyond it are hidden.",
)
edited(
    "replayed",
    "warm-up counts as tokens",
    replace={
        "@ unembed\n\n": "@ unembed + 0 * length.add_(1)\n\n",
        "        length.fill_(count)\n": "",
        "(length + 1)": "(length + 1)",
    },
    hint="Warm-up and recording run the step as well: set length back before the first replay.",
)
edited(
    "replayed",
    "a recording for each token",
    replace={
        "    graph = record(step, num_warmups=1)\n": "",
        "        results.append(graph.": "        results.append(record(step, num_warmups=1).",
    },
    hint="Recording is slower than a step. Once, before the first token; then replays only.",
)
