// Storage types. Arithmetic is in float, or in double for double; bfloat16 and float16 are widened and rounded
// (to nearest, ties to even) with integer operations that every instruction set has.
#pragma once
#include "vecmath.h"

namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};

LTFAST_INLINE float load(float x) { return x; }
LTFAST_INLINE double load(double x) { return x; }
LTFAST_INLINE float load(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
LTFAST_INLINE float load(Float16 x) {
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  const uint32_t special = magnitude >= 0x0f800000u ? 0x38000000u : 0u;  // inf and NaN keep the full exponent
  const uint32_t normal = magnitude + 0x38000000u + special;
  const float subnormal = bit_cast<float>(magnitude + 0x38800000u) - 0x1p-14f;
  const uint32_t wide = magnitude < 0x00800000u ? bit_cast<uint32_t>(subnormal) : normal;
  return bit_cast<float>(wide | (uint32_t(x.bits & 0x8000) << 16));
}

LTFAST_INLINE void store(float& to, float x) { to = x; }
LTFAST_INLINE void store(double& to, double x) { to = x; }
LTFAST_INLINE void store(BFloat16& to, float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = uint16_t(x != x ? 0x7fc0u : rounded);
}
LTFAST_INLINE void store(Float16& to, float x) {
  const uint32_t sign = (bit_cast<uint32_t>(x) >> 16) & 0x8000u;
  const uint32_t magnitude = bit_cast<uint32_t>(x) & 0x7fffffffu;
  // Below 2^-14 the sum with 0.5 rounds to the subnormal grid; above, the exponent is moved and the rest rounded.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  to.bits = uint16_t(half | sign);
}

}  // namespace
