// Every op by its name.
#pragma once

#include <torch/csrc/stable/library.h>

#include "ops.h"

namespace gradalign {

inline void register_cuda(torch::stable::detail::StableLibrary& m) {
  m.impl("norm_dot", TORCH_BOX(&norm_dot_cuda));
  m.impl("perturb_", TORCH_BOX(&perturb_cuda));
  m.impl("restore_", TORCH_BOX(&restore_cuda));
  m.impl("swap_", TORCH_BOX(&swap_cuda));
  m.impl("accumulate_", TORCH_BOX(&accumulate_cuda));
  m.impl("combine_", TORCH_BOX(&combine_cuda));
  m.impl("adamw_step_", TORCH_BOX(&adamw_step_cuda));
  m.impl("sgd_step_", TORCH_BOX(&sgd_step_cuda));
  m.impl("lamb_step_", TORCH_BOX(&lamb_step_cuda));
}

}  // namespace gradalign
