// How many blocks fit on the device, and errors of the runtime as exceptions.
#pragma once

#include <cuda_runtime.h>

#include "kernels.h"

namespace gradalign::cuda {

void check(cudaError_t error, const char* op);

// Blocks that run at the same time, for this kernel; a launch has no more, its blocks take chunks in turn.
int max_blocks(const void* kernel, const Place& place);

// The same for the kernel that fits best.
int most_blocks(const Place& place);

}  // namespace gradalign::cuda
