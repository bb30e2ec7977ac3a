// The chunk table: which tensors a launch works on, cut into chunks of equal size that blocks take in turn.
//
// It is passed in the kernel's arguments (32 KB from CUDA 12.1 and compute capability 7.0 on): no copy to the device, and a
// CUDA graph keeps its own.
#pragma once

#include <cstdint>

#include "../tensor/operand.h"
#include "../math/host_device.h"

namespace gradalign::cuda {

constexpr int kThreads = 256;
constexpr int kChunkElements = 8192;    // a multiple of what a block holds in registers at once, for every kernel
constexpr int kTableBytes = 28 * 1024;  // of 32,764; the rest is for the strides of one tensor and the op's settings

template <int kLists>
struct Table {
  static constexpr int kCapacity = (kTableBytes - 16) / (8 * kLists + 16);

  char* data[kLists][kCapacity];  // null where the op has no such list
  int64_t numel[kCapacity];
  int32_t tensor[kCapacity];  // its place in the op's lists
  int32_t first_chunk[kCapacity + 1];
  int32_t size;
  int32_t first_row;  // of the sums that this launch writes

  GRADALIGN_HD int num_chunks() const { return first_chunk[size]; }
};

struct Chunk {
  int entry;  // of the table
  int64_t begin;
  int length;
};

template <int kLists>
GRADALIGN_HD Chunk chunk_at(const Table<kLists>& table, int chunk) {
  int low = 0, high = table.size;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (table.first_chunk[middle] <= chunk ? low : high) = middle;
  }
  const int64_t begin = static_cast<int64_t>(chunk - table.first_chunk[low]) * kChunkElements;
  const int64_t rest = table.numel[low] - begin;
  return {low, begin, static_cast<int>(rest < kChunkElements ? rest : kChunkElements)};
}

// One tensor whose elements do not fill their stretch of memory alike in all lists; ndim is 0 where they do.
template <int kLists>
struct Strides {
  static constexpr int kDims = 64;

  int64_t sizes[kDims];
  int64_t strides[kLists][kDims];
  int32_t ndim;
};

// The dtypes of the lists of a launch; kAbsent where the op has no such list.
constexpr int8_t kAbsent = -1;

template <int kLists>
struct Dtypes {
  int8_t of[kLists];
};

}  // namespace gradalign::cuda
