// The running mean and square of the gradient that AdamW and LAMB share.
#pragma once

#include <cmath>

#include "storage.h"

GRADALIGN_NAMESPACE_BEGIN

template <class T>
struct Moments {
  T m;
  T v;
};

template <class T>
struct Decays {
  T take1;  // 1 - beta1
  T keep2;  // beta2
  T take2;  // 1 - beta2
};

// a b + c, rounded once: torch's fused optimizers are compiled that way, and both are to agree bit for bit.
GRADALIGN_HD float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
GRADALIGN_HD double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// The parameter as a decay of the gradient reads it. Selects instead of multiplying: 0 x inf is NaN, and a decay of 0 must leave
// the gradient alone.
template <class T>
GRADALIGN_HD T decaying(T p, T decay) {
  return decay == T(0) ? T(0) : p;
}

// m <- lerp(m, g, 1 - beta1), from whichever end is nearer, so that it is exact for beta1 = 0; v <- beta2 v + (1 - beta2) g^2.
template <class T>
GRADALIGN_HD Moments<T> update_moments(T m, T v, T g, const Decays<T>& decays) {
  const T step = g - m;
  const bool from_m = decays.take1 < T(0.5);
  const T mean = multiply_add(from_m ? decays.take1 : decays.take1 - T(1), step, from_m ? m : g);
  return {mean, multiply_add(g * decays.take2, g, v * decays.keep2)};
}

GRADALIGN_HD float square_root(float x) { return sqrtf(x); }
GRADALIGN_HD double square_root(double x) { return sqrt(x); }

GRADALIGN_NAMESPACE_END
