// How numbers are stored and what they are computed in.
//
// Storage is float, double, bf16 or fp16; arithmetic is in the wider of float and the storage type. A store rounds once, to
// nearest, ties to even. Everything is branch-free integer and float arithmetic, so that compilers vectorise it; on a GPU one
// instruction converts, to the same bits (but for the payload of a NaN).
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

GRADALIGN_NAMESPACE_BEGIN

struct bf16 {
  uint16_t bits;
};

struct fp16 {
  uint16_t bits;
};

template <class To, class From>
GRADALIGN_HD To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "bits_as keeps the size");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

GRADALIGN_HD float widen(float x) { return x; }
GRADALIGN_HD double widen(double x) { return x; }
GRADALIGN_HD float widen(bf16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }

#if defined(__CUDA_ARCH__)
GRADALIGN_HD float widen(fp16 x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
#else
GRADALIGN_HD float widen(fp16 x) {
  const uint32_t magnitude = x.bits & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  // 2^-24 units below the normal range; above it, the exponent is moved from bias 15 to bias 127 (255 for inf and NaN).
  const uint32_t subnormal = bits_as<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t normal = (magnitude << 13) + (magnitude >= 0x7c00u ? 224u << 23 : 112u << 23);
  return bits_as<float>(sign | (magnitude < 0x0400u ? subnormal : normal));
}
#endif

// The value that a store to Storage would keep, still in the type of the arithmetic.
template <class Storage>
struct Rounding;

template <>
struct Rounding<float> {
  static GRADALIGN_HD float round(float x) { return x; }
  static GRADALIGN_HD float pack(float x) { return x; }
};

template <>
struct Rounding<double> {
  static GRADALIGN_HD double round(double x) { return x; }
  static GRADALIGN_HD double pack(double x) { return x; }
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <>
struct Rounding<bf16> {
  static GRADALIGN_HD float round(float x) { return widen(pack(x)); }
  static GRADALIGN_HD bf16 pack(float x) {
    bf16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
  }
};
#else
template <>
struct Rounding<bf16> {
  static GRADALIGN_HD float round(float x) {
    const uint32_t u = bits_as<uint32_t>(x);
    const uint32_t nearest = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
    return bits_as<float>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : nearest);  // NaN stays NaN, as in torch
  }
  static GRADALIGN_HD bf16 pack(float x) { return {static_cast<uint16_t>(bits_as<uint32_t>(round(x)) >> 16)}; }
};

#endif

#if defined(__CUDA_ARCH__)
template <>
struct Rounding<fp16> {
  static GRADALIGN_HD float round(float x) { return widen(pack(x)); }
  static GRADALIGN_HD fp16 pack(float x) {
    fp16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
  }
};
#else
template <>
struct Rounding<fp16> {
  static GRADALIGN_HD float round(float x) {
    const uint32_t u = bits_as<uint32_t>(x);
    const uint32_t sign = u & 0x80000000u;
    const uint32_t magnitude = u & 0x7fffffffu;
    const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u)) & 0xffffe000u;
    // Floats from 0.5 to 1 are 2^-24 apart, which is fp16's spacing below its normal range: the sum rounds for us.
    const float shifted = bits_as<float>(magnitude) + 0.5f;
    const uint32_t subnormal = bits_as<uint32_t>(shifted - 0.5f);
    uint32_t rounded = magnitude < 0x38800000u ? subnormal : normal;
    rounded = normal > 0x477fe000u ? 0x7f800000u : rounded;
    rounded = magnitude > 0x7f800000u ? 0x7fc00000u : rounded;
    return bits_as<float>(sign | rounded);
  }
  static GRADALIGN_HD fp16 pack(float x) {
    const uint32_t u = bits_as<uint32_t>(round(x));
    const uint32_t magnitude = u & 0x7fffffffu;
    const uint32_t sign = (u >> 16) & 0x8000u;
    const uint32_t normal = (magnitude >> 13) - (112u << 10);
    const uint32_t units = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) & 0x3ffu;  // of 2^-24, exact
    uint32_t packed = magnitude < 0x38800000u ? units : normal;
    packed = magnitude >= 0x7f800000u ? (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u) : packed;
    return {static_cast<uint16_t>(sign | packed)};
  }
};

#endif

// double to 16 bits goes through float, as torch's copy_ does. The CPU kernels add what it means for a vector of numbers.
template <class Storage, class T>
struct RoundTo {
  static GRADALIGN_HD T round(T x) {
    return static_cast<T>(Rounding<Storage>::round(static_cast<decltype(widen(Storage{}))>(x)));
  }
};

template <class Storage, class T>
GRADALIGN_HD T round_to(T x) {
  return RoundTo<Storage, T>::round(x);
}

template <class Storage, class T>
GRADALIGN_HD Storage narrow(T x) {
  return Rounding<Storage>::pack(static_cast<decltype(widen(Storage{}))>(x));
}

GRADALIGN_NAMESPACE_END
