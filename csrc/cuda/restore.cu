// restore_: theta <- backup, and swap_: exchange.
#include "launch.cuh"

namespace gradalign::cuda {

namespace {

struct NoSettings {};

template <class T>
struct Restore : VectorOp {
  using Arithmetic = T;
  using Settings = NoSettings;
  enum List { kParam, kBackup, kLists };
  static constexpr int kSums = 0;
  static constexpr unsigned kOnce = 1u << kBackup;
  static GRADALIGN_HD constexpr unsigned reads(unsigned) { return 1u << kBackup; }
  static GRADALIGN_HD constexpr unsigned writes(unsigned) { return 1u << kParam; }

  __device__ explicit Restore(const Settings&) {}

  template <class Element>
  __device__ __forceinline__ void operator()(Element& e, T*, int64_t) const {
    e.template copy<kParam, kBackup>();
  }
};

template <class T>
struct Swap : VectorOp {
  using Arithmetic = T;
  using Settings = NoSettings;
  enum List { kParam, kBackup, kLists };
  static constexpr int kSums = 0;
  static constexpr unsigned kOnce = 1u << kBackup;
  static GRADALIGN_HD constexpr unsigned reads(unsigned present) { return present; }
  static GRADALIGN_HD constexpr unsigned writes(unsigned present) { return present; }

  __device__ explicit Swap(const Settings&) {}

  template <class Element>
  __device__ __forceinline__ void operator()(Element& e, T*, int64_t) const {
    e.template exchange<kParam, kBackup>();
  }
};

}  // namespace

void restore(const Lists& lists, const Place& place) {
  run<Restore, Storages<float, float>, Storages<bf16, bf16>, Storages<fp16, fp16>, Storages<bf16, float>,
      Storages<fp16, float>>(lists, {}, place);
}

void swap(const Lists& lists, const Place& place) {
  run<Swap, Storages<float, float>, Storages<bf16, bf16>, Storages<fp16, fp16>>(lists, {}, place);
}

}  // namespace gradalign::cuda
