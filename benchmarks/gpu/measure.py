"""How long a step takes on a device, seen from the host and from the device, and what it holds.

- host: time in which Python issues a step, while the device has no work
- wall: time of a step in a row of steps, as in training
- device: time on the device alone. "hot" and "cold" replay a CUDA graph of several steps; for cold,
  every step follows a kernel that overwrites twice the L2 cache, whose own time is measured by a
  graph without the steps and taken off. "queue" needs no capture: steps wait in the queue behind a
  kernel that does nothing for as long as the host needs to issue them, so that no launch is late.

Each is called once a round per provider, so that drifts of the clock meet all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from providers import Step

STEPS_IN_QUEUE = 8  # a queue holds about a thousand launches
LONGEST_GRAPH_US = 3000.0
MOST_STEPS = 40


def elapsed_us(work: Callable[[], object]) -> float:
    """Microseconds between two events around `work` on the current stream."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end)


def mark_step() -> None:
    """Tells torch.compile's CUDA graphs that results of the last step are no longer needed."""
    torch.compiler.cudagraph_mark_step_begin()


def step_once(step: Step) -> None:
    """One step in training, with its gradients afresh."""
    mark_step()
    step.both()


def gradients(step: Step) -> tuple[torch.Tensor, ...]:
    """The same work for a graph, without the bookkeeping of leaves."""
    leaves = step.inputs[: 3 if step.name == "softmax" else 2]  # nobody else has a bias
    return torch.autograd.grad(step.forward(), leaves)


def host_us(step: Step, device: str) -> float:
    """Microseconds to issue one step to an idle device."""
    synchronize(device)
    begin = time.perf_counter()
    step_once(step)
    return 1e6 * (time.perf_counter() - begin)


def wall_us(step: Step, device: str, count: int = 5) -> float:
    """Microseconds of one of `count` steps in a row, the last one's end included."""
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(count):
        step_once(step)
    synchronize(device)
    return 1e6 * (time.perf_counter() - begin) / count


def queue_us(step: Step, host: float) -> float:
    """Microseconds of a step on the device, issued while the device is kept waiting."""
    cycles = int(2.0e3 * 1.5 * host * STEPS_IN_QUEUE) + 100_000  # at 2 GHz at most
    torch.cuda.synchronize()
    torch.cuda._sleep(cycles)

    def work() -> None:
        for _ in range(STEPS_IN_QUEUE):
            step_once(step)

    return elapsed_us(work) / STEPS_IN_QUEUE


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass
class Flush:
    """A kernel that overwrites twice the L2 cache."""

    buffer: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
        self.buffer = torch.empty(max(size, 1 << 26), dtype=torch.uint8, device="cuda")

    def __call__(self) -> None:
        self.buffer.zero_()


@dataclass
class Graphs:
    """Graphs of `count` steps hot and cold, and of the flushes alone."""

    count: int
    hot: torch.cuda.CUDAGraph
    cold: torch.cuda.CUDAGraph
    flushes: torch.cuda.CUDAGraph

    def hot_us(self) -> float:
        """Microseconds of a step whose inputs may still be in the cache."""
        return elapsed_us(self.hot.replay) / self.count

    def cold_us(self) -> float:
        """Microseconds of a step that finds the cache overwritten."""
        return (elapsed_us(self.cold.replay) - elapsed_us(self.flushes.replay)) / self.count


def capture(step: Step, flush: Flush, estimate_us: float) -> Graphs:
    """Captures the graphs; the number of steps follows from an estimate of one step's time."""
    count = max(1, min(MOST_STEPS, int(LONGEST_GRAPH_US / max(estimate_us, 1.0))))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            gradients(step)
    torch.cuda.current_stream().wait_stream(side)

    def graph_of(*works: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(count):
                for work in works:
                    work()
        graph.replay()
        return graph

    hot = graph_of(lambda: gradients(step))
    return Graphs(count, hot, graph_of(flush, lambda: gradients(step)), graph_of(flush))


def peak_extra_bytes(step: Step) -> int:
    """Highest number of bytes held in a step beyond inputs and gradients."""
    step.both()
    step.zero_grad()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step.both()
    peak = torch.cuda.max_memory_allocated()
    grads = [x.grad for x in step.inputs[:3] if x.grad is not None]
    return max(0, peak - before - sum(g.numel() * g.element_size() for g in grads))


def launches(step: Step) -> int:
    """Kernels, copies and fills that one step runs on the device, counted by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    # A first look, since some libraries set things up when they are first watched.
    for _ in range(2):
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            step_once(step)
            torch.cuda.synchronize()
    on_device = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return len(on_device)
