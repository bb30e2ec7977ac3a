// aim and reached: one thread computes what would be dozens of launches for one number each.
#include "../math/displacement.h"
#include "launch.cuh"

namespace gradalign::cuda {

namespace {

__global__ void aim_kernel(const double* sums, Scalar scale_x, Scalar own, const __grid_constant__ Aiming aiming,
                           double* result) {
  if (threadIdx.x > 0) return;
  gradalign::aim(sums, value_of(scale_x), value_of(own), aiming, result);
}

__global__ void reached_kernel(const double* sums, const double* aimed, bool direction, double* result) {
  if (threadIdx.x > 0) return;
  gradalign::reached(sums, aimed[2], direction, result);
}

}  // namespace

void aim(const double* sums, const Scales& scale_x_own, const Aiming& aiming, const Place& place, double* result) {
  launch(place, &aim_kernel, 1, sums, scale_x_own.first, scale_x_own.second, aiming, result);
}

void reached(const double* sums, const double* aimed, bool direction, const Place& place, double* result) {
  launch(place, &reached_kernel, 1, sums, aimed, direction, result);
}

}  // namespace gradalign::cuda
