// Terms of sums, fused: a sum is not bound to the CPU's roundings, and an instruction is saved.
#pragma once

#include <cuda_runtime.h>

namespace gradalign::cuda {

__device__ __forceinline__ void add_product(float& sum, float x, float y) { sum = __fmaf_rn(x, y, sum); }
__device__ __forceinline__ void add_product(double& sum, double x, double y) { sum = __fma_rn(x, y, sum); }

}  // namespace gradalign::cuda
