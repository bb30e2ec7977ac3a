// A GPU made of fibers, so that the kernels of csrc/cuda run where there is none: a block's threads take turns at every
// barrier and shuffle. It checks what a GPU checks (16-byte accesses are aligned) and what only a sanitizer would (all
// threads of a block meet at the same barriers). Blocks run one after the other.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
#define __shared__ static  // blocks do not overlap
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

extern dim3 threadIdx, blockIdx, gridDim;

namespace emulator {

constexpr int kMultiprocessors = 3;
constexpr int kBlocksPerMultiprocessor = 2;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated GPU: %s\n", what);
  std::abort();
}

extern double shuffled[1024];

// Runs body() once for each thread of the block; a thread that calls meet() waits there for all others.
void run_block(unsigned threads, void (*body)(void*), void* argument);
void meet();

template <class T>
void check_aligned(const T* address) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0) fail("a misaligned access");
}

}  // namespace emulator

inline void __syncthreads() { emulator::meet(); }

inline double __shfl_down_sync(unsigned, double value, int distance) {
  const unsigned thread = threadIdx.x;
  emulator::shuffled[thread] = value;
  emulator::meet();
  const double other = emulator::shuffled[thread % 32 + distance < 32 ? thread + distance : thread];
  emulator::meet();
  return other;
}

template <class T>
T __ldcs(const T* address) {
  emulator::check_aligned(address);
  return *address;
}

template <class T>
void __stcs(T* address, T value) {
  emulator::check_aligned(address);
  *address = value;
}

inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }

// What of the runtime is used.
using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxThreadsPerMultiProcessor };

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "an emulated error"; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMultiProcessorCount ? emulator::kMultiprocessors : 256 * emulator::kBlocksPerMultiprocessor;
  return cudaSuccess;
}

inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = emulator::kBlocksPerMultiprocessor;
  return cudaSuccess;
}

struct cudaLaunchConfig_t {
  dim3 gridDim{}, blockDim{};
  cudaStream_t stream = nullptr;
  size_t dynamicSmemBytes = 0;
};

template <class... Parameters, class... Values>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), const Values&... values) {
  struct Bound {
    void (*kernel)(Parameters...);
    std::tuple<const Values&...> values;
  } bound{kernel, {values...}};
  constexpr size_t kBytes = (sizeof(Parameters) + ... + 0);
  static_assert(kBytes <= 32764, "more arguments than a kernel can have");
  gridDim = config->gridDim;
  for (unsigned block = 0; block < config->gridDim.x; ++block) {
    blockIdx.x = block;
    emulator::run_block(
        config->blockDim.x,
        [](void* argument) {
          Bound& call = *static_cast<Bound*>(argument);
          std::apply(call.kernel, call.values);
        },
        &bound);
  }
  return cudaSuccess;
}
