// Tensors of the LibTorch stable ABI on a device, as the kernels' operands.
#pragma once

#include "../tensor/tensors.h"
#include "device.h"
#include "kernels.h"

namespace gradalign::cuda {

// The device that the call runs on, and the memory that it needs until it returns.
class Call {
 public:
  // If the list is empty, the device is that of the other.
  Call(const char* op, const Tensors& first, const Row& other)
      : op_(op), device_(device_of(first.empty() ? other : first[0], op)), scope_(device_, op), numels_(numels_of(first)) {
    place_ = {op, device_, current_stream(device_), [this](int64_t bytes) { return bytes_on_device(bytes); }};
  }

  Call(const char* op, const Tensors& first, const Tensor& scalar) : Call(op, first, row_of(scalar)) {}
  Call(const char* op, const Tensors& first, const Tensors& other) : Call(op, first, other.empty() ? Row{} : other[0]) {}

  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  const Place& place() const { return place_; }
  const std::vector<int64_t>& numels() const { return numels_; }

  Operands list(const Tensors& tensors, const char* name) const {
    if (tensors.size() != numels_.size()) {
      refuse(op_, wrong_length(name, numels_.size(), tensors.size()));
    }
    Operands operands;
    operands.reserve(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) operands.push_back(operand(tensors[i], numels_[i], name));
    return operands;
  }

  // An empty list stands for one that is not used.
  Operands optional_list(const Tensors& tensors, const char* name) const {
    return tensors.empty() ? Operands{} : list(tensors, name);
  }

  Scalar scalar(const Row& row, const char* name) const {
    if (row.numel != 1 || !on_device(row)) {
      refuse(op_, "expected " + std::string(name) +
                      " to be a 0-dim tensor on the device of the lists; make it with "
                      "torch.full((), value, device=...)");
    }
    expect(row.data != nullptr, op_, "expected scalars that have memory; got one without (a fake tensor, or one that stands for zeros)");
    if (row.number == Number::other) refuse(op_, "expected " + std::string(name) + " to be a number or a bool; convert it");
    return {row.data, row.number};
  }

  Scalar scalar(const Tensor& tensor, const char* name) const { return scalar(row_of(tensor), name); }

  Scalar scalar(const std::optional<Tensor>& tensor, const char* name) const {
    return tensor ? scalar(*tensor, name) : Scalar{nullptr, Number::f32};
  }

  Tensor doubles(int64_t size) const {
    const int64_t stride = 1;
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(1, &size, &stride, aoti_torch_dtype_float64(), device_type(), device_, &handle));
    return Tensor(handle);
  }

 private:
  static int device_of(const Row& row, const char* op) {
    expect(row.memory == kernels_memory(), op, "expected tensors on a CUDA device; move them there first");
    return row.device;
  }

  bool on_device(const Row& row) const { return row.memory == kernels_memory() && row.device == device_; }

  Operand operand(const Row& row, int64_t numel, const char* name) const {
    if (!on_device(row) || !row.strided) {
      refuse(op_, "expected dense tensors of one device; " + std::string(name) + " has another; move it there first");
    }
    if (row.numel != numel) {
      refuse(op_, "expected a tensor of " + std::string(name) + " to have " + std::to_string(numel) + " elements; got " +
                      std::to_string(row.numel));
    }
    return operand_of(row, op_);
  }

  void* bytes_on_device(int64_t bytes) {
    scratch_.push_back(doubles((bytes + 7) / 8));
    return scratch_.back().data_ptr();
  }

  const char* op_;
  int device_;
  DeviceScope scope_;
  std::vector<int64_t> numels_;
  std::vector<Tensor> scratch_;  // handed back to torch at the end: it reuses memory in the order of the stream
  Place place_;
};

}  // namespace gradalign::cuda
