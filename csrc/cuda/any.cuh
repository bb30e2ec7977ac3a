// One element of every list, in registers, with types and strides known at run time only: rare combinations, double, views.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "../math/stochastic.h"
#include "table.cuh"

namespace gradalign::cuda {

constexpr bool is_16_bit(int8_t dtype) {
  return dtype == static_cast<int8_t>(Dtype::bf16) || dtype == static_cast<int8_t>(Dtype::f16);
}

template <int kLists>
__device__ __forceinline__ int64_t offset_of(const Strides<kLists>& view, int list, int64_t element) {
  if (view.ndim == 0) return element;
  int64_t offset = 0;
  for (int d = view.ndim - 1; d >= 0; --d) {
    const int64_t size = view.sizes[d];
    offset += element % size * view.strides[list][d];
    element /= size;
  }
  return offset;
}

template <class T, int kLists>
class AnyElement {
  // Arithmetic in double is for calls with a list of doubles, and only for those.
  static constexpr bool kDouble = sizeof(T) == sizeof(double);
  using Bits = std::conditional_t<kDouble, uint64_t, uint32_t>;

 public:
  __device__ __forceinline__ explicit AnyElement(const Dtypes<kLists>& dtypes) : dtypes_(dtypes) {}

  template <int i>
  __device__ __forceinline__ bool has() const {
    return dtypes_.of[i] != kAbsent;
  }

  template <int i>
  __device__ __forceinline__ void load(const char* data, int64_t offset) {
    if (is_16_bit(dtypes_.of[i])) {
      bits_[i] = reinterpret_cast<const uint16_t*>(data)[offset];
    } else if (dtypes_.of[i] == static_cast<int8_t>(Dtype::f32)) {
      bits_[i] = reinterpret_cast<const uint32_t*>(data)[offset];
    } else if constexpr (kDouble) {
      bits_[i] = reinterpret_cast<const uint64_t*>(data)[offset];
    }
  }

  template <int i>
  __device__ __forceinline__ void store(char* data, int64_t offset) const {
    if (is_16_bit(dtypes_.of[i])) {
      reinterpret_cast<uint16_t*>(data)[offset] = static_cast<uint16_t>(bits_[i]);
    } else if (dtypes_.of[i] == static_cast<int8_t>(Dtype::f32)) {
      reinterpret_cast<uint32_t*>(data)[offset] = static_cast<uint32_t>(bits_[i]);
    } else if constexpr (kDouble) {
      reinterpret_cast<uint64_t*>(data)[offset] = bits_[i];
    }
  }

  template <int i>
  __device__ __forceinline__ T get() const {
    return value(bits_[i], dtypes_.of[i]);
  }

  template <int i>
  __device__ __forceinline__ void put(T x) {
    if (has<i>()) bits_[i] = pack(x, dtypes_.of[i]);
  }

  template <int i>
  __device__ __forceinline__ T rounded(T x) const {
    return value(pack(x, dtypes_.of[i]), dtypes_.of[i]);
  }

  template <int i, class Run>
  __device__ __forceinline__ void with_storage(Run run) const {
    switch (static_cast<Dtype>(dtypes_.of[i])) {
      case Dtype::f32: return run(float{});
      case Dtype::f64:
        if constexpr (kDouble) return run(double{});
      case Dtype::bf16: return run(bf16{});
      case Dtype::f16: return run(fp16{});
    }
  }

  template <int i>
  __device__ __forceinline__ bool is_bf16() const {
    return dtypes_.of[i] == static_cast<int8_t>(Dtype::bf16);
  }

  template <int i>
  __device__ __forceinline__ void put_stochastically(T x, uint32_t low, uint32_t high) {
    bits_[i] = round_stochastically(static_cast<float>(x), low, high).bits;
  }

  template <int to, int from>
  __device__ __forceinline__ void copy() {
    bits_[to] = converted<from>(dtypes_.of[to]);
  }

  template <int a, int b>
  __device__ __forceinline__ void exchange() {
    const Bits held = converted<a>(dtypes_.of[b]);
    bits_[a] = converted<b>(dtypes_.of[a]);
    bits_[b] = held;
  }

 private:
  static __device__ __forceinline__ T value(Bits bits, int8_t dtype) {
    switch (static_cast<Dtype>(dtype)) {
      case Dtype::f32: return static_cast<T>(bits_as<float>(static_cast<uint32_t>(bits)));
      case Dtype::f64:
        if constexpr (kDouble) return bits_as<double>(bits);
        break;
      case Dtype::bf16: return static_cast<T>(widen(bf16{static_cast<uint16_t>(bits)}));
      case Dtype::f16: return static_cast<T>(widen(fp16{static_cast<uint16_t>(bits)}));
    }
    return T(0);
  }

  static __device__ __forceinline__ Bits pack(T x, int8_t dtype) {
    switch (static_cast<Dtype>(dtype)) {
      case Dtype::f32: return bits_as<uint32_t>(static_cast<float>(x));
      case Dtype::f64:
        if constexpr (kDouble) return bits_as<uint64_t>(x);
        break;
      case Dtype::bf16: return narrow<bf16>(x).bits;
      case Dtype::f16: return narrow<fp16>(x).bits;
    }
    return 0;
  }

  template <int from>
  __device__ __forceinline__ Bits converted(int8_t dtype) const {
    return dtype == dtypes_.of[from] ? bits_[from] : pack(value(bits_[from], dtypes_.of[from]), dtype);
  }

  const Dtypes<kLists>& dtypes_;
  Bits bits_[kLists];
};

}  // namespace gradalign::cuda
