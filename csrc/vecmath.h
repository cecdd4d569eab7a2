// Elementary functions as branch-free polynomials in plain scalar code: called in a loop they vectorise for every
// instruction set. NaN in, NaN out. Each is exact to about two units in the last place over the range stated.
#pragma once
#include <cstdint>
#include <cstring>

// A loop is vectorised only if the functions in it are inlined; the compiler's own limits on size would prevent that.
#define LTFAST_INLINE inline __attribute__((always_inline))
#define LTFAST_LAMBDA __attribute__((always_inline))

namespace {

template <class To, class From>
LTFAST_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// e^x for x <= 0; 0 where the result would be subnormal. Cody and Waite (1980): x = n log 2 + r.
LTFAST_INLINE float exp_negative(float x) {
  const float lowest = -87.3f;
  const float clamped = x < lowest ? lowest : x;
  const float shifted = clamped * 1.44269504f + 12582912.f;  // 1.5 * 2^23: rounds to the nearest integer
  const float n = shifted - 12582912.f;
  const float r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.98756915e-4f;
  p = p * r + 1.39819995e-3f;
  p = p * r + 8.33345191e-3f;
  p = p * r + 4.16657959e-2f;
  p = p * r + 1.66666654e-1f;
  p = p * r + 0.5f;
  p = (p * r) * r + r + 1.f;
  const float power = bit_cast<float>((bit_cast<int32_t>(shifted) << 23) + 0x3f800000);
  return x < lowest ? 0.f : p * power;
}

LTFAST_INLINE double exp_negative(double x) {
  const double lowest = -708.0;
  const double clamped = x < lowest ? lowest : x;
  const double shifted = clamped * 1.4426950408889634 + 6755399441055744.0;  // 1.5 * 2^52
  const double n = shifted - 6755399441055744.0;
  const double r = (clamped - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;  // the Taylor series to r^13: |r| <= log(2) / 2
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = (p * r) * r + r + 1.0;
  const double power = bit_cast<double>((bit_cast<int64_t>(shifted) << 52) + 0x3ff0000000000000);
  return x < lowest ? 0.0 : p * power;
}

// 2^x for -127 <= x <= 0; 0 where the result would be subnormal, if such results are flushed (parallel.h).
LTFAST_INLINE float exp2_negative(float x) {
  const float shifted = x + 12582912.f;  // 1.5 * 2^23: rounds to the nearest integer
  const float r = x - (shifted - 12582912.f);
  float p = 1.53533618e-4f;
  p = p * r + 1.33988744e-3f;
  p = p * r + 9.61843736e-3f;
  p = p * r + 5.55033247e-2f;
  p = p * r + 2.40226479e-1f;
  p = p * r + 6.93147203e-1f;
  p = p * r + 1.f;
  return p * bit_cast<float>((bit_cast<int32_t>(shifted) << 23) + 0x3f800000);
}

LTFAST_INLINE double exp2_negative(double x) { return exp_negative(x * 0.69314718055994531); }

// The compiler does not know the value. Where it knows the bounds of a loop's numbers, it computes each case by itself
// and blends the results.
template <class A>
LTFAST_INLINE A opaque(A x) {
  asm("" : "+m"(x));
  return x;
}

// 2 atanh(s) / s for s^2 = q in [0, 1/9]: log1p(e) = s * atanh_series(s^2) with s = e / (2 + e), 0 <= e <= 1.
LTFAST_INLINE float atanh_series(float q) {
  float p = 2.f / 13;
  p = p * q + 2.f / 11;
  p = p * q + 2.f / 9;
  p = p * q + 2.f / 7;
  p = p * q + 2.f / 5;
  p = p * q + 2.f / 3;
  return p * q + 2.f;
}

LTFAST_INLINE double atanh_series(double q) {
  double p = 2.0 / 33;
  for (int k = 31; k >= 1; k -= 2) p = p * q + 2.0 / k;
  return p;
}

// x = mantissa 2^exponent for normal positive x, the mantissa in [1 / sqrt 2, sqrt 2).
template <class A>
struct Split {
  A exponent, mantissa, inverse_power;  // the last: 2^-exponent
};

LTFAST_INLINE Split<float> split(float x) {
  const int32_t bits = bit_cast<int32_t>(x), n = (bits - 0x3f3504f3) >> 23;
  return {float(n), bit_cast<float>(bits - n * 0x800000), bit_cast<float>(0x3f800000 - n * 0x800000)};
}

// AVX2 has neither an arithmetic shift of 64-bit integers, nor their product, nor their conversion to double. So the
// exponent is shifted with its bias of 1023, which makes it positive; as the last bits of 2^52 it is a double.
LTFAST_INLINE Split<double> split(double x) {
  const uint64_t bits = bit_cast<uint64_t>(x), one = 0x3ff0000000000000;
  const uint64_t biased = (bits + (one - 0x3fe6a09e667f3bcd)) >> 52, power = biased << 52;
  return {bit_cast<double>(biased | 0x4330000000000000) - (0x1p52 + 1023), bit_cast<double>(bits - power + one),
          bit_cast<double>(2 * one - power)};
}

template <class A>
LTFAST_INLINE A log_of(A exponent, A r) {
  return exponent * A(0.693147180559945309) + r * atanh_series(r * r);
}

// log(x) for normal positive x.
template <class A>
LTFAST_INLINE A log_normal(A x) {
  const Split<A> u = split(x);
  return log_of(u.exponent, (u.mantissa - A(1)) / (u.mantissa + A(1)));
}

// log(1 + x) and log(1 + y) for x and y > -1, for one division. What rounding 1 + x loses is added to the mantissa.
template <class A>
LTFAST_INLINE void log1p_pair(A x, A y, A& log_x, A& log_y) {
  const A x_sum = A(1) + x, y_sum = A(1) + y;
  const Split<A> u = split(x_sum), w = split(y_sum);
  const A above_u = u.mantissa - A(1) + (x - (x_sum - A(1))) * u.inverse_power;
  const A above_w = w.mantissa - A(1) + (y - (y_sum - A(1))) * w.inverse_power;
  const A below_u = u.mantissa + A(1), below_w = w.mantissa + A(1), inverse = A(1) / (below_u * below_w);
  log_x = log_of(u.exponent, above_u * (below_w * inverse));
  log_y = log_of(w.exponent, above_w * (below_u * inverse));
}

}  // namespace
