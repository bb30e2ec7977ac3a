#include "sums.h"

#include "launch.cuh"

namespace gradalign::cuda {

namespace {

__global__ void __launch_bounds__(kThreads) sum_columns(const double* partials, int rows, int columns, double* result) {
  const int column = static_cast<int>(blockIdx.x);
  double total[1] = {0};
  if (column < columns) {
    for (int row = static_cast<int>(threadIdx.x); row < rows; row += kThreads) {
      total[0] += partials[static_cast<int64_t>(row) * columns + column];
    }
  }
  block_sum(total);
  if (threadIdx.x == 0) result[column] = total[0];
}

}  // namespace

void finish_sums(const Partials& partials, int num_results, const Place& place, double* result) {
  launch(place, &sum_columns, num_results, static_cast<const double*>(partials.data), partials.rows, partials.columns,
         result);
}

}  // namespace gradalign::cuda
