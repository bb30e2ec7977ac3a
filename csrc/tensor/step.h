// The arguments that all optimizer steps share, as gradalign/backends/signatures.py groups them.
#pragma once

#include "tensors.h"

namespace gradalign {

struct StepTensors {
  const Tensors& params;
  const Tensors& grads;
  const Tensors& masters;
  const Tensors& steps;
};

struct StepScalars {
  const Tensor& grad_scale;
  const Tensor& lr;
  const Tensor& weight_decay;
  const std::optional<Tensor>& skip;
  const std::optional<Tensor>& seed;
};

// What a step does beside its update.
struct StepFlags {
  bool maximize;
  bool zero_grads;
};

}  // namespace gradalign
