// A tensor as the kernels see it: no torch header here or in any kernel file.
#pragma once

#include <cstdint>

namespace gradalign {

enum class Dtype : int8_t { f32, f64, bf16, f16 };

// What a scalar can be; the first four are those of `Dtype`, `other` is none that a kernel takes.
enum class Number : int8_t { f32, f64, bf16, f16, i64, i32, u8, other };

constexpr int64_t itemsize(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }

struct Operand {
  char* data;
  Dtype dtype;
  bool flat;  // element i is the i-th in memory; otherwise the i-th in the row-major order of sizes
  int64_t ndim;
  const int64_t* sizes;
  const int64_t* strides;
};

}  // namespace gradalign
