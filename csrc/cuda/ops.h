// The native ops on CUDA tensors. Everything that can be refused is refused before anything is launched.
#pragma once

#include "../tensor/step.h"
#include "sums.h"
#include "tensors.h"

namespace gradalign {

inline double* doubles_of(const Tensor& tensor) { return static_cast<double*>(tensor.data_ptr()); }

inline Tensor norm_dot_cuda(const Tensors& xs, const Tensors& ys) {
  cuda::Call call("norm_dot", xs, ys);
  Operands x = call.list(xs, "xs");
  Operands y = call.optional_list(ys, "ys");
  flatten_alike({&x, &y});
  Tensor result = call.doubles(3);
  cuda::norm_dot({call.numels(), {&x, &y}}, call.place(), doubles_of(result));
  return result;
}

inline Tensor perturb_cuda(const Tensors& params, const Tensors& backups, const Tensors& xs, const Tensor& scale,
                           const Tensors& ys, const std::optional<Tensor>& scale_y, bool from_backups) {
  cuda::Call call("perturb_", params, scale);
  const bool two = !ys.empty() && scale_y;
  Operands p = call.list(params, "params"), backup = call.list(backups, "backups"), x = call.list(xs, "xs");
  Operands y = two ? call.list(ys, "ys") : Operands{};
  flatten_alike({&p, &backup, &x, &y});
  expect_own_elements({&p}, "perturb_");
  if (!from_backups) expect_own_elements({&backup}, "perturb_");
  const cuda::Scales scales{call.scalar(scale, "scale"), call.scalar(two ? scale_y : std::nullopt, "scale_y")};
  Tensor result = call.doubles(3);
  cuda::perturb({call.numels(), {&p, &backup, &x, &y}}, from_backups, scales, call.place(), doubles_of(result));
  return result;
}

inline void restore_cuda(const Tensors& params, const Tensors& backups) {
  cuda::Call call("restore_", params, backups);
  Operands p = call.list(params, "params"), backup = call.list(backups, "backups");
  flatten_alike({&p, &backup});
  expect_own_elements({&p}, "restore_");
  cuda::restore({call.numels(), {&p, &backup}}, call.place());
}

inline void swap_cuda(const Tensors& params, const Tensors& backups) {
  cuda::Call call("swap_", params, backups);
  Operands p = call.list(params, "params"), backup = call.list(backups, "backups");
  flatten_alike({&p, &backup});
  expect_own_elements({&p, &backup}, "swap_");
  cuda::swap({call.numels(), {&p, &backup}}, call.place());
}

inline Tensor accumulate_cuda(const Tensors& accs, const Tensors& grads, const Tensor& scale) {
  cuda::Call call("accumulate_", accs, scale);
  Operands acc = call.list(accs, "accs"), grad = call.list(grads, "grads");
  flatten_alike({&acc, &grad});
  expect_own_elements({&acc}, "accumulate_");
  Tensor result = call.doubles(2);
  cuda::accumulate({call.numels(), {&acc, &grad}}, call.scalar(scale, "scale"), call.place(), doubles_of(result));
  return result;
}

inline Tensor combine_cuda(const Tensors& outs, const Tensors& xs, const Tensors& ys, const Tensor& a, const Tensor& b) {
  cuda::Call call("combine_", outs, a);
  Operands out = call.list(outs, "outs"), x = call.list(xs, "xs"), y = call.list(ys, "ys");
  flatten_alike({&out, &x, &y});
  expect_own_elements({&out}, "combine_");
  Tensor result = call.doubles(1);
  cuda::combine({call.numels(), {&out, &x, &y}}, {call.scalar(a, "a"), call.scalar(b, "b")}, call.place(),
                doubles_of(result));
  return result;
}

// What the steps have in common: their lists, their settings, the counts of steps.
class CudaStep {
 public:
  CudaStep(const char* op, const StepTensors& tensors, const StepScalars& scalars, const cuda::StepSettings& settings)
      : call_(op, tensors.params, scalars.grad_scale), settings_(settings), seed_(call_.scalar(scalars.seed, "seed")) {
    params_ = call_.list(tensors.params, "params");
    grads_ = call_.list(tensors.grads, "grads");
    masters_ = call_.optional_list(tensors.masters, "masters");
    settings_.grad_scale = call_.scalar(scalars.grad_scale, "grad_scale");
    settings_.lr = call_.scalar(scalars.lr, "lr");
    settings_.weight_decay = call_.scalar(scalars.weight_decay, "weight_decay");
    settings_.skip = call_.scalar(scalars.skip, "skip");
    settings_.stochastic = scalars.seed.has_value();
    read_counts(op, tensors.steps);
  }

  Operands list(const Tensors& tensors, const char* name) const { return call_.list(tensors, name); }
  Operands optional_list(const Tensors& tensors, const char* name) const { return call_.optional_list(tensors, name); }

  // Counts the step; then `update(lists, settings, tensors, place)` with the lists params, grads, states..., masters.
  template <class Update>
  void run(std::vector<Operands*> states, Update update) {
    // Not with stochastic rounding, which counts elements in row-major order.
    if (!settings_.stochastic) {
      std::vector<Operands*> lists{&params_, &grads_, &masters_};
      lists.insert(lists.end(), states.begin(), states.end());
      flatten_alike(lists);
    }
    const char* op = call_.place().op;
    expect_own_elements({&params_, &masters_}, op);
    if (settings_.zero_grads) expect_own_elements({&grads_}, op);
    for (const Operands* state : states) expect_own_elements({state}, op);
    cuda::Lists lists{call_.numels(), {&params_, &grads_}};
    lists.of.insert(lists.of.end(), states.begin(), states.end());
    lists.of.push_back(&masters_);
    const cuda::Place& place = call_.place();
    const auto bytes = static_cast<int64_t>(counts_.size() * sizeof(cuda::TensorStep));
    auto* tensors = static_cast<cuda::TensorStep*>(place.allocate(bytes));
    settings_.tensors = tensors;
    cuda::begin_step(counts_, seed_, settings_, tensors, place);
    update(lists, settings_, tensors, place);
  }

 private:
  void read_counts(const char* op, const Tensors& steps) {
    if (steps.size() != call_.numels().size()) {
      refuse(op, wrong_steps(call_.numels().size(), steps.size()));
    }
    counts_.reserve(steps.size());
    for (const Row& step : steps) {
      const cuda::Scalar count = call_.scalar(step, "steps");
      const bool narrow = count.number == cuda::Number::bf16 || count.number == cuda::Number::f16;
      expect(!narrow && count.number != cuda::Number::u8, op, "expected steps of float32, float64 or int64; convert them");
      counts_.push_back(count);
    }
  }

  cuda::Call call_;
  cuda::StepSettings settings_;
  cuda::Scalar seed_;
  Operands params_, grads_, masters_;
  std::vector<cuda::Scalar> counts_;
};

inline void adamw_step_cuda(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs, const Tensors& exp_avg_sqs,
                            const Tensors& max_exp_avg_sqs, const Tensors& masters, const Tensors& steps,
                            const Tensor& grad_scale, const Tensor& lr, const Tensor& weight_decay,
                            const std::optional<Tensor>& skip, const std::optional<Tensor>& seed, double beta1, double beta2,
                            double eps, bool decoupled, bool maximize, bool zero_grads) {
  cuda::StepSettings settings{};
  settings.beta1 = beta1;
  settings.beta2 = beta2;
  settings.eps = eps;
  settings.decoupled = decoupled;
  settings.maximize = maximize;
  settings.zero_grads = zero_grads;
  CudaStep step("adamw_step_", {params, grads, masters, steps}, {grad_scale, lr, weight_decay, skip, seed}, settings);
  Operands m = step.list(exp_avgs, "exp_avgs"), v = step.list(exp_avg_sqs, "exp_avg_sqs");
  Operands largest = step.optional_list(max_exp_avg_sqs, "max_exp_avg_sqs");
  step.run({&m, &v, &largest}, [](const cuda::Lists& lists, const cuda::StepSettings& s, cuda::TensorStep*,
                                  const cuda::Place& place) { cuda::adamw_step(lists, s, place); });
}

inline void sgd_step_cuda(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers,
                          const Tensors& masters, const Tensors& steps, const Tensor& grad_scale, const Tensor& lr,
                          const Tensor& weight_decay, const std::optional<Tensor>& skip, const std::optional<Tensor>& seed,
                          double momentum, double dampening, bool nesterov, bool maximize, bool zero_grads) {
  cuda::StepSettings settings{};
  settings.momentum = momentum;
  settings.dampening = dampening;
  settings.nesterov = nesterov;
  settings.maximize = maximize;
  settings.zero_grads = zero_grads;
  CudaStep step("sgd_step_", {params, grads, masters, steps}, {grad_scale, lr, weight_decay, skip, seed}, settings);
  Operands buffers = step.optional_list(momentum_buffers, "momentum_buffers");
  step.run({&buffers}, [](const cuda::Lists& lists, const cuda::StepSettings& s, cuda::TensorStep*,
                          const cuda::Place& place) { cuda::sgd_step(lists, s, place); });
}

inline void lamb_step_cuda(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs, const Tensors& exp_avg_sqs,
                           const Tensors& masters, const Tensors& steps, const Tensor& grad_scale, const Tensor& lr,
                           const Tensor& weight_decay, const std::optional<Tensor>& skip, const std::optional<Tensor>& seed,
                           double beta1, double beta2, double eps, bool trust, bool maximize, bool zero_grads) {
  cuda::StepSettings settings{};
  settings.beta1 = beta1;
  settings.beta2 = beta2;
  settings.eps = eps;
  settings.maximize = maximize;
  settings.zero_grads = zero_grads;
  CudaStep step("lamb_step_", {params, grads, masters, steps}, {grad_scale, lr, weight_decay, skip, seed}, settings);
  Operands m = step.list(exp_avgs, "exp_avgs"), v = step.list(exp_avg_sqs, "exp_avg_sqs");
  step.run({&m, &v}, [trust](const cuda::Lists& lists, const cuda::StepSettings& s, cuda::TensorStep* tensors,
                             const cuda::Place& place) { cuda::lamb_step(lists, s, trust, tensors, place); });
}

}  // namespace gradalign
