"""The backend and the fused model: the same logits, the same tokens, few graphs, and gradients."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch

from minillm import SamplingParams, generate, generate_batch
from minillm.attention.full import FullAttend
from minillm.fusion import FusingBackend, OutsideAttend, capture, fuse, fuse_graph, fusing_backend, kind_counts
from minillm.generation.generate import generate_uncached, make_cache
from minillm.model.transformer import Transformer

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
GREEDY = SamplingParams(max_new_tokens=12, temperature=0, ignore_eos=True)


def test_numbers_on_the_real_model(stories: Transformer) -> None:
    layers = stories.config.num_layers
    with torch.inference_mode():
        (graph,) = capture(stories, TOKENS)
    kinds = kind_counts(graph)
    assert kinds["matmul"] == 7 * layers + 1 and kinds["attention"] == layers
    report = fuse_graph(graph)
    norms = report.fused["rms_norm"] + report.fused["add_rms_norm"]
    assert norms == 2 * layers + 1 and report.fused["rms_norm"] == 1  # only the embedding has no sum behind it
    assert report.fused["rope"] == report.fused["swiglu"] == layers
    assert report.refused == ()
    after = kind_counts(graph)
    assert after["matmul"] == kinds["matmul"] and after["fused"] == 4 * layers + 1
    assert after["reduction"] == 0 and after["elementwise"] == 5  # the angles of RoPE
    assert report.nodes_after < 0.6 * report.nodes_before


def test_same_logits(tiny: Transformer, stories: Transformer) -> None:
    with torch.inference_mode():
        for compiled in (torch.compile(tiny, backend=fusing_backend), fuse(tiny)):
            torch.testing.assert_close(compiled(TOKENS), tiny(TOKENS), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(fuse(stories)(TOKENS), stories(TOKENS), rtol=1e-5, atol=1e-5)


def test_same_logits_with_norms_of_heads_and_latent_attention(tiny: Transformer) -> None:
    from dataclasses import replace

    torch.manual_seed(1)
    model = Transformer(replace(tiny.config, qk_norm=True)).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    fused = fuse(model)
    with torch.inference_mode():
        torch.testing.assert_close(fused(TOKENS), model(TOKENS), rtol=1e-12, atol=1e-12)
    assert fused.reports[0].fused["rms_norm"] == 1 + 2 * 2  # q and k in each of two layers


def test_greedy_tokens_and_few_graphs(stories: Transformer) -> None:
    fused = fuse(stories)
    for prompt in ([0, 403, 17], [0, 5, 77, 400, 12, 9], [0]):
        assert generate(fused, prompt, GREEDY) == generate(stories, prompt, GREEDY)
    assert len(fused.reports) == 2  # prompts of any length, and steps
    assert all(report.fused["add_rms_norm"] == 12 for report in fused.reports)


def test_several_sequences_and_no_cache(tiny: Transformer) -> None:
    fused = fuse(tiny)
    prompts = [[0, 40, 17], [0, 5], [0, 9, 8, 7]]
    assert generate_batch(fused, prompts, GREEDY) == generate_batch(tiny, prompts, GREEDY)
    assert len(fused.reports) == 2
    few = SamplingParams(max_new_tokens=4, temperature=0, ignore_eos=True)
    assert generate_uncached(fused, [0, 40], few) == generate(tiny, [0, 40], few)


def test_several_fused_models_all_compile(tiny: Transformer) -> None:
    with torch.inference_mode():
        for _ in range(5):  # with a prefill and a step each more graphs than one function may have
            fused = fuse(tiny)
            fused(TOKENS), fused(TOKENS[:, :1])
            assert len(fused.reports) == 2


def test_training(tiny: Transformer) -> None:
    fused = fuse(copy.deepcopy(tiny))
    for model in (tiny, fused):
        model(TOKENS).square().mean().backward()
    for (name, own), other in zip(tiny.named_parameters(), fused.base.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-9, atol=1e-11, msg=name)
    assert fused.reports[0].fused["swiglu"] == 2


def test_a_cache_carries_no_gradients(tiny: Transformer) -> None:
    fused = fuse(tiny)
    attend = FullAttend([None, None])
    with pytest.raises(RuntimeError, match="no gradient"):
        fused(TOKENS, torch.arange(7), attend).sum().backward()
    with pytest.raises(ValueError, match="positions"):
        fused(TOKENS, attend=attend)


def test_the_door_is_closed_after_the_call(tiny: Transformer) -> None:
    fused = fuse(tiny)
    cache = make_cache(fused, batch_size=2, max_seq_len=9)
    attend = cache.begin([7, 7])
    with torch.inference_mode():
        expected = tiny(TOKENS)
        torch.testing.assert_close(fused(TOKENS, attend.positions, attend), expected, rtol=1e-12, atol=1e-12)
    assert fused._outside.attend is None
    door = OutsideAttend()
    with pytest.raises(RuntimeError, match="no attend"):
        door(0, torch.ones(1, 1, 2), torch.ones(1, 1, 2), torch.ones(1, 1, 2), 1.0)


def test_patterns_may_be_left_out(tiny: Transformer) -> None:
    fused = fuse(tiny, patterns=())
    with torch.inference_mode():
        assert torch.equal(fused(TOKENS), tiny(TOKENS))
    assert fused.reports[0].fused == {} and fused.reports[0].nodes_before == fused.reports[0].nodes_after
    assert fused.plain_module() is tiny
    with pytest.raises(ValueError, match="inductor"):
        FusingBackend(then="magic")


def test_the_graph_may_be_handed_on(tiny: Transformer) -> None:
    seen = []

    def then(graph, example_inputs):
        seen.append(kind_counts(graph)["fused"])
        return graph.forward

    with torch.inference_mode():
        torch.testing.assert_close(fuse(tiny, then=then)(TOKENS), tiny(TOKENS), rtol=1e-12, atol=1e-12)
    assert seen == [9]


@pytest.mark.slow
def test_inductor_compiles_what_is_left(stories: Transformer) -> None:
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        pytest.skip("no C++ compiler, which inductor needs")
    fused = fuse(stories, then="inductor")
    assert generate(fused, [0, 403, 17], GREEDY) == generate(stories, [0, 403, 17], GREEDY)


def test_a_layer_is_drawn(stories: Transformer) -> None:
    pytest.importorskip("matplotlib")
    from minillm.fusion.draw import before_and_after, draw_graph, label, shape
    from minillm.fusion.layout import layout

    attend = OutsideAttend(FullAttend([None]))
    with torch.inference_mode():
        angles = stories.rope.cos_sin(torch.arange(5), torch.float32)
        (before,) = capture(
            lambda x, cos, sin: stories.blocks[0](x, (cos, sin), attend), torch.ones(1, 5, 256), *angles
        )
    after = copy.deepcopy(before)
    fuse_graph(after)
    names = [label(node) for node in layout(after).places]
    assert sorted(names) == sorted(
        "x cos sin norm wq wk wv rope attend wo w_gate w_up swiglu w_down add".split() + ["+ norm"]
    )
    assert [shape(node) for node in layout(after).places if label(node) == "w_up"] == ["1 × 5 × 704"]
    for graph in (before, after):
        for views in (False, True):
            laid = layout(graph, views=views)
            assert all(laid.places[a][1] < laid.places[b][1] for a, b in laid.edges)  # edges go downward
            places = sorted((layer, column) for column, layer in laid.places.values())
            apart = [b - a for (row, a), (other, b) in zip(places, places[1:], strict=False) if row == other]
            assert min(apart) > 0.999
    assert len(before_and_after(before, after).axes) == 2
    assert draw_graph(after, views=True).get_size_inches()[0] == pytest.approx(7.2)
