// What the optimizer steps have in common: where theta is, how it is stored, how gradients are cleared.
#pragma once

#include "../math/stochastic.h"
#include "kernels.h"
#include "stage.h"

GRADALIGN_NAMESPACE_BEGIN

inline const Operand& theta_of(const StepArgs& step, int64_t tensor) {
  return (step.masters == nullptr ? step.params : step.masters)[tensor];
}

template <class T>
void store_stochastically(const Operand& param, int64_t begin, int64_t n, const T* in, uint32_t key) {
  bf16 rounded[kBlock<float>];
  for (int64_t done = 0; done < n;) {  // runs of one upper half of the index
    const uint64_t element = static_cast<uint64_t>(begin + done);
    const int64_t room = static_cast<int64_t>(0x100000000u - (element & 0xffffffffu));
    const int64_t run = n - done < room ? n - done : room;
    const uint32_t low = static_cast<uint32_t>(element);
    const uint32_t high = mix(key ^ static_cast<uint32_t>(element >> 32));
    const T* values = in + done;
    bf16* out = rounded + done;
#pragma omp simd
    for (int64_t i = 0; i < run; ++i) {
      out[i] = round_stochastically(static_cast<float>(values[i]), low + static_cast<uint32_t>(i), high);
    }
    done += run;
  }
  if (param.flat) {
    memcpy(reinterpret_cast<bf16*>(param.data) + begin, rounded, static_cast<size_t>(n) * sizeof(bf16));
  } else {
    scatter(param, begin, n, rounded);
  }
}

// theta <- values and param <- values rounded; `theta` has staged them if they are not in place.
template <class T>
void store_theta(const StepArgs& step, int64_t tensor, int64_t begin, int64_t n, const Stage<T>& theta, const T* values) {
  const Operand& param = step.params[tensor];
  const bool stochastic = step.keys != nullptr && param.dtype == Dtype::bf16;
  if (step.masters != nullptr || !stochastic) theta.store(theta_of(step, tensor), begin, n);
  if (stochastic) {
    store_stochastically(param, begin, n, values, step.keys[tensor]);
  } else if (step.masters != nullptr) {
    store_block(param, begin, n, values);
  }
}

inline void zero_block(const Operand& operand, int64_t begin, int64_t n) {
  static constexpr double kZeros[kBlock<float>] = {};
  if (operand.flat) {
    const int64_t size = itemsize(operand.dtype);
    memset(operand.data + begin * size, 0, static_cast<size_t>(n * size));
  } else {
    store_block(operand, begin, n, kZeros);
  }
}

inline bool any_double(const StepArgs& step, int64_t tensor) {
  return any_double(step.params[tensor], step.grads[tensor], theta_of(step, tensor));
}

inline void skipped_cpu(const StepArgs& step, const Piece* first, const Piece* last, double*) {
  for (const Piece* piece = first; piece != last; ++piece) {
    for_each_block<float>(*piece, [&](int64_t begin, int64_t n) { zero_block(step.grads[piece->tensor], begin, n); });
  }
}

GRADALIGN_NAMESPACE_END
