"""The scalar formulas of a row (Eq. 7 and its slopes) as device functions, in float64.

They mirror csrc/core/formulas.h. A row takes a few dozen of these operations, which cost nothing
beside its distances, and leave the distances as the only source of error.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: How `focal` forms the power (1 - s)^gamma; the host picks the kind by `gamma_kind`.
GAMMA_ZERO = 0
GAMMA_ONE = 1
GAMMA_TWO = 2
GAMMA_ANY = 3


def gamma_kind(gamma: float) -> int:
    """The kind of power for `gamma`, a compile-time constant of the kernels.

    Example:
        >>> gamma_kind(2.0) == GAMMA_TWO
        True
    """
    return {0.0: GAMMA_ZERO, 1.0: GAMMA_ONE, 2.0: GAMMA_TWO}.get(gamma, GAMMA_ANY)


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0 of any shape, float64, with all digits also next to 0.

    For x >= -1/2 by Horner's rule, x (1 + x/2 (1 + x/3 (...))), whose 17th term is below 2^-60 of
    the sum; farther out the subtraction loses less than two bits.
    """
    near = tl.where(x > -0.5, x, 0.0)
    series = near * 0.0 + 1.0
    for n in tl.static_range(17, 1, -1):
        series = 1.0 + near * series * (1.0 / n)
    return tl.where(x > -0.5, near * series, tl.exp(x) - 1.0)


@triton.jit
def focal(ratio, gamma, KIND: tl.constexpr):
    """((1 - s)^gamma, its slope -gamma (1 - s)^(gamma - 1)) for ratio = q / sigma, float64.

    1 - s = -expm1(-ratio) keeps its digits next to a prototype. At s = 1 both are 0 for gamma > 0.
    """
    base = -expm1(-ratio)
    if KIND == 0:
        factor = base * 0.0 + 1.0
        slope = base * 0.0
    elif KIND == 1:
        factor = base
        slope = tl.where(base == 0.0, 0.0, base * 0.0 - 1.0)
    elif KIND == 2:
        factor = base * base
        slope = -2.0 * base
    else:
        on_centre = base == 0.0
        lower = tl.exp((gamma - 1.0) * tl.log(tl.where(on_centre, 1.0, base)))
        factor = tl.where(on_centre, 0.0, lower * base)
        slope = tl.where(on_centre, 0.0, -gamma * lower)
    return factor, slope


@triton.jit
def row_slopes(
    ratio, hinge_sum, active, omega, sigma, gamma, rho,
    KIND: tl.constexpr, DETACH: tl.constexpr,
):  # fmt: skip
    """What a row needs of its scalars, for a diversity term R that is not known yet.

    With m = omega (1 - s)^gamma and the focal slope p = -omega gamma (1 - s)^(gamma - 1),

        loss  = m hinge_sum + rho R m
        c_own = (2 / sigma) s (-m active + p hinge_sum) + R (2 / sigma) s rho p

    Args:
        ratio: q / sigma of the own class, float64 like all others.
        hinge_sum: sum of the hinges h_ij over j != y.
        active: number of hinges above 0.
        omega: class weight of the own class.
        sigma: width of the affinity.
        gamma: focus.
        rho: weight of the diversity term.
        KIND: of `gamma`, see `gamma_kind`.
        DETACH: whether the focal factor is a constant for the gradient.

    Returns:
        m, own coefficient at R = 0, slope of the own coefficient in R.
    """
    factor, slope = focal(ratio, gamma, KIND)
    s = tl.exp(-ratio)
    m = omega * factor
    own = -m * active
    by_r = m * 0.0
    if not DETACH:
        own += omega * slope * hinge_sum
        by_r += omega * slope * rho
    # s == 0 first: 0 times an overflowed slope stays 0.
    scale = 2.0 / sigma * s
    own = tl.where(s == 0.0, 0.0, own * scale)
    by_r = tl.where(s == 0.0, 0.0, by_r * scale)
    return m, own, by_r
