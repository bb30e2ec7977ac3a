// The fused optimizer steps: adamw_step_, sgd_step_, lamb_step_.
//
// Everything that can be refused is refused before anything is written.
#pragma once

#include <array>

#include "../math/lamb.h"
#include "../math/stochastic.h"
#include "../tensor/step.h"
#include "vector_ops.h"

namespace gradalign {

// The arguments that all steps share, checked and unpacked.
class Step {
 public:
  Step(const char* op, const StepTensors& tensors, const StepScalars& scalars, const StepFlags& flags)
      : op_(op), numels_(numels_of(tensors.params)), steps_(tensors.steps) {
    params_ = list(tensors.params, "params");
    grads_ = list(tensors.grads, "grads");
    masters_ = optional_list(tensors.masters, "masters");
    read_steps();
    if (scalars.seed) read_seed(*scalars.seed);
    kept_ = !scalars.skip || scalar_of(*scalars.skip, op, "skip") == 0;
    const double scale = scalar_of(scalars.grad_scale, op, "grad_scale");
    args_ = {params_.data(), grads_.data(), data_or_null(masters_, !masters_.empty()),
             scalars.seed ? keys_.data() : nullptr, flags.maximize ? -scale : scale, flags.zero_grads};
  }

  Operands list(const Tensors& tensors, const char* name) const { return operands_of(tensors, numels_, op_, name); }

  // An empty list stands for one that is not used.
  Operands optional_list(const Tensors& tensors, const char* name) const {
    return tensors.empty() ? Operands{} : list(tensors, name);
  }

  // Checks what is written and, unless stochastic rounding counts elements in row-major order, takes it in memory order.
  void prepare(std::vector<Operands*> states) {
    for (const Operands* state : states) expect_own_elements({state}, op_);
    expect_own_elements({&params_, &masters_}, op_);
    if (args_.zero_grads) expect_own_elements({&grads_}, op_);
    if (args_.keys != nullptr) return;
    states.insert(states.begin(), {&params_, &grads_, &masters_});
    flatten_alike(states);
  }

  // Runs the update, then counts the step; a skipped step only clears the gradients.
  template <class Update>
  void run(Update update) const {
    const Plan plan = plan_of(numels_);
    if (!kept_) {
      if (args_.zero_grads) launch(kernels().skipped, args_, plan);
      return;
    }
    update(plan);
    for (const Row& step : steps_) {
      visit_scalar(step, [](auto* value) { *value += 1; });
    }
  }

  const StepArgs& args() const { return args_; }
  const std::vector<double>& counts() const { return counts_; }

 private:
  void read_steps() {
    if (steps_.size() != numels_.size()) {
      refuse(op_, wrong_steps(numels_.size(), steps_.size()));
    }
    counts_.reserve(steps_.size());
    for (const Row& step : steps_) {
      const double count = scalar_of(step, op_, "steps");
      expect(visit_scalar(step, [](auto*) {}), op_, "expected steps of float32, float64 or int64; convert them");
      counts_.push_back(count + 1);
    }
  }

  void read_seed(const Tensor& seed) {
    uint64_t bits = 0;
    expect(seed.numel() == 1 && seed.is_cpu(), op_, "expected seed to be a 0-dim int64 tensor on the CPU");
    visit_scalar(row_of(seed), [&](const auto* value) { bits = static_cast<uint64_t>(static_cast<int64_t>(*value)); });
    for (size_t i = 0; i < counts_.size(); ++i) {
      keys_.push_back(rounding_key(bits, static_cast<uint32_t>(i), static_cast<uint32_t>(static_cast<int64_t>(counts_[i]))));
    }
  }

  const char* op_;
  std::vector<int64_t> numels_;
  const Tensors& steps_;
  Operands params_, grads_, masters_;
  std::vector<double> counts_;  // t, the number of this step, for each tensor
  std::vector<uint32_t> keys_;
  bool kept_ = true;
  StepArgs args_{};
};

// 1 - beta^t for every tensor; most have the same t.
inline std::vector<double> corrections(double beta, const std::vector<double>& counts) {
  std::vector<double> result;
  result.reserve(counts.size());
  for (size_t i = 0; i < counts.size(); ++i) {
    result.push_back(i > 0 && counts[i] == counts[i - 1] ? result.back() : 1 - std::pow(beta, counts[i]));
  }
  return result;
}

inline void adamw_step_cpu(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs,
                           const Tensors& exp_avg_sqs, const Tensors& max_exp_avg_sqs, const Tensors& masters,
                           const Tensors& steps, const Tensor& grad_scale, const Tensor& lr, const Tensor& weight_decay,
                           const std::optional<Tensor>& skip, const std::optional<Tensor>& seed, double beta1,
                           double beta2, double eps, bool decoupled, bool maximize, bool zero_grads) {
  const char* op = "adamw_step_";
  Step step(op, {params, grads, masters, steps}, {grad_scale, lr, weight_decay, skip, seed}, {maximize, zero_grads});
  Operands m = step.list(exp_avgs, "exp_avgs");
  Operands v = step.list(exp_avg_sqs, "exp_avg_sqs");
  Operands largest = step.optional_list(max_exp_avg_sqs, "max_exp_avg_sqs");
  step.prepare({&m, &v, &largest});
  const double rate = scalar_of(lr, op, "lr"), decay = scalar_of(weight_decay, op, "weight_decay");
  const auto corrections1 = corrections(beta1, step.counts()), corrections2 = corrections(beta2, step.counts());
  std::vector<AdamWTensor> tensors;
  tensors.reserve(corrections1.size());
  for (size_t i = 0; i < corrections1.size(); ++i) tensors.push_back({rate / corrections1[i], std::sqrt(corrections2[i])});
  const AdamWArgs args{step.args(), m.data(), v.data(), data_or_null(largest, !largest.empty()),
                       tensors.data(), beta1, beta2, eps, 1 - rate * decay, decay, decoupled};
  step.run([&](const Plan& plan) { launch(kernels().adamw, args, plan); });
}

inline void sgd_step_cpu(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers,
                         const Tensors& masters, const Tensors& steps, const Tensor& grad_scale, const Tensor& lr,
                         const Tensor& weight_decay, const std::optional<Tensor>& skip,
                         const std::optional<Tensor>& seed, double momentum, double dampening, bool nesterov,
                         bool maximize, bool zero_grads) {
  const char* op = "sgd_step_";
  Step step(op, {params, grads, masters, steps}, {grad_scale, lr, weight_decay, skip, seed}, {maximize, zero_grads});
  Operands buffers = step.optional_list(momentum_buffers, "momentum_buffers");
  step.prepare({&buffers});
  std::vector<uint8_t> first;
  first.reserve(step.counts().size());
  for (double count : step.counts()) first.push_back(count == 1);
  const SgdArgs args{step.args(), data_or_null(buffers, !buffers.empty()), first.data(), scalar_of(lr, op, "lr"),
                     scalar_of(weight_decay, op, "weight_decay"), momentum, dampening, nesterov};
  step.run([&](const Plan& plan) { launch(kernels().sgd, args, plan); });
}

// lr times ||theta|| / ||direction|| of every tensor, from the sums of its pieces.
inline void set_rates(std::vector<LambTensor>& tensors, const Plan& plan, const std::vector<double>& sums, double lr,
                      bool trust) {
  std::vector<std::array<double, 2>> squares(tensors.size());
  for (size_t i = 0; i < plan.pieces.size(); ++i) {
    auto& own = squares[static_cast<size_t>(plan.pieces[i].tensor)];
    own[0] += sums[2 * i];
    own[1] += sums[2 * i + 1];
  }
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i].rate = lr * (trust ? trust_ratio(squares[i][0], squares[i][1]) : 1);
}

inline void lamb_step_cpu(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs,
                          const Tensors& exp_avg_sqs, const Tensors& masters, const Tensors& steps,
                          const Tensor& grad_scale, const Tensor& lr, const Tensor& weight_decay,
                          const std::optional<Tensor>& skip, const std::optional<Tensor>& seed, double beta1,
                          double beta2, double eps, bool trust, bool maximize, bool zero_grads) {
  const char* op = "lamb_step_";
  Step step(op, {params, grads, masters, steps}, {grad_scale, lr, weight_decay, skip, seed}, {maximize, zero_grads});
  Operands m = step.list(exp_avgs, "exp_avgs");
  Operands v = step.list(exp_avg_sqs, "exp_avg_sqs");
  step.prepare({&m, &v});
  const double rate = scalar_of(lr, op, "lr"), decay = scalar_of(weight_decay, op, "weight_decay");
  const auto corrections1 = corrections(beta1, step.counts()), corrections2 = corrections(beta2, step.counts());
  std::vector<LambTensor> tensors;
  tensors.reserve(corrections1.size());
  for (size_t i = 0; i < corrections1.size(); ++i) tensors.push_back({1 / corrections1[i], 1 / std::sqrt(corrections2[i]), 0});
  const LambArgs args{step.args(), m.data(), v.data(), tensors.data(), beta1, beta2, eps, decay};
  step.run([&](const Plan& plan) {
    set_rates(tensors, plan, launch_by_piece(kernels().lamb_moments, args, plan, 2), rate, trust);
    launch(kernels().lamb_update, args, plan);
  });
}

}  // namespace gradalign
