// Functions that are compiled for the host and for the device.
#pragma once

#if defined(__CUDACC__) || defined(__HIPCC__)
#define GRADALIGN_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define GRADALIGN_HD inline __attribute__((always_inline))
#else
#define GRADALIGN_HD inline
#endif

// The CPU kernels are compiled once per instruction set. Every set has its own namespace: the linker keeps one of several
// inline functions of the same name, and that one might use instructions the machine does not have.
#ifndef GRADALIGN_ISA
#define GRADALIGN_ISA portable
#endif
#define GRADALIGN_NAMESPACE_BEGIN \
  namespace gradalign {           \
  inline namespace GRADALIGN_ISA {
#define GRADALIGN_NAMESPACE_END \
  }                             \
  }
