// lamb_step_: two sweeps, moments and norms, then the update.
#pragma once

#include "../math/lamb.h"
#include "norm_dot.h"
#include "step.h"

GRADALIGN_NAMESPACE_BEGIN

template <class T>
Lamb<T> lamb_coefficients(const LambArgs& args, int64_t tensor) {
  const LambTensor& own = args.tensors[tensor];
  return {
      {static_cast<T>(1 - args.beta1), static_cast<T>(args.beta2), static_cast<T>(1 - args.beta2)},
      static_cast<T>(args.weight_decay),
      static_cast<T>(own.inverse1),
      static_cast<T>(own.inverse2),
      static_cast<T>(args.eps),
  };
}

template <class T>
void moments_block(const T* g, const T* m, const T* v, T* new_m, T* new_v, T grad_scale, Decays<T> decays, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Moments<T> moments = update_moments(m[i], v[i], g[i] * grad_scale, decays);
    new_m[i] = moments.m;
    new_v[i] = moments.v;
  }
}

template <class T>
void lamb_direction_block(const T* p, const T* m, const T* v, T* u, Lamb<T> c, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) u[i] = lamb_direction(p[i], m[i], v[i], c);
}

template <class T>
void lamb_update_block(const T* p, const T* m, const T* v, T* new_p, T rate, Lamb<T> c, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) new_p[i] = p[i] - rate * lamb_direction(p[i], m[i], v[i], c);
}

template <class T>
void lamb_moments_piece(const LambArgs& args, const Piece& piece, double* sums) {
  const int64_t i = piece.tensor;
  const Lamb<T> c = lamb_coefficients<T>(args, i);
  const Operand &exp_avg = args.exp_avgs[i], &exp_avg_sq = args.exp_avg_sqs[i], &grad = args.step.grads[i];
  Stage<T> p, g, m, v;
  alignas(64) T direction[kBlock<T>];
  ProductSums<1> theta_squares, direction_squares;
  for_each_block<T>(piece, [&](int64_t begin, int64_t n) {
    const T* grads = g.load(grad, begin, n);
    const T *old_m = m.load(exp_avg, begin, n), *old_v = v.load(exp_avg_sq, begin, n);
    T *new_m = m.target(exp_avg, begin), *new_v = v.target(exp_avg_sq, begin);
    moments_block(grads, old_m, old_v, new_m, new_v, static_cast<T>(args.step.grad_scale), c.decays, n);
    m.store(exp_avg, begin, n);
    v.store(exp_avg_sq, begin, n);
    if (args.step.zero_grads) zero_block(grad, begin, n);
    // The direction is taken from the moments as they are stored, here and in the second sweep.
    const T *stored_m = m.load(exp_avg, begin, n), *stored_v = v.load(exp_avg_sq, begin, n);
    const T* theta = p.load(theta_of(args.step, i), begin, n);
    lamb_direction_block(theta, stored_m, stored_v, direction, c, n);
    norm_dot_span(theta, theta, n, theta_squares);
    norm_dot_span<1, T>(direction, direction, n, direction_squares);
  });
  theta_squares.add_to(sums);
  direction_squares.add_to(sums + 1);
}

template <class T>
void lamb_update_piece(const LambArgs& args, const Piece& piece) {
  const int64_t i = piece.tensor;
  const Lamb<T> c = lamb_coefficients<T>(args, i);
  const Operand& theta = theta_of(args.step, i);
  Stage<T> p, m, v;
  for_each_block<T>(piece, [&](int64_t begin, int64_t n) {
    const T* old = p.load(theta, begin, n);
    const T *ms = m.load(args.exp_avgs[i], begin, n), *vs = v.load(args.exp_avg_sqs[i], begin, n);
    T* moved = p.target(theta, begin);
    lamb_update_block(old, ms, vs, moved, static_cast<T>(args.tensors[i].rate), c, n);
    store_theta(args.step, i, begin, n, p, moved);
  });
}

inline bool lamb_is_wide(const LambArgs& args, int64_t i) {
  return any_double(args.step, i) || any_double(args.exp_avgs[i], args.exp_avg_sqs[i]);
}

inline void lamb_moments_cpu(const LambArgs& args, const Piece* first, const Piece* last, double* sums) {
  for (const Piece* piece = first; piece != last; ++piece, sums += 2) {
    (lamb_is_wide(args, piece->tensor) ? lamb_moments_piece<double> : lamb_moments_piece<float>)(args, *piece, sums);
  }
}

inline void lamb_update_cpu(const LambArgs& args, const Piece* first, const Piece* last, double*) {
  for (const Piece* piece = first; piece != last; ++piece) {
    (lamb_is_wide(args, piece->tensor) ? lamb_update_piece<double> : lamb_update_piece<float>)(args, *piece);
  }
}

GRADALIGN_NAMESPACE_END
