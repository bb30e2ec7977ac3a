// Pages over threads; sums in the order of the pages. No torch header: who runs the threads is the caller's business.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace gradalign {

// Neumaier's compensated sum of one column of the partial sums.
inline double compensated_sum(const std::vector<double>& partials, int64_t column, int64_t num_columns) {
  double sum = 0, lost = 0;
  for (size_t i = static_cast<size_t>(column); i < partials.size(); i += static_cast<size_t>(num_columns)) {
    const double next = sum + partials[i];
    lost += std::fabs(sum) >= std::fabs(partials[i]) ? (sum - next) + partials[i] : (partials[i] - next) + sum;
    sum = next;
  }
  return std::isfinite(lost) ? sum + lost : sum;
}

// Calls kernel for every page with sums_of(page); parallel(num_threads, work) runs work() on so many threads.
template <class Args, class SumsOf, class Parallel>
void run_pages(Kernel<Args> kernel, const Args& args, const Plan& plan, SumsOf sums_of, Parallel parallel) {
  const int64_t num_pages = plan.num_pages();
  std::atomic<int64_t> next{0};
  // Threads take the next page when they are free: the pages, and so the sums, are the same whoever takes them.
  parallel(num_pages, [&] {
    for (int64_t page = next++; page < num_pages; page = next++) {
      const Piece* pieces = plan.pieces.data();
      kernel(args, pieces + plan.pages[page], pieces + plan.pages[page + 1], sums_of(page));
    }
  });
}

// Sums over all tensors.
template <class Args, class Parallel>
void sum_pages(Kernel<Args> kernel, const Args& args, const Plan& plan, int64_t num_sums, double* sums, Parallel parallel) {
  std::vector<double> partials(static_cast<size_t>(plan.num_pages() * num_sums));
  run_pages<Args>(kernel, args, plan, [&](int64_t page) { return partials.data() + page * num_sums; }, parallel);
  for (int64_t i = 0; i < num_sums; ++i) sums[i] = compensated_sum(partials, i, num_sums);
}

// A row of sums for every piece.
template <class Args, class Parallel>
std::vector<double> sums_by_piece(Kernel<Args> kernel, const Args& args, const Plan& plan, int64_t num_sums,
                                  Parallel parallel) {
  std::vector<double> partials(plan.pieces.size() * static_cast<size_t>(num_sums));
  run_pages<Args>(kernel, args, plan, [&](int64_t page) { return partials.data() + plan.pages[page] * num_sums; }, parallel);
  return partials;
}

}  // namespace gradalign
