// Ratios of von Mises-Fisher log-partition functions, and the softmax cross-entropy of rows of them.
// ltfast/ops/vmf/ has the formulas and the definition.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "debye.h"
#include "dtypes.h"
#include "kernels.h"
#include "parallel.h"

namespace {

// The expansion for one order: F_v(k) = s - v log(v + s) - log(s) / 2 + sum_m c[m] t^m, t = v / s, m = 1 .. 3 terms.
// An order below Debye<A>::order is reached by as many steps of the recurrence from v = order + Debye<A>::order.
template <class A>
struct VmfOrder {
  static constexpr int powers = 3 * Debye<A>::terms;
  A v;
  A value[powers], weighted[powers];  // c[m] and m c[m]

  explicit VmfOrder(double order) {
    static constexpr DebyeTable<Debye<A>::terms> table = debye_table<Debye<A>::terms>();
    const double high = order < Debye<A>::order ? order + Debye<A>::order : order;
    v = A(high);
    double c[powers + 1] = {};
    for (int k = 1; k <= Debye<A>::terms; ++k)
      for (int i = 0; i <= k; ++i) c[k + 2 * i] += table.d[k - 1][i] / std::pow(high, k);
    for (int m = 1; m <= powers; ++m) value[m - 1] = A(c[m]), weighted[m - 1] = A(m * c[m]);
  }
};

// k and, squared, its increments saturate here, so that products of three lengths stay in range.
template <class A>
constexpr A kVmfLongest = A(std::is_same<A, float>::value ? 1e12 : 1e100);
template <class A>
constexpr A kVmfLargest = kVmfLongest<A> * kVmfLongest<A>;

template <class A>
LTFAST_INLINE A vmf_saturated(A kappa) {
  return (kappa > kVmfLongest<A> ? kVmfLongest<A> : kappa) + (kappa - kappa);  // the difference is 0, or NaN
}

// What of F remains beside its leading terms in d = s' - s, and B = 2 dF / d(k^2), at k^2 = square.
// p = 1 / s and q = 1 / (v + s).
template <bool Low, class A>
LTFAST_INLINE void vmf_tail(const VmfOrder<A>& order, A square, A p, A q, A& tail, A& slope) {
  const A t = order.v * p;
  A value = 0, weighted = 0;
#pragma GCC unroll 36
  for (int m = VmfOrder<A>::powers - 1; m >= 0; --m) {
    value = (value + order.value[m]) * t;
    weighted = (weighted + order.weighted[m]) * t;
  }
  slope = q - p * p * (A(0.5) + weighted);
  tail = value;
  if constexpr (Low) {  // I_{j-1} = I_j (2j + k^2 B_j) / k, each factor over s to stay in range
    A product = 1;
#pragma GCC unroll 16
    for (int step = 0; step < Debye<A>::order; ++step) {
      const A denominator = A(2) * (order.v - A(step)) + square * slope;
      product *= denominator * p;
      slope = A(1) / denominator;
    }
    tail += log_normal(product);
  }
}

// What an element needs of its class; each (padded,) and zero beyond the classes.
template <class A>
struct VmfClasses {
  A *square, *s, *inverse_sum, *inverse_s, *offset, *product_scale, *weight;
  VmfClasses(void* scratch, int64_t padded) {
    A* place = static_cast<A*>(scratch);
    for (A** vector : {&square, &s, &inverse_sum, &inverse_s, &offset, &product_scale, &weight})
      *vector = place, place += padded;
  }
};

template <bool Low, class A>
void vmf_classes(const VmfOrder<A>& order, const A* kappa, const A* log_prior, double inverse_temperature,
                 int64_t classes, int threads, const VmfClasses<A>& out) {
  const int64_t padded = vmf_padded(classes);
  parallel_rows((padded + 511) / 512, threads, [&](int64_t block, int) {
    const int64_t start = block * 512, count = std::min<int64_t>(512, padded - start);
    A k[512] = {}, prior[512] = {};
    std::memcpy(k, kappa + start, std::min(count, classes - start) * sizeof(A));
    if (log_prior) std::memcpy(prior, log_prior + start, std::min(count, classes - start) * sizeof(A));
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      k[i] = vmf_saturated(k[i]);
      const A square = k[i] * k[i], s = std::sqrt(order.v * order.v + square);
      const A p = A(1) / s, q = A(1) / (order.v + s);
      A tail, slope;
      vmf_tail<Low>(order, square, p, q, tail, slope);
      out.square[start + i] = square;
      out.s[start + i] = s;
      out.inverse_sum[start + i] = q;
      out.inverse_s[start + i] = p;
      out.offset[start + i] = prior[i] - tail;
      out.product_scale[start + i] = A(2 * inverse_temperature) * k[i];
      out.weight[start + i] = A(inverse_temperature) * k[i];
    }
  });
}

// F(k') - F(k) + offset and B(k') for count classes (a multiple of 16): k'^2 = k^2 + increment.
template <bool Low, class A>
LTFAST_INLINE void vmf_element(const VmfOrder<A>& order, const VmfClasses<A>& c, int64_t i, A increment, A& ratio,
                               A& slope) {
  const A lowest = -c.square[i], above = lowest > increment ? lowest : increment;  // NaN stays NaN
  const A inside = above > kVmfLargest<A> ? kVmfLargest<A> : above;
  const A sum = c.square[i] + inside, square = A(0) > sum ? A(0) : sum;
  const A s = std::sqrt(order.v * order.v + square), v_s = order.v + s, both = s + c.s[i];
  const A inverse = A(1) / (s * v_s * both);  // one division for the three
  const A d = inside * (s * v_s * inverse);
  A tail, log_sum, log_s;
  vmf_tail<Low>(order, square, v_s * both * inverse, s * both * inverse, tail, slope);
  log1p_pair(d * c.inverse_sum[i], d * c.inverse_s[i], log_sum, log_s);
  ratio = d - order.v * log_sum + (A(Low ? Debye<A>::order : 0) - A(0.5)) * log_s + (tail + c.offset[i]);
}

template <bool Low, class A>
void vmf_ratio_rows(const VmfRatioArguments& a) {
  const VmfOrder<A> order(a.order);
  const int64_t padded = vmf_padded(a.classes);
  const VmfClasses<A> classes(a.scratch, padded);
  vmf_classes<Low>(order, static_cast<const A*>(a.kappa), static_cast<const A*>(nullptr), 1, a.classes, a.threads,
                   classes);
  A* scratch = static_cast<A*>(a.scratch) + 8 * padded;
  parallel_rows(a.rows, a.threads, [&, order](int64_t row, int thread) {
    A* __restrict ratio = scratch + 2 * padded * thread;
    A* __restrict slope = ratio + padded;
    std::memcpy(slope, static_cast<const A*>(a.increments) + row * a.classes, a.classes * sizeof(A));
    std::fill(slope + a.classes, slope + padded, A(0));
#pragma omp simd
    for (int64_t i = 0; i < padded; ++i) {
      A value, b;
      vmf_element<Low>(order, classes, i, slope[i], value, b);
      ratio[i] = value;
      slope[i] = A(0.5) * b;
    }
    std::memcpy(static_cast<A*>(a.ratio) + row * a.classes, ratio, a.classes * sizeof(A));
    if (a.slope) std::memcpy(static_cast<A*>(a.slope) + row * a.classes, slope, a.classes * sizeof(A));
  });
}

// e^(logit - peak) and its product with the slope, summed; and the latter times the class's weight.
template <class A>
inline void vmf_weights(const A* __restrict logits, const A* __restrict slopes, const A* __restrict weight,
                        A* __restrict out, int64_t count, A peak, A& sum, A& pull) {
  A e_sum = 0, slope_sum = 0;
#pragma omp simd reduction(+ : e_sum, slope_sum)
  for (int64_t i = 0; i < count; ++i) {
    const A e = exp_negative(logits[i] - peak), product = e * slopes[i];
    e_sum += e;
    slope_sum += product;
    out[i] = product * weight[i];
  }
  sum = e_sum;
  pull = slope_sum;
}

template <bool Low, class A>
void vmf_cross_entropy_rows(const VmfCrossEntropyArguments& a) {
  const VmfOrder<A> order(a.order);
  const int64_t count = a.count, padded = vmf_padded(count), width = a.width;
  const bool first = a.start == 0, last = a.start + count == a.classes;
  const VmfClasses<A> classes(a.scratch, padded);
  const A* log_prior = static_cast<const A*>(a.log_prior);
  const A* kappa = static_cast<const A*>(a.kappa);
  vmf_classes<Low>(order, kappa + a.start, log_prior ? log_prior + a.start : nullptr, a.inverse_temperature, count,
                   a.threads, classes);
  A* scratch = static_cast<A*>(a.scratch) + 8 * padded;
  parallel_rows(a.rows, a.threads, [&](int64_t row, int thread) {
    A* __restrict logits = scratch + 2 * padded * thread;
    A* __restrict slopes = logits + padded;
    A* __restrict products = static_cast<A*>(a.products) + row * a.stride;
    if (a.target && a.target[row] == a.ignore_index) {
      std::fill(products, products + count, A(0));
      if (last) static_cast<A*>(a.loss)[row] = 0;
      if (a.gradient) std::memset(static_cast<A*>(a.gradient) + row * width, 0, width * sizeof(A));
      return;
    }
    const A* __restrict z = static_cast<const A*>(a.features) + row * width;
    double square = 0;
    A broken = 0;  // NaN if a feature is not finite
#pragma omp simd reduction(+ : square, broken)
    for (int64_t j = 0; j < width; ++j) square += double(z[j]) * double(z[j]), broken += z[j] - z[j];
    const double whole = square * a.inverse_temperature * a.inverse_temperature, largest = kVmfLargest<A>;
    const A shift = A(whole > largest ? largest : whole) + broken;
    const A shortened = whole > largest ? A(std::sqrt(largest / whole)) : A(1);  // what is left of longer features
    std::fill(products + count, products + padded, A(0));
#pragma omp simd
    for (int64_t i = 0; i < padded; ++i)
      vmf_element<Low>(order, classes, i, products[i] * shortened * classes.product_scale[i] + shift, logits[i],
                       slopes[i]);
    std::fill(logits + count, logits + padded, -std::numeric_limits<A>::infinity());

    double* state = a.state + 5 * row;
    A peak = first ? -std::numeric_limits<A>::max() : A(state[0]);  // not -inf: all of a block's logits may be that
    const A before = peak;
#pragma omp simd reduction(max : peak)
    for (int64_t i = 0; i < count; ++i) peak = logits[i] > peak ? logits[i] : peak;
    A sum = 0, pull = 0;
    vmf_weights(logits, slopes, classes.weight, products, padded, peak, sum, pull);
    const double faded = first ? 0 : exp_negative(double(before) - double(peak));
    const double total_sum = (first ? 0 : state[1] * faded) + sum, total_pull = (first ? 0 : state[2] * faded) + pull;
    state[0] = peak, state[1] = total_sum, state[2] = total_pull;
    if (a.target) {
      const int64_t y = a.target[row] - a.start;
      if (y >= 0 && y < count) state[3] = logits[y], state[4] = slopes[y];
    } else {
      state[3] = state[4] = 0;
    }
    if (last) static_cast<A*>(a.loss)[row] = A(std::log(total_sum) + (double(peak) - state[3]));
    if (!a.gradient) return;

    A* __restrict gradient = static_cast<A*>(a.gradient) + row * width;
    if (!last) {
      if (first)
        std::fill(gradient, gradient + width, A(0));
      else
        for (int64_t j = 0; j < width; ++j) gradient[j] *= A(faded);
      return;
    }
    // the softmax's part less the label's; the product of `products` with the directions is still to be added
    const A scale = A(a.unit / total_sum), earlier = first ? A(0) : A(faded) * scale;
    const double label = a.unit * state[4] * a.inverse_temperature;
    const int64_t target = a.target ? a.target[row] : 0;
    const A own = A(label * double(vmf_saturated(kappa[target])));
    const A radial = A((a.unit * total_pull / total_sum - a.unit * state[4]) * a.inverse_temperature *
                       a.inverse_temperature) * shortened;
    const A* __restrict direction = static_cast<const A*>(a.directions) + target * width;
    if (first)
      for (int64_t j = 0; j < width; ++j) gradient[j] = radial * z[j] - own * direction[j];
    else
      for (int64_t j = 0; j < width; ++j) gradient[j] = earlier * gradient[j] + radial * z[j] - own * direction[j];
#pragma omp simd
    for (int64_t i = 0; i < padded; ++i) products[i] *= scale;
  });
}

template <class A>
void vmf_ratio(const VmfRatioArguments& a) {
  a.order < Debye<A>::order ? vmf_ratio_rows<true, A>(a) : vmf_ratio_rows<false, A>(a);
}

template <class A>
void vmf_cross_entropy(const VmfCrossEntropyArguments& a) {
  a.order < Debye<A>::order ? vmf_cross_entropy_rows<true, A>(a) : vmf_cross_entropy_rows<false, A>(a);
}

}  // namespace
