// Runs an op over lists of tensors: one launch for each combination of dtypes, then the second stage of its sums.
#pragma once

#include <algorithm>

#include "batches.h"
#include "grid.h"
#include "sums.h"
#include "sweep.cuh"

namespace gradalign::cuda {

template <class... Arguments, class... Values>
void launch(const Place& place, void (*kernel)(Arguments...), int blocks, const Values&... values) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = place.stream;
  check(cudaLaunchKernelEx(&config, kernel, values...), place.op);
}

template <class Op>
int rows_of(const Batch<Op::kLists>& batch, int max_blocks) {
  const int chunks = batch.table.num_chunks();
  return Op::kSums == 0 ? 0 : Op::kRowPerChunk ? chunks : std::min(chunks, max_blocks);
}

template <class Op, class Kernel, class... Values>
void launch_batch(const Place& place, Kernel kernel, Batch<Op::kLists>& batch, int& rows, const Values&... values) {
  const int blocks = std::min(batch.table.num_chunks(), max_blocks(reinterpret_cast<const void*>(kernel), place));
  batch.table.first_row = rows;
  rows += rows_of<Op>(batch, blocks);
  launch(place, kernel, blocks, batch.table, values...);
}

// Launches with types that the compiler knows if they are the batch's; says whether it did.
template <class Op, class... S>
bool launch_known(Storages<S...>, const Place& place, Batch<Op::kLists>& batch, const typename Op::Settings& settings,
                  double* partials, int& rows) {
  static_assert(sizeof...(S) == Op::kLists, "one type for each list");
  const int8_t wanted[] = {kDtypeOf<S>...};
  if (batch.view.ndim > 0 || !std::equal(wanted, wanted + Op::kLists, batch.dtypes.of)) return false;
  launch_batch<Op>(place, &sweep<Op, S...>, batch, rows, settings, partials);
  return true;
}

template <class Op>
void launch_any(const Place& place, Batch<Op::kLists>& batch, const typename Op::Settings& settings, double* partials,
                int& rows) {
  launch_batch<Op>(place, &sweep_any<Op>, batch, rows, batch.view, batch.dtypes, settings, partials);
}

// The number of rows is not more than this.
template <class Op>
int64_t most_rows(const Batches<Op::kLists>& batches, const Place& place) {
  int64_t rows = 0;
  for (const auto& batch : batches) rows += rows_of<Op>(*batch, most_blocks(place));
  return rows;
}

// Op<float> or Op<double>, whichever is as wide as the widest list; `Known` are Storages with a kernel of their own.
template <template <class> class Op, class... Known>
Partials run(const Lists& lists, const typename Op<float>::Settings& settings, const Place& place) {
  constexpr int kLists = Op<float>::kLists;
  auto batches = batches_of<kLists>(lists);
  Partials partials{nullptr, 0, Op<float>::kSums};
  const int64_t most = most_rows<Op<float>>(batches, place);
  const int64_t bytes = most * partials.columns * static_cast<int64_t>(sizeof(double));
  if (bytes > 0) partials.data = static_cast<double*>(place.allocate(bytes));
  for (const auto& batch : batches) {
    if ((launch_known<Op<float>>(Known{}, place, *batch, settings, partials.data, partials.rows) || ...)) continue;
    const int8_t* dtypes = batch->dtypes.of;
    const bool wide = std::find(dtypes, dtypes + kLists, static_cast<int8_t>(Dtype::f64)) != dtypes + kLists;
    if (wide) {
      launch_any<Op<double>>(place, *batch, settings, partials.data, partials.rows);
    } else {
      launch_any<Op<float>>(place, *batch, settings, partials.data, partials.rows);
    }
  }
  return partials;
}

}  // namespace gradalign::cuda
