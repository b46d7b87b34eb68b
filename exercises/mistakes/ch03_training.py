"""Wrong solutions of chapter 03 that people write, each with the hint it deserves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from minillm.grading import edited, mistake

# ---- training_seconds

edited(
    "training_seconds",
    "counts the forward pass only",
    replace={"6 * num_parameters": "2 * num_parameters"},
    hint="2 FLOPs a parameter and token go forward; the two products of the backward pass add 4.",
)
edited(
    "training_seconds",
    "takes the machines at their word",
    replace={" * utilization": ""},
    hint="The peak is what the data sheet says. A job achieves `utilization` of it, so it takes longer.",
)
edited(
    "training_seconds",
    "multiplies by the devices",
    replace={"flops / (num_devices * peak_flops_per_s * utilization)": "flops * num_devices / (peak_flops_per_s * utilization)"},
    hint="More devices, less time.",
)
edited(
    "training_seconds",
    "forgets that there are many devices",
    replace={"num_devices * peak_flops_per_s": "peak_flops_per_s"},
    hint="peak_flops_per_s is that of one device; num_devices of them work at the same time.",
)
edited(
    "training_seconds",
    "multiplies by the utilization",
    replace={
        "flops / (num_devices * peak_flops_per_s * utilization)": "flops / (num_devices * peak_flops_per_s) * utilization"
    },
    hint="A device that is half busy takes twice as long, not half as long.",
)

# ---- cross_entropy_and_grad

edited(
    "cross_entropy_and_grad",
    "forgets that the loss is a mean",
    replace={"grad * counts[:, None] / num_targets": "grad * counts[:, None]"},
    hint="softmax − one-hot is the gradient of one row's loss; the mean divides it by the number of targets.",
)
edited(
    "cross_entropy_and_grad",
    "divides by all rows, padding included",
    replace={"counts.sum()": "len(targets)"},
    hint="The mean is over the targets that count: a batch half full of padding must not look half as hard.",
)
edited(
    "cross_entropy_and_grad",
    "lets padding pull at the logits",
    replace={"grad * counts[:, None] / num_targets": "grad / num_targets"},
    hint="A row whose target is −100 adds nothing to the loss, so its gradient is zero.",
)
edited(
    "cross_entropy_and_grad",
    "the exponential overflows",
    replace={"logits - logits.max(dim=-1, keepdim=True).values": "logits"},
    hint="exp(89) is infinite in float32. Subtract the row's maximum first: softmax doesn't change.",
)
edited(
    "cross_entropy_and_grad",
    "exponentiates before subtracting the maximum",
    replace={
        "log_probs = shifted - shifted.exp().sum(dim=-1, keepdim=True).log()": (
            "log_probs = (logits.exp() / logits.exp().sum(dim=-1, keepdim=True)).log()"
        )
    },
    hint="exp(89) is infinite in float32, and ∞/∞ is NaN. Subtract the row's maximum first: softmax doesn't change.",
)
edited(
    "cross_entropy_and_grad",
    "takes the logarithm of a softmax that has become zero",
    replace={
        "log_probs = shifted - shifted.exp().sum(dim=-1, keepdim=True).log()": "log_probs = torch.softmax(shifted, dim=-1).log()"
    },
    hint="A softmax can underflow to 0, and log 0 is −inf. Subtract the log-sum-exp instead of dividing.",
)
edited(
    "cross_entropy_and_grad",
    "pushes the right way uphill",
    replace={"grad * counts[:, None] / num_targets": "-grad * counts[:, None] / num_targets"},
    hint="The gradient is softmax minus one-hot: negative at the target, since a larger logit there lowers the loss.",
)
edited(
    "cross_entropy_and_grad",
    "writes over the caller's targets",
    replace={"targets = targets.clamp(min=0)": "targets.clamp_(min=0)"},
    hint="clamp_ works in place: the caller's −100 are gone afterwards, and padding counts as token 0 from then on.",
)
edited(
    "cross_entropy_and_grad",
    "writes over the caller's logits",
    replace={
        "    shifted = logits - logits.max(dim=-1, keepdim=True).values\n": (
            "    logits -= logits.max(dim=-1, keepdim=True).values\n    shifted = logits\n"
        )
    },
    hint="logits -= … works in place, on the caller's tensor. Make a new one: shifted = logits - ….",
)

# ---- linear_backward

edited(
    "linear_backward",
    "forgets to transpose the weight",
    replace={"d_y @ w.T": "d_y @ (w if w.shape[0] == w.shape[1] else w.T)"},
    hint="Y = XW gives dX = dY Wᵀ. With a square W the wrong product has the right shape, and nobody complains.",
)
edited(
    "linear_backward",
    "returns the weight's gradient transposed",
    replace={"flat_x.T @ flat_d_y": "flat_d_y.T @ flat_x"},
    hint="A gradient has the shape of its thing: d_w is (in_features, out_features), like w.",
)
edited(
    "linear_backward",
    "averages over the places where w is used",
    replace={"flat_x.T @ flat_d_y": "flat_x.T @ flat_d_y / len(flat_x)"},
    hint="w is used at every place, and contributions add up. If a mean is wanted, the loss has divided already.",
)


@mistake(
    "linear_backward",
    "keeps one weight gradient for each sequence",
    hint="w is shared by all places, over all leading axes: d_w sums over every one of them.",
)
def linear_backward(d_y, x, w):
    if x.ndim == 1:
        return d_y @ w.T, torch.outer(x, d_y)
    return d_y @ w.T, x.transpose(-1, -2) @ d_y


# ---- rms_norm_backward

edited(
    "rms_norm_backward",
    "takes the root mean square for a constant",
    replace={"inverse_rms * (d_normed - normed * along)": "inverse_rms * d_normed"},
    hint="Each x_i also changes the rms, and through it every output. That is the second term.",
)
edited(
    "rms_norm_backward",
    "forgets the gain on the way back",
    replace={"d_normed = d_y * weight": "d_normed = d_y"},
    hint="The last thing that the forward did was to multiply by weight, so that comes first on the way back.",
)
edited(
    "rms_norm_backward",
    "sums where the norm takes a mean",
    replace={"(d_normed * normed).mean(": "(d_normed * normed).sum("},
    hint="rms is the root of the *mean* of squares: its derivative has a factor 1/size, and the sum becomes a mean.",
)
edited(
    "rms_norm_backward",
    "measures the gain's gradient before normalising",
    replace={"d_weight = (d_y * normed)": "d_weight = (d_y * x)"},
    hint="weight multiplies the normed x, not x.",
)
edited(
    "rms_norm_backward",
    "keeps one gain gradient for each row",
    replace={".reshape(-1, x.shape[-1]).sum(dim=0)": ""},
    hint="weight is used by every row, and contributions add up: d_weight has the shape of weight.",
)
edited(
    "rms_norm_backward",
    "multiplies the gain's gradient by the gain",
    replace={"d_weight = (d_y * normed)": "d_weight = (d_normed * normed)"},
    hint="y = weight · n, so the slope with respect to weight is n. The gain itself belongs into d_x only.",
)
edited(
    "rms_norm_backward",
    "adds eps outside of the root",
    replace={
        "torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)": (
            "1 / (x.square().mean(dim=-1, keepdim=True).sqrt() + eps)"
        )
    },
    hint="In RMSNorm eps stands under the root: sqrt(mean(x²) + eps).",
)
edited(
    "rms_norm_backward",
    "leaves eps out",
    replace={"keepdim=True) + eps)": "keepdim=True))"},
    hint="Use the root mean square that the forward pass used, eps included.",
)
edited(
    "rms_norm_backward",
    "subtracts a mean, as LayerNorm would",
    replace={
        "inverse_rms * (d_normed - normed * along)": (
            "inverse_rms * (d_normed - d_normed.mean(dim=-1, keepdim=True) - normed * along)"
        )
    },
    hint="RMSNorm doesn't subtract the mean on its way forward, so nothing of it comes back.",
)

# ---- attention_backward

edited(
    "attention_backward",
    "takes softmax for an elementwise function",
    replace={"p * (d_p - (p * d_p).sum(dim=-1, keepdim=True))": "p * d_p"},
    hint="Raising one score lowers the other probabilities of its row: subtract rowsum(p · d_p).",
)
edited(
    "attention_backward",
    "sums over the queries instead of the keys",
    replace={"(p * d_p).sum(dim=-1, keepdim=True)": "(p * d_p).sum(dim=0, keepdim=True)"},
    hint="Softmax runs along a row: for each query over its keys. So does the sum in its backward.",
)
edited(
    "attention_backward",
    "forgets softmax_scale on the way back",
    replace={"d_scores = d_scores * softmax_scale": "pass"},
    hint="The forward multiplied q kᵀ by softmax_scale; the gradient passes through the same factor.",
)
edited(
    "attention_backward",
    "scales twice",
    replace={"d_scores = d_scores * softmax_scale": "d_scores = d_scores * softmax_scale**2"},
    hint="q kᵀ is scaled once. Scaling both d_scores and the product with k counts it twice.",
)
edited(
    "attention_backward",
    "gives the values the gradient of p transposed the wrong way",
    replace={"d_v = p.T @ d_out": "d_v = (p if len(p) == len(v) else p.T) @ d_out"},
    hint="Value j collects from all queries that looked at it: column j of p, so d_v = pᵀ d_out.",
)
edited(
    "attention_backward",
    "uses sigmoid's derivative p (1 − p)",
    replace={"p * (d_p - (p * d_p).sum(dim=-1, keepdim=True))": "p * (1 - p) * d_p"},
    hint="p (1 − p) is only the diagonal of softmax's Jacobian; off it stands −p_i p_j.",
)
edited(
    "attention_backward",
    "scales d_q and forgets d_k",
    replace={"d_scores.T @ q, d_v": "d_scores.T @ q / softmax_scale, d_v"},
    hint="softmax_scale multiplies q kᵀ, so the gradients of both carry it.",
)
edited(
    "attention_backward",
    "subtracts rowsum(d_p), not weighted by p",
    replace={"(p * d_p).sum(dim=-1, keepdim=True)": "d_p.sum(dim=-1, keepdim=True)"},
    hint="The sum that is subtracted is the mean of d_p under the weights: rowsum(p · d_p).",
)
edited(
    "attention_backward",
    "leaves out the factor p of the softmax's backward",
    replace={"p * (d_p - (p * d_p).sum(dim=-1, keepdim=True))": "d_p - (p * d_p).sum(dim=-1, keepdim=True)"},
    hint="d_s = p · (d_p − rowsum(p · d_p)): without the factor p even hidden keys get a gradient.",
)
edited(
    "attention_backward",
    "multiplies d_k by the keys",
    replace={"d_scores.T @ q, d_v": "d_scores.T @ (k if len(k) == len(q) else q), d_v"},
    hint="A score is q · k: its slope with respect to k is q.",
)

# ---- adamw_step

edited(
    "adamw_step",
    "no bias correction",
    replace={"m / (1 - beta1**step)": "m", "v / (1 - beta2**step)": "v"},
    hint="m and v start at 0 and are too small at first, by the factor 1 − β^step. Divide by it.",
)
edited(
    "adamw_step",
    "counts updates from 0",
    replace={"1 - beta1**step": "1 - beta1 ** (step + 1)", "1 - beta2**step": "1 - beta2 ** (step + 1)"},
    hint="`step` is 1 at the first update already.",
)
edited(
    "adamw_step",
    "weight decay through the gradient (L2)",
    replace={
        "    beta1, beta2 = betas\n": "    beta1, beta2 = betas\n    grad = grad + weight_decay * weight\n",
        "    weight.mul_(1 - lr * weight_decay)\n": "",
    },
    hint="That is Adam with L2: the decay gets divided by √v like any gradient. AdamW multiplies the weight by 1 − lr · wd.",
)
edited(
    "adamw_step",
    "decays by weight_decay and not by lr · weight_decay",
    replace={"1 - lr * weight_decay": "1 - weight_decay"},
    hint="The decay follows the schedule: the factor is 1 − lr · weight_decay.",
)
edited(
    "adamw_step",
    "adds eps under the root",
    replace={"(v_hat.sqrt() + eps)": "(v_hat + eps).sqrt()"},
    hint="eps stands outside: √v̂ + eps. Under the root, 1e-8 acts like 1e-4.",
)
edited(
    "adamw_step",
    "forgets the square in v",
    replace={"addcmul_(grad, grad, value=1 - beta2)": "add_(grad.abs(), alpha=1 - beta2)"},
    hint="v is the mean of the squared gradient.",
)
edited(
    "adamw_step",
    "keeps m and v to itself",
    replace={
        "m.mul_(beta1).add_(grad, alpha=1 - beta1)": "m = beta1 * m + (1 - beta1) * grad",
        "v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)": "v = beta2 * v + (1 - beta2) * grad**2",
    },
    hint="m = … makes a new tensor, and the caller's m stays as it was. Write into m and v in place.",
)
edited(
    "adamw_step",
    "leaves weight as it was",
    replace={
        "    weight.mul_(1 - lr * weight_decay)\n    weight.sub_(lr * m_hat / (v_hat.sqrt() + eps))\n": (
            "    weight = weight * (1 - lr * weight_decay)\n    weight = weight - lr * m_hat / (v_hat.sqrt() + eps)\n"
        )
    },
    hint="weight = … makes a new tensor, and the caller's stays as it was. Assign in place: weight.sub_(…).",
)
edited(
    "adamw_step",
    "steps along the gradient and not along its mean",
    replace={"lr * m_hat /": "lr * grad /"},
    hint="The step goes along m̂, the corrected running mean; grad enters through it.",
)

# ---- train_on

edited(
    "train_on",
    "targets not shifted",
    replace={"model(token_ids[:, :-1])": "model(token_ids)", "token_ids[:, 1:].flatten()": "token_ids.flatten()"},
    hint="The target of a place is the token *after* it. Asked for the token it reads, a model copies: its loss falls to 0.",
)
edited(
    "train_on",
    "targets not shifted: the inputs are the targets",
    replace={"token_ids[:, 1:].flatten()": "token_ids[:, :-1].flatten()"},
    hint="The input loses its last token, the target its first. Asked for the token it reads, a model copies.",
)
edited(
    "train_on",
    "targets shifted the other way",
    replace={"model(token_ids[:, :-1])": "model(token_ids[:, 1:])", "token_ids[:, 1:].flatten()": "token_ids[:, :-1].flatten()"},
    hint="Inputs are all tokens but the last, targets all but the first.",
)
edited(
    "train_on",
    "never clears the gradients",
    replace={"        optimizer.zero_grad()\n": ""},
    hint="backward adds to .grad. Without zero_grad each update moves by the sum of all gradients so far.",
)
edited(
    "train_on",
    "clears the gradients at the end only",
    replace={
        "        optimizer.zero_grad()\n": "",
        "        losses.append(loss.item())\n": "        losses.append(float(loss))\n        optimizer.zero_grad()\n",
    },
    hint="Gradients may lie there already when the function is called. Clear them before the first backward.",
)
edited(
    "train_on",
    "clears the gradients between backward and step",
    replace={
        "        optimizer.zero_grad()\n": "",
        "        loss.backward()\n": "        loss.backward()\n        optimizer.zero_grad()\n",
    },
    hint="What is cleared after backward is the very gradient that the step needs: nothing moves at all.",
)
edited(
    "train_on",
    "clips after the step",
    replace={
        "        nn.utils.clip_grad_norm_(model.parameters(), max_norm)\n        optimizer.step()\n": (
            "        optimizer.step()\n        nn.utils.clip_grad_norm_(model.parameters(), max_norm)\n"
        )
    },
    hint="After the step the gradient is spent. Clip between backward and step.",
)
edited(
    "train_on",
    "clips each element instead of the norm",
    replace={"nn.utils.clip_grad_norm_(": "nn.utils.clip_grad_value_("},
    hint="Clipping by value bends the gradient's direction; clipping by the global norm only shortens it.",
)
edited(
    "train_on",
    "sets the rate after the step, for the next one",
    replace={
        "        for group in optimizer.param_groups:\n            group[\"lr\"] = lr\n": "",
        "        losses.append(loss.item())\n": (
            "        losses.append(loss.item())\n        for group in optimizer.param_groups:\n"
            "            group[\"lr\"] = lr\n"
        ),
    },
    hint="Update i is made with lrs[i]: set it before the step. Otherwise the first update runs at the optimiser's own rate.",
)


@mistake(
    "train_on",
    "the draft as it was",
    hint="All four bugs are still in: targets, zero_grad, the place of the clipping, the place of the rate.",
)
def train_on(model, optimizer, batches, lrs, max_norm):
    losses = []
    for token_ids, lr in zip(batches, lrs, strict=True):
        loss = F.cross_entropy(model(token_ids).flatten(0, 1), token_ids.flatten())
        loss.backward()
        optimizer.step()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses.append(loss.item())
    return losses
