// norm_dot: [x.x, x.y, y.y].
#pragma once

#include "../math/dot.h"
#include "kernels.h"
#include "stage.h"

GRADALIGN_NAMESPACE_BEGIN

template <class T>
void norm_dot_block(const T* x, const T* y, int64_t n, double* sums) {
  double xx = 0, xy = 0, yy = 0;
#pragma omp simd reduction(+ : xx, xy, yy)
  for (int64_t i = 0; i < n; ++i) {
    xx += product(x[i], x[i]);
    xy += product(x[i], y[i]);
    yy += product(y[i], y[i]);
  }
  sums[0] += xx;
  sums[1] += xy;
  sums[2] += yy;
}

template <class T>
void norm_block(const T* x, int64_t n, double* sums) {
  double xx = 0;
#pragma omp simd reduction(+ : xx)
  for (int64_t i = 0; i < n; ++i) xx += product(x[i], x[i]);
  sums[0] += xx;
}

template <class T>
void norm_dot_piece(const NormDotArgs& args, const Piece& piece, double* sums) {
  Stage<T> x, y;
  for_each_block<T>(piece, [&](int64_t begin, int64_t n) {
    const T* xs = x.load(args.xs[piece.tensor], begin, n);
    if (args.ys == nullptr) {
      norm_block(xs, n, sums);
    } else {
      norm_dot_block(xs, y.load(args.ys[piece.tensor], begin, n), n, sums);
    }
  });
}

inline void norm_dot_cpu(const NormDotArgs& args, const Piece* first, const Piece* last, double* sums) {
  for (const Piece* piece = first; piece != last; ++piece) {
    const bool wide = any_double(args.xs[piece->tensor], (args.ys ? args.ys : args.xs)[piece->tensor]);
    (wide ? norm_dot_piece<double> : norm_dot_piece<float>)(args, *piece, sums);
  }
}

GRADALIGN_NAMESPACE_END
