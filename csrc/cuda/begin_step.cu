// Before an optimizer step: steps <- steps + 1, and the coefficients that depend on the step number, once for each tensor.
#include <algorithm>

#include "../math/stochastic.h"
#include "launch.cuh"

namespace gradalign::cuda {

namespace {

struct Counts {
  static constexpr int kCapacity = 2048;

  void* data[kCapacity];
  Number number[kCapacity];
  int32_t first;  // place of the first in the op's list
  int32_t size;
};

__device__ void set_value(const Scalar& scalar, double value) {
  switch (scalar.number) {
    case Number::f32: *static_cast<float*>(scalar.data) = static_cast<float>(value); break;
    case Number::f64: *static_cast<double*>(scalar.data) = value; break;
    case Number::i64: *static_cast<int64_t*>(scalar.data) = static_cast<int64_t>(value); break;
    case Number::i32: *static_cast<int32_t*>(scalar.data) = static_cast<int32_t>(value); break;
    default: break;  // refused before the launch
  }
}

__global__ void __launch_bounds__(kThreads)
    begin_tensors(const __grid_constant__ Counts counts, const __grid_constant__ StepSettings settings, Scalar seed,
                  TensorStep* tensors) {
  const int entry = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (entry >= counts.size) return;
  const Scalar count{counts.data[entry], counts.number[entry]};
  const int tensor = counts.first + entry;
  const double t = value_of(count) + 1;
  TensorStep step{};
  step.correction1 = 1 - pow(settings.beta1, t);
  step.correction2 = sqrt(1 - pow(settings.beta2, t));
  step.rate = value_of(settings.lr) / step.correction1;
  step.first = t == 1;
  if (seed.data != nullptr) {
    const uint32_t number = static_cast<uint32_t>(static_cast<int64_t>(t));
    step.key = rounding_key(bits_of(seed), static_cast<uint32_t>(tensor), number);
  }
  tensors[tensor] = step;
  if (value_or(settings.skip, 0) == 0) set_value(count, t);
}

}  // namespace

void begin_step(const std::vector<Scalar>& steps, const Scalar& seed, const StepSettings& settings, TensorStep* tensors,
                const Place& place) {
  Counts counts{};
  for (size_t first = 0; first < steps.size(); first += Counts::kCapacity) {
    counts.first = static_cast<int32_t>(first);
    counts.size = static_cast<int32_t>(std::min<size_t>(Counts::kCapacity, steps.size() - first));
    for (int32_t i = 0; i < counts.size; ++i) {
      counts.data[i] = steps[first + static_cast<size_t>(i)].data;
      counts.number[i] = steps[first + static_cast<size_t>(i)].number;
    }
    launch(place, &begin_tensors, (counts.size + kThreads - 1) / kThreads, counts, settings, seed, tensors);
  }
}

}  // namespace gradalign::cuda
