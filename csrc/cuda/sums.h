// The second stage of sums.
#pragma once

#include "kernels.h"

namespace gradalign::cuda {

// What the first stage left in device memory: rows of sums, in the order of the work.
struct Partials {
  double* data;
  int rows;
  int columns;
};

// result[i] <- the sum of column i, 0 for those beyond; always in the same order.
void finish_sums(const Partials& partials, int num_results, const Place& place, double* result);

}  // namespace gradalign::cuda
