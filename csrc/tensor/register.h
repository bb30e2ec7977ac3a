// The list of all ops. Python defines them (gradalign/backends/signatures.py); here they get their implementations.
#pragma once

#include <torch/csrc/stable/library.h>

// Registers norm_dot_cpu as norm_dot on the library `m`, and so on, for the device `cpu`; likewise for `cuda`.
#define GRADALIGN_REGISTER(m, device)                               \
  m.impl("norm_dot", TORCH_BOX(&gradalign::norm_dot_##device));       \
  m.impl("perturb_", TORCH_BOX(&gradalign::perturb_##device));        \
  m.impl("restore_", TORCH_BOX(&gradalign::restore_##device));        \
  m.impl("swap_", TORCH_BOX(&gradalign::swap_##device));              \
  m.impl("accumulate_", TORCH_BOX(&gradalign::accumulate_##device));  \
  m.impl("combine_", TORCH_BOX(&gradalign::combine_##device));        \
  m.impl("adamw_step_", TORCH_BOX(&gradalign::adamw_step_##device));  \
  m.impl("sgd_step_", TORCH_BOX(&gradalign::sgd_step_##device));      \
  m.impl("lamb_step_", TORCH_BOX(&gradalign::lamb_step_##device));    \
  m.impl("aim", TORCH_BOX(&gradalign::aim_##device));                 \
  m.impl("reached", TORCH_BOX(&gradalign::reached_##device))
