// Pages over threads; sums in the order of the pages. No torch header: the caller provides the threads.
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

// Hands out pages to workers. The sums do not depend on which worker takes which page.
//
// Every worker starts with neighbouring pages, since memory is read fastest in order (measured: a tenth faster than pages in
// turn); one that has finished its own takes pages from the others.
class PageQueue {
 public:
  PageQueue(int64_t num_pages, int64_t num_workers) : stretches_(static_cast<size_t>(num_workers)) {
    for (int64_t i = 0; i < num_workers; ++i) {
      stretches_[static_cast<size_t>(i)].next = num_pages * i / num_workers;
      stretches_[static_cast<size_t>(i)].end = num_pages * (i + 1) / num_workers;
    }
  }

  // The loop of one worker: visit(page) until no page is left.
  template <class Visit>
  void work(Visit visit) {
    const size_t own = num_begun_++;
    for (size_t i = 0; i < stretches_.size(); ++i) {
      Stretch& stretch = stretches_[(own + i) % stretches_.size()];
      for (int64_t page = stretch.next++; page < stretch.end; page = stretch.next++) visit(page);
    }
  }

 private:
  struct alignas(64) Stretch {  // one per cache line, so that workers do not share any
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  std::vector<Stretch> stretches_;
  std::atomic<size_t> num_begun_{0};
};

// Calls kernel for every page with sums_of(page). parallel.count(num_pages) says how many threads there are for so much
// work, parallel(count, work) runs work() on them.
template <class Args, class SumsOf, class Parallel>
void run_pages(Kernel<Args> kernel, const Args& args, const Plan& plan, SumsOf sums_of, Parallel parallel) {
  const int64_t num_threads = parallel.count(plan.num_pages());
  PageQueue queue(plan.num_pages(), num_threads);
  parallel(num_threads, [&] {
    queue.work([&](int64_t page) {
      const Piece* pieces = plan.pieces.data();
      kernel(args, pieces + plan.pages[page], pieces + plan.pages[page + 1], sums_of(page));
    });
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
