// Cuts the lists of a call into launches: tensors with the same dtypes share one, a tensor with strides has its own.
#pragma once

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <vector>

#include "kernels.h"
#include "table.cuh"

namespace gradalign::cuda {

template <int kLists>
struct Batch {
  Dtypes<kLists> dtypes;
  Strides<kLists> view;  // ndim is 0 for tensors that are dense
  Table<kLists> table;
};

template <int kLists>
using Batches = std::vector<std::unique_ptr<Batch<kLists>>>;

template <int kLists>
std::array<int8_t, kLists> dtypes_at(const Lists& lists, size_t tensor) {
  std::array<int8_t, kLists> dtypes;
  for (int i = 0; i < kLists; ++i) {
    dtypes[i] = lists.of[i]->empty() ? kAbsent : static_cast<int8_t>((*lists.of[i])[tensor].dtype);
  }
  return dtypes;
}

template <int kLists>
bool all_flat(const Lists& lists, size_t tensor) {
  for (const Operands* list : lists.of) {
    if (!list->empty() && !(*list)[tensor].flat) return false;
  }
  return true;
}

// Sizes and strides of the lists at one tensor; a list that is dense gets the strides of row-major order.
template <int kLists>
Strides<kLists> view_at(const Lists& lists, size_t tensor) {
  Strides<kLists> view{};
  const Operand* shaped = nullptr;
  for (const Operands* list : lists.of) {
    if (!list->empty() && !(*list)[tensor].flat) shaped = &(*list)[tensor];
  }
  view.ndim = static_cast<int32_t>(shaped->ndim);
  std::copy(shaped->sizes, shaped->sizes + view.ndim, view.sizes);
  for (int i = 0; i < kLists; ++i) {
    if (lists.of[i]->empty()) continue;
    const Operand& operand = (*lists.of[i])[tensor];
    int64_t dense = 1;
    for (int d = view.ndim - 1; d >= 0; --d) {
      view.strides[i][d] = operand.flat ? dense : operand.strides[d];
      dense *= view.sizes[d];
    }
  }
  return view;
}

template <int kLists>
void append(Table<kLists>& table, const Lists& lists, size_t tensor) {
  const int entry = table.size++;
  for (int i = 0; i < kLists; ++i) table.data[i][entry] = lists.of[i]->empty() ? nullptr : (*lists.of[i])[tensor].data;
  table.numel[entry] = lists.numels[tensor];
  table.tensor[entry] = static_cast<int32_t>(tensor);
  const int64_t chunks = (lists.numels[tensor] + kChunkElements - 1) / kChunkElements;
  table.first_chunk[entry + 1] = table.first_chunk[entry] + static_cast<int32_t>(chunks);
}

template <int kLists>
Batch<kLists>& begin_batch(Batches<kLists>& batches, const std::array<int8_t, kLists>& dtypes) {
  batches.push_back(std::make_unique<Batch<kLists>>());
  Batch<kLists>& batch = *batches.back();
  std::copy(dtypes.begin(), dtypes.end(), batch.dtypes.of);
  return batch;
}

template <int kLists>
Batches<kLists> batches_of(const Lists& lists) {
  Batches<kLists> batches;
  std::map<std::array<int8_t, kLists>, Batch<kLists>*> open;
  for (size_t tensor = 0; tensor < lists.numels.size(); ++tensor) {
    if (lists.numels[tensor] == 0) continue;
    const auto dtypes = dtypes_at<kLists>(lists, tensor);
    if (!all_flat<kLists>(lists, tensor)) {
      Batch<kLists>& alone = begin_batch<kLists>(batches, dtypes);
      alone.view = view_at<kLists>(lists, tensor);
      append(alone.table, lists, tensor);
      continue;
    }
    Batch<kLists>*& batch = open[dtypes];
    if (batch == nullptr || batch->table.size == Table<kLists>::kCapacity) batch = &begin_batch<kLists>(batches, dtypes);
    append(batch->table, lists, tensor);
  }
  return batches;
}

}  // namespace gradalign::cuda
