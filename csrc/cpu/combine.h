// combine_: out <- a x + b y; [out.out] of the stored values.
#pragma once

#include "../math/combine.h"
#include "kernels.h"
#include "stage.h"
#include "sums.h"

GRADALIGN_NAMESPACE_BEGIN

// `Storage` is what x, y and out hold, `Stored` what out will be rounded to in the end.
template <class Stored, class Storage>
void combine_span(const Storage* x, const Storage* y, Storage* out, const CombineArgs& args, bool stream, int64_t n,
                  ProductSums<1>& sums) {
  using T = Arithmetic<Storage>;
  const T a = static_cast<T>(args.a), b = static_cast<T>(args.b);
  ProductSums<1> held = sums;
  by_lanes<T>(n, [&](int64_t i, auto lanes) {
    using Width = typename decltype(lanes)::Width;
    const Width stored = combine<Stored>(load<Width>(x + i), load<Width>(y + i), a, b);
    lanes.add(held, stored, stored);
    store_exact(out + i, stored, stream);
  });
  sums = held;
}

inline void combine_piece(const CombineArgs& args, const Piece& piece, double* sums) {
  const Operand &out = args.outs[piece.tensor], &x = args.xs[piece.tensor], &y = args.ys[piece.tensor];
  ProductSums<1> products;
  if (alike(out, x, y)) {
    with_any_storage(out.dtype, [&](auto storage) {
      using Storage = decltype(storage);
      Storage* outs = elements<Storage>(out, piece.begin);
      const bool stream = args.stream && out.data != x.data && out.data != y.data && is_aligned(outs);
      combine_span<Storage>(elements<Storage>(x, piece.begin), elements<Storage>(y, piece.begin), outs, args, stream,
                            piece.length, products);
    });
  } else {
    with_arithmetic(any_double(out, x, y), [&](auto arithmetic) {
      using T = decltype(arithmetic);
      Stage<T> first, second, result;
      for_each_block<T>(piece, [&](int64_t begin, int64_t n) {
        const T *xs = first.load(x, begin, n), *ys = second.load(y, begin, n);
        T* outs = result.target(out, begin);
        with_storage<T>(out.dtype, [&](auto stored) {
          combine_span<decltype(stored)>(xs, ys, outs, args, false, n, products);
        });
        result.store(out, begin, n);
      });
    });
  }
  products.add_to(sums);
}

inline void combine_cpu(const CombineArgs& args, const Piece* first, const Piece* last, double* sums) {
  for (const Piece* piece = first; piece != last; ++piece) combine_piece(args, *piece, sums);
  finish_streams(args.stream);
}

GRADALIGN_NAMESPACE_END
