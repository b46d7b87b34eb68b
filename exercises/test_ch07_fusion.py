"""Chapter 07: fusion and graph compilation. Run: python3 tasks.py grade ch07"""

from __future__ import annotations

import math
import operator
from itertools import product

import torch
import torch.nn.functional as F
from torch import fx

from minillm.fusion.metered import Blocks, cost
from minillm.generation.tape import Tape
from minillm.grading import Task, graded
from minillm.model.ffn import SwiGLU
from minillm.perf.flops import count_flops
from minillm.perf.meter import Meter

BYTES = Task(
    "fusion_bytes",
    hints=(
        "Go call by call: what does its kernel read, what does it write? Then: what comes from outside of the chain?",
        "A set of names for each kernel, so that x · x reads x once. Rows of 1 count num_programs times. Fused: read "
        "the operands that no call makes, write the kept results.",
    ),
    forbids=("minillm.fusion.metered.cost", "minillm.fusion.metered.run"),
)
NORM = Task(
    "add_rms_norm_on_meter",
    hints=(
        "A program: load x, add residual in a scope, store the sum, scale it by the root of its mean square, then by "
        "the weight, store it again.",
        "`with sram.scope():` around `tile += sram.load(residual[rows])`; another one around (tile * tile).row_sum(), "
        "*= 1 / size, += eps and tile *= column.rsqrt(); a third one around the weight.",
    ),
    forbids=("minillm.fusion.metered.run", "minillm.fusion.metered_norm"),
)
LOSS = Task(
    "loss_by_blocks",
    hints=(
        "Keep for each token the largest logit so far, the sum of exp(logit − largest), and the sum of those weights "
        "times the rows of lm_head. What happens to both sums when the largest grows?",
        "new = max(largest, logits.amax(1)); both sums times exp(largest − new), plus weights.sum(1) and weights @ "
        "rows. At the end lse = largest + log(sum); the target's own logit is (hidden · lm_head[target]).sum(1).",
    ),
    forbids=(
        "torch.nn.functional.cross_entropy",
        "torch.nn.functional.log_softmax",
        "torch.logsumexp",
        "minillm.kernels.fused_oracles.cross_entropy",
    ),
    max_elements=5_000,
)
MATCH = Task(
    "match_chain",
    hints=(
        "Write a generator that yields every way in which a pattern fits a value, given what wildcards stand for so far. "
        "The first way may turn out wrong two levels up.",
        "fits(wanted, value, binding, inside): a wildcard binds or agrees, a number is equal, an operation has the name "
        "and as many operands, which fit one after the other, in both orders for add and mul. At the end look at the "
        "users of inside − {root}, for each way.",
    ),
    forbids=("minillm.fusion.matcher",),
)
SWAP = Task(
    "swap_swiglu",
    hints=(
        "For each product: is one of its operands a silu whose only user is this product? What about the other side?",
        "inserting_before(product), not before the silu: up may be computed in between. Replace the product's uses, "
        "erase the product, then the silu, which has no user left then.",
    ),
    forbids=(
        "minillm.fusion.rewrite.fuse_graph",
        "minillm.fusion.matcher",
        "torch.fx.subgraph_rewriter.replace_pattern",
        "torch.fx.subgraph_rewriter.replace_pattern_with_filters",
        "torch.fx.replace_pattern",
    ),
)
REPLAY = Task(
    "replayed",
    hints=(
        "Which names does the draft give to a new object between replays? The recording knows the old one.",
        "token and length are tensors of one number, made before, filled before each replay. Write with index_copy_, "
        "read with a mask. The memory is made before the step. A result is overwritten by the next replay: clone it.",
    ),
)


def random(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def close(a, b, tolerance=1e-9, what="result"):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")


# ---- fusion_bytes


def predicted(student, calls, shapes, kept, num_programs=1, bytes_per_number=2):
    found = student.fusion_bytes(calls, shapes, kept, num_programs=num_programs, bytes_per_number=bytes_per_number)
    return tuple(tuple(pair) for pair in found)


@graded(BYTES, points=1)
def test_two_calls_by_hand(student):
    calls = [("a", ("x", "x")), ("y", ("a", "w"))]
    shapes = {"x": (4, 8), "w": (1, 8), "a": (4, 8), "y": (4, 8)}
    assert predicted(student, calls, shapes, {"y"}, num_programs=2) == ((2, 288), (1, 160))
    assert predicted(student, calls[:1], shapes, {"a"}, num_programs=2) == ((1, 128), (1, 128)), "nothing to gain"


@graded(BYTES, points=1)
def test_what_is_kept_is_written_once_and_not_read_again(student):
    calls = [("s", ("x", "r")), ("q", ("s", "s")), ("m", ("q",)), ("y", ("s", "m"))]
    shapes = {"x": (6, 10), "r": (6, 10), "s": (6, 10), "q": (6, 10), "m": (6, 1), "y": (6, 10)}
    # on their own: (2 + 1) + (1 + 1) + 1 + (1 + 1) of 60 numbers, and m written and read: 6 each
    eager = (4, 4 * (8 * 60 + 12))
    for kept, written in (({"y"}, 60), ({"y", "s"}, 120), ({"y", "m"}, 66), ({"y", "x"}, 60)):
        assert predicted(student, calls, shapes, kept, bytes_per_number=4) == (eager, (1, 4 * (120 + written)))


@graded(BYTES, points=2)
def test_norms_swiglu_and_softmax_as_the_meter_counts_them(student, rng):
    norm = [("q", ("s", "s")), ("m", ("q",)), ("e", ("m",)), ("r", ("e",)), ("n", ("s", "r")), ("y", ("n", "w"))]
    chains = {
        "rms_norm": (norm, {"y"}),
        "add_rms_norm": ([("s", ("x", "b")), *norm], {"y", "s"}),
        "swiglu": ([("a", ("x",)), ("y", ("a", "b"))], {"y"}),
        "softmax": ([("m", ("x",)), ("d", ("x", "m")), ("q", ("d",)), ("r", ("q",)), ("y", ("q", "r"))], {"y"}),
    }
    for name, (calls, kept) in chains.items():
        rows, size, block = (int(torch.randint(2, 40, (), generator=rng)) for _ in range(3))
        shapes = {label: (rows, 1 if label in "mer" else size) for label in "sxbqmernady"} | {"w": (1, size)}
        eager, fused = (cost(name, v, (rows, size), blocks=Blocks(rows=block)) for v in ("eager", "fused"))
        found = predicted(student, calls, shapes, kept, num_programs=-(-rows // block), bytes_per_number=4)
        assert found == ((eager.launches, eager.hbm_bytes), (fused.launches, fused.hbm_bytes)), name


# ---- add_rms_norm_on_meter


def normed(student, x, residual, weight, block_rows, eps=1e-5, numbers=None):
    rows, size = x.shape
    numbers = 2 * min(block_rows, rows) * size + 2 * min(block_rows, rows) if numbers is None else numbers
    meter = Meter(8 * numbers, dtype=torch.float64)
    given = [meter.hbm(name, t) for name, t in (("x", x), ("residual", residual), ("weight", weight[None, :]))]
    total, out = meter.empty("total", x.shape), meter.empty("out", x.shape)
    found = student.add_rms_norm_on_meter(meter, *given, total, out, block_rows=block_rows, eps=eps)
    assert found[0] == meter.total
    expected = x + residual
    for stored, returned, right in (
        (total, found[1], expected),
        (out, found[2], F.rms_norm(expected, weight.shape, weight, eps)),
    ):
        what = "total" if stored is total else "out"
        close(stored.result(), right, what=f"{what} in HBM")
        close(returned, right, what=f"{what} returned")
    return meter


@graded(NORM, points=1)
def test_two_numbers_and_one_program(student, rng):
    x, residual, weight = (torch.tensor(t, dtype=torch.float64) for t in ([[1.0, 2]], [[2.0, 2]], [1.0, 10]))
    normed(student, x, residual, weight, block_rows=1, eps=0.0)
    normed(student, random(rng, 4, 16), random(rng, 4, 16), random(rng, 16), block_rows=4, eps=0.5)


@graded(NORM, points=1)
def test_one_launch_and_exactly_these_bytes(student, rng):
    for rows, size, block_rows in ((8, 12, 2), (7, 12, 3), (5, 9, 8)):
        meter = normed(
            student, random(rng, rows, size), random(rng, rows, size), random(rng, size), block_rows, numbers=999
        )
        programs = -(-rows // block_rows)
        assert (meter.total.launches, meter.total.programs) == (1, programs)
        read = {name: tensor.bytes_read // 8 for name, tensor in meter.tensors.items()}
        written = {name: tensor.bytes_written // 8 for name, tensor in meter.tensors.items()}
        once = rows * size
        assert read == {"x": once, "residual": once, "weight": programs * size, "total": 0, "out": 0}
        assert written == {"x": 0, "residual": 0, "weight": 0, "total": once, "out": once}


@graded(NORM, points=2)
def test_fits_two_tiles_and_two_columns(student, rng):
    meter = normed(student, random(rng, 6, 20), random(rng, 6, 20), random(rng, 20), 3, numbers=999)
    assert meter.total.peak_sram_bytes <= 8 * (2 * 3 * 20 + 2 * 3), "free what isn't needed any more"
    for rows, size, block_rows in ((6, 20, 3), (1, 64, 1), (7, 33, 2)):
        meter = normed(student, random(rng, rows, size) + 3, random(rng, rows, size), random(rng, size), block_rows)
        assert meter.total.bytes_written == 2 * 8 * rows * size


# ---- loss_by_blocks


def losses_by_autograd(hidden, lm_head, targets):
    hidden = hidden.clone().requires_grad_()
    losses = F.cross_entropy(hidden @ lm_head.T, targets, reduction="none", ignore_index=-100)
    losses.sum().backward()
    return losses.detach(), hidden.grad


def check_loss(student, hidden, lm_head, targets, block, tolerance=1e-9):
    expected = losses_by_autograd(hidden, lm_head, targets)
    kept = [t.clone() for t in (hidden, lm_head, targets)]
    found = student.loss_by_blocks(hidden, lm_head, targets, block=block)
    close(found[0], expected[0], tolerance, "losses")
    close(found[1], expected[1], tolerance, "d_hidden")
    assert all(torch.equal(a, b) for a, b in zip((hidden, lm_head, targets), kept, strict=True)), "arguments changed"


@graded(LOSS, points=1)
def test_two_words_by_hand(student):
    lm_head = torch.tensor([[0.0], [math.log(3)]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    for block in (1, 2, 5):
        losses, d_hidden = student.loss_by_blocks(one, lm_head, torch.tensor([1]), block=block)
        close(losses, torch.tensor([math.log(4 / 3)], dtype=torch.float64), what="losses")
        close(d_hidden, torch.tensor([[-math.log(3) / 4]], dtype=torch.float64), what="d_hidden")


@graded(LOSS, points=1)
def test_any_block_and_any_target_equal_autograd(student, rng):
    hidden, lm_head = random(rng, 7, 5), random(rng, 23, 5)
    for block in (1, 4, 23, 100):
        check_loss(student, hidden, lm_head, torch.randint(23, (7,), generator=rng), block)


@graded(LOSS, points=1)
def test_the_largest_logit_may_come_first_or_last(student, rng):
    hidden = torch.rand(4, 3, generator=rng, dtype=torch.float64) + 0.5
    for steps in (torch.linspace(9, -9, 20), torch.linspace(-9, 9, 20)):
        lm_head = steps.double()[:, None] + 0.1 * random(rng, 20, 3)
        check_loss(student, hidden, lm_head, torch.randint(20, (4,), generator=rng), block=3)


@graded(LOSS, points=1)
def test_huge_logits_and_tokens_that_do_not_count(student, rng):
    hidden, lm_head = random(rng, 6, 4), random(rng, 15, 4)
    check_loss(student, 3000 * hidden, lm_head, torch.randint(15, (6,), generator=rng), block=4, tolerance=1e-7)
    check_loss(student, hidden - 3000, lm_head.abs(), torch.randint(15, (6,), generator=rng), block=4, tolerance=1e-7)
    targets = torch.tensor([3, -100, 14, 0, -100, -100])
    check_loss(student, hidden, lm_head, targets, block=4)


@graded(LOSS, points=2)
def test_no_logits_of_the_whole_vocabulary_and_one_pass(student, rng):
    hidden, lm_head = random(rng, 64, 8), random(rng, 500, 8)  # 32,000 logits, of which 1,024 at a time
    targets = torch.randint(500, (64,), generator=rng)
    found = []
    flops = count_flops(lambda: found.extend(student.loss_by_blocks(hidden, lm_head, targets, block=16)))
    for mine, expected, what in zip(
        found, losses_by_autograd(hidden, lm_head, targets), ("losses", "d_hidden"), strict=True
    ):
        close(mine, expected, what=what)
    assert flops < 4.5 * 64 * 500 * 8, "more than two products for each block: the logits, and weights @ rows"


# ---- match_chain

SWIGLU = ("mul", ("silu", "?gate"), "?up")
NORM_PATTERN = ("mul", "?w", ("mul", "?x", ("rsqrt", ("add", ("mean", ("mul", "?x", "?x")), 1e-6))))
NORM_GRAPH = {
    "h": ("add", "a", "b"),
    "sq": ("mul", "h", "h"),
    "ms": ("mean", "sq"),
    "me": ("add", 1e-6, "ms"),
    "rs": ("rsqrt", "me"),
    "n": ("mul", "rs", "h"),
    "y": ("mul", "n", "w"),
    "out": ("linear", "y", "wq"),
}


def allowed(graph, outputs, root, pattern):
    """Every allowed binding, by trying all orders of the pattern's commutative operations one after the other."""
    places = []

    def find(part, path=()):
        if isinstance(part, tuple):
            places.extend([path] if part[0] in ("add", "mul") else [])
            for i, operand in enumerate(part[1:]):
                find(operand, (*path, i))

    def strict(part, value, path, swaps, binding, inside):
        if isinstance(part, str):
            return isinstance(value, str) and binding.setdefault(part, value) == value
        if not isinstance(part, tuple):
            return not isinstance(value, str) and part == value
        if value not in graph or graph[value][0] != part[0] or len(graph[value]) != len(part):
            return False
        inside.add(value)
        operands = graph[value][1:][::-1] if path in swaps else graph[value][1:]
        return all(
            strict(p, v, (*path, i), swaps, binding, inside)
            for i, (p, v) in enumerate(zip(part[1:], operands, strict=True))
        )

    find(pattern)
    found = []
    for choice in product((False, True), repeat=len(places)):
        binding, inside = {}, set()
        swaps = {place for place, swapped in zip(places, choice, strict=True) if swapped}
        if strict(pattern, root, (), swaps, binding, inside):
            outer = [operand for name, node in graph.items() if name not in inside for operand in node[1:]]
            if not (inside - {root}) & {*outer, *outputs, *binding.values()}:
                found.append(binding)
    return found


def check_match(student, graph, outputs, root, pattern):
    found = student.match_chain(graph, outputs, root, pattern)
    ways = allowed(graph, outputs, root, pattern)
    assert (found in ways) if ways else found is None, f"{pattern} at {root}: {found}, allowed are {ways}"
    return found


@graded(MATCH, points=1)
def test_swiglu_with_its_operands_in_both_orders(student):
    for operands in (("s", "u"), ("u", "s")):
        graph = {"s": ("silu", "g"), "y": ("mul", *operands), "z": ("linear", "y", "w")}
        assert student.match_chain(graph, ["z"], "y", SWIGLU) == {"?gate": "g", "?up": "u"}
        assert student.match_chain(graph, ["z"], "z", SWIGLU) is None
        assert student.match_chain(graph, ["z"], "s", SWIGLU) is None


@graded(MATCH, points=1)
def test_rms_norm_with_numbers_and_a_wildcard_used_three_times(student):
    assert student.match_chain(NORM_GRAPH, ["out"], "y", NORM_PATTERN) == {"?x": "h", "?w": "w"}
    for name, node in (
        ("me", ("add", "ms", 1e-5)),
        ("sq", ("mul", "h", "a")),
        ("n", ("mul", "rs", "a")),
        ("rs", ("sqrt", "me")),
    ):
        assert student.match_chain({**NORM_GRAPH, name: node}, ["out"], "y", NORM_PATTERN) is None, f"{name}: {node}"
    graph = {"s": ("silu", "g"), "y": ("mul", "s", 2.0)}
    assert student.match_chain(graph, ["y"], "y", SWIGLU) is None, "a wildcard isn't for numbers"


@graded(MATCH, points=2)
def test_forbidden_where_an_inner_value_escapes(student):
    graph = {"s": ("silu", "g"), "y": ("mul", "s", "u"), "z": ("add", "y", "g")}
    assert student.match_chain(graph, ["z", "y"], "y", SWIGLU) == {"?gate": "g", "?up": "u"}, "the root may be used"
    assert student.match_chain(graph, ["z", "s"], "y", SWIGLU) is None, "returned"
    assert student.match_chain({**graph, "t": ("neg", "s")}, ["z", "t"], "y", SWIGLU) is None, "used beside"
    twice = {"s": ("silu", "g"), "y": ("mul", "s", "s")}
    assert student.match_chain(twice, ["y"], "y", SWIGLU) is None, "its own operand"
    both = {"s": ("silu", "g"), "t": ("silu", "u"), "y": ("mul", "s", "t"), "z": ("add", "y", "s")}
    assert student.match_chain(both, ["z"], "y", SWIGLU) == {"?gate": "u", "?up": "s"}, "the other silu is free"


@graded(MATCH, points=2)
def test_tries_every_order_at_every_level(student, rng):
    assert student.match_chain({"n": ("neg", "p"), "y": ("add", "q", "n")}, ["y"], "y", ("add", ("neg", "?a"), "?b"))
    shared = ("add", ("mul", "?a", "?b"), ("mul", "?a", "?c"))
    graph = {"l": ("mul", "p", "q"), "r": ("mul", "s", "q"), "y": ("add", "l", "r")}
    assert student.match_chain(graph, ["y"], "y", shared) == {"?a": "q", "?b": "p", "?c": "s"}
    patterns = [
        shared,
        SWIGLU,
        ("mul", ("add", "?a", "?b"), ("neg", "?b")),
        ("add", "?a", ("add", ("neg", "?a"), "?b")),
        ("add", ("neg", "?a"), ("mul", "?a", 2.0)),
        ("mul", ("silu", "?a"), ("silu", "?b")),
    ]
    for i in range(90):
        pattern = patterns[i % len(patterns)]
        graph = {}
        root = grown(pattern, graph, {}, rng)
        if i % 3:  # somebody else uses one of the values
            names = [*graph, "p", "q"]
            graph["other"] = ("neg", names[int(torch.randint(len(names), (), generator=rng))])
        for other in patterns:
            check_match(student, graph, [root, "other"], root, other)


def grown(part, graph, inputs, rng):
    """Add nodes to the graph that a part of a pattern fits, with operands in any order; the name of the last."""
    if isinstance(part, str):
        return inputs.setdefault(part, "pqr"[int(torch.randint(3, (), generator=rng))])
    if not isinstance(part, tuple):
        return part
    operands = [grown(operand, graph, inputs, rng) for operand in part[1:]]
    if torch.rand((), generator=rng) < 0.5:
        operands.reverse()
    graph[f"n{len(graph)}"] = (part[0], *operands)
    return f"n{len(graph) - 1}"


# ---- swap_swiglu


RUNS = []  # the arguments of each call of `marked_swiglu`


def marked_swiglu(gate, up):
    """What takes the place; a leaf of the graph."""
    RUNS.append((gate, up))
    return F.silu(gate) * up


def swapped(student, function, *inputs):
    module = fx.symbolic_trace(function)
    expected, before = module(*inputs), len(module.graph.nodes)
    count, code = student.swap_swiglu(module, marked_swiglu)
    module.graph.lint()
    RUNS.clear()
    close(module(*inputs), expected)
    assert len(RUNS) == count, f"the module's Python calls `fused` {len(RUNS)} times, its graph {count}: recompile"
    assert code == module.code and code.count("marked_swiglu(") == count, "return the code of the new graph"
    targets = [node.target for node in module.graph.nodes]
    assert targets.count(marked_swiglu) == count, "as many calls of `fused` as were counted"
    assert len(targets) == before - count, "two nodes go for each that comes"
    return module, count, targets


@graded(SWAP, points=1)
def test_one_product_in_either_order(student, rng):
    g, u = random(rng, 3, 4), random(rng, 3, 4)
    for function in (
        lambda g, u: F.silu(g) * u,
        lambda g, u: u * F.silu(g),
        lambda g, u: torch.mul(F.silu(g + 1), u - 1).neg(),
    ):
        _, count, targets = swapped(student, function, g, u)
        assert count == 1 and F.silu not in targets


@graded(SWAP, points=1)
def test_up_may_be_computed_after_the_silu(student, rng):
    def late(g, u):
        activated = F.silu(g)
        return activated * torch.tanh(u + g) + u

    assert swapped(student, late, random(rng, 2, 3), random(rng, 2, 3))[1] == 1


@graded(SWAP, points=2)
def test_leaves_what_is_needed_elsewhere_or_is_no_swiglu(student, rng):
    def used_twice(g, u):
        activated = F.silu(g)
        return activated * u + activated

    def returned(g, u):
        activated = F.silu(g)
        return (activated * u).sum() * activated

    cases = [
        used_twice,
        returned,
        lambda g, u: square(F.silu(g)) + u,
        lambda g, u: F.silu(g) * 2.0 + u,
        lambda g, u: F.silu(g) + u,
        lambda g, u: F.gelu(g) * u,
        lambda g, u: g * u,
    ]
    for function in cases:
        assert swapped(student, function, random(rng, 2, 3), random(rng, 2, 3))[1] == 0
    for function in (lambda g, u: F.silu(g) * F.silu(u), lambda g, u: torch.mul(F.silu(g), F.silu(u))):
        module, count, targets = swapped(student, function, random(rng, 2, 3), random(rng, 2, 3))
        assert (count, targets.count(F.silu)) == (1, 1)
        (node,) = [node for node in module.graph.nodes if node.target is marked_swiglu]
        assert node.args[0].name == "g" and node.args[1].target is F.silu, "of two silus the left one goes"


def square(x):
    return x * x


@graded(SWAP, points=1)
def test_three_feed_forward_networks_of_the_library(student, rng):
    model = torch.nn.Sequential(*(SwiGLU(8, 12) for _ in range(3))).double()
    module, count, targets = swapped(student, model, random(rng, 5, 8))
    assert count == 3 and F.silu not in targets and operator.mul not in targets
    nodes = [node for node in module.graph.nodes if node.target is marked_swiglu]
    names = [[operand.target.split(".")[-1] for operand in node.args] for node in nodes]
    assert names == [["w_gate", "w_up"]] * 3, "gate first, then up"


# ---- replayed


class NoWarmUp(Exception):
    """What happens only the first time would be recorded: record(step, num_warmups=…) wants at least one."""


class RecordedAgain(Exception):
    """One recording is enough: a recording for each token saves nothing."""


class Watched:
    """Records with a Tape, counts, and refuses what the task rules out if `strict`."""

    def __init__(self, strict=False):
        self.strict = strict
        self.recordings = self.replays = 0

    def __call__(self, step, *, num_warmups=2):
        if self.strict and num_warmups < 1:
            raise NoWarmUp(NoWarmUp.__doc__)
        if self.strict and self.recordings:
            raise RecordedAgain(RecordedAgain.__doc__)
        self.recordings += 1
        return WatchedGraph(self, Tape(step, num_warmups=num_warmups))


class WatchedGraph:
    def __init__(self, watched, tape):
        self.watched, self.tape = watched, tape

    @property
    def output(self):
        return self.tape.output

    def replay(self):
        self.watched.replays += 1
        return self.tape.replay()


def means(embed, unembed, tokens):
    """What the model says, without any recording."""
    return torch.stack([embed[torch.tensor(tokens[: i + 1])].mean(dim=0) @ unembed for i in range(len(tokens))])


def check_replayed(student, embed, unembed, tokens, capacity):
    kept = embed.clone(), unembed.clone()
    found = student.replayed(embed, unembed, tokens, capacity=capacity, record=Watched())
    close(found, means(embed, unembed, tokens))
    assert torch.equal(embed, kept[0]) and torch.equal(unembed, kept[1]), "arguments changed"


@graded(REPLAY, points=1)
def test_the_same_token_all_the_time(student, rng):
    check_replayed(student, random(rng, 4, 3), random(rng, 3, 4), [2], capacity=4)
    check_replayed(student, random(rng, 4, 3), random(rng, 3, 4), [2, 2, 2], capacity=5)


@graded(REPLAY, points=2)
def test_each_result_is_that_of_its_own_tokens(student, rng):
    embed, unembed = torch.tensor([[1.0], [3.0]], dtype=torch.float64), torch.tensor([[1.0, 10.0]], dtype=torch.float64)
    check_replayed(student, embed, unembed, [0, 1, 1], capacity=8)
    check_replayed(student, random(rng, 9, 4), random(rng, 4, 9), [5, 0, 8, 8, 1, 3], capacity=6)


@graded(REPLAY, points=1)
def test_one_recording_after_a_warm_up_and_a_replay_for_each_token(student, rng):
    embed, unembed = random(rng, 6, 2), random(rng, 2, 6)
    watched = Watched(strict=True)
    freely = student.replayed(embed, unembed, [3, 1, 4, 1, 5], capacity=9, record=Watched())
    strictly = student.replayed(embed, unembed, [2, 0, 5, 5, 3, 1, 4], capacity=9, record=watched)
    close(freely, means(embed, unembed, [3, 1, 4, 1, 5]))
    close(strictly, means(embed, unembed, [2, 0, 5, 5, 3, 1, 4]))
    assert watched.replays == 7, "one replay for each token"
