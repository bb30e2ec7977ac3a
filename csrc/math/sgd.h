// sgd_step_ with momentum (Sutskever et al. 2013), in torch's form: the buffer begins as the first gradient.
#pragma once

#include "storage.h"

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
  const T grad = g + p * c.decay;
  const T velocity = c.first ? grad : buffer * c.momentum + grad * c.take;
  return {p - c.lr * (c.nesterov ? grad + c.momentum * velocity : velocity), velocity};
}

template <class T>
GRADALIGN_HD T sgd_plain(T p, T g, const Sgd<T>& c) {
  return p - c.lr * (g + p * c.decay);
}

GRADALIGN_NAMESPACE_END
