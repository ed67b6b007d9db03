"""Triton's interpreter: whether it is on, and what it needs to run the kernels on the CPU.

``TRITON_INTERPRET=1``, set before `triton` is imported, makes every kernel run program by program
in NumPy. The interpreter of triton 3.6 has gaps that the kernels meet, closed here while it is on;
nothing here touches kernels that are compiled:

- a loop whose bound is a run-time value fails under numpy >= 2.4, which turns no array of one
  element into an int;
- a conversion to bfloat16 cuts digits off where the device rounds to nearest, and `tl.dot` of
  bfloat16 multiplies the bit patterns;
- a Python float reaches a kernel in float32, also where the parameter is declared float64.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np


def enabled() -> bool:
    """Whether kernels are interpreted in this process."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def double(value: float) -> Any:
    """`value` as a float64 kernel argument: itself for a compiled kernel, a tensor under NumPy."""
    if not enabled():
        return value
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    return tl.tensor(TensorHandle(np.array([value], np.float64), tl.float64), tl.float64)


@functools.cache
def repair() -> None:
    """Closes all gaps but the last, once; called before a kernel is interpreted."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor
    cast = interpreter.InterpreterBuilder.cast_impl
    dot = interpreter.InterpreterBuilder.create_dot

    def patch_with_index(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << np.uint32(16)
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def cast_impl(self, src, dst_type):
        src = widened(src)
        if dst_type.scalar != tl.bfloat16:
            return cast(self, src, dst_type)
        values = src.data.astype(np.float32)
        bits = values.view(np.uint32)
        nearest = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> 16
        nearest = np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16)
        return interpreter.TensorHandle(nearest, tl.bfloat16)

    def create_dot(self, a, b, d, *rest):
        return dot(self, widened(a), widened(b), d, *rest)

    interpreter._patch_lang_tensor = patch_with_index
    interpreter.InterpreterBuilder.cast_impl = cast_impl
    interpreter.InterpreterBuilder.create_dot = create_dot
