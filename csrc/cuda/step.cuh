// What the optimizer steps have in common: their settings, where theta is, how it is stored.
#pragma once

#include "../math/stochastic.h"
#include "launch.cuh"

namespace gradalign::cuda {

// A step with the parameters in list 0, the gradients in list 1, and the float32 masters (if there are any) in list
// `kMaster`.
template <class T, int kMaster>
class StepOp {
 public:
  using Arithmetic = T;
  using Settings = StepSettings;
  static constexpr int kParam = 0, kGrad = 1;
  static constexpr int kSums = 0;
  static constexpr bool kRowPerChunk = false;
  static constexpr int kCleared = kGrad;

  __device__ explicit StepOp(const Settings& s)
      : tensors_(s.tensors),
        grad_scale_(static_cast<T>(s.maximize ? -value_of(s.grad_scale) : value_of(s.grad_scale))),
        idle_(value_or(s.skip, 0) != 0),
        clears_(s.zero_grads),
        stochastic_(s.stochastic) {}

  __device__ __forceinline__ bool idle() const { return idle_; }
  __device__ __forceinline__ bool clears() const { return clears_; }

 protected:
  template <class Element>
  __device__ __forceinline__ T gradient(const Element& e) const {
    return e.template get<kGrad>() * grad_scale_;
  }

  template <class Element>
  __device__ __forceinline__ T theta(const Element& e) const {
    return e.template has<kMaster>() ? e.template get<kMaster>() : e.template get<kParam>();
  }

  // theta <- value and param <- value rounded, to nearest or stochastically.
  template <class Element>
  __device__ __forceinline__ void put_theta(Element& e, T value, int64_t index) const {
    if (e.template has<kMaster>()) e.template put<kMaster>(value);
    if (e.template is_bf16<kParam>() && stochastic_) {
      const uint32_t high = mix(key_ ^ static_cast<uint32_t>(static_cast<uint64_t>(index) >> 32));
      e.template put_stochastically<kParam>(value, static_cast<uint32_t>(index), high);
    } else {
      e.template put<kParam>(value);
    }
  }

  __device__ __forceinline__ const TensorStep& enter_tensor(int tensor) {
    key_ = tensors_[tensor].key;
    return tensors_[tensor];
  }

  // The parameter itself is read only where there is no master.
  static GRADALIGN_HD constexpr unsigned theta_reads(unsigned present) {
    return in_mask(present, kMaster) ? present & ~(1u << kParam) : present;
  }

  static GRADALIGN_HD constexpr unsigned all_but_gradients(unsigned present) { return present & ~(1u << kGrad); }

 private:
  const TensorStep* tensors_;
  T grad_scale_;
  uint32_t key_ = 0;
  bool idle_;
  bool clears_;
  bool stochastic_;
};

}  // namespace gradalign::cuda
