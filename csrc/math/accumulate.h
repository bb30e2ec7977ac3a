// accumulate_: acc <- acc + scale g.
#pragma once

#include "storage.h"

GRADALIGN_NAMESPACE_BEGIN

template <class T>
GRADALIGN_HD T accumulate(T acc, T g, T scale) {
  return acc + g * scale;
}

GRADALIGN_NAMESPACE_END
