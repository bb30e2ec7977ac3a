// norm_dot: [x.x, x.y, y.y].
#include "launch.cuh"
#include "product.cuh"

namespace gradalign::cuda {

namespace {

struct NoSettings {};

// The gradients are read again soon (by the step, by perturb_): they stay in the cache if they fit.
template <class T>
struct NormDot : VectorOp {
  using Arithmetic = T;
  using Settings = NoSettings;
  enum List { kX, kY, kLists };
  static constexpr int kSums = 3;
  static constexpr unsigned kOnce = 0;
  static GRADALIGN_HD constexpr unsigned reads(unsigned present) { return present; }
  static GRADALIGN_HD constexpr unsigned writes(unsigned) { return 0; }

  __device__ explicit NormDot(const Settings&) {}

  template <class Element>
  __device__ __forceinline__ void operator()(const Element& e, T* sums, int64_t) const {
    const T x = e.template get<kX>();
    add_product(sums[0], x, x);
    if (!e.template has<kY>()) return;
    const T y = e.template get<kY>();
    add_product(sums[1], x, y);
    add_product(sums[2], y, y);
  }
};

}  // namespace

void norm_dot(const Lists& lists, const Place& place, double* result) {
  const Partials partials = run<NormDot, Storages<float, None>, Storages<bf16, None>, Storages<fp16, None>,
                                Storages<float, float>, Storages<bf16, bf16>, Storages<fp16, fp16>>(lists, {}, place);
  finish_sums(partials, 3, place, result);
}

}  // namespace gradalign::cuda
