// Copies that can go around the cache.
//
// A store to a line that was not read first reads it from memory; a non-temporal store does not, and the line would be
// evicted before its next use anyway where the lists are larger than the cache.
#pragma once

#include <cstdint>
#include <cstring>

#include "../math/host_device.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

GRADALIGN_NAMESPACE_BEGIN

#if defined(__AVX512F__)
using Line = __m512i;
inline Line load_line(const void* from) { return _mm512_loadu_si512(from); }
inline void store_line(void* to, Line line) { _mm512_storeu_si512(to, line); }
inline void stream_line(void* to, Line line) { _mm512_stream_si512(static_cast<Line*>(to), line); }
#elif defined(__AVX2__)
using Line = __m256i;
inline Line load_line(const void* from) { return _mm256_loadu_si256(static_cast<const Line*>(from)); }
inline void store_line(void* to, Line line) { _mm256_storeu_si256(static_cast<Line*>(to), line); }
inline void stream_line(void* to, Line line) { _mm256_stream_si256(static_cast<Line*>(to), line); }
#elif defined(__x86_64__)
using Line = __m128i;
inline Line load_line(const void* from) { return _mm_loadu_si128(static_cast<const Line*>(from)); }
inline void store_line(void* to, Line line) { _mm_storeu_si128(static_cast<Line*>(to), line); }
inline void stream_line(void* to, Line line) { _mm_stream_si128(static_cast<Line*>(to), line); }
#endif

// Line by line, not by memcpy: for a few kilobytes that takes microcoded string moves, at half the speed (measured).
inline void copy_bytes(void* to, const void* from, int64_t bytes, bool stream) {
#if defined(__x86_64__)
  constexpr int64_t kLine = sizeof(Line);
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  int64_t i = 0;
  if (stream && bytes >= 4 * kLine) {
    const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % sizeof(Line));
    i = misaligned == 0 ? 0 : kLine - misaligned;
    memcpy(out, in, static_cast<size_t>(i));
    for (; i + kLine <= bytes; i += kLine) stream_line(out + i, load_line(in + i));
  }
  for (; i + kLine <= bytes; i += kLine) store_line(out + i, load_line(in + i));
  memcpy(out + i, in + i, static_cast<size_t>(bytes - i));
#else
  memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

// kBytes of them, a power of two from 8 on; `to` must be aligned to them where they go around the cache.
template <int kBytes>
inline void store_bytes(void* to, const void* from, bool stream) {
#if defined(__AVX512F__)
  if (stream && kBytes == 64) return _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
#endif
#if defined(__AVX2__)
  if (stream && kBytes == 32) {
    return _mm256_stream_si256(static_cast<__m256i*>(to), _mm256_loadu_si256(static_cast<const __m256i*>(from)));
  }
#endif
#if defined(__x86_64__)
  if (stream && kBytes == 16) {
    return _mm_stream_si128(static_cast<__m128i*>(to), _mm_loadu_si128(static_cast<const __m128i*>(from)));
  }
#endif
  memcpy(to, from, kBytes);
}

// Whether non-temporal stores from here on, register by register, are to addresses that are aligned for them.
inline bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 64 == 0; }

// Non-temporal stores are weakly ordered: they must be complete before another thread is told that the page is done.
inline void finish_streams(bool stream) {
#if defined(__x86_64__)
  if (stream) _mm_sfence();
#endif
}

GRADALIGN_NAMESPACE_END
