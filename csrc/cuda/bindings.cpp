// The CUDA kernels behind the native ops, through the LibTorch stable ABI. `csrc/bindings.cpp` defines the ops.
#include <torch/csrc/stable/library.h>

#include "ops.h"
#include "register.h"

STABLE_TORCH_LIBRARY_IMPL(gradalign_native, CUDA, m) { gradalign::register_cuda(m); }
