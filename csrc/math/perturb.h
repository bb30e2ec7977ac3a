// perturb_: theta <- theta + d, d = scale x + scale_y y.
#pragma once

#include "storage.h"

GRADALIGN_NAMESPACE_BEGIN

// Selects instead of multiplying: 0 x inf is NaN, and a displacement of scale 0 must leave theta alone.
template <class T, class Scalar>
GRADALIGN_HD T displacement(T x, Scalar scale) {
  return scale == Scalar(0) ? T{} : x * scale;
}

template <class T>
struct Perturbed {
  T moved;  // what is stored, rounded to the storage type
  T delta;  // the part of d that the storage type could represent
};

// `base` is theta in full precision (the backup, where that is wider), `theta` what the parameter holds.
template <class Storage, class T>
GRADALIGN_HD Perturbed<T> perturb(T base, T theta, T d) {
  const T moved = round_to<Storage>(base + d);
  return {moved, moved - theta};
}

GRADALIGN_NAMESPACE_END
