// accumulate_: acc <- acc + scale g; [g.g, g.acc] with acc as it was before.
#pragma once

#include "../math/accumulate.h"
#include "kernels.h"
#include "stage.h"
#include "sums.h"

GRADALIGN_NAMESPACE_BEGIN

template <class Storage>
void accumulate_span(const Storage* acc, const Storage* g, Storage* out, double scale, int64_t n, ProductSums<2>& sums) {
  using T = Arithmetic<Storage>;
  const T factor = static_cast<T>(scale);
  ProductSums<2> held = sums;
  by_lanes<T>(n, [&](int64_t i, auto lanes) {
    using Width = typename decltype(lanes)::Width;
    const Width before = load<Width>(acc + i), grad = load<Width>(g + i);
    lanes.add(held, grad, before);
    store(out + i, accumulate(before, grad, factor));
  });
  sums = held;
}

inline void accumulate_piece(const Operand& acc, const Operand& grad, double scale, const Piece& piece, double* sums) {
  ProductSums<2> products;
  if (alike(acc, grad)) {
    with_any_storage(acc.dtype, [&](auto storage) {
      auto* out = elements<decltype(storage)>(acc, piece.begin);
      accumulate_span(out, elements<decltype(storage)>(grad, piece.begin), out, scale, piece.length, products);
    });
  } else {
    with_arithmetic(any_double(acc, grad), [&](auto arithmetic) {
      using T = decltype(arithmetic);
      Stage<T> accs, grads;
      for_each_block<T>(piece, [&](int64_t begin, int64_t n) {
        const T *before = accs.load(acc, begin, n), *g = grads.load(grad, begin, n);
        accumulate_span(before, g, accs.target(acc, begin), scale, n, products);
        accs.store(acc, begin, n);
      });
    });
  }
  products.add_to(sums);
}

inline void accumulate_cpu(const AccumulateArgs& args, const Piece* first, const Piece* last, double* sums) {
  for (const Piece* piece = first; piece != last; ++piece) {
    accumulate_piece(args.accs[piece->tensor], args.grads[piece->tensor], args.scale, *piece, sums);
  }
}

GRADALIGN_NAMESPACE_END
