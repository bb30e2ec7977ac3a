// The native ops as PyTorch knows them, through the LibTorch stable ABI: one binary for every torch from 2.10 on.
//
// They live in their own namespace; the public ops of gradalign.ops, with fakes and checks, call them.
#include <torch/csrc/stable/library.h>

#include "cpu/step_ops.h"
#include "cpu/vector_ops.h"

STABLE_TORCH_LIBRARY(gradalign_native, m) {
  m.def("cpu_isa() -> str");
  m.def("norm_dot(Tensor[] xs, Tensor[]? ys=None) -> Tensor");
  m.def(
      "perturb_(Tensor(a!)[] params, Tensor(b!)[] backups, Tensor[] xs, Tensor scale, Tensor[]? ys=None, "
      "Tensor? scale_y=None, bool from_backups=False) -> Tensor");
  m.def("restore_(Tensor(a!)[] params, Tensor[] backups) -> ()");
  m.def("swap_(Tensor(a!)[] params, Tensor(b!)[] backups) -> ()");
  m.def("accumulate_(Tensor(a!)[] accs, Tensor[] grads, Tensor scale) -> Tensor");
  m.def("combine_(Tensor(a!)[] outs, Tensor[] xs, Tensor[] ys, Tensor a, Tensor b) -> Tensor");
  m.def(
      "adamw_step_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
      "Tensor(e!)[] max_exp_avg_sqs, Tensor(f!)[] masters, Tensor(g!)[] steps, Tensor grad_scale, Tensor lr, "
      "Tensor weight_decay, Tensor? skip, Tensor? seed, float beta1, float beta2, float eps, bool decoupled, bool maximize, "
      "bool zero_grads) -> ()");
  m.def(
      "sgd_step_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] momentum_buffers, Tensor(d!)[] masters, "
      "Tensor(e!)[] steps, Tensor grad_scale, Tensor lr, Tensor weight_decay, Tensor? skip, Tensor? seed, float momentum, "
      "float dampening, bool nesterov, bool maximize, bool zero_grads) -> ()");
  m.def(
      "lamb_step_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
      "Tensor(e!)[] masters, Tensor(f!)[] steps, Tensor grad_scale, Tensor lr, Tensor weight_decay, Tensor? skip, "
      "Tensor? seed, float beta1, float beta2, float eps, bool trust, bool maximize, bool zero_grads) -> ()");
}

namespace {

std::string cpu_isa() { return gradalign::kernels().isa; }

void register_cpu(torch::stable::detail::StableLibrary& m) {
  m.impl("norm_dot", TORCH_BOX(&gradalign::norm_dot_cpu));
  m.impl("perturb_", TORCH_BOX(&gradalign::perturb_cpu));
  m.impl("restore_", TORCH_BOX(&gradalign::restore_cpu));
  m.impl("swap_", TORCH_BOX(&gradalign::swap_cpu));
  m.impl("accumulate_", TORCH_BOX(&gradalign::accumulate_cpu));
  m.impl("combine_", TORCH_BOX(&gradalign::combine_cpu));
  m.impl("adamw_step_", TORCH_BOX(&gradalign::adamw_step_cpu));
  m.impl("sgd_step_", TORCH_BOX(&gradalign::sgd_step_cpu));
  m.impl("lamb_step_", TORCH_BOX(&gradalign::lamb_step_cpu));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gradalign_native, CPU, m) { register_cpu(m); }

// Empty lists have no device.
STABLE_TORCH_LIBRARY_IMPL(gradalign_native, Undefined, m) {
  register_cpu(m);
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}
