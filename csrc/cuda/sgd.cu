// sgd_step_: unscale, update, store and clear in one pass.
#include "../math/sgd.h"

#include "step.cuh"

namespace gradalign::cuda {

namespace {

template <class T>
class SgdStep : public StepOp<T, 3> {
 public:
  enum List { kParam, kGrad, kBuffer, kMaster, kLists };
  static constexpr unsigned kOnce = 1u << kGrad | 1u << kBuffer | 1u << kMaster;
  static GRADALIGN_HD constexpr unsigned reads(unsigned present) { return StepOp<T, 3>::theta_reads(present); }
  static GRADALIGN_HD constexpr unsigned writes(unsigned present) { return StepOp<T, 3>::all_but_gradients(present); }

  __device__ explicit SgdStep(const StepSettings& s) : StepOp<T, 3>(s) {
    c_ = {static_cast<T>(value_of(s.lr)),
          static_cast<T>(value_of(s.weight_decay)),
          static_cast<T>(s.momentum),
          static_cast<T>(1 - s.dampening),
          s.nesterov,
          false};
  }

  __device__ __forceinline__ void enter(int tensor) { c_.first = this->enter_tensor(tensor).first != 0; }

  template <class Element>
  __device__ __forceinline__ void operator()(Element& e, T*, int64_t index) const {
    const T p = this->theta(e), g = this->gradient(e);
    if (e.template has<kBuffer>()) {
      const SgdResult<T> result = gradalign::sgd(p, g, e.template get<kBuffer>(), c_);
      e.template put<kBuffer>(result.buffer);
      this->put_theta(e, result.p, index);
    } else {
      this->put_theta(e, sgd_plain(p, g, c_), index);
    }
  }

 private:
  Sgd<T> c_;
};

}  // namespace

void sgd_step(const Lists& lists, const StepSettings& settings, const Place& place) {
  run<SgdStep, Storages<float, float, float, None>, Storages<float, float, None, None>, Storages<bf16, bf16, bf16, None>,
      Storages<bf16, bf16, None, None>, Storages<fp16, fp16, fp16, None>, Storages<fp16, fp16, None, None>,
      Storages<bf16, bf16, float, float>, Storages<fp16, fp16, float, float>, Storages<bf16, bf16, None, float>,
      Storages<fp16, fp16, None, float>, Storages<bf16, bf16, float, None>>(lists, settings, place);
}

}  // namespace gradalign::cuda
