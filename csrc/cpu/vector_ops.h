// The ops that see a list of tensors as one vector: norm_dot, perturb_, restore_, swap_, accumulate_, combine_.
//
// Everything that can be refused is refused before anything is written.
#pragma once

#include "launch.h"
#include "tensors.h"

namespace gradalign {

inline Tensor sums_tensor(const double* sums, int64_t num_sums) {
  const int64_t stride = 1;
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      1, &num_sums, &stride, aoti_torch_dtype_float64(), aoti_torch_device_type_cpu(), 0, &handle));
  Tensor result(handle);
  std::copy(sums, sums + num_sums, static_cast<double*>(result.data_ptr()));
  return result;
}

inline const Operand* data_or_null(const Operands& operands, bool there) { return there ? operands.data() : nullptr; }

inline int64_t total_bytes(const Operands& operands, const std::vector<int64_t>& numels) {
  int64_t bytes = 0;
  for (size_t i = 0; i < operands.size(); ++i) bytes += numels[i] * itemsize(operands[i].dtype);
  return bytes;
}

inline Plan plan_of(const std::vector<int64_t>& numels) {
  return plan_pages(numels.data(), static_cast<int64_t>(numels.size()));
}

inline Tensor norm_dot_cpu(const Tensors& xs, const Tensors& ys) {
  const auto numels = numels_of(xs);
  Operands x = operands_of(xs, numels, "norm_dot", "xs");
  Operands y = ys.empty() ? Operands{} : operands_of(ys, numels, "norm_dot", "ys");
  flatten_alike({&x, &y});
  double sums[3];
  launch(kernels().norm_dot, {x.data(), data_or_null(y, !ys.empty())}, plan_of(numels), 3, sums);
  return sums_tensor(sums, 3);
}

inline Tensor perturb_cpu(const Tensors& params, const Tensors& backups, const Tensors& xs, const Tensor& scale,
                          const Tensors& ys, const std::optional<Tensor>& scale_y, bool from_backups) {
  const char* op = "perturb_";
  const auto numels = numels_of(params);
  Operands p = operands_of(params, numels, op, "params");
  Operands backup = operands_of(backups, numels, op, "backups");
  Operands x = operands_of(xs, numels, op, "xs");
  const bool two = !ys.empty() && scale_y;
  Operands y = two ? operands_of(ys, numels, op, "ys") : Operands{};
  flatten_alike({&p, &backup, &x, &y});
  expect_own_elements({&p}, op);
  if (!from_backups) expect_own_elements({&backup}, op);
  PerturbArgs args{};
  args.params = p.data();
  args.backups = backup.data();
  args.xs = x.data();
  args.ys = data_or_null(y, two);
  args.scale = scalar_of(scale, op, "scale");
  args.scale_y = two ? scalar_of(*scale_y, op, "scale_y") : 0;
  args.from_backups = from_backups;
  args.stream = exceeds_cache(3 * total_bytes(p, numels));
  double sums[3];
  launch(kernels().perturb, args, plan_of(numels), 3, sums);
  return sums_tensor(sums, 3);
}

inline void restore_cpu(const Tensors& params, const Tensors& backups) {
  const auto numels = numels_of(params);
  Operands p = operands_of(params, numels, "restore_", "params");
  Operands backup = operands_of(backups, numels, "restore_", "backups");
  flatten_alike({&p, &backup});
  expect_own_elements({&p}, "restore_");
  launch(kernels().restore, {p.data(), backup.data(), exceeds_cache(2 * total_bytes(p, numels))}, plan_of(numels));
}

inline void swap_cpu(const Tensors& params, const Tensors& backups) {
  const auto numels = numels_of(params);
  Operands p = operands_of(params, numels, "swap_", "params");
  Operands backup = operands_of(backups, numels, "swap_", "backups");
  flatten_alike({&p, &backup});
  expect_own_elements({&p, &backup}, "swap_");
  launch(kernels().swap, {p.data(), backup.data()}, plan_of(numels));
}

inline Tensor accumulate_cpu(const Tensors& accs, const Tensors& grads, const Tensor& scale) {
  const auto numels = numels_of(accs);
  Operands acc = operands_of(accs, numels, "accumulate_", "accs");
  Operands grad = operands_of(grads, numels, "accumulate_", "grads");
  flatten_alike({&acc, &grad});
  expect_own_elements({&acc}, "accumulate_");
  double sums[2];
  launch(kernels().accumulate, {acc.data(), grad.data(), scalar_of(scale, "accumulate_", "scale")}, plan_of(numels), 2, sums);
  return sums_tensor(sums, 2);
}

inline Tensor combine_cpu(const Tensors& outs, const Tensors& xs, const Tensors& ys, const Tensor& a, const Tensor& b) {
  const char* op = "combine_";
  const auto numels = numels_of(outs);
  Operands out = operands_of(outs, numels, op, "outs");
  Operands x = operands_of(xs, numels, op, "xs");
  Operands y = operands_of(ys, numels, op, "ys");
  flatten_alike({&out, &x, &y});
  expect_own_elements({&out}, op);
  const bool stream = exceeds_cache(3 * total_bytes(out, numels));
  const CombineArgs args{out.data(), x.data(), y.data(), scalar_of(a, op, "a"), scalar_of(b, op, "b"), stream};
  double sums[1];
  launch(kernels().combine, args, plan_of(numels), 1, sums);
  return sums_tensor(sums, 1);
}

}  // namespace gradalign
