// The CUDA ops on CPU tensors.
#include "device.h"

#include "../../../../csrc/cuda/scalar_ops.h"
#include "../../../../csrc/tensor/register.h"

STABLE_TORCH_LIBRARY_IMPL(gradalign_emulated, CPU, m) { GRADALIGN_REGISTER(m, cuda); }
