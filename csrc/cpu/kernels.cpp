// Every kernel for one instruction set. Compiled once for each, with GRADALIGN_ISA naming it.
#include "kernels.h"

#include "accumulate.h"
#include "adamw.h"
#include "combine.h"
#include "lamb.h"
#include "norm_dot.h"
#include "perturb.h"
#include "restore.h"
#include "sgd.h"

#define GRADALIGN_JOIN(x, y) x##y
#define GRADALIGN_TABLE(isa) GRADALIGN_JOIN(kernels_, isa)
#define GRADALIGN_TEXT(x) #x
#define GRADALIGN_NAME(isa) GRADALIGN_TEXT(isa)

namespace gradalign {

extern const Kernels GRADALIGN_TABLE(GRADALIGN_ISA) = {
    GRADALIGN_NAME(GRADALIGN_ISA),
    norm_dot_cpu,
    perturb_cpu,
    restore_cpu,
    swap_cpu,
    accumulate_cpu,
    combine_cpu,
    adamw_cpu,
    sgd_cpu,
    lamb_moments_cpu,
    lamb_update_cpu,
    skipped_cpu,
};

}  // namespace gradalign
