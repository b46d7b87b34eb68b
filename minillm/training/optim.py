"""The optimiser: who gets weight decay, how the learning rate moves, and how weights start.

AdamW: Loshchilov and Hutter, 2019, arXiv:1711.05101. Cosine schedule: arXiv:1608.03983. Betas, clipping and decay are
those of Llama (arXiv:2302.13971).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from minillm.model.gqa import GroupedQueryAttention
from minillm.training.config import TrainConfig

BETAS = (0.9, 0.95)
EPS = 1e-8
RESIDUAL_OUTPUTS = ("wo.weight", "w_down.weight")
"""The two projections of a block whose output is added to the residual stream."""
ALIGNMENT = 0.7
"""How much of `wq` is `wk` at the start, and of `wo` is `wv`: 0 = none, 1 = all."""


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of update `step` (0-based): a linear warm-up to `lr`, then half a cosine down to
    `min_lr_ratio * lr` at the last update.

    The warm-up starts at `lr / warmup_steps` and not at 0, so that no update is wasted.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    decay_steps = max(1, config.steps - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / decay_steps)
    floor = config.min_lr_ratio
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only (every parameter of at least two dimensions).

    Norm gains and biases are left alone: pulling a gain towards 0 does not make the function simpler, it turns the
    layer off. The fused implementation updates all parameters in one call, with the same results on every run.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, eps=EPS, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets `lr` in every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def initialize_weights(model: nn.Module, *, num_layers: int, seed: int) -> None:
    """Draws the starting weights in place: matrices from N(0, 1 / in_features), gains 1, biases 0.

    A matrix (out_features, in_features) then passes on the variance of its inputs (LeCun et al. 1998, "Efficient
    BackProp", eq. 16), so queries and keys start at unit scale and attention can tell tokens apart from the first
    update on. The customary 0.02 does that for widths near 2500; at a width of 256 every score starts near 0, attention
    starts out uniform, and learning to look a name up in the context takes longer.

    The projections that write to the residual stream get another factor `1 / sqrt(2 * num_layers)`: each of the
    `2 * num_layers` of them adds its variance to the stream, and together they should add as much as one layer would
    (GPT-2, section 2.3).

    Heads start aligned: see `align_heads`. Every matrix is drawn on the CPU in float32 in the order of
    `named_parameters`, so `seed` alone decides the values, whatever the device. Tied weights are one parameter and are
    drawn once.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            std = 1 / math.sqrt(parameter.shape[-1])
            scale = std / math.sqrt(2 * num_layers) if name.endswith(RESIDUAL_OUTPUTS) else std
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.fill_(1.0)
    for module in model.modules():
        if isinstance(module, GroupedQueryAttention):
            align_heads(module, num_layers=num_layers)


@torch.no_grad()
def align_heads(attention: GroupedQueryAttention, *, num_layers: int) -> None:
    """Lets heads begin as what most of them become: they look for tokens that resemble the query, and copy them.

    `wq` is mixed with `wk` of the KV head it reads, so that scores start out as a similarity, and `wo` with the
    transposed `wv`, so that a value is written back about as it was. With tied embeddings a token that is attended to
    then becomes likelier as the next one, which is how a name or a colour is carried through a story. The variance of
    every matrix stays as it was. Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers"
    (arXiv:2305.09828), who found these products in trained transformers.
    """
    heads_in_group = attention.wq.out_features // attention.wk.out_features

    def for_each_query_head(weight: torch.Tensor) -> torch.Tensor:
        heads = weight.unflatten(0, (-1, attention.head_dim))  # (num_kv_heads, head_dim, hidden_size)
        return heads.repeat_interleave(heads_in_group, dim=0).flatten(0, 1)

    rest = math.sqrt(1 - ALIGNMENT**2)
    wo_scale = math.sqrt(attention.wv.in_features / attention.wo.in_features / (2 * num_layers))
    attention.wq.weight.mul_(rest).add_(for_each_query_head(attention.wk.weight), alpha=ALIGNMENT)
    attention.wo.weight.mul_(rest).add_(for_each_query_head(attention.wv.weight).T, alpha=ALIGNMENT * wo_scale)
