// The CPU kernels behind the native ops, through the LibTorch stable ABI: one binary for every torch from 2.10 on.
//
// The namespace and the schemas come from Python, before this binary is loaded: gradalign/backends/signatures.py.
#include <torch/csrc/stable/library.h>

#include "cpu/scalar_ops.h"
#include "cpu/step_ops.h"
#include "cpu/vector_ops.h"
#include "tensor/register.h"

namespace {

std::string cpu_isa() { return gradalign::kernels().isa; }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gradalign_native, CPU, m) { GRADALIGN_REGISTER(m, cpu); }

// Empty lists have no device. Not for every key: tensors with a negative bit, tensors that stand for zeros and fake ones are
// then resolved by torch on the way.
STABLE_TORCH_LIBRARY_IMPL(gradalign_native, CompositeExplicitAutograd, m) {
  GRADALIGN_REGISTER(m, cpu);
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}
