// The numbers of a displacement d = scale_x x + scale_y g = eps v, and of the difference of gradients that it gives.
//
// The formulas and the order of their operations are those of gradalign/backends/reference_scalars.py.
#pragma once

#include "host_device.h"

#include <cfloat>
#include <cmath>

GRADALIGN_NAMESPACE_BEGIN

// What is the same for all displacements of a step.
struct Aiming {
  double radius;
  double alpha, beta;  // v = alpha x + beta g
  double part;         // what of the own gradient is in the reference; only with `others`
  bool unit;           // x is a mean of unit gradients: alpha and beta follow from the sums
  bool others;         // the reference is the sum over all, and x that over all but the own gradient
  double rounding;     // of the squares of what cancels in v: what its own square has to exceed
};

constexpr int kAim = 5;      // scale_x, scale_y, eps, ||v||, norm of the gradient that the radius is compared with
constexpr int kReached = 3;  // eps as achieved, q with H w s ~ q (difference of gradients), cosine between asked and achieved

GRADALIGN_HD void aim(const double* sums, double scale_x, double own, const Aiming& aiming, double* result) {
  double xx = sums[0], xg = sums[1], parts = sums[0];
  const double gg = sums[2];
  double share = 0;
  if (aiming.others) {
    share = !aiming.unit ? aiming.part : gg > 0 ? 1 / sqrt(gg) : 0.0;
    parts = xx + share * share * gg;
    xx = parts - 2 * share * xg;
    xg = xg - share * gg;
  }
  xx = xx * (scale_x * scale_x);
  parts = parts * (scale_x * scale_x);
  xg = xg * scale_x * own;
  const double square = gg * (own * own);
  double alpha = aiming.alpha, beta = aiming.beta;
  if (aiming.unit) {
    const double norm = sqrt(square);
    alpha = 1 / norm;
    beta = -xg / (norm * norm * norm);
  }
  const double own_part = beta * beta * square;
  const double v_square = alpha * alpha * xx + 2 * alpha * beta * xg + own_part;
  const double norm = sqrt(v_square <= aiming.rounding * (alpha * alpha * parts + own_part) ? 0.0 : v_square);
  const bool usable = norm > 0 && norm <= DBL_MAX;
  const double eps = 1 / norm * aiming.radius;
  const double first = usable ? eps * alpha * scale_x : 0.0;
  const double second = usable ? eps * beta * own : 0.0;
  result[0] = first;
  result[1] = second - first * share;
  result[2] = usable ? eps : 0.0;
  result[3] = norm;
  result[4] = sqrt(aiming.unit ? square : xx);
}

// `sums` is [delta.d, d.d, delta.delta], delta what was achieved of d. `direction`: per length of delta instead of per eps.
GRADALIGN_HD void reached(const double* sums, double eps, bool direction, double* result) {
  const double delta_d = sums[0], d_d = sums[1], delta_delta = sums[2];
  const double achieved = d_d > 0 ? eps * delta_d / d_d : 0.0;
  const double quotient = direction ? 1 / (delta_d / sqrt(d_d)) : 1 / achieved * 2;
  const double cosine = d_d > 0 ? delta_d / sqrt(d_d * delta_delta) : 1.0;
  result[0] = achieved;
  result[1] = delta_d > 0 ? quotient : 0.0;
  result[2] = cosine == cosine ? cosine : 0.0;
}

GRADALIGN_NAMESPACE_END
