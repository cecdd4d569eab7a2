// |e| for e ~ N(0, 1/3) clipped to [-1, 1], drawn from a counter. ltfast/ops/noise/reference.py is the definition.
#pragma once
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "vecmath.h"

namespace {

constexpr int64_t kNoiseBlock = 1024;  // columns at a time; a multiple of eight

// Philox works on 32-bit words. Each is in the low half of a 64-bit lane, so that products need no shuffle.
#if defined(__AVX512F__)
typedef uint64_t Lanes __attribute__((vector_size(64)));
LTFAST_INLINE Lanes low_product(Lanes a, Lanes b) { return (Lanes)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
#elif defined(__AVX2__)
typedef uint64_t Lanes __attribute__((vector_size(32)));
LTFAST_INLINE Lanes low_product(Lanes a, Lanes b) { return (Lanes)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
#else
typedef uint64_t Lanes __attribute__((vector_size(16)));
LTFAST_INLINE Lanes low_product(Lanes a, Lanes b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
#endif
constexpr int64_t kLanes = sizeof(Lanes) / sizeof(uint64_t);

// Philox 4x32-7 (Salmon et al., SC 2011) for the counters (first + q, row, row >> 32, 0), q < count rounded up to
// a multiple of kLanes: words 0 and 1 of counter q go to words01[q], words 2 and 3 to words23[q].
inline void philox(uint64_t* words01, uint64_t* words23, int64_t count, uint32_t first, uint64_t row, uint64_t seed) {
  Lanes index;
  for (int64_t lane = 0; lane < kLanes; ++lane) index[lane] = uint64_t(lane);
  for (int64_t q = 0; q < count; q += kLanes) {
    Lanes c0 = index + (first + uint64_t(q)), c1 = Lanes{} + row, c2 = Lanes{} + (row >> 32), c3 = Lanes{};
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma GCC unroll 7
    for (int round = 0; round < 7; ++round) {
      const Lanes a = low_product(c0, Lanes{} + 0xD2511F53u), b = low_product(c2, Lanes{} + 0xCD9E8D57u);
      c0 = (b >> 32) ^ c1 ^ k0;  // the high halves of c1 and c3 are not cleared: no product reads them
      c2 = (a >> 32) ^ c3 ^ k1;
      c1 = b;
      c3 = a;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const Lanes pair01 = (c0 & 0xffffffffu) | (c1 << 32), pair23 = (c2 & 0xffffffffu) | (c3 << 32);
    std::memcpy(words01 + q, &pair01, sizeof(Lanes));
    std::memcpy(words23 + q, &pair23, sizeof(Lanes));
  }
}

// The random bits of a block of columns.
class NoiseBits {
 public:
  typedef uint16_t __attribute__((may_alias)) Half;

  // Returns the bits of the columns first + j, j < count <= kNoiseBlock. first is a multiple of eight.
  Half* draw(int64_t first, int64_t count, uint64_t row, uint64_t seed) {
    uint64_t words01[kNoiseBlock / 8], words23[kNoiseBlock / 8];
    const int64_t counters = (count + 7) / 8;
    philox(words01, words23, counters, uint32_t(first / 8), row, seed);
#pragma omp simd
    for (int64_t q = 0; q < counters; ++q) {
      words_[2 * q] = words01[q];
      words_[2 * q + 1] = words23[q];
    }
    return reinterpret_cast<Half*>(words_);  // little-endian: the low halves come first
  }

 private:
  uint64_t words_[kNoiseBlock / 4];
};

// -log(x) - 2.6 for normal positive x, to 2.5e-7: log(1 + f) = f P(f) with the mantissa in [1/sqrt 2, sqrt 2).
LTFAST_INLINE float shifted_log(float x) {
  const int32_t bits = bit_cast<int32_t>(x);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;
  const float f = bit_cast<float>(bits - (exponent << 23)) - 1.f;
  float p = -0.118274799f;
  p = p * f + 0.189019793f;
  p = p * f - 0.206046729f;
  p = p * f + 0.248813395f;
  p = p * f - 0.333032983f;
  p = p * f + 0.500019651f;
  p = p * f - 1.00000325f;
  return p * f + (float(exponent) * -0.693147181f - 2.6f);
}

LTFAST_INLINE float half_normal(uint16_t bits) {
  const float rest = float(int32_t(bits)) * 0x1p-16f + 0x1p-17f, u = 1.f - rest;  // exact
  const float x = shifted_log(rest + rest * u);                                   // 1 - u^2
  float p = 1.6844673e-7f;
  p = p * x - 1.3869884e-6f;
  p = p * x - 2.9936724e-6f;
  p = p * x + 1.01187332e-4f;
  p = p * x - 5.50142172e-4f;
  p = p * x - 2.139863171e-3f;
  p = p * x + 1.15856440e-1f;
  p = p * x + 7.19377554e-1f;
  const float e = u * p;
  return e > 1.f ? 1.f : e;
}

}  // namespace
