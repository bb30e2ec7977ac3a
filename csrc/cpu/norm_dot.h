// norm_dot: [x.x, x.y, y.y].
#pragma once

#include "kernels.h"
#include "stage.h"
#include "sums.h"

GRADALIGN_NAMESPACE_BEGIN

// x.x alone where kSums is 1.
template <int kSums, class Storage>
void norm_dot_span(const Storage* x, const Storage* y, int64_t n, ProductSums<kSums>& sums) {
  ProductSums<kSums> held = sums;
  by_lanes<Arithmetic<Storage>>(n, [&](int64_t i, auto lanes) {
    using Width = typename decltype(lanes)::Width;
    lanes.add(held, load<Width>(x + i), load<Width>(y + i));
  });
  sums = held;
}

template <int kSums>
void norm_dot_piece(const Operand& x, const Operand& y, const Piece& piece, double* sums) {
  ProductSums<kSums> products;
  if (alike(x, y)) {
    with_any_storage(x.dtype, [&](auto storage) {
      using Storage = decltype(storage);
      norm_dot_span(elements<Storage>(x, piece.begin), elements<Storage>(y, piece.begin), piece.length, products);
    });
  } else {
    with_arithmetic(any_double(x, y), [&](auto arithmetic) {
      using T = decltype(arithmetic);
      Stage<T> first, second;
      for_each_block<T>(piece, [&](int64_t begin, int64_t n) {
        norm_dot_span(first.load(x, begin, n), second.load(y, begin, n), n, products);
      });
    });
  }
  products.add_to(sums);
}

inline void norm_dot_cpu(const NormDotArgs& args, const Piece* first, const Piece* last, double* sums) {
  for (const Piece* piece = first; piece != last; ++piece) {
    const Operand& x = args.xs[piece->tensor];
    if (args.ys == nullptr) {
      norm_dot_piece<1>(x, x, *piece, sums);
    } else {
      norm_dot_piece<3>(x, args.ys[piece->tensor], *piece, sums);
    }
  }
}

GRADALIGN_NAMESPACE_END
