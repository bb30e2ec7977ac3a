// Vector registers, for the loops that compilers do not vectorise well by themselves: those with sums in double.
//
// A Vector<T> has the operators of T, so the functors of csrc/math take one as they take a T. Loads widen to the type of the
// arithmetic, stores round; a width is a template argument, T for one element or Vector<T> for as many as a register holds.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../math/storage.h"
#include "stream.h"

GRADALIGN_NAMESPACE_BEGIN

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T, int kBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes)));
};

template <class T>
using Vector = typename VectorOf<T, kVectorBytes>::type;

template <class T>
constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(T));

// The type that arithmetic on a storage type is done in.
template <class Storage>
using Arithmetic = decltype(widen(Storage{}));

using Words = Vector<uint32_t>;
using HalfWords = typename VectorOf<uint16_t, kVectorBytes / 2>::type;  // as many as there are Words

template <class To, class From>
inline To read(const From* from) {
  To result;
  memcpy(&result, from, sizeof(To));
  return result;
}

template <class T>
inline void write(void* to, T value, bool stream) {
  store_bytes<sizeof(T)>(to, &value, stream);
}

// One instruction; compilers make three of the plain expression.
inline Words widen_bits(HalfWords bits) {
#if defined(__AVX512F__)
  return reinterpret_cast<Words>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(bits)));
#elif defined(__AVX2__)
  return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(bits)));
#else
  return __builtin_convertvector(bits, Words);
#endif
}

inline HalfWords narrow_bits(Words words) {
#if defined(__AVX512F__)
  return reinterpret_cast<HalfWords>(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(words)));
#else
  return __builtin_convertvector(words, HalfWords);
#endif
}

// One element or as many as a register holds, widened.
template <class Width, class Storage>
inline Width load(const Storage* from) {
  if constexpr (std::is_same_v<Width, Arithmetic<Storage>>) {
    return widen(*from);
  } else if constexpr (std::is_same_v<Storage, bf16>) {
    return reinterpret_cast<Width>(widen_bits(read<HalfWords>(from)) << 16);
  } else if constexpr (std::is_same_v<Storage, fp16>) {
#if defined(__AVX512F__)
    return reinterpret_cast<Width>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__AVX2__) && defined(__F16C__)
    return reinterpret_cast<Width>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
    Width result;
    for (int i = 0; i < kWidth<float>; ++i) result[i] = widen(from[i]);
    return result;
#endif
  } else {
    return read<Width>(from);
  }
}

inline Words bf16_words(Vector<float> x) {
  const Words u = reinterpret_cast<Words>(x);
  const Words nearest = u + 0x7fffu + ((u >> 16) & 1u);
  return x != x ? Words{} + 0x7fc00000u : nearest;
}

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__F16C__))
inline HalfWords fp16_bits(Vector<float> x) {
#if defined(__AVX512F__)
  return reinterpret_cast<HalfWords>(_mm512_cvtps_ph(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
#else
  return reinterpret_cast<HalfWords>(_mm256_cvtps_ph(reinterpret_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
#endif
}
#endif

// `to` must be aligned where a store goes around the cache.
template <class Storage, class Width>
inline void store(Storage* to, Width x, bool stream = false) {
  if constexpr (std::is_same_v<Width, Arithmetic<Storage>>) {
    *to = narrow<Storage>(x);
  } else if constexpr (std::is_same_v<Storage, bf16>) {
    write(to, narrow_bits(bf16_words(x) >> 16), stream);
  } else if constexpr (std::is_same_v<Storage, fp16>) {
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__F16C__))
    write(to, fp16_bits(x), stream);
#else
    for (int i = 0; i < kWidth<float>; ++i) to[i] = narrow<fp16>(x[i]);
#endif
  } else {
    write(to, x, stream);
  }
}

// As store(), of what `Storage` can hold: nothing is rounded.
template <class Storage, class Width>
inline void store_exact(Storage* to, Width x, bool stream = false) {
  if constexpr (std::is_same_v<Storage, bf16> && !std::is_same_v<Width, float>) {
    write(to, narrow_bits(reinterpret_cast<Words>(x) >> 16), stream);
  } else {
    store(to, x, stream);
  }
}

template <class Storage>
struct RoundTo<Storage, Vector<float>> {
  static inline Vector<float> round(Vector<float> x) {
    if constexpr (std::is_same_v<Storage, float>) return x;
    if constexpr (std::is_same_v<Storage, bf16>) return reinterpret_cast<Vector<float>>(bf16_words(x) & 0xffff0000u);
    Storage stored[kWidth<float>];
    store(stored, x);
    return load<Vector<float>>(stored);
  }
};

template <class Storage>
struct RoundTo<Storage, Vector<double>> {
  static inline Vector<double> round(Vector<double> x) {
    if constexpr (std::is_same_v<Storage, double>) return x;
    Vector<double> result;
    for (int i = 0; i < kWidth<double>; ++i) result[i] = RoundTo<Storage, double>::round(x[i]);
    return result;
  }
};

// Bit for bit.
template <class Width, class Storage>
inline void copy(Storage* to, const Storage* from, bool stream) {
  if constexpr (std::is_same_v<Width, Arithmetic<Storage>>) {
    *to = *from;
  } else {
    constexpr size_t kElements = sizeof(Width) / sizeof(Arithmetic<Storage>);
    store_bytes<kElements * sizeof(Storage)>(to, from, stream);
  }
}

GRADALIGN_NAMESPACE_END
