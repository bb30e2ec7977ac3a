// What the bindings call: one function per op. No torch header here or in any kernel file.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "../math/displacement.h"
#include "../tensor/operand.h"
#include "scalar.cuh"

namespace gradalign::cuda {

using Operands = std::vector<Operand>;

// Where a call runs, and where it gets device memory that lives until the call returns (in the order of the stream).
struct Place {
  const char* op;
  int device;
  cudaStream_t stream;
  std::function<void*(int64_t bytes)> allocate;
};

// Lists of tensors that agree in length and numbers of elements; a list that the call does not have is empty.
struct Lists {
  const std::vector<int64_t>& numels;
  std::vector<const Operands*> of;
};

struct Scales {
  Scalar first;
  Scalar second;
};

// Results are double arrays in device memory.
void norm_dot(const Lists& xs_ys, const Place& place, double* result);
void perturb(const Lists& params_backups_xs_ys, bool from_backups, const Scales& scales, const Place& place, double* result);
void restore(const Lists& params_backups, const Place& place);
void swap(const Lists& params_backups, const Place& place);
void accumulate(const Lists& accs_grads, const Scalar& scale, const Place& place, double* result);
void aim(const double* sums, const Scales& scale_x_own, const Aiming& aiming, const Place& place, double* result);
void reached(const double* sums, const double* aimed, bool direction, const Place& place, double* result);
void combine(const Lists& outs_xs_ys, const Scales& scales, const Place& place, double* result);

// What a step needs of one tensor, computed on the device from its count of steps.
struct TensorStep {
  double correction1;  // 1 - beta1^t
  double correction2;  // sqrt(1 - beta2^t)
  double rate;         // lr / correction1; for LAMB's second sweep lr times the trust ratio
  uint32_t key;        // of the stream for stochastic rounding
  uint32_t first;      // whether t is 1
};

struct StepSettings {
  const TensorStep* tensors;
  Scalar grad_scale;
  Scalar lr;
  Scalar weight_decay;
  Scalar skip;
  double beta1, beta2, eps, momentum, dampening;
  bool decoupled, nesterov, maximize, zero_grads, stochastic;
};

// Counts the step (unless it is skipped) and fills `tensors`, one entry per tensor.
void begin_step(const std::vector<Scalar>& steps, const Scalar& seed, const StepSettings& settings, TensorStep* tensors,
                const Place& place);

void adamw_step(const Lists& params_grads_ms_vs_largest_masters, const StepSettings& settings, const Place& place);
void sgd_step(const Lists& params_grads_buffers_masters, const StepSettings& settings, const Place& place);
void lamb_step(const Lists& params_grads_ms_vs_masters, const StepSettings& settings, bool trust, TensorStep* tensors,
               const Place& place);

}  // namespace gradalign::cuda
