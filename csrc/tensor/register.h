// The list of all ops. Python defines them (gradalign/backends/signatures.py); here they get their implementations.
#pragma once

#include "box.h"

#define GRADALIGN_IMPL(m, op, function)                                                                               \
  m.impl(op, TORCH_BOX((&gradalign::WithLists<decltype(gradalign::function), &gradalign::function>::call))); \
  m.impl(op ".rows", TORCH_BOX((&gradalign::WithRows<decltype(gradalign::function), &gradalign::function>::call)))

// Registers norm_dot_cpu as norm_dot on the library `m`, and so on, for the device `cpu`; likewise for `cuda`.
#define GRADALIGN_REGISTER(m, device)                        \
  GRADALIGN_IMPL(m, "norm_dot", norm_dot_##device);          \
  GRADALIGN_IMPL(m, "perturb_", perturb_##device);           \
  GRADALIGN_IMPL(m, "restore_", restore_##device);           \
  GRADALIGN_IMPL(m, "swap_", swap_##device);                 \
  GRADALIGN_IMPL(m, "accumulate_", accumulate_##device);     \
  GRADALIGN_IMPL(m, "combine_", combine_##device);           \
  GRADALIGN_IMPL(m, "adamw_step_", adamw_step_##device);     \
  GRADALIGN_IMPL(m, "sgd_step_", sgd_step_##device);         \
  GRADALIGN_IMPL(m, "lamb_step_", lamb_step_##device);       \
  m.impl("aim", TORCH_BOX(&gradalign::aim_##device));        \
  m.impl("reached", TORCH_BOX(&gradalign::reached_##device))
