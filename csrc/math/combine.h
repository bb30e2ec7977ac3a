// combine_: out <- a x + b y.
#pragma once

#include "storage.h"

GRADALIGN_NAMESPACE_BEGIN

template <class Storage, class T, class Scalar>
GRADALIGN_HD T combine(T x, T y, Scalar a, Scalar b) {
  return round_to<Storage>(x * a + y * b);
}

GRADALIGN_NAMESPACE_END
