// Sums are kept in double: a float sum of squares overflows from 1e19 on and loses digits from 1e7 elements on.
#pragma once

#include "storage.h"

GRADALIGN_NAMESPACE_BEGIN

template <class T>
GRADALIGN_HD double product(T x, T y) {
  return static_cast<double>(x) * static_cast<double>(y);
}

GRADALIGN_NAMESPACE_END
