// adamw_step_: unscale, update, store and clear in one pass.
#include "../math/adamw.h"

#include "step.cuh"

namespace gradalign::cuda {

namespace {

template <class T>
class AdamWStep : public StepOp<T, 5> {
 public:
  enum List { kParam, kGrad, kM, kV, kLargest, kMaster, kLists };
  static constexpr unsigned kOnce = 1u << kGrad | 1u << kM | 1u << kV | 1u << kLargest | 1u << kMaster;
  static GRADALIGN_HD constexpr unsigned reads(unsigned present) { return StepOp<T, 5>::theta_reads(present); }
  static GRADALIGN_HD constexpr unsigned writes(unsigned present) { return StepOp<T, 5>::all_but_gradients(present); }

  __device__ explicit AdamWStep(const StepSettings& s) : StepOp<T, 5>(s) {
    const double decay = value_of(s.weight_decay);
    c_.decays = {static_cast<T>(1 - s.beta1), static_cast<T>(s.beta2), static_cast<T>(1 - s.beta2)};
    c_.kept = static_cast<T>(1 - value_of(s.lr) * decay);
    c_.decay = static_cast<T>(decay);
    c_.eps = static_cast<T>(s.eps);
    c_.decoupled = s.decoupled;
  }

  __device__ __forceinline__ void enter(int tensor) {
    const TensorStep& step = this->enter_tensor(tensor);
    c_.step_size = static_cast<T>(step.rate);
    c_.correction = static_cast<T>(step.correction2);
  }

  template <class Element>
  __device__ __forceinline__ void operator()(Element& e, T*, int64_t index) const {
    const T p = this->theta(e), g = this->gradient(e), m = e.template get<kM>(), v = e.template get<kV>();
    const AdamWResult<T> result = e.template has<kLargest>()
                                      ? gradalign::adamw<true>(p, g, m, v, e.template get<kLargest>(), c_)
                                      : gradalign::adamw<false>(p, g, m, v, T(0), c_);
    e.template put<kM>(result.m);
    e.template put<kV>(result.v);
    e.template put<kLargest>(result.largest);
    this->put_theta(e, result.p, index);
  }

 private:
  AdamW<T> c_;
};

}  // namespace

void adamw_step(const Lists& lists, const StepSettings& settings, const Place& place) {
  // amsgrad has no kernel of its own: with a fifth list to read, 64 registers would spill.
  run<AdamWStep, Storages<float, float, float, float, None, None>, Storages<bf16, bf16, bf16, bf16, None, None>,
      Storages<fp16, fp16, fp16, fp16, None, None>, Storages<bf16, bf16, float, float, None, float>,
      Storages<fp16, fp16, float, float, None, float>, Storages<bf16, bf16, float, float, None, None>>(lists, settings,
                                                                                                       place);
}

}  // namespace gradalign::cuda
