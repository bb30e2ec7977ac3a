// lamb_step_ (You et al. 2020, arXiv:1904.00962): Adam's direction with the decay inside, scaled to the parameter's norm.
#pragma once

#include "moments.h"

GRADALIGN_NAMESPACE_BEGIN

template <class T>
struct Lamb {
  Decays<T> decays;
  T decay;
  T inverse1;  // 1 / (1 - beta1^t): two of the four divisions and roots that bound this, not memory, are saved
  T inverse2;  // 1 / sqrt(1 - beta2^t)
  T eps;
};

template <class T>
GRADALIGN_HD T lamb_direction(T p, T m, T v, const Lamb<T>& c) {
  return (m * c.inverse1) / (square_root(v) * c.inverse2 + c.eps) + decaying(p, c.decay) * c.decay;
}

GRADALIGN_HD double trust_ratio(double p_square, double direction_square) {
  return p_square > 0 && direction_square > 0 ? sqrt(p_square / direction_square) : 1.0;
}

GRADALIGN_NAMESPACE_END
