// The CUDA kernels behind the native ops, through the LibTorch stable ABI; see csrc/bindings.cpp.
#include "../tensor/register.h"
#include "scalar_ops.h"

STABLE_TORCH_LIBRARY_IMPL(gradalign_native, CUDA, m) { GRADALIGN_REGISTER(m, cuda); }
