// restore_: theta <- backup, and swap_: exchange.
#pragma once

#include "copy.h"
#include "kernels.h"

GRADALIGN_NAMESPACE_BEGIN

inline void restore_cpu(const RestoreArgs& args, const Piece* first, const Piece* last, double*) {
  for (const Piece* piece = first; piece != last; ++piece) {
    for_each_block<double>(*piece, [&](int64_t begin, int64_t n) {
      copy_block(args.params[piece->tensor], args.backups[piece->tensor], begin, n, args.stream);
    });
  }
  finish_streams(args.stream);
}

inline void swap_bytes(char* x, char* y, int64_t bytes) {
#pragma omp simd
  for (int64_t i = 0; i < bytes; ++i) {
    const char held = x[i];
    x[i] = y[i];
    y[i] = held;
  }
}

inline void swap_piece(const Operand& x, const Operand& y, const Piece& piece) {
  const bool alike = x.flat && y.flat && x.dtype == y.dtype;
  const int64_t size = itemsize(x.dtype);
  alignas(64) char held[kBlockBytes];
  Operand holder{held, y.dtype, true, 0, nullptr, nullptr};
  for_each_block<double>(piece, [&](int64_t begin, int64_t n) {
    if (alike) {
      swap_bytes(x.data + begin * size, y.data + begin * size, n * size);
      return;
    }
    holder.data = held - begin * itemsize(y.dtype);  // copy_block counts from the first element of the tensor
    copy_block(holder, y, begin, n, false);
    copy_block(y, x, begin, n, false);
    copy_block(x, holder, begin, n, false);
  });
}

inline void swap_cpu(const SwapArgs& args, const Piece* first, const Piece* last, double*) {
  for (const Piece* piece = first; piece != last; ++piece) {
    swap_piece(args.params[piece->tensor], args.backups[piece->tensor], *piece);
  }
}

GRADALIGN_NAMESPACE_END
