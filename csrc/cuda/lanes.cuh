// A few consecutive elements of every list, in registers, with types that the compiler knows.
#pragma once

#include <cuda_runtime.h>

#include <tuple>
#include <type_traits>

#include "../math/stochastic.h"
#include "table.cuh"

namespace gradalign::cuda {

// The type of a list that the op does not have.
struct None {};
GRADALIGN_HD float widen(None) { return 0; }

using gradalign::widen;

template <class... S>
struct Storages {
  static constexpr int kLists = sizeof...(S);
};

template <int i, class... S>
using Nth = std::tuple_element_t<i, std::tuple<S...>>;

template <class S>
constexpr int kItemsize = std::is_same_v<S, None> ? 0 : static_cast<int>(sizeof(S));

template <class S>
constexpr int8_t kDtypeOf = kAbsent;
template <>
inline constexpr int8_t kDtypeOf<float> = static_cast<int8_t>(Dtype::f32);
template <>
inline constexpr int8_t kDtypeOf<double> = static_cast<int8_t>(Dtype::f64);
template <>
inline constexpr int8_t kDtypeOf<bf16> = static_cast<int8_t>(Dtype::bf16);
template <>
inline constexpr int8_t kDtypeOf<fp16> = static_cast<int8_t>(Dtype::f16);

// One bit for each list that is there.
template <class... S>
constexpr unsigned present_mask() {
  unsigned mask = 0, bit = 1;
  ((mask |= std::is_same_v<S, None> ? 0 : bit, bit <<= 1), ...);
  return mask;
}

// As many elements as fill 16 bytes of the narrowest list.
template <class... S>
constexpr int vector_length() {
  int narrowest = 16;
  ((narrowest = kItemsize<S> > 0 && kItemsize<S> < narrowest ? kItemsize<S> : narrowest), ...);
  return 16 / narrowest;
}

template <class S, int V>
struct Vector {
  S at[V];
};

template <int V, class... S>
struct Lanes {};

template <int V, class First, class... Rest>
struct Lanes<V, First, Rest...> {
  Vector<First, V> own;
  Lanes<V, Rest...> rest;
};

template <int i, int V, class... S>
GRADALIGN_HD auto& list_of(Lanes<V, S...>& lanes) {
  if constexpr (i == 0) {
    return lanes.own;
  } else {
    return list_of<i - 1>(lanes.rest);
  }
}

template <int kBytes>
using Word =
    std::conditional_t<kBytes == 2, unsigned short, std::conditional_t<kBytes == 4, unsigned int, unsigned long long>>;

// As many accesses of 16 bytes as it takes; one element where V is 1. `kOnce`: evict first, the data is used once.
template <bool kOnce, class S, int V>
__device__ __forceinline__ void load(Vector<S, V>& to, const S* from) {
  using Access = std::conditional_t<V == 1, Word<sizeof(S)>, uint4>;
  constexpr int kAccesses = V * sizeof(S) / sizeof(Access);
  static_assert(kAccesses * sizeof(Access) == V * sizeof(S), "a vector is a whole number of accesses");
  Access held[kAccesses];
#pragma unroll
  for (int i = 0; i < kAccesses; ++i) {
    const Access* address = reinterpret_cast<const Access*>(from) + i;
    if constexpr (kOnce) {
      held[i] = __ldcs(address);
    } else {
      held[i] = *address;
    }
  }
  memcpy(&to, held, sizeof(to));
}

template <bool kOnce, class S, int V>
__device__ __forceinline__ void store(S* to, const Vector<S, V>& from) {
  using Access = std::conditional_t<V == 1, Word<sizeof(S)>, uint4>;
  constexpr int kAccesses = V * sizeof(S) / sizeof(Access);
  Access held[kAccesses];
  memcpy(held, &from, sizeof(from));
#pragma unroll
  for (int i = 0; i < kAccesses; ++i) {
    Access* address = reinterpret_cast<Access*>(to) + i;
    if constexpr (kOnce) {
      __stcs(address, held[i]);
    } else {
      *address = held[i];
    }
  }
}

// Element j of the lanes, as the ops see it.
template <class T, int V, class... S>
class LaneElement {
 public:
  template <int i>
  using Storage = Nth<i, S...>;

  __device__ __forceinline__ LaneElement(Lanes<V, S...>& lanes, int j) : lanes_(lanes), j_(j) {}

  template <int i>
  static constexpr bool has() {
    return !std::is_same_v<Storage<i>, None>;
  }

  template <int i>
  __device__ __forceinline__ T get() const {
    return static_cast<T>(widen(list_of<i>(lanes_).at[j_]));
  }

  // Rounds once, to nearest.
  template <int i>
  __device__ __forceinline__ void put(T value) {
    if constexpr (has<i>()) list_of<i>(lanes_).at[j_] = narrow<Storage<i>>(value);
  }

  template <int i>
  __device__ __forceinline__ T rounded(T value) const {
    return round_to<Storage<i>>(value);
  }

  // Calls run(Storage{}) with the type that list i stores.
  template <int i, class Run>
  __device__ __forceinline__ void with_storage(Run run) const {
    run(Storage<i>{});
  }

  template <int i>
  static constexpr bool is_bf16() {
    return std::is_same_v<Storage<i>, bf16>;
  }

  template <int i>
  __device__ __forceinline__ void put_stochastically(T value, uint32_t low, uint32_t high) {
    if constexpr (is_bf16<i>()) list_of<i>(lanes_).at[j_] = round_stochastically(static_cast<float>(value), low, high);
  }

  // Bit for bit where the types agree.
  template <int to, int from>
  __device__ __forceinline__ void copy() {
    if constexpr (std::is_same_v<Storage<to>, Storage<from>>) {
      list_of<to>(lanes_).at[j_] = list_of<from>(lanes_).at[j_];
    } else {
      put<to>(get<from>());
    }
  }

  template <int a, int b>
  __device__ __forceinline__ void exchange() {
    static_assert(std::is_same_v<Storage<a>, Storage<b>>, "only alike types are exchanged with types known");
    const Storage<a> held = list_of<a>(lanes_).at[j_];
    list_of<a>(lanes_).at[j_] = list_of<b>(lanes_).at[j_];
    list_of<b>(lanes_).at[j_] = held;
  }

 private:
  Lanes<V, S...>& lanes_;
  int j_;
};

}  // namespace gradalign::cuda
