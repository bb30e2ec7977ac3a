// to <- from for one block: bit for bit where the types agree, else rounded once.
#pragma once

#include "stage.h"

GRADALIGN_NAMESPACE_BEGIN

template <class Bits>
void copy_bits(const Operand& to, const Operand& from, int64_t begin, int64_t n, bool stream) {
  Bits gathered[kBlock<float>];
  const Bits* in = reinterpret_cast<const Bits*>(from.data) + begin;
  if (!from.flat) {
    gather(from, begin, n, gathered);
    in = gathered;
  }
  if (to.flat) {
    copy_bytes(reinterpret_cast<Bits*>(to.data) + begin, in, n * static_cast<int64_t>(sizeof(Bits)), stream);
  } else {
    scatter(to, begin, n, in);
  }
}

inline void convert_block(const Operand& to, const Operand& from, int64_t begin, int64_t n) {
  Stage<double> stage;
  const double* values = stage.load(from, begin, n);
  double* out = stage.target(to, begin);
  if (out != values) memcpy(out, values, static_cast<size_t>(n) * sizeof(double));
  stage.store(to, begin, n);
}

inline void copy_block(const Operand& to, const Operand& from, int64_t begin, int64_t n, bool stream) {
  if (to.dtype != from.dtype) {
    for_each_block<double>({0, begin, n}, [&](int64_t at, int64_t length) { convert_block(to, from, at, length); });
    return;
  }
  switch (itemsize(to.dtype)) {
    case 8: return copy_bits<uint64_t>(to, from, begin, n, stream);
    case 4: return copy_bits<uint32_t>(to, from, begin, n, stream);
    default: return copy_bits<uint16_t>(to, from, begin, n, stream);
  }
}

GRADALIGN_NAMESPACE_END
