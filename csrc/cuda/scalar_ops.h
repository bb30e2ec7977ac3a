// aim and reached on CUDA tensors: one launch each.
#pragma once

#include "ops.h"

namespace gradalign {

// The float64 numbers of a result of another op.
inline const double* numbers_of(const Tensor& tensor, int64_t num, const char* op) {
  expect(tensor.numel() == num && tensor.is_contiguous() && number_of(tensor) == Number::f64, op,
         "expected the float64 result of another op");
  return doubles_of(tensor);
}

inline Tensor aim_cuda(const Tensor& sums, const Tensor& scale_x, const Tensor& own, double radius, double alpha, double beta,
                       double part, bool unit, bool others, double rounding) {
  cuda::Call call("aim", Tensors(std::vector<Tensor>{}), sums);
  Tensor result = call.doubles(kAim);
  cuda::aim(numbers_of(sums, 3, "aim"), {call.scalar(scale_x, "scale_x"), call.scalar(own, "own")},
            {radius, alpha, beta, part, unit, others, rounding}, call.place(), doubles_of(result));
  return result;
}

inline Tensor reached_cuda(const Tensor& sums, const Tensor& aimed, bool direction) {
  cuda::Call call("reached", Tensors(std::vector<Tensor>{}), sums);
  Tensor result = call.doubles(kReached);
  cuda::reached(numbers_of(sums, 3, "reached"), numbers_of(aimed, kAim, "reached"), direction, call.place(),
                doubles_of(result));
  return result;
}

}  // namespace gradalign
