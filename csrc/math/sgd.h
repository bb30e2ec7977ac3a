// sgd_step_ with momentum (Sutskever et al. 2013), in torch's form: the buffer begins as the first gradient.
#pragma once

#include "moments.h"

GRADALIGN_NAMESPACE_BEGIN

template <class T>
struct Sgd {
  T lr;
  T decay;
  T momentum;
  T take;  // 1 - dampening
  bool nesterov;
  bool first;  // the buffer holds nothing yet
};

template <class T>
struct SgdResult {
  T p;
  T buffer;
};

template <class T>
GRADALIGN_HD SgdResult<T> sgd(T p, T g, T buffer, const Sgd<T>& c) {
  const T grad = multiply_add(decaying(p, c.decay), c.decay, g);
  const T velocity = c.first ? grad : multiply_add(grad, c.take, buffer * c.momentum);
  const T direction = c.nesterov ? multiply_add(velocity, c.momentum, grad) : velocity;
  return {multiply_add(-c.lr, direction, p), velocity};
}

template <class T>
GRADALIGN_HD T sgd_plain(T p, T g, const Sgd<T>& c) {
  return multiply_add(-c.lr, multiply_add(decaying(p, c.decay), c.decay, g), p);
}

GRADALIGN_NAMESPACE_END
