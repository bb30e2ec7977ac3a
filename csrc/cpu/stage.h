// Blocks of one operand in the type of the arithmetic.
//
// A block whose memory already has that type is worked on in place; any other (16 bits in the steps, mixed types, strides) goes
// through a buffer in the L1 cache. So the loops exist once per arithmetic type, not once per combination of types.
#pragma once

#include <cstring>

#include "../math/storage.h"
#include "../tensor/operand.h"
#include "vectors.h"

GRADALIGN_NAMESPACE_BEGIN

// Up to nine of them are in the L1 cache at once.
constexpr int64_t kBlockBytes = 2048;

template <class T>
constexpr int64_t kBlock = kBlockBytes / static_cast<int64_t>(sizeof(T));

template <class T>
constexpr Dtype kDtype = sizeof(T) == 8 ? Dtype::f64 : Dtype::f32;

// Calls visit(offset, run) for the runs along the last dimension that hold elements begin to begin + n.
template <class Visit>
void for_each_run(const Operand& operand, int64_t begin, int64_t n, Visit visit) {
  int64_t index[64];
  int64_t offset = 0;
  const int64_t last = operand.ndim - 1;
  for (int64_t d = last; d >= 0; --d) {
    index[d] = begin % operand.sizes[d];
    begin /= operand.sizes[d];
    offset += index[d] * operand.strides[d];
  }
  while (n > 0) {
    const int64_t room = operand.sizes[last] - index[last];
    const int64_t run = room < n ? room : n;
    visit(offset, run);
    n -= run;
    offset += run * operand.strides[last];
    index[last] += run;
    for (int64_t d = last; d > 0 && index[d] == operand.sizes[d]; --d) {
      offset += operand.strides[d - 1] - index[d] * operand.strides[d];
      index[d] = 0;
      ++index[d - 1];
    }
  }
}

template <class Bits>
void gather(const Operand& operand, int64_t begin, int64_t n, Bits* out) {
  const Bits* data = reinterpret_cast<const Bits*>(operand.data);
  const int64_t stride = operand.strides[operand.ndim - 1];
  for_each_run(operand, begin, n, [&](int64_t offset, int64_t run) {
    for (int64_t i = 0; i < run; ++i) *out++ = data[offset + i * stride];
  });
}

template <class Bits>
void scatter(const Operand& operand, int64_t begin, int64_t n, const Bits* in) {
  Bits* data = reinterpret_cast<Bits*>(operand.data);
  const int64_t stride = operand.strides[operand.ndim - 1];
  for_each_run(operand, begin, n, [&](int64_t offset, int64_t run) {
    for (int64_t i = 0; i < run; ++i) data[offset + i * stride] = *in++;
  });
}

template <class Storage, class T>
void load_as(const Operand& operand, int64_t begin, int64_t n, T* out) {
  Storage gathered[kBlock<float>];
  const Storage* in = reinterpret_cast<const Storage*>(operand.data) + begin;
  if (!operand.flat) {
    gather(operand, begin, n, gathered);
    in = gathered;
  }
  int64_t i = 0;
  if constexpr (std::is_same_v<T, Arithmetic<Storage>>) {
    for (; i + kWidth<T> <= n; i += kWidth<T>) store(out + i, load<Vector<T>>(in + i));
  }
#pragma omp simd
  for (int64_t j = i; j < n; ++j) out[j] = static_cast<T>(widen(in[j]));
}

template <class Storage, class T>
void store_as(const Operand& operand, int64_t begin, int64_t n, const T* in) {
  Storage gathered[kBlock<float>];
  Storage* out = operand.flat ? reinterpret_cast<Storage*>(operand.data) + begin : gathered;
  int64_t i = 0;
  if constexpr (std::is_same_v<T, Arithmetic<Storage>>) {
    for (; i + kWidth<T> <= n; i += kWidth<T>) store(out + i, load<Vector<T>>(in + i));
  }
#pragma omp simd
  for (int64_t j = i; j < n; ++j) out[j] = narrow<Storage>(in[j]);
  if (!operand.flat) scatter(operand, begin, n, gathered);
}

template <class T>
void load_block(const Operand& operand, int64_t begin, int64_t n, T* out) {
  switch (operand.dtype) {
    case Dtype::f32: return load_as<float>(operand, begin, n, out);
    case Dtype::f64: return load_as<double>(operand, begin, n, out);
    case Dtype::bf16: return load_as<bf16>(operand, begin, n, out);
    case Dtype::f16: return load_as<fp16>(operand, begin, n, out);
  }
}

template <class T>
void store_block(const Operand& operand, int64_t begin, int64_t n, const T* in) {
  switch (operand.dtype) {
    case Dtype::f32: return store_as<float>(operand, begin, n, in);
    case Dtype::f64: return store_as<double>(operand, begin, n, in);
    case Dtype::bf16: return store_as<bf16>(operand, begin, n, in);
    case Dtype::f16: return store_as<fp16>(operand, begin, n, in);
  }
}

// Prefetches the next block: between the loads of two blocks there is enough arithmetic for the hardware prefetcher to lose
// the stream.
inline void prefetch(const Operand& operand, int64_t begin, int64_t n) {
  const char* next = operand.data + begin * itemsize(operand.dtype);
  for (int64_t done = 0; done < n * itemsize(operand.dtype); done += 64) __builtin_prefetch(next + done);
}

template <class T>
class Stage {
 public:
  // The block's values; in place where that can be, unless `copy` asks for values that outlive a write to the operand.
  const T* load(const Operand& operand, int64_t begin, int64_t n, bool copy = false) {
    if (direct(operand) && !copy) return at(operand, begin);
    load_block(operand, begin, n, buffer_);
    if (operand.flat) prefetch(operand, begin + n, n);
    return buffer_;
  }

  // Where to put the block's new values; store() brings them to the operand.
  T* target(const Operand& operand, int64_t begin) {
    in_place_ = direct(operand);
    return in_place_ ? at(operand, begin) : buffer_;
  }

  void store(const Operand& operand, int64_t begin, int64_t n) const {
    if (!in_place_) store_block(operand, begin, n, buffer_);
  }

 private:
  static bool direct(const Operand& operand) { return operand.flat && operand.dtype == kDtype<T>; }
  static T* at(const Operand& operand, int64_t begin) { return reinterpret_cast<T*>(operand.data) + begin; }

  alignas(64) T buffer_[kBlock<T>];
  bool in_place_ = false;
};

// Calls visit(begin, n) for the blocks of a piece.
template <class T, class Visit>
void for_each_block(const Piece& piece, Visit visit) {
  for (int64_t done = 0; done < piece.length; done += kBlock<T>) {
    const int64_t rest = piece.length - done;
    visit(piece.begin + done, rest < kBlock<T> ? rest : kBlock<T>);
  }
}

template <class... Operands>
bool any_double(const Operands&... operands) {
  return ((operands.dtype == Dtype::f64) || ...);
}

// Whether the elements of all operands have one type and lie end to end: then a piece is worked through as it lies.
template <class... Operands>
bool alike(const Operand& first, const Operands&... others) {
  return first.flat && ((others.flat && others.dtype == first.dtype) && ...);
}

template <class Storage>
Storage* elements(const Operand& operand, int64_t begin) {
  return reinterpret_cast<Storage*>(operand.data) + begin;
}

// Calls run(Storage{}) with the type that a dtype stores.
template <class Run>
void with_any_storage(Dtype dtype, Run run) {
  switch (dtype) {
    case Dtype::f32: return run(float{});
    case Dtype::f64: return run(double{});
    case Dtype::bf16: return run(bf16{});
    case Dtype::f16: return run(fp16{});
  }
}

// Calls run(T{}) with the type of the arithmetic.
template <class Run>
void with_arithmetic(bool wide, Run run) {
  return wide ? run(double{}) : run(float{});
}

// Calls run(Storage{}) with the type that a dtype stores, of those that arithmetic in T can meet.
template <class T, class Run>
void with_storage(Dtype dtype, Run run) {
  switch (dtype) {
    case Dtype::f32: return run(float{});
    case Dtype::bf16: return run(bf16{});
    case Dtype::f16: return run(fp16{});
    case Dtype::f64:
      if constexpr (sizeof(T) == sizeof(double)) return run(double{});
  }
}

GRADALIGN_NAMESPACE_END
