// accumulate_: acc <- acc + scale g; [g.g, g.acc] with acc as it was before.
#include "../math/accumulate.h"

#include "launch.cuh"
#include "product.cuh"

namespace gradalign::cuda {

namespace {

template <class T>
struct Accumulate : VectorOp {
  using Arithmetic = T;
  using Settings = Scalar;
  enum List { kAcc, kGrad, kLists };
  static constexpr int kSums = 2;
  static constexpr unsigned kOnce = 1u << kGrad;
  static GRADALIGN_HD constexpr unsigned reads(unsigned present) { return present; }
  static GRADALIGN_HD constexpr unsigned writes(unsigned) { return 1u << kAcc; }

  __device__ explicit Accumulate(const Settings& scale) : scale_(static_cast<T>(value_of(scale))) {}

  template <class Element>
  __device__ __forceinline__ void operator()(Element& e, T* sums, int64_t) const {
    const T before = e.template get<kAcc>(), g = e.template get<kGrad>();
    add_product(sums[0], g, g);
    add_product(sums[1], g, before);
    e.template put<kAcc>(gradalign::accumulate(before, g, scale_));
  }

 private:
  T scale_;
};

}  // namespace

void accumulate(const Lists& lists, const Scalar& scale, const Place& place, double* result) {
  const Partials partials = run<Accumulate, Storages<float, float>, Storages<bf16, bf16>, Storages<fp16, fp16>,
                                Storages<float, bf16>, Storages<float, fp16>>(lists, scale, place);
  finish_sums(partials, 2, place, result);
}

}  // namespace gradalign::cuda
