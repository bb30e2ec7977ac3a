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

// m <- lerp(m, g, 1 - beta1), from whichever end is nearer, so that it is exact for beta1 = 0; v <- beta2 v + (1 - beta2) g^2.
template <class T>
GRADALIGN_HD Moments<T> update_moments(T m, T v, T g, const Decays<T>& decays) {
  const T step = g - m;
  const T mean = decays.take1 < T(0.5) ? m + decays.take1 * step : g - (T(1) - decays.take1) * step;
  return {mean, v * decays.keep2 + g * decays.take2 * g};
}

GRADALIGN_HD float square_root(float x) { return sqrtf(x); }
GRADALIGN_HD double square_root(double x) { return sqrt(x); }

GRADALIGN_NAMESPACE_END
