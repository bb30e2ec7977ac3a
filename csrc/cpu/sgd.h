// sgd_step_: unscale, update, store and clear in one pass.
#pragma once

#include "../math/sgd.h"
#include "step.h"

GRADALIGN_NAMESPACE_BEGIN

template <class T>
void sgd_block(const T* p, const T* g, const T* buffer, T* new_p, T* new_buffer, T grad_scale, Sgd<T> c, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const SgdResult<T> result = sgd(p[i], g[i] * grad_scale, buffer[i], c);
    new_p[i] = result.p;
    new_buffer[i] = result.buffer;
  }
}

template <class T>
void sgd_plain_block(const T* p, const T* g, T* new_p, T grad_scale, Sgd<T> c, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) new_p[i] = sgd_plain(p[i], g[i] * grad_scale, c);
}

template <class T>
void sgd_piece(const SgdArgs& args, const Piece& piece) {
  const int64_t i = piece.tensor;
  const Operand &theta = theta_of(args.step, i), &grad = args.step.grads[i];
  const T grad_scale = static_cast<T>(args.step.grad_scale);
  const Sgd<T> c{static_cast<T>(args.lr),       static_cast<T>(args.weight_decay),
                 static_cast<T>(args.momentum), static_cast<T>(1 - args.dampening),
                 args.nesterov,                 args.first[i] != 0};
  Stage<T> p, g, buffer;
  for_each_block<T>(piece, [&](int64_t begin, int64_t n) {
    const T* grads = g.load(grad, begin, n);
    const T* old = p.load(theta, begin, n);
    T* moved = p.target(theta, begin);
    if (args.momentum_buffers == nullptr) {
      sgd_plain_block(old, grads, moved, grad_scale, c, n);
    } else {
      const Operand& operand = args.momentum_buffers[i];
      const T* before = buffer.load(operand, begin, n);
      sgd_block(old, grads, before, moved, buffer.target(operand, begin), grad_scale, c, n);
      buffer.store(operand, begin, n);
    }
    store_theta(args.step, i, begin, n, p, moved);
    if (args.step.zero_grads) zero_block(grad, begin, n);
  });
}

inline void sgd_cpu(const SgdArgs& args, const Piece* first, const Piece* last, double*) {
  for (const Piece* piece = first; piece != last; ++piece) {
    const int64_t i = piece->tensor;
    const bool wide = any_double(args.step, i) || (args.momentum_buffers != nullptr && any_double(args.momentum_buffers[i]));
    (wide ? sgd_piece<double> : sgd_piece<float>)(args, *piece);
  }
}

GRADALIGN_NAMESPACE_END
