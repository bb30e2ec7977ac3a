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
    if (tensors[i].numel != numels[i]) {
      refuse(op, "expected " + std::string(name) + "[" + std::to_string(i) + "] to have " + std::to_string(numels[i]) +
                     " elements; got " + std::to_string(tensors[i].numel));
    }
    expect(tensors[i].memory == Memory::cpu && tensors[i].strided, op,
           "expected dense tensors in the memory of the CPU; move them there first");
    operands.push_back(operand_of(tensors[i], op));
  }
  return operands;
}

// Calls visit(a pointer of the scalar's own type) for the types that a count can have; false for any other.
template <class Visit>
bool visit_scalar(const Row& row, Visit visit) {
  switch (row.number) {
    case Number::f32: return visit(reinterpret_cast<float*>(row.data)), true;
    case Number::f64: return visit(reinterpret_cast<double*>(row.data)), true;
    case Number::i64: return visit(reinterpret_cast<int64_t*>(row.data)), true;
    case Number::i32: return visit(reinterpret_cast<int32_t*>(row.data)), true;
    case Number::u8: return visit(reinterpret_cast<uint8_t*>(row.data)), true;
    default: return false;
  }
}

inline double scalar_of(const Row& row, const char* op, const char* name) {
  if (row.numel != 1 || row.memory != Memory::cpu) refuse(op, std::string("expected ") + name + " to be a 0-dim tensor on the CPU");
  double value = 0;
  if (visit_scalar(row, [&](const auto* data) { value = static_cast<double>(*data); })) return value;
  const Dtype dtype = operand_of(row, op).dtype;
  return dtype == Dtype::bf16 ? widen(*reinterpret_cast<const bf16*>(row.data)) : widen(*reinterpret_cast<const fp16*>(row.data));
}

inline double scalar_of(const Tensor& tensor, const char* op, const char* name) { return scalar_of(row_of(tensor), op, name); }

}  // namespace gradalign
