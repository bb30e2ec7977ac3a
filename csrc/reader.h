// Reads lists of Python's tensors into rows (see tensor/row.h), through the C interface that DLPack lays down for a type's tensors.
//
// Nothing is kept from call to call: a tensor that moved, was resized or is another one is read as it is now. What a kernel must
// not read as it is in memory, or cannot, is left to torch's lists, which resolve or refuse it.
#pragma once

#include <Python.h>

#include "tensor/row.h"

namespace gradalign {

// As DLPack 1 has them: https://dmlc.github.io/dlpack/latest/c_api.html.
namespace dlpack {

struct Device {
  int32_t type;
  int32_t index;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Exchange {
  uint32_t major;
  uint32_t minor;
  void* older;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);
  void* current_stream;
};

constexpr int32_t kCpu = 1, kCuda = 2, kRocm = 10;
constexpr uint8_t kInt = 0, kFloat = 2, kBfloat = 4, kBool = 6;

inline Number number_of(DataType dtype) {
  switch (dtype.lanes == 1 ? dtype.code << 8 | dtype.bits : -1) {
    case kFloat << 8 | 32: return Number::f32;
    case kFloat << 8 | 64: return Number::f64;
    case kFloat << 8 | 16: return Number::f16;
    case kBfloat << 8 | 16: return Number::bf16;
    case kInt << 8 | 64: return Number::i64;
    case kInt << 8 | 32: return Number::i32;
    case kBool << 8 | 8: return Number::u8;
    default: return Number::other;
  }
}

// GPUs of AMD are cuda in torch.
inline Memory memory_of(Device device) {
  if (device.type == kCpu) return Memory::cpu;
  return device.type == kCuda || device.type == kRocm ? Memory::cuda : Memory::elsewhere;
}

}  // namespace dlpack

class Reader {
 public:
  // Of a type of tensors: its interface, the types that are read (itself and one derived from it), and its method `is_neg`.
  Reader(const dlpack::Exchange* exchange, PyObject* type, PyObject* derived, PyCFunction is_neg)
      : exchange_(exchange), type_(type), derived_(derived), is_neg_(is_neg) {}

  // Fills `row`; false where the tensor is to be left to torch.
  bool read(PyObject* object, Row& row) const {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    if (type != type_ && type != derived_) return false;  // what other types hold is theirs to say
    dlpack::Tensor found;
    if (exchange_->tensor_from_object(object, &found) != 0) {
      PyErr_Clear();
      return false;
    }
    row.memory = dlpack::memory_of(found.device);
    row.device = row.memory == Memory::cpu ? -1 : found.device.index;
    row.number = dlpack::number_of(found.dtype);
    row.strided = true;
    row.data = static_cast<char*>(found.data) + found.byte_offset;
    row.ndim = found.ndim;
    row.sizes = found.shape;
    row.strides = found.strides;
    row.numel = 1;
    for (int32_t d = 0; d < found.ndim; ++d) row.numel *= found.shape[d];
    row.flat = is_flat(row);
    if (row.memory == Memory::elsewhere || row.number == Number::other || (found.data == nullptr && row.numel > 0)) return false;
    return row.numel == 0 || !is_negative(object);
  }

 private:
  // A view with the negative bit: its memory holds the values with the other sign.
  bool is_negative(PyObject* object) const {
    PyObject* answer = is_neg_(object, nullptr);
    if (answer == nullptr) PyErr_Clear();
    Py_XDECREF(answer);
    return answer != Py_False;
  }

  const dlpack::Exchange* exchange_;
  PyObject* type_;
  PyObject* derived_;
  PyCFunction is_neg_;
};

}  // namespace gradalign
