// The loss of one row and its slopes, as scalars: the one place where Eq. 7 and its derivative
// stand. Shared by host and device code; compiled once per instruction set, hence the inline
// namespace (two variants must never be merged by the linker).
#pragma once

#include <math.h>

#include "host_device.h"

#ifndef CFAL_ISA
#define CFAL_ISA baseline
#endif

namespace cfal {
namespace CFAL_ISA {

struct Focal {
  double factor;  // (1 - s)^gamma
  double slope;   // d factor / d s = -gamma (1 - s)^(gamma - 1)
};

// 1 - s from ratio = q / sigma of the own class: keeps its digits next to a prototype.
CFAL_HOST_DEVICE double complement_of(double ratio) { return -expm1(-ratio); }

// base = 1 - s. At s = 1 the slope is 0 for every gamma (its limit along q -> 0 of slope * ds/dq *
// dq/df for gamma > 1/2, a chosen subgradient below).
CFAL_HOST_DEVICE Focal focal(double base, double gamma) {
  if (gamma == 0.0) return {1.0, 0.0};
  if (base == 0.0) return {0.0, 0.0};
  if (gamma == 2.0) return {base * base, -2.0 * base};
  if (gamma == 1.0) return {base, -1.0};
  const double lower = gamma == 0.5 ? 1.0 / sqrt(base) : pow(base, gamma - 1.0);
  return {lower * base, -gamma * lower};
}

struct Row {
  double complement;    // 1 - s_i = -expm1(-q_iy / sigma)
  double hinge_sum;     // sum_j h_ij over j != y
  double active;        // n_i, the number of hinges with h_ij > 0
  double diversity;     // rho R
  double class_weight;  // omega_y
};

struct RowTerms {
  double loss;         // omega_y (1 - s)^gamma (sum_j h_ij + rho R)
  double hinge_slope;  // dl/da_ij of an active hinge, and dl/d(rho R): m_i = omega_y (1 - s)^gamma
  double own_slope;  // dl/ds_i = -m_i n_i - omega_y gamma (1 - s)^(gamma - 1) A_i; last term absent
                     // if detached
};

CFAL_HOST_DEVICE RowTerms row_terms(const Row& row, double gamma, bool detach_focal) {
  const Focal f = focal(row.complement, gamma);
  const double total = row.hinge_sum + row.diversity;
  const double m = row.class_weight * f.factor;
  double own = -m * row.active;
  if (!detach_focal && f.slope != 0.0) own += row.class_weight * f.slope * total;
  return {m * total, m, own};
}

}  // namespace CFAL_ISA
}  // namespace cfal
