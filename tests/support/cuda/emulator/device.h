// Stands in for csrc/cuda/device.h: the tensors of a call live in the memory of the CPU.
#ifndef GRADALIGN_CUDA_DEVICE_H
#define GRADALIGN_CUDA_DEVICE_H

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cstdint>

#include "../../../../csrc/tensor/row.h"

namespace gradalign::cuda {

inline int32_t device_type() { return aoti_torch_device_type_cpu(); }
inline Memory kernels_memory() { return Memory::cpu; }
inline cudaStream_t current_stream(int) { return nullptr; }

class DeviceScope {
 public:
  DeviceScope(int, const char*) {}
};

}  // namespace gradalign::cuda

#endif  // GRADALIGN_CUDA_DEVICE_H
