// The loop that all kernels share: blocks take chunks, threads take vectors, an op is a function of one element.
//
// An Op<T> computes in T and has
//   kLists, kSums                      how many lists it works on and how many sums it returns
//   kOnce                              mask of the lists whose data is used once: streamed past the caches
//   kRowPerChunk                       whether sums are kept for each chunk instead of each block
//   kCleared                           the list that is zeroed where clears() says so, or -1
//   reads(present), writes(present)    masks of the lists it loads and stores, given which are there
//   Op(settings), enter(tensor)        its coefficients, read from device memory
//   idle()                             whether the step is skipped: only clearing is done
//   op(element, sums, index)           the mathematics, from csrc/math
#pragma once

#include <cuda_runtime.h>

#include "any.cuh"
#include "block_sum.cuh"
#include "lanes.cuh"

namespace gradalign::cuda {

// The defaults for an op that is not an optimizer step.
struct VectorOp {
  static constexpr bool kRowPerChunk = false;
  static constexpr int kCleared = -1;
  __device__ __forceinline__ void enter(int) {}
  __device__ __forceinline__ bool idle() const { return false; }
  __device__ __forceinline__ bool clears() const { return false; }
};

constexpr bool in_mask(unsigned mask, int list) { return mask >> list & 1; }

// How many vectors a thread loads before it uses the first: 128 bytes in flight, if registers allow.
template <class Op, int V, class... S>
constexpr int unroll() {
  int bytes = 0, list = 0;
  ((bytes += in_mask(Op::reads(present_mask<S...>()), list++) ? V * kItemsize<S> : 0), ...);
  const int fits = 128 / bytes;
  return fits < 1 ? 1 : fits > 4 ? 4 : fits;
}

template <class Op, int i = 0, int V, class... S>
__device__ __forceinline__ void load_lists(Lanes<V, S...>& lanes, char* const* data, int64_t at) {
  if constexpr (i < Op::kLists) {
    using Storage = Nth<i, S...>;
    if constexpr (in_mask(Op::reads(present_mask<S...>()), i)) {
      load<in_mask(Op::kOnce, i)>(list_of<i>(lanes), reinterpret_cast<const Storage*>(data[i]) + at);
    }
    load_lists<Op, i + 1>(lanes, data, at);
  }
}

template <class Op, int i = 0, int V, class... S>
__device__ __forceinline__ void store_lists(const Op& op, Lanes<V, S...>& lanes, char* const* data, int64_t at) {
  if constexpr (i < Op::kLists) {
    using Storage = Nth<i, S...>;
    if constexpr (in_mask(Op::writes(present_mask<S...>()), i)) {
      store<in_mask(Op::kOnce, i)>(reinterpret_cast<Storage*>(data[i]) + at, list_of<i>(lanes));
    } else if constexpr (Op::kCleared == i) {
      if (op.clears()) store<false>(reinterpret_cast<Storage*>(data[i]) + at, Vector<Storage, V>{});
    }
    store_lists<Op, i + 1>(op, lanes, data, at);
  }
}

// Vectors `first` to `last` of the chunk, counted from its beginning; U vectors of every list in flight.
template <class Op, int V, int U, class... S>
__device__ __forceinline__ int sweep_vectors(const Op& op, char* const* data, int64_t begin, int first, int last,
                                             typename Op::Arithmetic* sums) {
  using T = typename Op::Arithmetic;
  constexpr int kTile = kThreads * U;
#pragma unroll 1  // what is in flight is chosen by U; more would spill
  for (; first + kTile <= last; first += kTile) {
    Lanes<V, S...> lanes[U];
    const int64_t at = begin + static_cast<int64_t>(first + static_cast<int>(threadIdx.x)) * V;
#pragma unroll
    for (int u = 0; u < U; ++u) load_lists<Op>(lanes[u], data, at + u * kThreads * V);
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        LaneElement<T, V, S...> element(lanes[u], j);
        op(element, sums, at + u * kThreads * V + j);
      }
      store_lists<Op>(op, lanes[u], data, at + u * kThreads * V);
    }
  }
  return first;
}

// The vectors that do not fill a tile.
template <class Op, int V, class... S>
__device__ __forceinline__ void sweep_rest(const Op& op, char* const* data, int64_t begin, int first, int last,
                                           typename Op::Arithmetic* sums) {
  using T = typename Op::Arithmetic;
#pragma unroll 1
  for (int v = first + static_cast<int>(threadIdx.x); v < last; v += kThreads) {
    Lanes<V, S...> lanes;
    const int64_t at = begin + static_cast<int64_t>(v) * V;
    load_lists<Op>(lanes, data, at);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      LaneElement<T, V, S...> element(lanes, j);
      op(element, sums, at + j);
    }
    store_lists<Op>(op, lanes, data, at);
  }
}

template <class Op, class... S>
__device__ __forceinline__ void sweep_chunk(const Op& op, const Table<Op::kLists>& table, const Chunk& chunk,
                                            typename Op::Arithmetic* sums) {
  constexpr int V = vector_length<S...>();
  constexpr int U = unroll<Op, V, S...>();
  static_assert(kChunkElements % (kThreads * V * U) == 0, "a whole chunk is a whole number of tiles");
  char* data[Op::kLists];
  uintptr_t addresses = 0;
#pragma unroll
  for (int i = 0; i < Op::kLists; ++i) {
    data[i] = table.data[i][chunk.entry];
    addresses |= reinterpret_cast<uintptr_t>(data[i]);
  }
  int swept = 0;
  if (addresses % 16 == 0) {
    const int vectors = chunk.length / V;
    const int tiled = U > 1 ? sweep_vectors<Op, V, U, S...>(op, data, chunk.begin, 0, vectors, sums) : 0;
    sweep_rest<Op, V, S...>(op, data, chunk.begin, tiled, vectors, sums);
    swept = vectors * V;
  }
  if (U > 1) swept = sweep_vectors<Op, 1, U, S...>(op, data, chunk.begin, swept, chunk.length, sums);
  sweep_rest<Op, 1, S...>(op, data, chunk.begin, swept, chunk.length, sums);
}

// Sums of a chunk are kept in the arithmetic's type, those of several in double: long sums of squares lose no digits.
template <class Op>
__device__ __forceinline__ void take_sums(typename Op::Arithmetic* sums, double* totals) {
#pragma unroll
  for (int i = 0; i < Op::kSums; ++i) {
    totals[i] += static_cast<double>(sums[i]);
    sums[i] = 0;
  }
}

template <class Op>
__device__ __forceinline__ void write_row(double (&totals)[Op::kSums > 0 ? Op::kSums : 1], double* partials, int row) {
  block_sum(totals);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < Op::kSums; ++i) partials[static_cast<int64_t>(row) * Op::kSums + i] = totals[i];
  }
#pragma unroll
  for (int i = 0; i < Op::kSums; ++i) totals[i] = 0;
}

// Calls work(op, chunk, sums) for the block's chunks.
template <class Op, class Work>
__device__ __forceinline__ void for_each_chunk(const Table<Op::kLists>& table, Op& op, double* partials, Work work) {
  using T = typename Op::Arithmetic;
  constexpr int kSums = Op::kSums > 0 ? Op::kSums : 1;
  double totals[kSums] = {};
  T sums[kSums] = {};
#pragma unroll 1
  for (int c = blockIdx.x; c < table.num_chunks(); c += gridDim.x) {
    const Chunk chunk = chunk_at(table, c);
    op.enter(table.tensor[chunk.entry]);
    work(op, chunk, sums);
    if constexpr (Op::kSums > 0) take_sums<Op>(sums, totals);
    if constexpr (Op::kRowPerChunk) write_row<Op>(totals, partials, table.first_row + c);
  }
  if constexpr (Op::kSums > 0 && !Op::kRowPerChunk) {
    write_row<Op>(totals, partials, table.first_row + static_cast<int>(blockIdx.x));
  }
}

template <int kItemsize>
__device__ __forceinline__ void clear_chunk(char* begin, int length) {
  const int bytes = length * kItemsize;
  int done = 0;
  if (reinterpret_cast<uintptr_t>(begin) % 16 == 0) {
    done = bytes / 16 * 16;
#pragma unroll 1
    for (int i = threadIdx.x; i < bytes / 16; i += kThreads) reinterpret_cast<uint4*>(begin)[i] = uint4{0, 0, 0, 0};
  }
#pragma unroll 1
  for (int i = done / 2 + static_cast<int>(threadIdx.x); i < bytes / 2; i += kThreads) {
    reinterpret_cast<uint16_t*>(begin)[i] = 0;
  }
}

// A skipped step clears the gradients, if that is asked for, and nothing else.
template <int kItemsize, int kLists>
__device__ __forceinline__ void clear_chunks(const Table<kLists>& table, int list) {
#pragma unroll 1
  for (int c = blockIdx.x; c < table.num_chunks(); c += gridDim.x) {
    const Chunk chunk = chunk_at(table, c);
    clear_chunk<kItemsize>(table.data[list][chunk.entry] + chunk.begin * kItemsize, chunk.length);
  }
}

// Lists that are dense, with dtypes known to the compiler.
template <class Op, class... S>
__global__ void __launch_bounds__(kThreads, 4)
    sweep(const __grid_constant__ Table<Op::kLists> table, const __grid_constant__ typename Op::Settings settings,
          double* partials) {
  Op op(settings);
  if (op.idle()) {
    if constexpr (Op::kCleared >= 0) {
      if (op.clears()) clear_chunks<sizeof(Nth<Op::kCleared, S...>)>(table, Op::kCleared);
    }
    return;
  }
  for_each_chunk(table, op, partials, [&](const Op& at, const Chunk& chunk, typename Op::Arithmetic* sums) {
    sweep_chunk<Op, S...>(at, table, chunk, sums);
  });
}

template <class Op, int i = 0>
__device__ __forceinline__ void load_element(AnyElement<typename Op::Arithmetic, Op::kLists>& element, unsigned reads,
                                             const Table<Op::kLists>& table, int entry, const Strides<Op::kLists>& view,
                                             int64_t index) {
  if constexpr (i < Op::kLists) {
    if (in_mask(reads, i)) element.template load<i>(table.data[i][entry], offset_of(view, i, index));
    load_element<Op, i + 1>(element, reads, table, entry, view, index);
  }
}

template <class Op, int i = 0>
__device__ __forceinline__ void store_element(AnyElement<typename Op::Arithmetic, Op::kLists>& element, unsigned writes,
                                              const Table<Op::kLists>& table, int entry, const Strides<Op::kLists>& view,
                                              int64_t index) {
  if constexpr (i < Op::kLists) {
    if (in_mask(writes, i)) element.template store<i>(table.data[i][entry], offset_of(view, i, index));
    store_element<Op, i + 1>(element, writes, table, entry, view, index);
  }
}

// Any dtypes, any strides: one element per thread and access.
template <class Op>
__global__ void __launch_bounds__(kThreads, 3)
    sweep_any(const __grid_constant__ Table<Op::kLists> table, const __grid_constant__ Strides<Op::kLists> view,
              const __grid_constant__ Dtypes<Op::kLists> dtypes, const __grid_constant__ typename Op::Settings settings,
              double* partials) {
  using T = typename Op::Arithmetic;
  static_assert(Op::kOnce < 1u << Op::kLists, "a mask of lists; here nothing is streamed");
  Op op(settings);
  unsigned present = 0;
#pragma unroll
  for (int i = 0; i < Op::kLists; ++i) present |= dtypes.of[i] == kAbsent ? 0u : 1u << i;
  const bool idle = op.idle();
  const unsigned reads = idle ? 0 : Op::reads(present);
  const unsigned writes = idle ? 0 : Op::writes(present);
  for_each_chunk(table, op, partials, [&](const Op& at, const Chunk& chunk, T* sums) {
#pragma unroll 1
    for (int e = threadIdx.x; e < chunk.length; e += kThreads) {
      const int64_t index = chunk.begin + e;
      AnyElement<T, Op::kLists> element(dtypes);
      load_element<Op>(element, reads, table, chunk.entry, view, index);
      if (!idle) at(element, sums, index);
      unsigned stored = writes;
      if constexpr (Op::kCleared >= 0) {
        if (at.clears()) {
          element.template put<Op::kCleared>(T(0));
          stored |= 1u << Op::kCleared;
        }
      }
      store_element<Op>(element, stored, table, chunk.entry, view, index);
    }
  });
}

}  // namespace gradalign::cuda
