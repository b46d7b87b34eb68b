"""CUDA graphs: the order of things with stand-ins for torch.cuda, numbers and speed on a GPU."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from minillm import load_model, load_tokenizer
from minillm.generation import CudaGraph, GraphDecoder, Tape, capture, generate, generate_with_graphs
from minillm.generation.generate import last_logits, make_cache
from minillm.generation.graph_counts import count_launches
from minillm.sampling import SamplingParams
from tests.helpers import tiny_model
from tests.model.tiny_mla import tiny_mla_model

# ---- with stand-ins


class FakeCuda:
    """torch.cuda as far as `CudaGraph` needs it, keeping a journal; a graph of it is a tape."""

    def __init__(self) -> None:
        self.journal: list[str] = []
        self.stream_name = "main"
        self.pools: list[object] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
        fake = self

        class Stream:
            def __init__(self, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: Stream) -> None:
                fake.journal.append(f"{self.name} waits for {other.name}")

        @contextmanager
        def stream(to: Stream):
            before, fake.stream_name = fake.stream_name, to.name
            yield
            fake.stream_name = before

        class Graph:
            def pool(self) -> object:
                return self.own_pool

            def replay(self) -> None:
                fake.journal.append("replay")

        @contextmanager
        def graph(cuda_graph: Graph, pool: object = None):
            cuda_graph.own_pool = object() if pool is None else pool
            fake.pools.append(cuda_graph.own_pool)
            before, fake.stream_name = fake.stream_name, "capture"
            yield
            fake.stream_name = before

        for name, value in {
            "Stream": Stream, "current_stream": lambda: Stream(fake.stream_name), "stream": stream,
            "CUDAGraph": Graph, "graph": graph,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        return self

    def step(self) -> str:
        self.journal.append(f"step on {self.stream_name}")
        return "output"


@pytest.mark.parametrize("num_warmups", [0, 3])
def test_warm_up_beside_then_capture_then_replays(monkeypatch: pytest.MonkeyPatch, num_warmups: int) -> None:
    fake = FakeCuda().install(monkeypatch)
    graph = CudaGraph(fake.step, num_warmups=num_warmups)
    assert fake.journal == [
        "side waits for main", *["step on side"] * num_warmups, "main waits for side", "step on capture"
    ]  # fmt: skip
    assert graph.output == "output" and graph.replay() is graph.output
    assert fake.journal[-1] == "replay" and fake.stream_name == "main"


def test_pools_are_shared_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda().install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.inference_mode())
    first = capture(fake.step, "cuda")
    second = capture(fake.step, torch.device("cuda", 0), share_with=first)
    third = capture(fake.step, "cuda")
    fourth = capture(fake.step, "cuda", share_with=Tape(lambda: torch.ones(1)))
    assert second.pool is first.pool
    assert len({id(graph.pool) for graph in (first, third, fourth)}) == 3


# ---- on a GPU


@pytest.fixture
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here: graphs are not captured on a GPU")
    return torch.device("cuda")


def eager_and_graph(model, num_rows: int, max_seq_len: int, prompt_len: int):
    """Both after the same prompts: a plain step, a replayed one."""
    prompts = [[5 + row] * prompt_len for row in range(num_rows)]
    cache = make_cache(model, batch_size=num_rows, max_seq_len=max_seq_len)
    decoder = GraphDecoder(model, num_rows, max_seq_len)
    with torch.inference_mode():
        last_logits(model, cache, prompts)
        decoder.prefill(prompts)
    token_ids = list(range(num_rows))

    @torch.inference_mode()
    def eager() -> torch.Tensor:
        return last_logits(model, cache, [[token_id] for token_id in token_ids])

    return eager, lambda: decoder.step(token_ids)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-2), (torch.float16, 0.1), (torch.bfloat16, 0.6)])
@pytest.mark.parametrize("make", [
    lambda: tiny_model("qwen3"), lambda: tiny_model("mistral"), lambda: tiny_mla_model().float(),
], ids=["heads", "windows", "latent"])  # fmt: skip
def test_logits_on_the_gpu(device, make, dtype, tolerance) -> None:
    """Ragged rows, in a larger captured size, over cropping and reordering; the oracle is float64 on the CPU."""
    oracle = make().double().requires_grad_(False)
    decoder = GraphDecoder(make().to(device, dtype).requires_grad_(False), 4, 48)
    oracle.load_state_dict({name: w.double().cpu() for name, w in decoder.model.state_dict().items()})
    texts = [[3, 4, 5, 6], [7], [8, 9]]
    decoder.prefill(texts)
    for step in range(12):
        if step == 5:
            decoder.cache.crop([2, 1, 0, 0])
            texts = [texts[0][:2], texts[1][:1], []]
        if step == 8:
            decoder.cache.reorder([1, 1])
            texts = [list(texts[1]), list(texts[1])]
        new = [10 + step + row for row in range(len(texts))]
        texts = [[*text, token_id] for text, token_id in zip(texts, new, strict=True)]
        for ours, text in zip(decoder.step(torch.tensor(new, device=device)), texts, strict=True):
            expected = oracle(torch.tensor(text))[-1]
            torch.testing.assert_close(ours.double().cpu(), expected, rtol=0.02, atol=tolerance)


@pytest.mark.gpu
def test_greedy_tokens_on_the_gpu(device) -> None:
    model, tokenizer = load_model("stories-5m", device=device), load_tokenizer("stories-5m")
    prompts = [tokenizer.encode(text) for text in ("Once upon a time", "The dog", "Lily")]
    params = SamplingParams(temperature=0, max_new_tokens=60)
    ours = generate_with_graphs(GraphDecoder(model, 4, 128), prompts, params)
    for prompt, tokens in zip(prompts, ours, strict=True):
        expected = generate(model, prompt, params)
        with torch.inference_mode():
            logits = model(torch.tensor(prompt + expected, device=device))[len(prompt) - 1 : -1]
        top_2 = logits.topk(2).values
        sure = next((i for i, gap in enumerate(top_2[:, 0] - top_2[:, 1]) if gap < 1e-2), len(expected))
        assert tokens[:sure] == expected[:sure] and sure > 0


@pytest.mark.gpu
def test_a_step_that_waits_for_the_gpu_is_refused(device) -> None:
    x = torch.ones(3, device=device)
    with pytest.raises(RuntimeError):
        capture(lambda: x * x.sum().item(), device)
    torch.cuda.synchronize()
    assert capture(lambda: x * 2, device).replay().tolist() == [2.0, 2.0, 2.0]


@pytest.mark.gpu
def test_launches_on_the_gpu(device) -> None:
    eager, replayed = eager_and_graph(load_model("stories-5m", device=device), 1, 256, 16)
    before, after = count_launches(eager), count_launches(replayed)
    print(f"\neager {before}\ngraph {after}")
    assert sum(before.values()) > 100
    assert after["cudaGraphLaunch"] == 1 and sum(after.values()) < 20


@pytest.mark.gpu
def test_speed_on_the_gpu(device) -> None:
    from minillm.bench.compare import compare

    eager, replayed = eager_and_graph(load_model("stories-5m", device=device), 1, 512, 16)

    def timed(step):
        def run() -> None:
            step()
            torch.cuda.synchronize()

        return run

    comparison = compare({"eager": timed(eager), "graph": timed(replayed)}, rounds=20)
    speedup = comparison.speedup("graph", "eager")
    print(f"\na step: {comparison.time('eager').median * 1e6:.0f} → {comparison.time('graph').median * 1e6:.0f} µs")
    assert speedup.median > 1.5
