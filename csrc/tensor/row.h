// A tensor as a row of numbers: what gradalign._C reads from Python's tensors and the bindings take in the place of torch's lists.
//
// torch takes half a microsecond to hand over one tensor of a list: references are counted, boxed, copied and unboxed. To read
// one takes a fifth of that. No torch header here.
#pragma once

#include "operand.h"

namespace gradalign {

enum class Memory : int8_t { elsewhere, cpu, cuda };

struct Row {
  char* data;
  int64_t numel;
  int64_t ndim;
  const int64_t* sizes;  // these two belong to the tensor; of a list of torch's, they and ndim are there if it is not flat
  const int64_t* strides;
  int32_t device;  // its index; -1 on the CPU
  Memory memory;
  Number number;
  bool strided;
  bool flat;  // element i is the i-th in memory
};

static_assert(sizeof(Row) == 6 * sizeof(int64_t), "lists of rows are exchanged as vectors of int64");

// Whether element i of a strided tensor is the i-th in memory, as torch's is_contiguous.
inline bool is_flat(const Row& row) {
  int64_t expected = 1;
  for (int64_t d = row.ndim - 1; d >= 0 && row.numel > 0; --d) {
    if (row.sizes[d] == 1) continue;
    if (row.strides[d] != expected) return false;
    expected *= row.sizes[d];
  }
  return true;
}

}  // namespace gradalign
