// aim and reached: a dozen operations on single numbers in one call.
#pragma once

#include "../math/displacement.h"
#include "vector_ops.h"

namespace gradalign {

// The float64 numbers of a result of another op.
inline const double* numbers_of(const Tensor& tensor, int64_t num, const char* op) {
  expect(tensor.is_cpu() && tensor.numel() == num && tensor.is_contiguous() && number_of(tensor) == Number::f64, op,
         "expected the float64 result of another op, on the CPU");
  return static_cast<const double*>(tensor.const_data_ptr());
}

inline Tensor aim_cpu(const Tensor& sums, const Tensor& scale_x, const Tensor& own, double radius, double alpha, double beta,
                      double part, bool unit, bool others, double rounding) {
  double result[kAim];
  aim(numbers_of(sums, 3, "aim"), scalar_of(scale_x, "aim", "scale_x"), scalar_of(own, "aim", "own"),
      {radius, alpha, beta, part, unit, others, rounding}, result);
  return sums_tensor(result, kAim);
}

inline Tensor reached_cpu(const Tensor& sums, const Tensor& aimed, bool direction) {
  double result[kReached];
  reached(numbers_of(sums, 3, "reached"), numbers_of(aimed, kAim, "reached")[2], direction, result);
  return sums_tensor(result, kReached);
}

}  // namespace gradalign
