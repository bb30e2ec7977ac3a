// lamb_step_: two sweeps, moments and norms, then the update; between them the trust ratio of every tensor.
#include "../math/lamb.h"

#include <algorithm>

#include "product.cuh"
#include "step.cuh"

namespace gradalign::cuda {

namespace {

template <class T>
class LambOp : public StepOp<T, 4> {
 public:
  enum List { kParam, kGrad, kM, kV, kMaster, kLists };

  __device__ explicit LambOp(const StepSettings& s) : StepOp<T, 4>(s) {
    c_.decays = {static_cast<T>(1 - s.beta1), static_cast<T>(s.beta2), static_cast<T>(1 - s.beta2)};
    c_.decay = static_cast<T>(value_of(s.weight_decay));
    c_.eps = static_cast<T>(s.eps);
  }

  __device__ __forceinline__ void enter(int tensor) {
    const TensorStep& step = this->enter_tensor(tensor);
    c_.inverse1 = static_cast<T>(1 / step.correction1);
    c_.inverse2 = static_cast<T>(1 / step.correction2);
    rate_ = static_cast<T>(step.rate);
  }

 protected:
  Lamb<T> c_;
  T rate_ = 0;
};

// The moments stay in the cache for the second sweep if they fit, and so does theta.
template <class T>
class LambMoments : public LambOp<T> {
  using Base = LambOp<T>;

 public:
  using Base::kGrad;
  using Base::kM;
  using Base::kMaster;
  using Base::kParam;
  using Base::kV;
  static constexpr int kSums = 2;
  static constexpr bool kRowPerChunk = true;
  static constexpr unsigned kOnce = 1u << kGrad;
  static GRADALIGN_HD constexpr unsigned reads(unsigned present) { return Base::theta_reads(present); }
  static GRADALIGN_HD constexpr unsigned writes(unsigned) { return 1u << kM | 1u << kV; }

  using Base::Base;

  template <class Element>
  __device__ __forceinline__ void operator()(Element& e, T* sums, int64_t) const {
    const T p = this->theta(e);
    const Moments<T> moments = update_moments(e.template get<kM>(), e.template get<kV>(), this->gradient(e), this->c_.decays);
    e.template put<kM>(moments.m);
    e.template put<kV>(moments.v);
    // The direction is taken from the moments as they are stored, here and in the second sweep.
    const T u = lamb_direction(p, e.template get<kM>(), e.template get<kV>(), this->c_);
    add_product(sums[0], p, p);
    add_product(sums[1], u, u);
  }
};

template <class T>
class LambUpdate : public LambOp<T> {
  using Base = LambOp<T>;

 public:
  using Base::kGrad;
  using Base::kM;
  using Base::kMaster;
  using Base::kParam;
  using Base::kV;
  static constexpr int kCleared = -1;
  static constexpr unsigned kOnce = 1u << kM | 1u << kV | 1u << kMaster;
  static GRADALIGN_HD constexpr unsigned reads(unsigned present) { return Base::theta_reads(present) & ~(1u << kGrad); }
  static GRADALIGN_HD constexpr unsigned writes(unsigned present) { return present & (1u << kParam | 1u << kMaster); }

  using Base::Base;

  template <class Element>
  __device__ __forceinline__ void operator()(Element& e, T*, int64_t index) const {
    const T p = this->theta(e);
    const T u = lamb_direction(p, e.template get<kM>(), e.template get<kV>(), this->c_);
    this->put_theta(e, p - this->rate_ * u, index);
  }
};

// The rows of sums that belong to one tensor after another.
struct Rows {
  static constexpr int kCapacity = 2048;

  int32_t begin[kCapacity];
  int32_t end[kCapacity];
  int32_t tensor[kCapacity];
  int32_t size;
};

__global__ void __launch_bounds__(kThreads) set_rates(const __grid_constant__ Rows rows, const double* partials, Scalar lr,
                                                      Scalar skip, bool trust, TensorStep* tensors) {
  if (value_or(skip, 0) != 0) return;  // there are no sums, and the rates are not used
  const int entry = static_cast<int>(blockIdx.x);
  double squares[2] = {0, 0};
  for (int row = rows.begin[entry] + static_cast<int>(threadIdx.x); row < rows.end[entry]; row += kThreads) {
    squares[0] += partials[2 * static_cast<int64_t>(row)];
    squares[1] += partials[2 * static_cast<int64_t>(row) + 1];
  }
  block_sum(squares);
  if (threadIdx.x == 0) tensors[rows.tensor[entry]].rate = value_of(lr) * (trust ? trust_ratio(squares[0], squares[1]) : 1);
}

// The rows are in the order in which `run` assigns them: by batch, then tensor, then chunk.
void set_rates_of(const Lists& lists, const Partials& partials, const StepSettings& settings, bool trust, TensorStep* tensors,
                  const Place& place) {
  Rows rows{};
  int row = 0;
  auto flush = [&] {
    if (rows.size == 0) return;
    launch(place, &set_rates, rows.size, rows, static_cast<const double*>(partials.data), settings.lr, settings.skip, trust,
           tensors);
    rows.size = 0;
  };
  for (const auto& batch : batches_of<5>(lists)) {
    const Table<5>& table = batch->table;
    for (int entry = 0; entry < table.size; ++entry) {
      rows.tensor[rows.size] = table.tensor[entry];
      rows.begin[rows.size] = row + table.first_chunk[entry];
      rows.end[rows.size++] = row + table.first_chunk[entry + 1];
      if (rows.size == Rows::kCapacity) flush();
    }
    row += table.num_chunks();
  }
  flush();
}

}  // namespace

void lamb_step(const Lists& lists, const StepSettings& settings, bool trust, TensorStep* tensors, const Place& place) {
  const Partials partials =
      run<LambMoments, Storages<float, float, float, float, None>, Storages<bf16, bf16, bf16, bf16, None>,
          Storages<fp16, fp16, fp16, fp16, None>, Storages<bf16, bf16, float, float, float>,
          Storages<fp16, fp16, float, float, float>, Storages<bf16, bf16, float, float, None>>(lists, settings, place);
  set_rates_of(lists, partials, settings, trust, tensors, place);
  run<LambUpdate, Storages<float, float, float, float, None>, Storages<bf16, bf16, bf16, bf16, None>,
      Storages<fp16, fp16, fp16, fp16, None>, Storages<bf16, bf16, float, float, float>,
      Storages<fp16, fp16, float, float, float>, Storages<bf16, bf16, float, float, None>>(lists, settings, place);
}

}  // namespace gradalign::cuda
