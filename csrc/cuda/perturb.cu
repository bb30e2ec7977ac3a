// perturb_: backup <- theta; theta <- theta + d; [delta.d, d.d, delta.delta].
#include "../math/perturb.h"

#include "launch.cuh"
#include "product.cuh"

namespace gradalign::cuda {

namespace {

// A backup may be the very tensor of a direction: a thread reads its elements of all lists before it writes any.
template <class T, bool kFromBackups>
struct Perturb : VectorOp {
  using Arithmetic = T;
  using Settings = Scales;
  enum List { kParam, kBackup, kX, kY, kLists };
  static constexpr int kSums = 3;
  static constexpr unsigned kOnce = 1u << kBackup | 1u << kX | 1u << kY;
  static GRADALIGN_HD constexpr unsigned reads(unsigned present) {
    return present & ~(1u << (kFromBackups ? kParam : kBackup));
  }
  static GRADALIGN_HD constexpr unsigned writes(unsigned) { return 1u << kParam | (kFromBackups ? 0 : 1u << kBackup); }

  __device__ explicit Perturb(const Settings& s)
      : scale_(static_cast<T>(value_of(s.first))), scale_y_(static_cast<T>(value_or(s.second, 0))) {}

  template <class Element>
  __device__ __forceinline__ void operator()(Element& e, T* sums, int64_t) const {
    const T base = e.template get<kFromBackups ? kBackup : kParam>();
    T d = displacement(e.template get<kX>(), scale_);
    if (e.template has<kY>()) d += displacement(e.template get<kY>(), scale_y_);
    if constexpr (!kFromBackups) e.template copy<kBackup, kParam>();
    Perturbed<T> result;
    e.template with_storage<kParam>([&](auto storage) {
      using Stored = decltype(storage);
      result = gradalign::perturb<Stored>(base, kFromBackups ? round_to<Stored>(base) : base, d);
    });
    e.template put<kParam>(result.moved);
    add_product(sums[0], result.delta, d);
    add_product(sums[1], d, d);
    add_product(sums[2], result.delta, result.delta);
  }

 private:
  T scale_;
  T scale_y_;
};

template <class T>
using Leave = Perturb<T, false>;
template <class T>
using LeaveMaster = Perturb<T, true>;

}  // namespace

void perturb(const Lists& lists, bool from_backups, const Scales& scales, const Place& place, double* result) {
  const Partials partials =
      from_backups ? run<LeaveMaster, Storages<bf16, float, bf16, None>, Storages<fp16, float, fp16, None>,
                         Storages<bf16, float, float, None>, Storages<fp16, float, float, None>,
                         Storages<bf16, float, bf16, bf16>, Storages<fp16, float, fp16, fp16>,
                         Storages<float, float, float, float>,
                         Storages<bf16, bf16, bf16, bf16>, Storages<fp16, fp16, fp16, fp16>>(lists, scales, place)
                   : run<Leave, Storages<float, float, float, None>, Storages<bf16, bf16, bf16, None>,
                         Storages<fp16, fp16, fp16, None>, Storages<bf16, bf16, float, None>,
                         Storages<float, float, float, float>,
                         Storages<bf16, bf16, bf16, bf16>, Storages<fp16, fp16, fp16, fp16>>(lists, scales, place);
  finish_sums(partials, 3, place, result);
}

}  // namespace gradalign::cuda
