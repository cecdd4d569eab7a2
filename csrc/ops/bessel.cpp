// log I_nu, the Bessel ratio I_{nu+1} / I_nu and its derivative, elementwise. Arithmetic is in double. The number of
// terms depends on the type D of the results, float or double.
// ltfast/ops/bessel/reference.py is the definition.
#include "../op.h"

enum class BesselFunction { log_iv, ratio, ratio_grad };

struct BesselArguments {
  BesselFunction function;
  Dtype dtype;                // float32 or float64, of x and out
  const double* nu;           // (count,) if nu_stride is 1, one value if it is 0
  int64_t nu_stride;
  const void* x;              // (count,)
  void* out;                  // (count,)
  int64_t count;
  int threads;
};
LTFAST_KERNEL(BesselArguments);

#ifdef LTFAST_ISA

#include <algorithm>
#include <limits>
#include <type_traits>

#include "../debye.h"
#include "../kernel.h"

namespace {

constexpr double kZeroHigh = 0.662743404507637, kZeroLow = 1.4841544557048961e-08, kZero = kZeroHigh + kZeroLow;
constexpr double kZeroRoot = 1.1996786402577338;  // sqrt(1 + kZero^2)

// float results take two terms more than float arithmetic would: no rounding of float arithmetic hides the error here.
template <class D>
constexpr int kTerms = std::is_same<D, float>::value ? Debye<float>::terms + 2 : Debye<double>::terms;

// sum p^k d_k(q), where each power of 1 / s is multiplied by its exponent to the power of Weight.
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

// v and x are the order and the argument, both multiplied by `scale`: a power of two with which sums of their squares
// stay in range. It is 1 unless one of them is huge. s = sqrt(v^2 + x^2), sum = v + s, inverse = 1 / s, p = scale / s
// and q = (v / s)^2. Subnormal results are flushed to zero.
struct Point {
  double scale, v, x, s, sum, inverse, p, q;
};

LTFAST_INLINE Point point_of(double v, double x) {
  const double scale = (v > x ? v : x) > 0x1p500 ? 0x1p-600 : 1;
  Point at{scale, v * scale, x * scale, 0, 0, 0, 0, 0};
  at.s = std::sqrt(at.v * at.v + at.x * at.x);
  at.sum = at.v + at.s;
  at.inverse = 1 / at.s;
  at.p = scale * at.inverse;
  at.q = (at.v * at.inverse) * (at.v * at.inverse);
  return at;
}

// log(x) for positive x, also for subnormal x.
LTFAST_INLINE double log_positive(double x) {
  const bool small = x < std::numeric_limits<double>::min();
  return log_normal(small ? x * 0x1p54 : x) - (small ? 37.42994775023705 : 0);  // 54 log 2
}

// B_v / scale for B_v = I_{v+1}(x) / (x I_v(x)).
template <class D>
LTFAST_INLINE double ratio_over_x(const Point& at) {
  return 1 / at.sum - at.p * at.inverse * (0.5 + debye_series<D, 1>(at.p, at.q));
}

// For larger finite x a low order has no effect, except that log I_nu(x) grows with x. Infinity stays: its result is NaN.
template <class D>
LTFAST_INLINE double climbed_x(double nu, double x) {
  const bool huge = x > 0x1p1000 && x <= std::numeric_limits<double>::max();
  return nu < Debye<D>::order && huge ? 0x1p1000 : x;
}

// Takes Debye<D>::order steps down from order v. Calls step(j, B_{j-1}, 1 / B_{j-1}) for j = v, v - 1, ...; the
// recurrence is 1 / B_{j-1} = 2j + x^2 B_j.
template <class D, class Step>
LTFAST_INLINE double climb_down(double v, double x, const Point& at, const Step& step) {
  double ratio = ratio_over_x<D>(at) * at.scale;
#pragma GCC unroll 16
  for (int k = 0; k < Debye<D>::order; ++k) {
    const double denominator = 2 * (v - k) + x * (x * ratio);
    ratio = 1 / denominator;
    step(v - k, ratio, denominator);
  }
  return ratio;
}

// In the functions that follow, IsHigh says that no order needs the recurrence.
template <class D, bool IsHigh>
LTFAST_INLINE double log_iv(double nu, double whole_x) {
  constexpr int order = Debye<D>::order;
  const double x = climbed_x<D>(nu, whole_x);
  const double v = nu < order ? nu + order : nu;
  const Point at = point_of(v, x);
  const double unscaled = 1 / at.scale, of_scale = at.scale < 1 ? 415.88830833596718 : 0;  // 600 log 2
  const double log_s = log_normal(at.s) + of_scale, log_sum = log_normal(at.sum) + of_scale;
  const double tail = debye_series<D, 0>(at.p, at.q) - 0.5 * log_s - 0.91893853320467274;  // log(2 pi) / 2
  double log_x = log_positive(x > 0 ? x : 1) + (x - x);
  log_x = x == 0 ? -std::numeric_limits<double>::infinity() : x < 0 ? std::numeric_limits<double>::quiet_NaN() : log_x;

  // Near the zero x = kZero v the terms of the plain form cancel. So the value at the zero is subtracted term by term.
  const double half = 134217729 * at.v, high = half - (half - at.v);  // Veltkamp and Dekker's split: high has 26 bits
  const double step = (at.x - high * kZeroHigh) - ((at.v - high) * kZeroHigh + at.v * kZeroLow);
  const double root = at.v * kZero, s_root = at.v * kZeroRoot, rise = step * (at.x + root) / (at.s + s_root);
  const bool near = at.x > 0.3 * at.v && at.x < 1.3 * at.v;
  const double near_step = near ? step / root : 0, near_rise = near ? rise / (at.v + s_root) : 0;
  double log_step, log_rise;
  log1p_pair(near_step, near_rise, log_step, log_rise);
  const double close = rise + at.v * (log_step - log_rise);
  const double direct = (near ? close : at.s + at.v * (log_x - log_sum)) * unscaled + tail;
  if (IsHigh) return direct;

  double product = 1;  // of the denominators, each divided by s to stay in range
  climb_down<D>(v, x, at, [&](double, double, double denominator) LTFAST_LAMBDA { product *= denominator * at.p; });
  const double lead = at.s * unscaled - v * log_sum + tail + log_normal(product) + order * log_s;
  const double lowered = lead + (whole_x - x) + (nu > 0 ? nu * log_x : 0 * (x - x));
  return nu >= order ? direct : nu == 0 && x == 0 ? 0 : lowered;
}

template <class D, bool IsHigh>
LTFAST_INLINE double bessel_ratio(double nu, double whole_x) {
  constexpr int order = Debye<D>::order;
  const double x = climbed_x<D>(nu, whole_x);
  const double v = nu < order ? nu + order : nu;
  const Point at = point_of(v, x);
  const double ratio = ratio_over_x<D>(at), high = x > 1 ? at.x * ratio : x * (ratio * at.scale);
  if (IsHigh) return high;
  const double lowered = climb_down<D>(v, x, at, [](double, double, double) LTFAST_LAMBDA {});
  return nu < order ? x * lowered : high;
}

template <class D, bool IsHigh>
LTFAST_INLINE double bessel_ratio_grad(double nu, double whole_x) {
  constexpr int order = Debye<D>::order;
  const double x = climbed_x<D>(nu, whole_x);
  const double v = nu < order ? nu + order : nu;
  const Point at = point_of(v, x);
  const double share = x * at.p, square = share * share;
  const double first = debye_series<D, 1>(at.p, at.q), second = debye_series<D, 2>(at.p, at.q);
  const double slope =
      v * at.p * (at.scale / at.sum) + at.p * at.p * (0.5 - at.q - first + square * (2 * first + second));
  if (IsHigh) return slope;
  double lowered = slope;  // the derivative of A_{j-1} = 1 / (2j / x + A_j)
  climb_down<D>(v, x, at, [&](double j, double ratio, double) LTFAST_LAMBDA {
    lowered = 2 * j * (ratio * ratio) - (x * ratio) * (x * ratio) * lowered;
  });
  return nu < order ? lowered : slope;
}

// Calls high(order, x) for a block whose orders are all high, and any(order, x) for others.
template <class T, class High, class Any>
void elementwise(const BesselArguments& a, const High& high, const Any& any) {
  constexpr int64_t block = 512;
  const T* x = static_cast<const T*>(a.x);
  T* out = static_cast<T*>(a.out);
  parallel_rows((a.count + block - 1) / block, a.threads, [&](int64_t index, int) {
    const int64_t start = index * block, stop = std::min(start + block, a.count);
    double lowest = a.nu[start * a.nu_stride];
    // The result of a NaN is NaN either way.
    for (int64_t i = start; i < stop && a.nu_stride; ++i) lowest = a.nu[i] < lowest ? a.nu[i] : lowest;
    if (lowest >= Debye<typename Arithmetic<T>::type>::order) {
#pragma omp simd
      for (int64_t i = start; i < stop; ++i) out[i] = T(high(a.nu[i * a.nu_stride], double(x[i])));
    } else {
#pragma omp simd
      for (int64_t i = start; i < stop; ++i) out[i] = T(any(a.nu[i * a.nu_stride], double(x[i])));
    }
  });
}

#define LTFAST_BESSEL(function)                                                              \
  elementwise<T>(                                                                            \
      a, [](double nu, double x) LTFAST_LAMBDA { return function<D, true>(nu, x); },         \
      [](double nu, double x) LTFAST_LAMBDA { return function<D, false>(nu, x); })

template <class T>
void bessel(const BesselArguments& a) {
  using D = typename Arithmetic<T>::type;
  switch (a.function) {
    case BesselFunction::log_iv: return LTFAST_BESSEL(log_iv);
    case BesselFunction::ratio: return LTFAST_BESSEL(bessel_ratio);
    case BesselFunction::ratio_grad: return LTFAST_BESSEL(bessel_ratio_grad);
  }
}

}  // namespace

void kernel(On<kIsa>, const BesselArguments& a) {
  by_precision(a.dtype, [&](auto zero) { bessel<decltype(zero)>(a); });
}

#else

#include "../binding.h"

namespace {

void bessel(const std::string& function, const std::string& dtype, uintptr_t nu, int64_t nu_stride, uintptr_t x,
            uintptr_t out, int64_t count, int threads) {
  const BesselFunction chosen = function == "log_iv"         ? BesselFunction::log_iv
                                : function == "bessel_ratio" ? BesselFunction::ratio
                                                             : BesselFunction::ratio_grad;
  const BesselArguments a{chosen, parse_dtype(dtype), at<double>(nu), nu_stride, at(x), at(out), count,
                          useful_threads(threads, count, 16)};
  run(a);
}
LTFAST_DEFINE(bessel);

}  // namespace

#endif
