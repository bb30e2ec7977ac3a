// perturb_: backup <- theta; theta <- theta + d; [delta.d, d.d, delta.delta].
#pragma once

#include "../math/perturb.h"
#include "copy.h"
#include "kernels.h"
#include "sums.h"

GRADALIGN_NAMESPACE_BEGIN

template <class Storage>
struct PerturbSpan {
  const Storage* base;
  const Storage* theta;  // null where it is the rounding of base
  const Storage* x;
  const Storage* y;  // may be null
  Storage* moved;
  Storage* kept;  // where theta is kept; null where that is done already
  bool stream;    // around the cache
};

// `Storage` is what the operands hold, `Stored` what theta will be rounded to in the end.
template <class Stored, bool kTwo, bool kKeep, class Storage>
void perturb_span(const PerturbSpan<Storage>& span, const PerturbArgs& args, int64_t n, ProductSums<3>& sums) {
  using T = Arithmetic<Storage>;
  const PerturbSpan<Storage> s = span;
  const T scale = static_cast<T>(args.scale), scale_y = static_cast<T>(args.scale_y);
  ProductSums<3> held = sums;
  by_lanes<T>(n, [&](int64_t i, auto lanes) {
    using Width = typename decltype(lanes)::Width;
    Width d = displacement(load<Width>(s.x + i), scale);
    if constexpr (kTwo) d += displacement(load<Width>(s.y + i), scale_y);
    const Width base = load<Width>(s.base + i);
    const Perturbed<Width> result = perturb<Stored>(base, s.theta == nullptr ? round_to<Stored>(base) : base, d);
    lanes.add(held, d, result.delta);
    if constexpr (kKeep) copy<Width>(s.kept + i, s.theta + i, s.stream);
    store_exact(s.moved + i, result.moved);
  });
  sums = held;
}

// Theta is kept in the same sweep, or read from where it was kept.
template <bool kTwo, bool kKeep>
void perturb_alike(const PerturbArgs& args, const Piece& piece, ProductSums<3>& sums) {
  const int64_t i = piece.tensor;
  with_any_storage(args.params[i].dtype, [&](auto storage) {
    using Storage = decltype(storage);
    Storage *theta = elements<Storage>(args.params[i], piece.begin), *kept = elements<Storage>(args.backups[i], piece.begin);
    const Storage* x = elements<Storage>(args.xs[i], piece.begin);
    const Storage* y = kTwo ? elements<Storage>(args.ys[i], piece.begin) : nullptr;
    const PerturbSpan<Storage> span{kKeep ? theta : kept, theta, x, y, theta, kept, args.stream && is_aligned(kept)};
    perturb_span<Storage, kTwo, kKeep>(span, args, piece.length, sums);
  });
}

// Through buffers; theta is kept block by block.
template <class T, bool kTwo>
void perturb_blocks(const PerturbArgs& args, const Piece& piece, bool x_is_backup, bool y_is_backup, ProductSums<3>& sums) {
  const Operand &param = args.params[piece.tensor], &backup = args.backups[piece.tensor];
  Stage<T> theta, base, first, second;
  for_each_block<T>(piece, [&](int64_t begin, int64_t n) {
    PerturbSpan<T> span{};
    span.x = first.load(args.xs[piece.tensor], begin, n, x_is_backup);
    if constexpr (kTwo) span.y = second.load(args.ys[piece.tensor], begin, n, y_is_backup);
    span.base = args.from_backups ? base.load(backup, begin, n) : theta.load(param, begin, n);
    span.theta = args.from_backups ? nullptr : span.base;
    if (!args.from_backups) copy_block(backup, param, begin, n, args.stream && !x_is_backup && !y_is_backup);
    span.moved = theta.target(param, begin);
    with_storage<T>(param.dtype, [&](auto stored) {
      perturb_span<decltype(stored), kTwo, false>(span, args, n, sums);
    });
    theta.store(param, begin, n);
  });
}

template <bool kTwo>
void perturb_piece(const PerturbArgs& args, const Piece& piece, double* sums) {
  const Operand &param = args.params[piece.tensor], &backup = args.backups[piece.tensor], &x = args.xs[piece.tensor];
  const Operand& y = kTwo ? args.ys[piece.tensor] : x;
  const bool x_is_backup = x.data == backup.data, y_is_backup = y.data == backup.data;
  ProductSums<3> products;
  if (!x_is_backup && !y_is_backup && alike(param, backup, x, y)) {
    (args.from_backups ? perturb_alike<kTwo, false> : perturb_alike<kTwo, true>)(args, piece, products);
  } else {
    with_arithmetic(any_double(param, backup, x, y), [&](auto arithmetic) {
      perturb_blocks<decltype(arithmetic), kTwo>(args, piece, x_is_backup, y_is_backup, products);
    });
  }
  double d_delta[3] = {};
  products.add_to(d_delta);
  sums[0] += d_delta[1];
  sums[1] += d_delta[0];
  sums[2] += d_delta[2];
}

inline void perturb_cpu(const PerturbArgs& args, const Piece* first, const Piece* last, double* sums) {
  for (const Piece* piece = first; piece != last; ++piece) {
    (args.ys == nullptr ? perturb_piece<false> : perturb_piece<true>)(args, *piece, sums);
  }
  finish_streams(args.stream);
}

GRADALIGN_NAMESPACE_END
