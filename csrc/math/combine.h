// combine_: out <- a x + b y.
#pragma once

#include "storage.h"

GRADALIGN_NAMESPACE_BEGIN

template <class Storage, class T>
GRADALIGN_HD T combine(T x, T y, T a, T b) {
  return round_to<Storage>(x * a + y * b);
}

GRADALIGN_NAMESPACE_END
