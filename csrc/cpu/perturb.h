// perturb_: backup <- theta; theta <- theta + d; [delta.d, d.d, delta.delta].
#pragma once

#include "../math/dot.h"
#include "../math/perturb.h"
#include "copy.h"
#include "kernels.h"

GRADALIGN_NAMESPACE_BEGIN

template <class T>
struct PerturbBlock {
  const T* base;
  const T* theta;
  const T* x;
  const T* y;  // may be null
  T* moved;
  T scale;
  T scale_y;
};

template <class Storage, bool kTwo, class T>
void perturb_block(const PerturbBlock<T>& block, int64_t n, double* sums) {
  const auto [base, theta, x, y, moved, scale, scale_y] = block;
  double delta_d = 0, d_d = 0, delta_delta = 0;
#pragma omp simd reduction(+ : delta_d, d_d, delta_delta)
  for (int64_t i = 0; i < n; ++i) {
    T d = displacement(x[i], scale);
    if constexpr (kTwo) d += displacement(y[i], scale_y);
    const Perturbed<T> result = perturb<Storage>(base[i], theta[i], d);
    moved[i] = result.moved;
    delta_d += product(result.delta, d);
    d_d += product(d, d);
    delta_delta += product(result.delta, result.delta);
  }
  sums[0] += delta_d;
  sums[1] += d_d;
  sums[2] += delta_delta;
}

template <class T>
void perturb_piece(const PerturbArgs& args, const Piece& piece, double* sums) {
  const Operand& param = args.params[piece.tensor];
  const Operand& backup = args.backups[piece.tensor];
  const Operand& x = args.xs[piece.tensor];
  const Operand* y = args.ys == nullptr ? nullptr : &args.ys[piece.tensor];
  const bool x_is_backup = x.data == backup.data;
  const bool y_is_backup = y != nullptr && y->data == backup.data;
  Stage<T> theta, base, first, second;
  for_each_block<T>(piece, [&](int64_t begin, int64_t n) {
    PerturbBlock<T> block{};
    block.scale = static_cast<T>(args.scale);
    block.scale_y = static_cast<T>(args.scale_y);
    block.x = first.load(x, begin, n, x_is_backup);
    if (y != nullptr) block.y = second.load(*y, begin, n, y_is_backup);
    block.theta = theta.load(param, begin, n);
    block.base = args.from_backups ? base.load(backup, begin, n) : block.theta;
    if (!args.from_backups) copy_block(backup, param, begin, n, args.stream && !x_is_backup && !y_is_backup);
    block.moved = theta.target(param, begin);
    with_storage<T>(param.dtype, [&](auto storage) {
      (y == nullptr ? perturb_block<decltype(storage), false, T> : perturb_block<decltype(storage), true, T>)(block, n, sums);
    });
    theta.store(param, begin, n);
  });
}

inline void perturb_cpu(const PerturbArgs& args, const Piece* first, const Piece* last, double* sums) {
  for (const Piece* piece = first; piece != last; ++piece) {
    const int64_t i = piece->tensor;
    const bool wide = any_double(args.params[i], args.backups[i], args.xs[i], (args.ys ? args.ys : args.xs)[i]);
    (wide ? perturb_piece<double> : perturb_piece<float>)(args, *piece, sums);
  }
  finish_streams(args.stream);
}

GRADALIGN_NAMESPACE_END
