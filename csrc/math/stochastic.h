// Stochastic rounding to bf16 with a counter-based stream; gradalign/backends/rounding.py says what every backend computes.
#pragma once

#include "storage.h"

GRADALIGN_NAMESPACE_BEGIN

GRADALIGN_HD uint32_t mix(uint32_t x) {
  x += 0x9e3779b9u;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// One tensor's stream in step t.
GRADALIGN_HD uint32_t rounding_key(uint64_t seed, uint32_t tensor_index, uint32_t t) {
  return mix(static_cast<uint32_t>(seed) ^ mix(static_cast<uint32_t>(seed >> 32) ^ mix(tensor_index ^ mix(t))));
}

// `high` is mix(key ^ the upper half of the element's index): the same for 2^32 elements.
GRADALIGN_HD bf16 round_stochastically(float x, uint32_t low, uint32_t high) {
  const uint32_t u = bits_as<uint32_t>(x);
  const uint32_t up = (u + (mix(low ^ high) & 0xffffu)) >> 16;
  const bool finite = (u & 0x7f800000u) != 0x7f800000u;
  return {static_cast<uint16_t>(finite ? up : Rounding<bf16>::pack(x).bits)};
}

GRADALIGN_NAMESPACE_END
