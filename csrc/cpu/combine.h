// combine_: out <- a x + b y; [out.out] of the stored values.
#pragma once

#include "../math/combine.h"
#include "../math/dot.h"
#include "kernels.h"
#include "stage.h"

GRADALIGN_NAMESPACE_BEGIN

template <class Storage, class T>
void combine_block(const T* x, const T* y, T* out, T a, T b, int64_t n, double* sums) {
  double out_out = 0;
#pragma omp simd reduction(+ : out_out)
  for (int64_t i = 0; i < n; ++i) {
    const T stored = combine<Storage>(x[i], y[i], a, b);
    out_out += product(stored, stored);
    out[i] = stored;
  }
  sums[0] += out_out;
}

template <class T>
void combine_piece(const CombineArgs& args, const Piece& piece, double* sums) {
  const Operand& out = args.outs[piece.tensor];
  const Operand& x = args.xs[piece.tensor];
  const Operand& y = args.ys[piece.tensor];
  const bool stream = args.stream && out.data != x.data && out.data != y.data;
  Stage<T> first, second, result;
  for_each_block<T>(piece, [&](int64_t begin, int64_t n) {
    const T* xs = first.load(x, begin, n);
    const T* ys = second.load(y, begin, n);
    T* outs = result.target(out, begin, stream);
    with_storage<T>(out.dtype, [&](auto storage) {
      combine_block<decltype(storage)>(xs, ys, outs, static_cast<T>(args.a), static_cast<T>(args.b), n, sums);
    });
    result.store(out, begin, n);
  });
}

inline void combine_cpu(const CombineArgs& args, const Piece* first, const Piece* last, double* sums) {
  for (const Piece* piece = first; piece != last; ++piece) {
    const int64_t i = piece->tensor;
    (any_double(args.outs[i], args.xs[i], args.ys[i]) ? combine_piece<double> : combine_piece<float>)(args, *piece, sums);
  }
  finish_streams(args.stream);
}

GRADALIGN_NAMESPACE_END
