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
inline void stream_line(void* to, const void* from) { _mm512_stream_si512(static_cast<Line*>(to), _mm512_loadu_si512(from)); }
#elif defined(__AVX2__)
using Line = __m256i;
inline void stream_line(void* to, const void* from) {
  _mm256_stream_si256(static_cast<Line*>(to), _mm256_loadu_si256(static_cast<const Line*>(from)));
}
#elif defined(__x86_64__)
using Line = __m128i;
inline void stream_line(void* to, const void* from) {
  _mm_stream_si128(static_cast<Line*>(to), _mm_loadu_si128(static_cast<const Line*>(from)));
}
#endif

inline void copy_bytes(void* to, const void* from, int64_t bytes, bool stream) {
#if defined(__x86_64__)
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  if (stream && bytes >= 4 * static_cast<int64_t>(sizeof(Line))) {
    const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % sizeof(Line));
    const int64_t head = misaligned ? static_cast<int64_t>(sizeof(Line)) - misaligned : 0;
    memcpy(out, in, static_cast<size_t>(head));
    int64_t i = head;
    for (; i + static_cast<int64_t>(sizeof(Line)) <= bytes; i += sizeof(Line)) stream_line(out + i, in + i);
    memcpy(out + i, in + i, static_cast<size_t>(bytes - i));
    return;
  }
#endif
  memcpy(to, from, static_cast<size_t>(bytes));
}

// Non-temporal stores are weakly ordered: they must be complete before another thread is told that the page is done.
inline void finish_streams(bool stream) {
#if defined(__x86_64__)
  if (stream) _mm_sfence();
#endif
}

GRADALIGN_NAMESPACE_END
