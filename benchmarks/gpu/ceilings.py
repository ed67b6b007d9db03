"""What the device can do at best: a large copy, and large matrix products, on random data."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from measure import elapsed_us

COPY_BYTES = 4 << 30
SIDE = 8192
ROUNDS = 7


def best_rates() -> Iterator[tuple[str, float]]:
    """(name, rate): copy in GB/s, bytes read and written; products in TFLOP/s; medians."""
    yield "copy_gb_s", copy_rate()
    before = torch.get_float32_matmul_precision()
    kinds = (
        ("matmul_bf16_tflop_s", torch.bfloat16, "highest"),
        ("matmul_tf32_tflop_s", torch.float32, "high"),
        ("matmul_fp32_tflop_s", torch.float32, "highest"),
    )
    try:
        for name, dtype, precision in kinds:
            torch.set_float32_matmul_precision(precision)
            a, b = (torch.randn(SIDE, SIDE, device="cuda").to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            us = median_us(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
            yield name, 2e-6 * SIDE**3 / us
    finally:
        torch.set_float32_matmul_precision(before)


def copy_rate() -> float:
    """GB/s of a copy within the device's memory."""
    free, _ = torch.cuda.mem_get_info()
    count = min(COPY_BYTES, free // 4) // 4
    source = torch.randn(count, device="cuda")
    sink = torch.empty_like(source)
    return 2e-3 * 4 * count / median_us(lambda: sink.copy_(source))


def median_us(work: Callable[[], object]) -> float:
    for _ in range(3):
        work()
    return sorted(elapsed_us(work) for _ in range(ROUNDS))[ROUNDS // 2]
