// The CUDA ops on CPU tensors.
#include <torch/csrc/stable/library.h>

#include "device.h"

#include "../../../../csrc/cuda/register.h"

STABLE_TORCH_LIBRARY_IMPL(gradalign_emulated, CPU, m) { gradalign::register_cuda(m); }
