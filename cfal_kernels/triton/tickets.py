"""Zeroed counters by which the program that finishes last is found.

Kernels on one stream run one after the other and leave their counters at 0, so a stream needs one
set. A captured graph may run beside its own stream: each captured call gets a set of its own,
zeroed by the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Counters in a set; a call that needs more gets its own.
COUNT = 1024

_sets: dict[tuple[int, int], Tensor] = {}


def tickets(device: torch.device, count: int) -> Tensor:
    """At least `count` int32 zeros on `device`, for a kernel that leaves them at 0.

    The device must be the current one: the set belongs to its current stream.
    """
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    if count > COUNT or torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = (device.index, torch.cuda.current_stream(device).cuda_stream)
    found = _sets.get(key)
    if found is None:
        found = _sets[key] = torch.zeros(COUNT, dtype=torch.int32, device=device)
    return found
