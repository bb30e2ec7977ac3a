// accumulate_: acc <- acc + scale g; [g.g, g.acc] with acc as it was before.
#pragma once

#include "../math/accumulate.h"
#include "../math/dot.h"
#include "kernels.h"
#include "stage.h"

GRADALIGN_NAMESPACE_BEGIN

template <class T>
void accumulate_block(const T* acc, const T* g, T* out, T scale, int64_t n, double* sums) {
  double g_g = 0, g_acc = 0;
#pragma omp simd reduction(+ : g_g, g_acc)
  for (int64_t i = 0; i < n; ++i) {
    const T before = acc[i];
    g_g += product(g[i], g[i]);
    g_acc += product(g[i], before);
    out[i] = accumulate(before, g[i], scale);
  }
  sums[0] += g_g;
  sums[1] += g_acc;
}

template <class T>
void accumulate_piece(const AccumulateArgs& args, const Piece& piece, double* sums) {
  const Operand& operand = args.accs[piece.tensor];
  Stage<T> acc, grad;
  for_each_block<T>(piece, [&](int64_t begin, int64_t n) {
    const T* before = acc.load(operand, begin, n);
    const T* g = grad.load(args.grads[piece.tensor], begin, n);
    accumulate_block(before, g, acc.target(operand, begin), static_cast<T>(args.scale), n, sums);
    acc.store(operand, begin, n);
  });
}

inline void accumulate_cpu(const AccumulateArgs& args, const Piece* first, const Piece* last, double* sums) {
  for (const Piece* piece = first; piece != last; ++piece) {
    const bool wide = any_double(args.accs[piece->tensor], args.grads[piece->tensor]);
    (wide ? accumulate_piece<double> : accumulate_piece<float>)(args, *piece, sums);
  }
}

GRADALIGN_NAMESPACE_END
