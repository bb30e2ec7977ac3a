// Whether an op can take some lists: they agree in length and shapes, and nothing that is written shares memory.
//
// For the good case only. What it does not accept, gradalign/backends/op_validation.py looks at, and has the words for it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "tensor/row.h"

namespace gradalign {

struct RowList {
  const Row* first;
  const Row* last;

  const Row* begin() const { return first; }
  const Row* end() const { return last; }
  int64_t size() const { return last - first; }
};

inline bool same_shape(const Row& a, const Row& b) {
  return a.ndim == b.ndim && std::equal(a.sizes, a.sizes + a.ndim, b.sizes);
}

// Whether the elements are at the same places, in the same order.
inline bool same_memory(const Row& a, const Row& b) {
  return a.data == b.data && a.number == b.number && same_shape(a, b) && std::equal(a.strides, a.strides + a.ndim, b.strides);
}

// Whether no element is in two places, as gradalign.engine.addresses.repeats says it.
inline bool owns_elements(const Row& row) {
  if (row.flat || row.numel <= 1) return true;
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int64_t d = 0; d < row.ndim; ++d) {
    if (row.sizes[d] > 1) dims.emplace_back(row.strides[d], row.sizes[d]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;
  for (const auto& [stride, size] : dims) {
    if (stride <= reach) return false;
    reach += (size - 1) * stride;
  }
  return true;
}

struct Stretch {
  const char* begin;
  const char* end;
  const Row* row;
  int64_t place;  // in its list
  bool written;
};

inline Stretch stretch_of(const Row& row, int64_t place, bool written) {
  int64_t last = row.numel - 1;
  if (!row.flat) {
    last = 0;
    for (int64_t d = 0; d < row.ndim; ++d) last += (row.sizes[d] - 1) * row.strides[d];
  }
  return {row.data, row.data + (last + 1) * itemsize(static_cast<Dtype>(row.number)), &row, place, written};
}

// Nothing that is written shares memory with anything, but for a tensor that is read in the same place of another list.
inline bool disjoint(std::vector<Stretch>& stretches) {
  // Of those with one begin what is written comes first: each of the others is then compared with it.
  std::sort(stretches.begin(), stretches.end(), [](const Stretch& a, const Stretch& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.written && !b.written;
  });
  const auto apart = [](const Stretch& here, const Stretch* other) {
    if (other == nullptr || here.begin >= other->end) return true;
    return here.place == other->place && !(here.written && other->written) && same_memory(*here.row, *other->row);
  };
  const Stretch *reach = nullptr, *written = nullptr;  // the ones so far that reach furthest
  for (const Stretch& here : stretches) {
    if (!apart(here, written) || (here.written && !apart(here, reach))) return false;
    if (reach == nullptr || here.end > reach->end) reach = &here;
    if (here.written && (written == nullptr || here.end > written->end)) written = &here;
  }
  return true;
}

inline bool agree(const std::vector<RowList>& lists, size_t num_written) {
  std::vector<Stretch> stretches;
  for (size_t number = 0; number < lists.size(); ++number) {
    const RowList &list = lists[number], &first = lists.front();
    const bool written = number < num_written;
    if (list.size() != first.size()) return false;
    for (int64_t i = 0; i < list.size(); ++i) {
      const Row& row = list.first[i];
      if (row.number > Number::f16 || !same_shape(row, first.first[i]) || (written && !owns_elements(row))) return false;
      if (row.numel > 0) stretches.push_back(stretch_of(row, i, written));
    }
  }
  return disjoint(stretches);
}

}  // namespace gradalign
