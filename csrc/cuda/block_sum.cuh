// Sums over a block, always in the same order.
#pragma once

#include <cuda_runtime.h>

#include "table.cuh"

namespace gradalign::cuda {

constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

// Every thread of the block calls it; the first thread gets the sums.
template <int kSums>
__device__ __forceinline__ void block_sum(double (&sums)[kSums]) {
  __shared__ double of_warp[kSums][kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) sums[i] += __shfl_down_sync(0xffffffffu, sums[i], distance);
    if (lane == 0) of_warp[i][warp] = sums[i];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      for (int w = 1; w < kWarps; ++w) sums[i] += of_warp[i][w];
    }
  }
  __syncthreads();  // the next call writes of_warp again
}

}  // namespace gradalign::cuda
