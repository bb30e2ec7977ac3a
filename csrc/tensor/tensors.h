// Tensors of the LibTorch stable ABI as the kernels' operands, and how bad input is refused: for the CPU and CUDA.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../math/storage.h"
#include "row.h"

namespace gradalign {

using torch::stable::Tensor;
using Operands = std::vector<Operand>;

[[noreturn]] inline void refuse(const char* op, const std::string& message) {
  throw std::invalid_argument(std::string(op) + ": " + message);
}

// For constant messages only: one that has to be put together is made after the check, with `refuse`.
inline void expect(bool holds, const char* op, const char* message) {
  if (!holds) refuse(op, message);
}

inline Number number_of(const Tensor& tensor) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  static const std::pair<int32_t, Number> numbers[] = {
      {aoti_torch_dtype_float32(), Number::f32},   {aoti_torch_dtype_float64(), Number::f64},
      {aoti_torch_dtype_bfloat16(), Number::bf16}, {aoti_torch_dtype_float16(), Number::f16},
      {aoti_torch_dtype_int64(), Number::i64},     {aoti_torch_dtype_int32(), Number::i32},
      {aoti_torch_dtype_bool(), Number::u8}};
  for (const auto& [found, number] : numbers) {
    if (dtype == found) return number;
  }
  return Number::other;
}

inline Memory memory_of(const Tensor& tensor) {
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  static const int32_t cpu = aoti_torch_device_type_cpu(), cuda = aoti_torch_device_type_cuda();
  return type == cpu ? Memory::cpu : type == cuda ? Memory::cuda : Memory::elsewhere;
}

inline bool is_strided(const Tensor& tensor) {
  int32_t layout;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
  static const int32_t strided = aoti_torch_layout_strided();
  return layout == strided;
}

inline Row row_of(const Tensor& tensor) {
  Row row{};
  row.numel = tensor.numel();
  row.memory = memory_of(tensor);
  row.device = row.memory == Memory::cpu ? -1 : tensor.get_device_index();
  row.number = number_of(tensor);
  row.strided = is_strided(tensor);
  if (!row.strided) return row;
  row.data = static_cast<char*>(tensor.data_ptr());
  row.flat = tensor.is_contiguous();
  if (row.flat) return row;  // short lists come this way: what nobody asks for is not read
  row.ndim = tensor.dim();
  row.sizes = tensor.sizes().data();
  row.strides = tensor.strides().data();
  return row;
}

// A list of tensors, which the caller keeps: torch's, or rows that were read before.
class Tensors {
 public:
  explicit Tensors(const std::vector<Tensor>& tensors) : size_(tensors.size()) {
    own_.reserve(size_);
    for (const Tensor& tensor : tensors) own_.push_back(row_of(tensor));
    rows_ = own_.data();
  }

  Tensors(const Row* rows, size_t size) : rows_(rows), size_(size) {}

  Tensors(Tensors&&) = default;  // its rows stay where they are
  Tensors& operator=(Tensors&&) = delete;

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const Row& operator[](size_t i) const { return rows_[i]; }
  const Row* begin() const { return rows_; }
  const Row* end() const { return rows_ + size_; }

 private:
  std::vector<Row> own_;
  const Row* rows_;
  size_t size_;
};

inline std::vector<int64_t> numels_of(const Tensors& tensors) {
  std::vector<int64_t> numels;
  numels.reserve(tensors.size());
  for (const Row& row : tensors) numels.push_back(row.numel);
  return numels;
}

// Of a tensor whose layout and device the caller has checked.
inline Operand operand_of(const Row& row, const char* op) {
  expect(row.number <= Number::f16, op,
         "expected tensors of float32, float64, bfloat16 or float16; convert them first");
  expect(row.data != nullptr || row.numel == 0, op,
         "expected tensors that have memory; got one without (a fake tensor, or one that stands for zeros); clone it first");
  expect(row.flat || row.ndim <= 64, op, "expected at most 64 dimensions");
  return {row.data, static_cast<Dtype>(row.number), row.flat, row.ndim, row.sizes, row.strides};
}

// Of the lists that are written: an expanded tensor would have one element written several times.
inline void expect_own_elements(const std::vector<const Operands*>& lists, const char* op) {
  for (const Operands* list : lists) {
    for (const Operand& operand : *list) {
      for (int64_t d = 0; !operand.flat && d < operand.ndim; ++d) {
        expect(operand.strides[d] != 0 || operand.sizes[d] == 1, op,
               "expected tensors that own each of their elements, to write to them; got an expanded one; clone it first");
      }
    }
  }
}

inline std::string wrong_length(const char* name, size_t expected, size_t got) {
  return "expected " + std::string(name) + " to have " + std::to_string(expected) + " tensors; got " + std::to_string(got);
}

inline std::string wrong_steps(size_t expected, size_t got) {
  return "expected one of steps for each of params (" + std::to_string(expected) + "); got " + std::to_string(got);
}

// Whether the elements fill one contiguous range of memory, in any order of the dimensions.
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

// Marks as flat the tensors that are dense in the same order of dimensions in every list: they are processed in memory order.
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

}  // namespace gradalign
