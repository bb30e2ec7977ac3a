// adamw_step_ (Loshchilov & Hutter 2019, arXiv:1711.05101; amsgrad: Reddi et al. 2018, arXiv:1904.09237).
#pragma once

#include "moments.h"

GRADALIGN_NAMESPACE_BEGIN

template <class T>
struct AdamW {
  Decays<T> decays;
  T kept;        // 1 - lr weight_decay
  T decay;       // weight_decay, added to the gradient unless decoupled
  T step_size;   // lr / (1 - beta1^t)
  T correction;  // sqrt(1 - beta2^t)
  T eps;
  bool decoupled;
};

template <class T>
struct AdamWResult {
  T p;
  T m;
  T v;
  T largest;  // of v so far, where amsgrad asks for it
};

template <class T>
GRADALIGN_HD T maximum_or_nan(T a, T b) {
  return a > b || a != a ? a : b;
}

template <bool kAmsgrad, class T>
GRADALIGN_HD AdamWResult<T> adamw(T p, T g, T m, T v, T largest, const AdamW<T>& c) {
  const T decayed = c.decoupled ? p * c.kept : p;
  const T grad = c.decoupled ? g : multiply_add(decaying(p, c.decay), c.decay, g);
  const Moments<T> moments = update_moments(m, v, grad, c.decays);
  const T top = kAmsgrad ? maximum_or_nan(largest, moments.v) : moments.v;
  const T denominator = square_root(top) / c.correction + c.eps;
  return {decayed - c.step_size * moments.m / denominator, moments.m, moments.v, top};
}

GRADALIGN_NAMESPACE_END
