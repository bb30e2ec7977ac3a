// Every CPU kernel over buffers of exactly the right size, for the sanitizers: a read or write outside one, a race between
// pages, or undefined arithmetic ends the program. What the kernels compute is tested from Python; here each run must also give
// the same sums on one thread and on four, and restore_ must bring back the bits that perturb_ kept.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "../../csrc/cpu/choose.h"
#include "../../csrc/cpu/pages.h"

namespace gradalign {
namespace {

#define REQUIRE(condition)                                              \
  do {                                                                  \
    if (!(condition)) {                                                 \
      std::fprintf(stderr, "line %d: %s is false\n", __LINE__, #condition); \
      std::exit(1);                                                     \
    }                                                                   \
  } while (false)

// Around the length of a block; the longest takes more than four pages. Under ThreadSanitizer an element takes a microsecond.
const std::vector<int64_t> kNumels = {0, 1, 3, 1023, 1024, 1025, 16385, 7, 7, 7};

struct Threads {
  int num_threads;

  int64_t count(int64_t) const { return num_threads; }

  template <class Work>
  void operator()(int64_t, const Work& work) const {
    std::vector<std::thread> threads;
    for (int i = 1; i < num_threads; ++i) threads.emplace_back(work);
    work();
    for (auto& thread : threads) thread.join();
  }
};

// A list of tensors, flat or with a stride of 2, each in memory of its own, `offset` elements from an aligned address.
class List {
 public:
  List(Dtype dtype, bool flat, int64_t offset, unsigned seed) : strides_{flat ? 1 : 2} {
    std::srand(seed);
    sizes_ = kNumels;
    for (size_t i = 0; i < sizes_.size(); ++i) {
      const int64_t length = sizes_[i] == 0 ? 0 : (sizes_[i] - 1) * strides_[0] + 1;
      const size_t bytes = static_cast<size_t>((length + offset) * itemsize(dtype));
      memory_.emplace_back(new char[bytes]);
      fill(memory_.back().get(), bytes, dtype);
      operands_.push_back({memory_.back().get() + offset * itemsize(dtype), dtype, flat, 1, &sizes_[i], strides_});
      bytes_.push_back(bytes);
    }
  }
  List(const List&) = delete;

  const Operand* data() const { return operands_.data(); }

  std::vector<char> bits() const {
    std::vector<char> all;
    for (size_t i = 0; i < memory_.size(); ++i) all.insert(all.end(), memory_[i].get(), memory_[i].get() + bytes_[i]);
    return all;
  }

 private:
  static void fill(char* memory, size_t bytes, Dtype dtype) {
    for (size_t at = 0; at < bytes; at += static_cast<size_t>(itemsize(dtype))) {
      const float value = static_cast<float>(std::rand() % 2000 + 1) / 1000.0f;
      const double wide = value;
      uint32_t pattern;
      std::memcpy(&pattern, &value, 4);
      const uint16_t half = static_cast<uint16_t>(dtype == Dtype::bf16 ? pattern >> 16 : 0x3800 + std::rand() % 1024);
      const void* narrow = dtype == Dtype::f32 ? static_cast<const void*>(&value) : &half;
      std::memcpy(memory + at, dtype == Dtype::f64 ? &wide : narrow, static_cast<size_t>(itemsize(dtype)));
    }
  }

  std::vector<int64_t> sizes_;
  int64_t strides_[1];
  std::vector<std::unique_ptr<char[]>> memory_;
  std::vector<size_t> bytes_;
  std::vector<Operand> operands_;
};

// The sums of fresh inputs under a number of threads.
template <class Args, class Make>
std::vector<double> sums_of(Kernel<Args> kernel, int64_t num_sums, int threads, Make make) {
  std::vector<double> sums(static_cast<size_t>(num_sums));
  const Plan plan = plan_pages(kNumels.data(), static_cast<int64_t>(kNumels.size()), 4096);
  make([&](const Args& args) { sum_pages(kernel, args, plan, num_sums, sums.data(), Threads{threads}); });
  return sums;
}

template <class Args, class Make>
void check(Kernel<Args> kernel, int64_t num_sums, Make make) {
  REQUIRE(sums_of(kernel, num_sums, 1, make) == sums_of(kernel, num_sums, 4, make));
}

void run_vector_ops(const Kernels& k, Dtype dtype, Dtype other, bool flat, int64_t offset) {
  const auto list = [=](unsigned seed) { return std::make_unique<List>(dtype, flat, offset, seed); };
  const auto foreign = [=](unsigned seed) { return std::make_unique<List>(other, true, 0, seed); };
  check(k.norm_dot, 3, [&](auto run) {
    auto x = list(1), y = foreign(2);
    run(NormDotArgs{x->data(), y->data()});
    run(NormDotArgs{x->data(), nullptr});
  });
  for (bool stream : {false, true}) {
    check(k.perturb, 3, [&](auto run) {
      auto p = list(1), backup = list(2), x = foreign(3), y = list(4);
      const auto theta = p->bits();
      run(PerturbArgs{p->data(), backup->data(), x->data(), y->data(), 0.5, -0.25, false, stream});
      REQUIRE(p->bits() != theta);
      const Plan plan = plan_pages(kNumels.data(), static_cast<int64_t>(kNumels.size()), 4096);
      sum_pages(k.restore, RestoreArgs{p->data(), backup->data(), stream}, plan, 0, nullptr, Threads{4});
      REQUIRE(!flat || p->bits() == theta || offset > 0);
      run(PerturbArgs{p->data(), backup->data(), backup->data(), nullptr, 0.5, 0, false, stream});
      run(PerturbArgs{p->data(), backup->data(), x->data(), nullptr, 0.0, 0, true, stream});
    });
    check(k.combine, 1, [&](auto run) {
      auto out = list(1), x = list(2), y = foreign(3);
      run(CombineArgs{out->data(), x->data(), y->data(), 0.5, 2, stream});
      run(CombineArgs{x->data(), x->data(), y->data(), 0.5, 2, stream});
    });
  }
  check(k.swap, 0, [&](auto run) {
    auto p = list(1), backup = list(2), wide = foreign(3);
    const auto before = p->bits();
    run(SwapArgs{p->data(), backup->data()});
    run(SwapArgs{p->data(), backup->data()});
    REQUIRE(p->bits() == before);
    run(SwapArgs{p->data(), wide->data()});
  });
  check(k.accumulate, 2, [&](auto run) {
    auto acc = list(1), g = foreign(2);
    run(AccumulateArgs{acc->data(), g->data(), 0.5});
  });
}

void run_steps(const Kernels& k, Dtype dtype, bool flat, int64_t offset, bool masters, bool stochastic) {
  const auto list = [=](Dtype type, unsigned seed) { return std::make_unique<List>(type, flat, offset, seed); };
  const Dtype wide = dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const size_t n = kNumels.size();
  const std::vector<uint32_t> keys(n, 12345);
  const std::vector<uint8_t> first(n, 0);
  const std::vector<AdamWTensor> adamw(n, {0.01, 0.5});
  const std::vector<LambTensor> lamb(n, {0.1, 0.5, 0.01});
  auto master = list(wide, 5), m = list(wide, 3), v = list(wide, 4), largest = list(wide, 6);
  auto p = list(dtype, 1), g = list(dtype, 2);
  const StepArgs step{p->data(), g->data(), masters ? master->data() : nullptr, stochastic ? keys.data() : nullptr, 0.5, true};
  const auto before = p->bits();
  check(k.adamw, 0, [&](auto run) {
    run(AdamWArgs{step, m->data(), v->data(), largest->data(), adamw.data(), 0.9, 0.99, 1e-8, 0.999, 0.1, true});
    run(AdamWArgs{step, m->data(), v->data(), nullptr, adamw.data(), 0.9, 0.99, 1e-8, 0.999, 0.1, false});
  });
  check(k.sgd, 0, [&](auto run) {
    run(SgdArgs{step, m->data(), first.data(), 0.01, 0.1, 0.9, 0.1, true});
    run(SgdArgs{step, nullptr, first.data(), 0.01, 0.1, 0.9, 0.1, false});
  });
  const LambArgs args{step, m->data(), v->data(), lamb.data(), 0.9, 0.99, 1e-6, 0.1};
  const Plan plan = plan_pages(kNumels.data(), static_cast<int64_t>(n), 4096);
  REQUIRE(sums_by_piece(k.lamb_moments, args, plan, 2, Threads{4}).size() == 2 * plan.pieces.size());
  check(k.lamb_update, 0, [&](auto run) { run(args); });
  check(k.skipped, 0, [&](auto run) { run(step); });
  REQUIRE(p->bits() != before);
}

}  // namespace
}  // namespace gradalign

int main() {
  using namespace gradalign;
  const Kernels& k = choose_kernels();
  for (Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16}) {
    for (bool flat : {true, false}) {
      for (int64_t offset : {0, 1}) {
        run_vector_ops(k, dtype, dtype, flat, offset);
        if (dtype != Dtype::f32) run_vector_ops(k, dtype, Dtype::f32, flat, offset);
        for (bool masters : {false, true}) run_steps(k, dtype, flat, offset, masters, dtype == Dtype::bf16);
      }
    }
  }
  std::printf("%s: no complaint\n", k.isa);
  return 0;
}
