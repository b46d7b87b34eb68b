"""Chapter 03: training.

Complete the functions below, then run `python3 tasks.py grade ch03`. The chapter is `chapters/03_training.ipynb`; each
task names the section that prepares it. Gradients are written by hand here: autograd is the examiner, so it is not
available inside your functions, except in the last task.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---- Task 1 (prediction): how long will it take? Prepared by "Napkin".


def training_seconds(
    num_parameters: float, num_tokens: float, *, num_devices: int, peak_flops_per_s: float, utilization: float
) -> float:
    """Seconds to train a model of `num_parameters` on `num_tokens`, by the rule of 6 FLOPs a parameter and token.

    peak_flops_per_s  of one device
    utilization       the share of the peak that the job achieves, 0 to 1, on all devices alike

    Example: 1000 parameters, 10 tokens and one device of 100 FLOP/s that is kept half busy: 60,000 FLOPs at 50 FLOP/s,
    so 1200 seconds.
    """
    # BEGIN SOLUTION
    flops = 6 * num_parameters * num_tokens
    return flops / (num_devices * peak_flops_per_s * utilization)
    # END SOLUTION


# ---- Task 2: the loss and its gradient. Prepared by "The idea", section "The loss".


def cross_entropy_and_grad(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of −log softmax(logits)[target] over the targets that count, and its gradient with respect to the logits.

    logits   (num_tokens, vocab_size)
    targets  (num_tokens,) int64; −100 marks padding: it adds nothing to the mean, and its row of the gradient is 0.
             At least one target counts

    Returns the loss (a scalar, nats) and the gradient (num_tokens, vocab_size). Both must be finite for logits as
    large as 10,000. `logits` and `targets` stay as they are. F.cross_entropy would be the answer and is refused;
    log_softmax is allowed.

    Example: logits [[0, 0]] and target [0] give the loss log 2 = 0.693 and the gradient [[−0.5, 0.5]].
    """
    # BEGIN SOLUTION
    counts = targets != -100
    num_targets = counts.sum()
    rows = torch.arange(len(targets))
    targets = targets.clamp(min=0)  # any valid place for padding, whose row is zeroed below
    shifted = logits - logits.max(dim=-1, keepdim=True).values
    log_probs = shifted - shifted.exp().sum(dim=-1, keepdim=True).log()
    loss = -(log_probs[rows, targets] * counts).sum() / num_targets
    grad = log_probs.exp()
    grad[rows, targets] -= 1
    return loss, grad * counts[:, None] / num_targets
    # END SOLUTION


# ---- Task 3: backward through a matrix product. Prepared by "The idea", section "Shapes decide".


def linear_backward(d_y: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the loss with respect to x and w, where y = x @ w, from the gradient with respect to y.

    d_y (..., out_features), x (..., in_features), w (in_features, out_features). The leading axes `...` may be none, or
    several (batch, seq_len); they are the same for d_y and x, and w is used once at each of their places.

    Returns d_x (..., in_features) and d_w (in_features, out_features).

    Example: x = [1, 2], w = [[3], [4]], so y = [11]. With d_y = [10], d_x = [30, 40] and d_w = [[10], [20]].
    """
    # BEGIN SOLUTION
    d_x = d_y @ w.T
    flat_x = x.reshape(-1, x.shape[-1])  # (num_places, in_features)
    flat_d_y = d_y.reshape(-1, d_y.shape[-1])
    return d_x, flat_x.T @ flat_d_y
    # END SOLUTION


# ---- Task 4: backward through RMSNorm. Prepared by "The idea", section "Backward, part by part".


def rms_norm_backward(d_y: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients with respect to x and weight, where y = weight · x / sqrt(mean(x²) + eps) over the last axis.

    d_y, x (..., size), weight (size,). Returns d_x (..., size) and d_weight (size,). Don't build a Jacobian: no tensor
    in here needs more elements than x has.

    Example: x = [3, 4], weight = [1, 1], eps = 0. The root mean square is sqrt(12.5), and with d_y = [3, 4] (a push
    along x, which the norm undoes) d_x = [0, 0]; d_weight = [9, 16] / sqrt(12.5) = [2.546, 4.525].
    """
    # BEGIN SOLUTION
    inverse_rms = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    normed = x * inverse_rms
    d_normed = d_y * weight
    along = (d_normed * normed).mean(dim=-1, keepdim=True)  # what would only change the length of x
    d_x = inverse_rms * (d_normed - normed * along)
    d_weight = (d_y * normed).reshape(-1, x.shape[-1]).sum(dim=0)
    return d_x, d_weight
    # END SOLUTION


# ---- Task 5: backward through attention. Prepared by "The idea", section "Attention".


def attention_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, softmax_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to q, k and v of one head of attention, from what the forward pass saved.

    The forward was p = softmax(mask(q @ kᵀ · softmax_scale)), out = p @ v, with a causal mask: p is 0 in the future.

    d_out (q_len, v_head_dim), q (q_len, head_dim), k (k_len, head_dim), v (k_len, v_head_dim), p (q_len, k_len)

    Returns d_q, d_k, d_v, each of the shape of its namesake. Four matrix products are enough, since `p` was saved.

    Example: with a single key p is 1 whatever q and k are, so d_q = 0, d_k = 0, and d_v is the sum of d_out's rows.
    """
    # BEGIN SOLUTION
    d_v = p.T @ d_out
    d_p = d_out @ v.T  # (q_len, k_len)
    d_scores = p * (d_p - (p * d_p).sum(dim=-1, keepdim=True))  # a masked score has p = 0, and so no gradient
    d_scores = d_scores * softmax_scale
    return d_scores @ k, d_scores.T @ q, d_v
    # END SOLUTION


# ---- Task 6: the optimiser. Prepared by "The idea", section "From a gradient to a step".


def adamw_step(
    weight: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One update of AdamW, in place: changes `weight`, `m` and `v`, all of one shape. `grad` stays as it is.

    m, v   running means of the gradient and of its square, 0 before the first update
    step   the number of this update, counted from 1: it decides the bias correction
    eps    is added to the root, outside of it

    Example: weight 1, grad 0.5, m = v = 0, step 1, lr 0.1, betas (0.9, 0.95), eps 0, weight_decay 0. Afterwards
    m = 0.05 and v = 0.0125; corrected they are 0.5 and 0.25, so the step is 0.1 · 0.5 / 0.5 and weight = 0.9.
    With weight_decay 0.2 the weight loses another 0.1 · 0.2 · 1 and becomes 0.88; m and v are the same.
    """
    # BEGIN SOLUTION
    beta1, beta2 = betas
    m.mul_(beta1).add_(grad, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    weight.mul_(1 - lr * weight_decay)
    weight.sub_(lr * m_hat / (v_hat.sqrt() + eps))
    # END SOLUTION


# ---- Task 7 (bug hunt): a loop that learns to copy. Prepared by "The real version" and "Four ways to be wrong".


def hasty_train(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Tensor], lrs: list[float], max_norm: float
) -> list[float]:
    """Somebody's draft of `train_on`. It runs without an error, and four things in it are wrong."""
    losses = []
    for token_ids, lr in zip(batches, lrs, strict=True):
        logits = model(token_ids)
        loss = F.cross_entropy(logits.flatten(0, 1), token_ids.flatten())
        loss.backward()
        optimizer.step()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses.append(loss.item())
    return losses


def train_on(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Tensor], lrs: list[float], max_norm: float
) -> list[float]:
    """`hasty_train`, repaired: one update for each batch; returns the loss of each, in nats, before its update.

    model      token ids (batch, n) int64 -> logits (batch, n, vocab_size): at each place for the token that comes next
    batches    each (batch, seq_len) int64; the model reads all but the last token of a row
    lrs        update i is made with the learning rate lrs[i]
    max_norm   the gradients of all parameters together are scaled down to this norm if theirs is larger

    Each update uses the gradient of its own batch alone. Gradients left over from earlier don't count.
    """
    # BEGIN SOLUTION
    losses = []
    for token_ids, lr in zip(batches, lrs, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        logits = model(token_ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), token_ids[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses
    # END SOLUTION
