// log I_nu, the Bessel ratio I_{nu+1} / I_nu and its derivative, elementwise, in double; with as many terms as the
// results' type D, float or double, can tell.
// ltfast/ops/bessel/reference.py is the definition.
#pragma once
#include <algorithm>
#include <limits>
#include <type_traits>

#include "debye.h"
#include "dtypes.h"
#include "kernels.h"
#include "parallel.h"

namespace {

constexpr double kZeroHigh = 0.662743404507637, kZeroLow = 1.4841544557048961e-08, kZero = kZeroHigh + kZeroLow;
constexpr double kZeroRoot = 1.1996786402577338;  // sqrt(1 + kZero^2)

// sum p^k d_k(q), each power of 1 / s times its exponent to the Weight-th.
// Two more terms than float arithmetic needs: here its rounding hides nothing.
template <class D>
constexpr int kTerms = std::is_same<D, float>::value ? Debye<float>::terms + 2 : Debye<double>::terms;

template <class D, int Weight>
LTFAST_INLINE double debye_series(double p, double q) {
  constexpr int terms = kTerms<D>;
  static constexpr DebyeTable<terms> table = debye_table<terms>();
  double sum = 0;
#pragma GCC unroll 12
  for (int k = terms; k >= 1; --k) {
    double inner = 0;
#pragma GCC unroll 13
    for (int i = k; i >= 0; --i) {
      const double power = k + 2 * i;
      inner = inner * q + table.d[k - 1][i] * (Weight == 0 ? 1.0 : Weight == 1 ? power : power * power);
    }
    sum = (sum + inner) * p;
  }
  return sum;
}

template <class D>
LTFAST_INLINE double ratio_over_x(double v, double s) {
  const double p = 1 / s, q = (v * p) * (v * p);
  return 1 / (v + s) - p * p * (0.5 + debye_series<D, 1>(p, q));
}

// The Debye<D>::order steps down from order v: step(j, denominator) for j = v, v - 1, ... with 2j + x^2 B_j = 1 / B_{j-1}.
template <class D, class Step>
LTFAST_INLINE double climb_down(double v, double x, double s, const Step& step) {
  double ratio = ratio_over_x<D>(v, s);
#pragma GCC unroll 16
  for (int k = 0; k < Debye<D>::order; ++k) {
    const double denominator = 2 * (v - k) + x * (x * ratio);
    ratio = 1 / denominator;
    step(v - k, ratio, denominator);
  }
  return ratio;
}

template <class D>
LTFAST_INLINE double log_iv(double nu, double x) {
  constexpr int order = Debye<D>::order;
  const double v = nu < order ? nu + order : nu;
  const double s = std::sqrt(v * v + x * x), p = 1 / s, log_s = log_normal(s);
  const double tail = debye_series<D, 0>(p, (v * p) * (v * p)) - 0.5 * log_s - 0.91893853320467274;  // log(2 pi) / 2
  const double tiny = std::numeric_limits<double>::min();
  double log_x = log_normal(x < tiny ? tiny : x) + (x - x);
  log_x = x == 0 ? -std::numeric_limits<double>::infinity() : x < 0 ? std::numeric_limits<double>::quiet_NaN() : log_x;
  const double log_sum = log_normal(v + s);

  // less its value at x = kZero v, which is 0: where the terms of the plain form cancel
  const double half = 134217729 * v, high = half - (half - v);  // Veltkamp and Dekker: high has 26 bits
  const double step = (x - high * kZeroHigh) - ((v - high) * kZeroHigh + v * kZeroLow);
  const double root = v * kZero, s_root = v * kZeroRoot, rise = step * (x + root) / (s + s_root);
  const bool near = x > 0.3 * v && x < 1.3 * v;
  const double near_step = near ? step / root : 0, near_rise = near ? rise / (v + s_root) : 0;
  double log_step, log_rise;
  log1p_pair(near_step, near_rise, log_step, log_rise);
  const double close = rise + v * (log_step - log_rise);
  const double direct = (near ? close : s + v * (log_x - log_sum)) + tail;

  double product = 1;  // of the denominators, each over s to stay in range
  climb_down<D>(v, x, s, [&](double, double, double denominator) LTFAST_LAMBDA { product *= denominator * p; });
  const double lead = s - v * log_sum + tail + log_normal(product) + order * log_s;
  const double lowered = lead + (nu > 0 ? nu * log_x : 0 * (x - x));
  return nu >= order ? direct : nu == 0 && x == 0 ? 0 : lowered;
}

template <class D>
LTFAST_INLINE double bessel_ratio(double nu, double x) {
  constexpr int order = Debye<D>::order;
  const double v = nu < order ? nu + order : nu, s = std::sqrt(v * v + x * x);
  const double lowered = climb_down<D>(v, x, s, [](double, double, double) LTFAST_LAMBDA {});
  return x * (nu < order ? lowered : ratio_over_x<D>(v, s));
}

template <class D>
LTFAST_INLINE double bessel_ratio_grad(double nu, double x) {
  constexpr int order = Debye<D>::order;
  const double v = nu < order ? nu + order : nu, s = std::sqrt(v * v + x * x), p = 1 / s;
  const double q = (v * p) * (v * p), square = (x * p) * (x * p);
  const double first = debye_series<D, 1>(p, q), second = debye_series<D, 2>(p, q);
  const double slope = v * p / (v + s) + p * p * (0.5 - q - first + square * (2 * first + second));
  double lowered = slope;  // A_{j-1} = 1 / (2j / x + A_j), differentiated
  climb_down<D>(v, x, s, [&](double j, double ratio, double) LTFAST_LAMBDA {
    lowered = 2 * j * (ratio * ratio) - (x * ratio) * (x * ratio) * lowered;
  });
  return nu < order ? lowered : slope;
}

template <class T, class Function>
void elementwise(const BesselArguments& a, const Function& function) {
  constexpr int64_t block = 512;
  const T* x = static_cast<const T*>(a.x);
  T* out = static_cast<T*>(a.out);
  parallel_rows((a.count + block - 1) / block, a.threads, [&](int64_t index, int) {
    const int64_t start = index * block, stop = std::min(start + block, a.count);
#pragma omp simd
    for (int64_t i = start; i < stop; ++i) out[i] = T(function(a.nu[i * a.nu_stride], double(x[i])));
  });
}

template <class T>
void bessel(const BesselArguments& a) {
  using D = typename Arithmetic<T>::type;
  const auto log = [](double nu, double x) LTFAST_LAMBDA { return log_iv<D>(nu, x); };
  const auto ratio = [](double nu, double x) LTFAST_LAMBDA { return bessel_ratio<D>(nu, x); };
  const auto slope = [](double nu, double x) LTFAST_LAMBDA { return bessel_ratio_grad<D>(nu, x); };
  if (a.function == BesselFunction::log_iv) return elementwise<T>(a, log);
  if (a.function == BesselFunction::ratio) return elementwise<T>(a, ratio);
  return elementwise<T>(a, slope);
}

}  // namespace
