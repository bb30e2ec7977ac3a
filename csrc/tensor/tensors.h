// Tensors of the LibTorch stable ABI as the kernels' operands, and what bad input is told.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../math/storage.h"
#include "operand.h"

namespace gradalign {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Operands = std::vector<Operand>;

[[noreturn]] inline void refuse(const char* op, const std::string& message) {
  throw std::invalid_argument(std::string(op) + ": " + message);
}

// Only for messages that cost nothing to make; others are made once it is certain that they are needed.
inline void expect(bool holds, const char* op, const char* message) {
  if (!holds) refuse(op, message);
}

inline Dtype dtype_of(const Tensor& tensor, const char* op) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  static const int32_t f32 = aoti_torch_dtype_float32(), f64 = aoti_torch_dtype_float64();
  static const int32_t bf16 = aoti_torch_dtype_bfloat16(), f16 = aoti_torch_dtype_float16();
  if (dtype == f32) return Dtype::f32;
  if (dtype == f64) return Dtype::f64;
  if (dtype == bf16) return Dtype::bf16;
  expect(dtype == f16, op, "expected tensors of float32, float64, bfloat16 or float16; convert them first");
  return Dtype::f16;
}

inline Operand operand_of(const Tensor& tensor, const char* op) {
  int32_t layout;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
  static const int32_t strided = aoti_torch_layout_strided();
  expect(tensor.is_cpu() && layout == strided, op, "expected dense tensors in the memory of the CPU; move them there first");
  Operand operand{};
  operand.dtype = dtype_of(tensor, op);
  operand.data = static_cast<char*>(tensor.data_ptr());
  operand.flat = tensor.is_contiguous();
  if (!operand.flat) {
    operand.ndim = tensor.dim();
    expect(operand.ndim <= 64, op, "expected at most 64 dimensions");
    operand.sizes = tensor.sizes().data();
    operand.strides = tensor.strides().data();
  }
  return operand;
}

inline Operands operands_of(const Tensors& tensors, const std::vector<int64_t>& numels, const char* op, const char* name) {
  if (tensors.size() != numels.size()) {
    refuse(op, "expected " + std::string(name) + " to have " + std::to_string(numels.size()) + " tensors; got " +
                   std::to_string(tensors.size()));
  }
  Operands operands;
  operands.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].numel() != numels[i]) {
      refuse(op, "expected " + std::string(name) + "[" + std::to_string(i) + "] to have " + std::to_string(numels[i]) +
                     " elements; got " + std::to_string(tensors[i].numel()));
    }
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

// Whether the elements fill their stretch of memory, each at its own place.
inline bool is_dense(const Operand& operand) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < operand.ndim; ++d) {
    if (operand.sizes[d] != 1) dims.emplace_back(operand.strides[d], operand.sizes[d]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

inline bool same_strides(const Operand& a, const Operand& b) {
  if (a.flat || b.flat || a.ndim != b.ndim) return false;
  for (int64_t d = 0; d < a.ndim; ++d) {
    if (a.sizes[d] != b.sizes[d] || (a.strides[d] != b.strides[d] && a.sizes[d] != 1)) return false;
  }
  return true;
}

// Tensors that are dense in one and the same order of dimensions are worked through in the order of memory.
inline void flatten_alike(const std::vector<Operands*>& lists) {
  Operands& first = *lists.front();
  for (size_t i = 0; i < first.size(); ++i) {
    if (first[i].flat || !is_dense(first[i])) continue;
    bool alike = true;
    for (Operands* list : lists) alike = alike && (list->empty() || same_strides(first[i], (*list)[i]));
    if (!alike) continue;
    for (Operands* list : lists) {
      if (!list->empty()) (*list)[i].flat = true;
    }
  }
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
