// Numbers that live on the device: learning rates, scales, flags.
#pragma once

#include "../math/storage.h"
#include "../tensor/operand.h"

namespace gradalign::cuda {

using gradalign::Number;

struct Scalar {
  void* data;  // null: there is none
  Number number;
};

GRADALIGN_HD double value_of(const Scalar& scalar) {
  switch (scalar.number) {
    case Number::f32: return *static_cast<const float*>(scalar.data);
    case Number::f64: return *static_cast<const double*>(scalar.data);
    case Number::bf16: return widen(*static_cast<const bf16*>(scalar.data));
    case Number::f16: return widen(*static_cast<const fp16*>(scalar.data));
    case Number::i64: return static_cast<double>(*static_cast<const int64_t*>(scalar.data));
    case Number::i32: return *static_cast<const int32_t*>(scalar.data);
    case Number::u8: return *static_cast<const uint8_t*>(scalar.data);
    case Number::other: break;  // refused before
  }
  return 0;
}

GRADALIGN_HD double value_or(const Scalar& scalar, double otherwise) {
  return scalar.data == nullptr ? otherwise : value_of(scalar);
}

// All 64 bits of a seed; a double would lose some.
GRADALIGN_HD uint64_t bits_of(const Scalar& scalar) {
  if (scalar.number == Number::i64) return static_cast<uint64_t>(*static_cast<const int64_t*>(scalar.data));
  return static_cast<uint64_t>(static_cast<int64_t>(value_of(scalar)));
}

}  // namespace gradalign::cuda
