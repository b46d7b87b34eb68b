"""Chapter 03: training. Run: python3 tasks.py grade ch03"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minillm.grading import Task, graded

AUTOGRAD = ("torch.autograd.grad", "torch.autograd.backward", "torch.autograd.functional.vjp", "torch.func.vjp")

SECONDS = Task(
    "training_seconds",
    hints=(
        "How many FLOPs is the whole job, and how many a second do all devices really do together?",
        "6 · num_parameters · num_tokens FLOPs; num_devices · peak_flops_per_s · utilization FLOP/s.",
    ),
)
LOSS = Task(
    "cross_entropy_and_grad",
    hints=(
        "The gradient of one row is softmax minus one-hot. What does the mean do to it, and what does padding?",
        "Subtract the row's maximum first; divide loss and gradient by the number of targets that aren't -100.",
    ),
    forbids=("torch.nn.functional.cross_entropy", "torch.nn.functional.nll_loss", *AUTOGRAD),
)
LINEAR = Task(
    "linear_backward",
    hints=(
        "A gradient has the shape of its thing. Which product of d_y and w has the shape of x?",
        "d_x = d_y wᵀ. For d_w make the leading axes one, (num_places, ...): then d_w = xᵀ d_y sums over the places.",
    ),
    forbids=AUTOGRAD,
)
NORM = Task(
    "rms_norm_backward",
    hints=(
        "x enters twice: in the numerator, and in every element through the root mean square.",
        "With n = x / rms and g = d_y · weight: d_x = (g - n · mean(g · n)) / rms. d_weight sums d_y · n over all rows.",
    ),
    forbids=("torch.nn.functional.rms_norm", *AUTOGRAD),
    max_elements=6000,
)
ATTENTION = Task(
    "attention_backward",
    hints=(
        "Go backwards through out = p v, p = softmax(s), s = q kᵀ · scale, one line each.",
        "d_v = pᵀ d_out; d_p = d_out vᵀ; d_s = p · (d_p - rowsum(p · d_p)); then d_q = d_s k and d_k = d_sᵀ q, both scaled.",
    ),
    forbids=("torch.nn.functional.scaled_dot_product_attention", *AUTOGRAD),
)
ADAMW = Task(
    "adamw_step",
    hints=(
        "Work the example of the docstring through with pencil and paper, then a second update.",
        "m = β1 m + (1-β1) g; v likewise with g²; divide by 1 - β^step; the decay acts on the weight and never enters m or v.",
    ),
    forbids=("torch.optim.AdamW", "torch.optim.Adam", "torch.optim.adamw.adamw", "torch.optim.adam.adam"),
)
TRAIN = Task(
    "train_on",
    hints=(
        "Four questions: what is predicted, whose gradients are these, when is it too late to clip, whose rate is this?",
        "Targets are token_ids[:, 1:]; zero_grad before backward; clip between backward and step. The fourth is yours.",
    ),
    forbids=("minillm.training.train",),
    seconds=20,
)


# ---- training_seconds


@graded(SECONDS, points=1)
def test_the_example_takes_twenty_minutes(student):
    seconds = student.training_seconds(1000, 10, num_devices=1, peak_flops_per_s=100, utilization=0.5)
    assert seconds == pytest.approx(1200)


@graded(SECONDS, points=1)
def test_an_8b_model_on_15_trillion_tokens_keeps_1024_gpus_busy_for_three_weeks(student):
    seconds = student.training_seconds(8e9, 15e12, num_devices=1024, peak_flops_per_s=989e12, utilization=0.4)
    assert seconds / 86400 == pytest.approx(20.57, abs=0.01)


# ---- cross_entropy_and_grad


@graded(LOSS, points=1)
def test_a_fair_coin_costs_log_2_and_pulls_by_a_half(student):
    loss, grad = student.cross_entropy_and_grad(torch.zeros(1, 2), torch.tensor([0]))
    assert float(loss) == pytest.approx(math.log(2))
    torch.testing.assert_close(grad, torch.tensor([[-0.5, 0.5]]))


@graded(LOSS, points=1)
def test_loss_and_gradient_are_those_of_autograd(student, rng):
    logits = torch.randn(7, 11, generator=rng, dtype=torch.float64) * 3
    targets = torch.randint(11, (7,), generator=rng)
    expected_loss, expected_grad = by_autograd(logits, targets)
    before = logits.clone()
    loss, grad = student.cross_entropy_and_grad(logits, targets)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-10)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-10)
    assert torch.equal(logits, before), "the logits must stay as they are"


@graded(LOSS, points=1)
def test_padding_counts_neither_in_the_sum_nor_in_the_number(student, rng):
    logits = torch.randn(6, 5, generator=rng, dtype=torch.float64)
    targets = torch.tensor([1, -100, 4, -100, -100, 0])
    before = targets.clone()
    expected_loss, expected_grad = by_autograd(logits, targets)
    loss, grad = student.cross_entropy_and_grad(logits, targets)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-10)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-10)
    assert torch.equal(targets, before), "the targets must stay as they are"


@graded(LOSS, points=1)
def test_large_logits_overflow_nothing(student):
    logits = torch.tensor([[10_000.0, 9_999.0, -10_000.0], [-10_000.0, -10_000.0, 10_000.0]])
    targets = torch.tensor([1, 0])
    loss, grad = student.cross_entropy_and_grad(logits, targets)
    expected_loss, expected_grad = by_autograd(logits, targets)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(grad, expected_grad)


def by_autograd(logits, targets):
    logits = logits.clone().requires_grad_()
    loss = F.cross_entropy(logits, targets)
    (grad,) = torch.autograd.grad(loss, logits)
    return loss.detach(), grad


# ---- linear_backward


@graded(LINEAR, points=1)
def test_the_example_is_one_vector_without_leading_axes(student):
    x, w = torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [4.0]])
    d_x, d_w = student.linear_backward(torch.tensor([10.0]), x, w)
    assert d_x.tolist() == [30.0, 40.0]
    assert d_w.tolist() == [[10.0], [20.0]]


@graded(LINEAR, points=1)
def test_square_matrices_where_every_shape_fits(student, rng):
    # With all sizes equal a forgotten transpose raises no error.
    d_y, x, w = (torch.randn(4, 4, generator=rng, dtype=torch.float64) for _ in range(3))
    check_gradients(student.linear_backward(d_y, x, w), lambda a, b: a @ b, (x, w), d_y)


@graded(LINEAR, points=1)
def test_a_batch_of_sequences_sums_into_one_weight(student, rng):
    for leading in ((5,), (2, 3), (2, 1, 4)):
        x = torch.randn(*leading, 6, generator=rng, dtype=torch.float64)
        w = torch.randn(6, 3, generator=rng, dtype=torch.float64)
        d_y = torch.randn(*leading, 3, generator=rng, dtype=torch.float64)
        check_gradients(student.linear_backward(d_y, x, w), lambda a, b: a @ b, (x, w), d_y)


def check_gradients(gradients, function, inputs, d_out):
    """Compare with autograd, in fp64."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    expected = torch.autograd.grad(function(*leaves), leaves, d_out)
    assert len(gradients) == len(expected)
    for got, wanted in zip(gradients, expected, strict=True):
        assert got.shape == wanted.shape, f"a gradient has the shape of its thing: {wanted.shape}, not {got.shape}"
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


# ---- rms_norm_backward


def rms_norm(x, weight, eps):
    return weight * x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps)


@graded(NORM, points=1)
def test_a_push_along_x_is_undone_by_the_norm(student):
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    d_x, d_weight = student.rms_norm_backward(x, x, torch.ones(2, dtype=torch.float64), 0.0)
    torch.testing.assert_close(d_x, torch.zeros_like(x))
    torch.testing.assert_close(d_weight, torch.tensor([9.0, 16.0], dtype=torch.float64) / math.sqrt(12.5))


@graded(NORM, points=2)
def test_both_gradients_are_those_of_autograd(student, rng):
    x, d_y = (torch.randn(5, 8, generator=rng, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(8, generator=rng, dtype=torch.float64)
    gradients = student.rms_norm_backward(d_y, x, weight, 1e-6)
    check_gradients(gradients, lambda a, b: rms_norm(a, b, 1e-6), (x, weight), d_y)


@graded(NORM, points=1)
def test_several_leading_axes_and_an_eps_that_matters(student, rng):
    x = 0.1 * torch.randn(2, 3, 4, 200, generator=rng, dtype=torch.float64)
    d_y = torch.randn(2, 3, 4, 200, generator=rng, dtype=torch.float64)
    weight = torch.randn(200, generator=rng, dtype=torch.float64)
    gradients = student.rms_norm_backward(d_y, x, weight, 0.02)
    check_gradients(gradients, lambda a, b: rms_norm(a, b, 0.02), (x, weight), d_y)


# ---- attention_backward


def attention_probs(q, k, scale):
    future = torch.ones(len(q), len(k), dtype=torch.bool).triu(1 + len(k) - len(q))
    return torch.softmax((q @ k.T * scale).masked_fill(future, float("-inf")), dim=-1)


@graded(ATTENTION, points=1)
def test_with_a_single_key_only_the_value_learns(student, rng):
    q, k, v = (torch.randn(1, 4, generator=rng, dtype=torch.float64) for _ in range(3))
    d_out = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    d_q, d_k, d_v = student.attention_backward(d_out, q, k, v, torch.ones(1, 1, dtype=torch.float64), 0.5)
    torch.testing.assert_close(d_q, torch.zeros_like(q))
    torch.testing.assert_close(d_k, torch.zeros_like(k))
    torch.testing.assert_close(d_v, d_out)


@graded(ATTENTION, points=2)
def test_causal_attention_gives_the_gradients_of_autograd(student, rng):
    q, k, v, d_out = (torch.randn(6, 6, generator=rng, dtype=torch.float64) for _ in range(4))
    gradients = student.attention_backward(d_out, q, k, v, attention_probs(q, k, 0.4), 0.4)
    check_gradients(gradients, lambda a, b, c: attention_probs(a, b, 0.4) @ c, (q, k, v), d_out)


@graded(ATTENTION, points=2)
def test_fewer_queries_than_keys_and_another_width_of_values(student, rng):
    q, k = (torch.randn(n, 8, generator=rng, dtype=torch.float64) for n in (3, 7))
    v, d_out = (torch.randn(n, 5, generator=rng, dtype=torch.float64) for n in (7, 3))
    gradients = student.attention_backward(d_out, q, k, v, attention_probs(q, k, 2.0), 2.0)
    check_gradients(gradients, lambda a, b, c: attention_probs(a, b, 2.0) @ c, (q, k, v), d_out)


# ---- adamw_step


@graded(ADAMW, points=1)
def test_the_first_step_is_as_long_as_the_rate_whatever_the_gradient(student):
    weight, grad = torch.ones(3), torch.tensor([0.5, -1e-3, 40.0])
    m, v = torch.zeros(3), torch.zeros(3)
    student.adamw_step(weight, grad, m, v, 1, lr=0.1, betas=(0.9, 0.95), eps=0.0, weight_decay=0.0)
    torch.testing.assert_close(weight, torch.tensor([0.9, 1.1, 0.9]))
    torch.testing.assert_close(m, 0.1 * grad)
    torch.testing.assert_close(v, 0.05 * grad**2)


@graded(ADAMW, points=2)
def test_twenty_updates_agree_with_torch(student, rng):
    start = torch.randn(4, 5, generator=rng, dtype=torch.float64)
    theirs = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([theirs], lr=0.03, betas=(0.8, 0.99), eps=1e-3, weight_decay=0.3)
    weight, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, 21):
        grad = torch.randn(4, 5, generator=rng, dtype=torch.float64) * 10.0 ** (step % 3)
        theirs.grad = grad.clone()
        optimizer.step()
        kept = grad.clone()
        student.adamw_step(weight, grad, m, v, step, lr=0.03, betas=(0.8, 0.99), eps=1e-3, weight_decay=0.3)
        assert torch.equal(grad, kept), "the gradient must stay as it is"
    torch.testing.assert_close(weight, theirs.detach(), rtol=0, atol=1e-10)


@graded(ADAMW, points=1)
def test_without_a_gradient_every_weight_decays_alike(student):
    weight = torch.tensor([1.0, -100.0, 0.01], dtype=torch.float64)
    start, m, v = weight.clone(), torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for step in range(1, 11):
        zero = torch.zeros(3, dtype=torch.float64)
        student.adamw_step(weight, zero, m, v, step, lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.5)
    torch.testing.assert_close(weight, start * 0.95**10)


# ---- train_on


class Bigrams(nn.Module):
    """The smallest language model: a row of logits for each token, looked up by the token before."""

    def __init__(self, start):
        super().__init__()
        self.table = nn.Parameter(start.clone())

    def forward(self, token_ids):
        return self.table[token_ids]


def by_hand(start, batches, lrs, max_norm):
    """Gradient descent on the table, from counted pairs: the losses that each update must report."""
    table, losses = start.clone(), []
    for token_ids, lr in zip(batches, lrs, strict=True):
        before, after = token_ids[:, :-1].flatten(), token_ids[:, 1:].flatten()
        log_probs = table.log_softmax(dim=-1)
        losses.append(-float(log_probs[before, after].mean()))
        pairs = torch.zeros_like(table).index_put_((before, after), torch.tensor(1.0).to(table), accumulate=True)
        grad = (pairs.sum(dim=1, keepdim=True) * log_probs.exp() - pairs) / len(before)
        table -= lr * grad * min(1.0, max_norm / float(grad.norm()))
    return losses


def some_batches(rng, count):
    return [torch.randint(6, (4, 9), generator=rng) for _ in range(count)]


@graded(TRAIN, points=1)
def test_the_first_loss_of_a_model_that_knows_nothing_is_log_v(student):
    model = Bigrams(torch.zeros(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = student.train_on(model, optimizer, [torch.tensor([[0, 1, 2, 3]])] * 3, [0.0, 0.5, 0.0], 10.0)
    assert losses[0] == pytest.approx(math.log(8)) and losses[1] == pytest.approx(math.log(8))
    assert losses[2] < losses[1]


@graded(TRAIN, points=1)
def test_every_loss_is_that_of_gradient_descent_by_hand(student, rng):
    start = torch.randn(6, 6, generator=rng, dtype=torch.float64)
    batches, lrs = some_batches(rng, 6), [0.1, 0.5, 2.0, 1.0, 4.0, 0.3]
    model = Bigrams(start)
    losses = student.train_on(model, torch.optim.SGD(model.parameters(), lr=7.0), batches, lrs, 1000.0)
    assert losses == pytest.approx(by_hand(start, batches, lrs, 1000.0), abs=1e-9)


@graded(TRAIN, points=2)
def test_a_large_gradient_is_clipped_and_a_small_one_is_not(student, rng):
    start = 3 * torch.randn(6, 6, generator=rng, dtype=torch.float64)
    batches, lrs = some_batches(rng, 6), [3.0] * 6
    for max_norm in (0.05, 0.2):
        model = Bigrams(start)
        losses = student.train_on(model, torch.optim.SGD(model.parameters(), lr=3.0), batches, lrs, max_norm)
        # torch divides by norm + 1e-6, which the sixth digit shows
        assert losses == pytest.approx(by_hand(start, batches, lrs, max_norm), abs=1e-4)


@graded(TRAIN, points=1)
def test_gradients_left_over_from_before_do_not_count(student, rng):
    start = torch.randn(6, 6, generator=rng, dtype=torch.float64)
    batches, lrs = some_batches(rng, 3), [1.0] * 3
    model = Bigrams(start)
    model.table.grad = torch.randn(6, 6, generator=rng, dtype=torch.float64)  # of somebody else's batch
    losses = student.train_on(model, torch.optim.SGD(model.parameters(), lr=1.0), batches, lrs, 1000.0)
    assert losses == pytest.approx(by_hand(start, batches, lrs, 1000.0), abs=1e-9)


@graded(TRAIN, points=1)
def test_a_tiny_model_reaches_the_floor_of_its_source(student, rng):
    # Each token is followed by one of two, with 0.8 and 0.2: the entropy is 0.5004 nats a token.
    vocab_size, floor = 6, -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    rows = torch.zeros(150, 16, 33, dtype=torch.int64)
    rows[..., 0] = torch.randint(vocab_size, (150, 16), generator=rng)
    jumps = 1 + 2 * (torch.rand(150, 16, 32, generator=rng) < 0.2).long()
    for place in range(32):
        rows[..., place + 1] = (rows[..., place] + jumps[..., place]) % vocab_size
    model = Bigrams(torch.zeros(vocab_size, vocab_size))
    lrs = [0.1 * (1 - i / 150) for i in range(150)]
    losses = student.train_on(model, torch.optim.AdamW(model.parameters(), lr=9.0), list(rows), lrs, 1.0)
    assert losses[0] == pytest.approx(math.log(vocab_size), abs=1e-4)
    assert sum(losses[-20:]) / 20 == pytest.approx(floor, abs=0.03)
