// Tensors and scalars in the memory of the CPU.
#pragma once

#include "../tensor/tensors.h"

namespace gradalign {

inline Operands operands_of(const Tensors& tensors, const std::vector<int64_t>& numels, const char* op, const char* name) {
  if (tensors.size() != numels.size()) {
    refuse(op, wrong_length(name, numels.size(), tensors.size()));
  }
  Operands operands;
  operands.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].numel() != numels[i]) {
      refuse(op, "expected " + std::string(name) + "[" + std::to_string(i) + "] to have " + std::to_string(numels[i]) +
                     " elements; got " + std::to_string(tensors[i].numel()));
    }
    expect(tensors[i].is_cpu() && is_strided(tensors[i]), op,
           "expected dense tensors in the memory of the CPU; move them there first");
    operands.push_back(operand_of(tensors[i], op));
  }
  return operands;
}

inline std::vector<int64_t> numels_of(const Tensors& tensors) {
  std::vector<int64_t> numels;
  numels.reserve(tensors.size());
  for (const Tensor& tensor : tensors) numels.push_back(tensor.numel());
  return numels;
}

// Calls visit(a pointer of the tensor's own type) for the types that a scalar can have; false for any other.
template <class Visit>
bool visit_scalar(const Tensor& tensor, Visit visit) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  void* data = tensor.data_ptr();
  if (dtype == aoti_torch_dtype_float32()) return visit(static_cast<float*>(data)), true;
  if (dtype == aoti_torch_dtype_float64()) return visit(static_cast<double*>(data)), true;
  if (dtype == aoti_torch_dtype_int64()) return visit(static_cast<int64_t*>(data)), true;
  if (dtype == aoti_torch_dtype_int32()) return visit(static_cast<int32_t*>(data)), true;
  if (dtype == aoti_torch_dtype_bool()) return visit(static_cast<uint8_t*>(data)), true;
  return false;
}

inline double scalar_of(const Tensor& tensor, const char* op, const char* name) {
  if (tensor.numel() != 1 || !tensor.is_cpu()) refuse(op, std::string("expected ") + name + " to be a 0-dim tensor on the CPU");
  double value = 0;
  if (visit_scalar(tensor, [&](const auto* data) { value = static_cast<double>(*data); })) return value;
  const void* data = tensor.const_data_ptr();
  return dtype_of(tensor, op) == Dtype::bf16 ? widen(*static_cast<const bf16*>(data)) : widen(*static_cast<const fp16*>(data));
}

}  // namespace gradalign
