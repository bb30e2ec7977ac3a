// Sums of products in double, in sixteen lanes.
//
// A float sum of squares overflows from 1e19 on and loses digits from 1e7 elements on. With one running sum every addition would wait for
// the one before. The lanes are the same on every instruction set, and so are the sums of floats: their product is exact in
// double, fused with the addition or not.
#pragma once

#include "vectors.h"

GRADALIGN_NAMESPACE_BEGIN

constexpr int kLanes = 16;

using Doubles = Vector<double>;

#if defined(__AVX512F__)
inline Doubles add_product(Doubles sum, Doubles x, Doubles y) {
  using Register = __m512d;
  const Register a = reinterpret_cast<Register>(x), b = reinterpret_cast<Register>(y), c = reinterpret_cast<Register>(sum);
  return reinterpret_cast<Doubles>(_mm512_fmadd_pd(a, b, c));
}
#elif defined(__AVX2__) && defined(__FMA__)
inline Doubles add_product(Doubles sum, Doubles x, Doubles y) {
  using Register = __m256d;
  const Register a = reinterpret_cast<Register>(x), b = reinterpret_cast<Register>(y), c = reinterpret_cast<Register>(sum);
  return reinterpret_cast<Doubles>(_mm256_fmadd_pd(a, b, c));
}
#else
inline Doubles add_product(Doubles sum, Doubles x, Doubles y) { return sum + x * y; }
#endif

// A Vector<T> in double: as many registers as that takes.
template <class T>
struct Wide {
  static constexpr int kParts = static_cast<int>(sizeof(double) / sizeof(T));
  Doubles parts[kParts];
};

inline Wide<double> to_double(Vector<double> x) { return {{x}}; }

inline Wide<float> to_double(Vector<float> x) {
#if defined(__AVX512F__)
  const __m512d whole = reinterpret_cast<__m512d>(x);
  const __m256 low = _mm256_castpd_ps(_mm512_castpd512_pd256(whole));
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(whole, 1));
  return {{reinterpret_cast<Doubles>(_mm512_cvtps_pd(low)), reinterpret_cast<Doubles>(_mm512_cvtps_pd(high))}};
#elif defined(__AVX2__)
  const __m256 whole = reinterpret_cast<__m256>(x);
  const __m128 low = _mm256_castps256_ps128(whole), high = _mm256_extractf128_ps(whole, 1);
  return {{reinterpret_cast<Doubles>(_mm256_cvtps_pd(low)), reinterpret_cast<Doubles>(_mm256_cvtps_pd(high))}};
#else
  return {{Doubles{x[0], x[1]}, Doubles{x[2], x[3]}}};
#endif
}

// x.x, then x.y, then y.y: as many of them as kSums says.
template <int kSums>
class ProductSums {
 public:
  // The elements of a group from the kFirst-th on.
  template <int kFirst, class T>
  void add(Wide<T> x, Wide<T> y) {
    constexpr int kPart = kFirst / kWidth<double>;
    for (int i = 0; i < Wide<T>::kParts; ++i) {
      add_to_part(kPart + i, x.parts[i], y.parts[i]);
    }
  }

  // An element beyond the last full group.
  void add_one(double x, double y) {
    last_[0] += x * x;
    if constexpr (kSums > 1) last_[1] += x * y;
    if constexpr (kSums > 2) last_[2] += y * y;
  }

  void add_to(double* sums) const {
    for (int sum = 0; sum < kSums; ++sum) {
      double lanes[kLanes];
      memcpy(lanes, parts_[sum], sizeof(lanes));
      for (double lane : lanes) sums[sum] += lane;
      sums[sum] += last_[sum];
    }
  }

 private:
  static constexpr int kParts = kLanes / kWidth<double>;

  void add_to_part(int i, Doubles x, Doubles y) {
    parts_[0][i] = add_product(parts_[0][i], x, x);
    if constexpr (kSums > 1) parts_[1][i] = add_product(parts_[1][i], x, y);
    if constexpr (kSums > 2) parts_[2][i] = add_product(parts_[2][i], y, y);
  }

  Doubles parts_[kSums][kParts] = {};
  double last_[kSums] = {};
};

// The elements of a group from the kFirst-th on, as many as a register holds; or one element beyond the last full group.
template <class T, int kFirst>
struct Lanes {
  using Width = Vector<T>;

  template <class Sums>
  static void add(Sums& sums, Width x, Width y) {
    sums.template add<kFirst, T>(to_double(x), to_double(y));
  }
};

template <class T>
struct OneLane {
  using Width = T;

  template <class Sums>
  static void add(Sums& sums, T x, T y) {
    sums.add_one(x, y);
  }
};

template <class T, class Step, int... kParts>
GRADALIGN_HD void step_group(int64_t i, Step step, std::integer_sequence<int, kParts...>) {
  (step(i + kParts * kWidth<T>, Lanes<T, kParts * kWidth<T>>{}), ...);
}

// Calls step(i, lanes) for n elements, in groups of sixteen and one by one at the end.
template <class T, class Step>
GRADALIGN_HD void by_lanes(int64_t n, Step step) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) step_group<T>(i, step, std::make_integer_sequence<int, kLanes / kWidth<T>>{});
  for (; i < n; ++i) step(i, OneLane<T>{});
}

GRADALIGN_NAMESPACE_END
