// Runs pages on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "choose.h"
#include "pages.h"

namespace gradalign {

// Runs work() on as many of torch's threads as there is work for.
struct TorchThreads {
  int64_t count(int64_t num_pages) const {
    return std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), num_pages));
  }

  template <class Work>
  void operator()(int64_t num_threads, const Work& work) const {
    if (num_threads < 2) {
      work();
    } else {
      torch::stable::parallel_for(0, num_threads, 1, [&](int64_t, int64_t) { work(); });
    }
  }
};

template <class Args>
void launch(Kernel<Args> kernel, const Args& args, const Plan& plan, int64_t num_sums = 0, double* sums = nullptr) {
  sum_pages(kernel, args, plan, num_sums, sums, TorchThreads{});
}

template <class Args>
std::vector<double> launch_by_piece(Kernel<Args> kernel, const Args& args, const Plan& plan, int64_t num_sums) {
  return sums_by_piece(kernel, args, plan, num_sums, TorchThreads{});
}

// Whether lists of so many bytes leave the cache before they are used again. A fixed size: what the system reports is the
// cache of the whole machine, not of the cores that this process may use.
constexpr int64_t kCacheBytes = int64_t{1} << 25;

inline bool exceeds_cache(int64_t bytes) { return bytes > kCacheBytes; }

}  // namespace gradalign
