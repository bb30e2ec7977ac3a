// adamw_step_: unscale, update, store and clear in one pass.
#pragma once

#include "../math/adamw.h"
#include "step.h"

GRADALIGN_NAMESPACE_BEGIN

template <class T>
struct AdamWBlock {
  const T *p, *g, *m, *v, *largest;
  T *new_p, *new_m, *new_v, *new_largest;
  T grad_scale;
};

template <bool kAmsgrad, class T>
void adamw_block(const AdamWBlock<T>& block, const AdamW<T>& coefficients, int64_t n) {
  const AdamW<T> c = coefficients;
  const T *p = block.p, *g = block.g, *m = block.m, *v = block.v, *largest = block.largest;
  T *new_p = block.new_p, *new_m = block.new_m, *new_v = block.new_v, *new_largest = block.new_largest;
  const T grad_scale = block.grad_scale;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const AdamWResult<T> result = adamw<kAmsgrad>(p[i], g[i] * grad_scale, m[i], v[i], kAmsgrad ? largest[i] : T(0), c);
    new_p[i] = result.p;
    new_m[i] = result.m;
    new_v[i] = result.v;
    if constexpr (kAmsgrad) new_largest[i] = result.largest;
  }
}

template <class T>
AdamW<T> adamw_coefficients(const AdamWArgs& args, int64_t tensor) {
  const AdamWTensor& own = args.tensors[tensor];
  return {
      {static_cast<T>(1 - args.beta1), static_cast<T>(args.beta2), static_cast<T>(1 - args.beta2)},
      static_cast<T>(args.kept),
      static_cast<T>(args.weight_decay),
      static_cast<T>(own.step_size),
      static_cast<T>(own.correction),
      static_cast<T>(args.eps),
      args.decoupled,
  };
}

template <class T>
void adamw_piece(const AdamWArgs& args, const Piece& piece) {
  const int64_t i = piece.tensor;
  const AdamW<T> coefficients = adamw_coefficients<T>(args, i);
  const Operand &theta = theta_of(args.step, i), &grad = args.step.grads[i];
  const bool amsgrad = args.max_exp_avg_sqs != nullptr;
  Stage<T> p, g, m, v, largest;
  for_each_block<T>(piece, [&](int64_t begin, int64_t n) {
    AdamWBlock<T> block{};
    block.grad_scale = static_cast<T>(args.step.grad_scale);
    block.g = g.load(grad, begin, n);
    block.p = p.load(theta, begin, n);
    block.m = m.load(args.exp_avgs[i], begin, n);
    block.v = v.load(args.exp_avg_sqs[i], begin, n);
    block.new_p = p.target(theta, begin);
    block.new_m = m.target(args.exp_avgs[i], begin);
    block.new_v = v.target(args.exp_avg_sqs[i], begin);
    if (amsgrad) {
      block.largest = largest.load(args.max_exp_avg_sqs[i], begin, n);
      block.new_largest = largest.target(args.max_exp_avg_sqs[i], begin);
    }
    (amsgrad ? adamw_block<true, T> : adamw_block<false, T>)(block, coefficients, n);
    m.store(args.exp_avgs[i], begin, n);
    v.store(args.exp_avg_sqs[i], begin, n);
    if (amsgrad) largest.store(args.max_exp_avg_sqs[i], begin, n);
    store_theta(args.step, i, begin, n, p, block.new_p);
    if (args.step.zero_grads) zero_block(grad, begin, n);
  });
}

inline void adamw_cpu(const AdamWArgs& args, const Piece* first, const Piece* last, double*) {
  for (const Piece* piece = first; piece != last; ++piece) {
    const int64_t i = piece->tensor;
    const Operand& largest = (args.max_exp_avg_sqs == nullptr ? args.exp_avg_sqs : args.max_exp_avg_sqs)[i];
    const bool wide = any_double(args.step, i) || any_double(args.exp_avgs[i], args.exp_avg_sqs[i], largest);
    (wide ? adamw_piece<double> : adamw_piece<float>)(args, *piece);
  }
}

GRADALIGN_NAMESPACE_END
