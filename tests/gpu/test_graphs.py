"""CUDA graphs: captured once, replayed on other inputs, without a synchronisation in between."""

from __future__ import annotations

import pytest
import torch
from on_device import (
    F32,
    every_dtype,
    every_kernel,
    needs_cuda,
    on_device,
    same_bits,
    sample_for,
    step,
)

pytestmark = [pytest.mark.gpu, needs_cuda]


def capture(path, f, w, y, **keywords):
    """The graph of one step, and the tensors that its replays write."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(path, f, w, y, **keywords)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(path, f, w, y, **keywords)
    return graph, results


@every_dtype
@every_kernel
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_replay_on_changed_inputs(path, dtype, reduction):
    f, w, y, keywords = on_device(sample_for(path), dtype)
    keywords["reduction"] = reduction
    graph, results = capture(path, f, w, y, **keywords)
    for seed in (1, 2, 3):
        f2, w2, y2, _ = on_device(sample_for(path, seed=seed), dtype)
        y2[seed::5] = -100
        with torch.no_grad():
            f.copy_(f2), w.copy_(w2), y.copy_(y2)
        graph.replay()
        assert same_bits([r.clone() for r in results], step(path, f2, w2, y2, **keywords))


@every_kernel
def test_many_replays_agree(path):
    f, w, y, keywords = on_device(sample_for(path), F32)
    graph, results = capture(path, f, w, y, **keywords)
    graph.replay()
    first = [r.clone() for r in results]
    for _ in range(50):
        graph.replay()
    assert same_bits(results, first)


@every_kernel
def test_two_graphs_replayed_on_two_streams(path):
    calls = [on_device(sample_for(path, rows, seed=rows), F32) for rows in (133, 517)]
    expected = [step(path, f, w, y, **k) for f, w, y, k in calls]
    graphs = [capture(path, f, w, y, **k) for f, w, y, k in calls]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in calls]
    for _ in range(20):
        for stream, (graph, _) in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for (_, results), alone in zip(graphs, expected, strict=True):
        assert same_bits(results, alone)


@every_kernel
def test_a_step_launches_without_a_synchronisation(path):
    f, w, y, keywords = on_device(sample_for(path), F32)
    step(path, f, w, y, **keywords)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(path, f, w, y, **keywords)
    finally:
        torch.cuda.set_sync_debug_mode("default")
