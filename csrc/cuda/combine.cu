// combine_: out <- a x + b y; [out.out] of the stored values.
#include "../math/combine.h"

#include "launch.cuh"
#include "product.cuh"

namespace gradalign::cuda {

namespace {

// An out may be its own x or y: a thread reads its elements of all lists before it writes any.
template <class T>
struct Combine : VectorOp {
  using Arithmetic = T;
  using Settings = Scales;
  enum List { kOut, kX, kY, kLists };
  static constexpr int kSums = 1;
  static constexpr unsigned kOnce = 1u << kX | 1u << kY;
  static GRADALIGN_HD constexpr unsigned reads(unsigned present) { return present & ~(1u << kOut); }
  static GRADALIGN_HD constexpr unsigned writes(unsigned) { return 1u << kOut; }

  __device__ explicit Combine(const Settings& s)
      : a_(static_cast<T>(value_of(s.first))), b_(static_cast<T>(value_of(s.second))) {}

  template <class Element>
  __device__ __forceinline__ void operator()(Element& e, T* sums, int64_t) const {
    const T x = e.template get<kX>(), y = e.template get<kY>();
    T stored;
    e.template with_storage<kOut>([&](auto storage) { stored = gradalign::combine<decltype(storage)>(x, y, a_, b_); });
    e.template put<kOut>(stored);
    add_product(sums[0], stored, stored);
  }

 private:
  T a_;
  T b_;
};

}  // namespace

void combine(const Lists& lists, const Scales& scales, const Place& place, double* result) {
  const Partials partials =
      run<Combine, Storages<float, float, float>, Storages<bf16, bf16, bf16>, Storages<fp16, fp16, fp16>,
          Storages<bf16, float, bf16>, Storages<fp16, float, fp16>>(lists, scales, place);
  finish_sums(partials, 1, place, result);
}

}  // namespace gradalign::cuda
