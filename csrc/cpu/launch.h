// Pages over torch's own threads; sums in the order of the pages.
#pragma once

#include <torch/csrc/stable/ops.h>

#if defined(__linux__)
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <vector>

#include "choose.h"

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

template <class Args>
void run_pages(Kernel<Args> kernel, const Args& args, const Plan& plan, const std::function<double*(int64_t)>& sums_of) {
  const int64_t num_pages = plan.num_pages();
  std::atomic<int64_t> next{0};
  // Threads take the next page when they are free: the pages, and so the sums, are the same whoever takes them.
  const auto work = [&](int64_t, int64_t) {
    for (int64_t page = next++; page < num_pages; page = next++) {
      const Piece* pieces = plan.pieces.data();
      kernel(args, pieces + plan.pages[page], pieces + plan.pages[page + 1], sums_of(page));
    }
  };
  const int64_t num_threads = std::min<int64_t>(torch::stable::get_num_threads(), num_pages);
  if (num_threads < 2) {
    work(0, 1);
  } else {
    torch::stable::parallel_for(0, num_threads, 1, work);
  }
}

// Sums over all tensors.
template <class Args>
void launch(Kernel<Args> kernel, const Args& args, const Plan& plan, int64_t num_sums = 0, double* sums = nullptr) {
  std::vector<double> partials(static_cast<size_t>(plan.num_pages() * num_sums));
  run_pages<Args>(kernel, args, plan, [&](int64_t page) { return partials.data() + page * num_sums; });
  for (int64_t i = 0; i < num_sums; ++i) sums[i] = compensated_sum(partials, i, num_sums);
}

// A row of sums for every piece.
template <class Args>
std::vector<double> launch_by_piece(Kernel<Args> kernel, const Args& args, const Plan& plan, int64_t num_sums) {
  std::vector<double> partials(plan.pieces.size() * static_cast<size_t>(num_sums));
  run_pages<Args>(kernel, args, plan, [&](int64_t page) { return partials.data() + plan.pages[page] * num_sums; });
  return partials;
}

// Whether the lists are larger than the last level of cache.
inline bool exceeds_cache(int64_t bytes) {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  static const int64_t reported = sysconf(_SC_LEVEL3_CACHE_SIZE);
  static const int64_t cache = reported > 0 ? reported : int64_t{1} << 25;
#else
  static const int64_t cache = int64_t{1} << 25;
#endif
  return bytes > cache;
}

}  // namespace gradalign
