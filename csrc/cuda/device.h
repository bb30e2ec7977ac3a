// The device of a call: its type, the current stream, a guard. (An include guard instead of pragma once: tests replace this header and define the guard.)
#ifndef GRADALIGN_CUDA_DEVICE_H
#define GRADALIGN_CUDA_DEVICE_H

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/shim_utils.h>

#include "../tensor/row.h"
#include "grid.h"

namespace gradalign::cuda {

inline int32_t device_type() { return aoti_torch_device_type_cuda(); }
inline Memory kernels_memory() { return Memory::cuda; }

inline cudaStream_t current_stream(int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Makes a device the current one, for torch and for the CUDA runtime that is linked into this binary.
class DeviceScope {
 public:
  DeviceScope(int device, const char* op) : guard_(device) { check(cudaSetDevice(device), op); }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace gradalign::cuda

#endif  // GRADALIGN_CUDA_DEVICE_H
