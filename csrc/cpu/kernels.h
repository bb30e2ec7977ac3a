// The table of kernels: one for each instruction set, chosen once.
//
// A kernel works on one page (see plan.h) and adds its sums to `sums`. Lists are arrays with one Operand per tensor.
#pragma once

#include "../plan.h"
#include "../tensor/operand.h"

namespace gradalign {

struct NormDotArgs {
  const Operand* xs;
  const Operand* ys;  // may be null
};

struct PerturbArgs {
  const Operand* params;
  const Operand* backups;
  const Operand* xs;
  const Operand* ys;  // may be null
  double scale;
  double scale_y;
  bool from_backups;
  bool stream;  // the lists are larger than the cache: what is not read is written around it
};

struct RestoreArgs {
  const Operand* params;
  const Operand* backups;
  bool stream;
};

struct SwapArgs {
  const Operand* params;
  const Operand* backups;
};

struct AccumulateArgs {
  const Operand* accs;
  const Operand* grads;
  double scale;
};

struct CombineArgs {
  const Operand* outs;
  const Operand* xs;
  const Operand* ys;
  double a;
  double b;
  bool stream;
};

// What the optimizer steps have in common.
struct StepArgs {
  const Operand* params;
  const Operand* grads;
  const Operand* masters;  // may be null: then theta is the parameter itself
  const uint32_t* keys;    // of the streams for stochastic rounding, one per tensor; may be null
  double grad_scale;       // negative to maximize
  bool zero_grads;
};

struct AdamWTensor {
  double step_size;
  double correction;
};

struct AdamWArgs {
  StepArgs step;
  const Operand* exp_avgs;
  const Operand* exp_avg_sqs;
  const Operand* max_exp_avg_sqs;  // may be null: no amsgrad
  const AdamWTensor* tensors;
  double beta1, beta2, eps, kept, weight_decay;
  bool decoupled;
};

struct SgdArgs {
  StepArgs step;
  const Operand* momentum_buffers;  // may be null: no momentum
  const uint8_t* first;             // whether a tensor's buffer holds nothing yet
  double lr, weight_decay, momentum, dampening;
  bool nesterov;
};

struct LambTensor {
  double inverse1;
  double inverse2;
  double rate;  // lr times the trust ratio; for the second sweep
};

struct LambArgs {
  StepArgs step;
  const Operand* exp_avgs;
  const Operand* exp_avg_sqs;
  const LambTensor* tensors;
  double beta1, beta2, eps, weight_decay;
};

template <class Args>
using Kernel = void (*)(const Args& args, const Piece* first, const Piece* last, double* sums);

struct Kernels {
  const char* isa;
  Kernel<NormDotArgs> norm_dot;
  Kernel<PerturbArgs> perturb;
  Kernel<RestoreArgs> restore;
  Kernel<SwapArgs> swap;
  Kernel<AccumulateArgs> accumulate;
  Kernel<CombineArgs> combine;
  Kernel<AdamWArgs> adamw;
  Kernel<SgdArgs> sgd;
  Kernel<LambArgs> lamb_moments;  // adds ||theta||^2 and ||direction||^2 of every piece to a row of `sums` of its own
  Kernel<LambArgs> lamb_update;
  Kernel<StepArgs> skipped;  // clears the gradients and leaves the rest alone
};

// Weak: a binary need not hold all of them, and the address of one that it lacks is null.
[[gnu::weak]] extern const Kernels kernels_portable;
#if defined(__x86_64__)
[[gnu::weak]] extern const Kernels kernels_avx2;
[[gnu::weak]] extern const Kernels kernels_avx512;
#endif

}  // namespace gradalign
