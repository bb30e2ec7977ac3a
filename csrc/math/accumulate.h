// accumulate_: acc <- acc + scale g.
#pragma once

#include "storage.h"

GRADALIGN_NAMESPACE_BEGIN

// Selects instead of multiplying, as perturb_ does: with scale 0 an infinite g must not turn acc into NaN.
template <class T, class Scalar>
GRADALIGN_HD T accumulate(T acc, T g, Scalar scale) {
  return scale == Scalar(0) ? acc : acc + g * scale;
}

GRADALIGN_NAMESPACE_END
