// Ratios of von Mises-Fisher log-partition functions, F(k') - F(k), and the softmax cross-entropy of rows of them.
// ltfast/ops/vmf/ has the formulas, the symbols and the definition.
#include "../op.h"

// All matrices and vectors are float, or double for float64.
struct VmfRatioArguments {
  Dtype dtype;                // float32 or float64
  double order;
  const void* increments;     // (rows, classes): k'^2 - k^2
  const void* kappa;          // (classes,)
  void* ratio;                // (rows, classes)
  void* slope;                // (rows, classes): d ratio / d increment, or null
  int64_t rows, classes;
  void* scratch;              // vmf_scratch() values
  int threads;
};
LTFAST_KERNEL(VmfRatioArguments);

// The cross-entropy is computed in blocks of classes, [start, start + count), with one call for each. The calls are in
// ascending order and share state, loss and gradient.
struct VmfCrossEntropyArguments {
  Dtype dtype;                // float32 or float64
  double order, inverse_temperature, unit;  // unit multiplies the gradient
  void* products;             // (rows, stride): in, features . directions; out, the directions' weights in the gradient
  int64_t stride;             // a multiple of 16, at least count
  const void* features;       // (rows, width)
  const void* directions;     // (classes, width)
  const void* kappa;          // (classes,)
  const void* log_prior;      // (classes,) or null
  const int64_t* target;      // (rows,), in [0, classes) or ignore_index; null for the log-sum-exp without labels
  int64_t ignore_index;       // a row with this label has the loss 0 and the gradient 0
  double* state;              // (rows, 5): peak, sum, pull, the label's logit and slope
  void* loss;                 // (rows,), written with the last block
  void* gradient;             // (rows, width) or null
  int64_t rows, classes, width, start, count;
  void* scratch;              // vmf_scratch() values
  int threads;
};
LTFAST_KERNEL(VmfCrossEntropyArguments);

namespace {

inline int64_t vmf_padded(int64_t count) { return (count + 15) / 16 * 16; }

// The number of values in `scratch`.
inline int64_t vmf_scratch(int64_t count, int threads) { return vmf_padded(count) * (8 + 2 * int64_t(threads)); }

}  // namespace

#ifdef LTFAST_ISA

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../debye.h"
#include "../kernel.h"

namespace {

// The expansion for one order: F_v(k) = s - v log(v + s) - log(s) / 2 + sum_m c[m] t^m, t = v / s, m = 1 .. 3 terms.
// For an order below Debye<A>::order, v is order + Debye<A>::order, and as many steps of the recurrence lead back.
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

// k saturates at kVmfLongest, and increments of k^2 at its square, so that products of three lengths stay in range.
template <class A>
constexpr A kVmfLongest = A(std::is_same<A, float>::value ? 1e12 : 1e100);
template <class A>
constexpr A kVmfLargest = kVmfLongest<A> * kVmfLongest<A>;

template <class A>
LTFAST_INLINE A vmf_saturated(A kappa) {
  return (kappa > kVmfLongest<A> ? kVmfLongest<A> : kappa) + (kappa - kappa);  // the difference is 0, or NaN
}

// At k^2 = square: tail is F without its leading terms in d = s' - s, and slope is B = 2 dF / d(k^2).
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
  if constexpr (Low) {  // I_{j-1} = I_j (2j + k^2 B_j) / k, each factor divided by s to stay in range
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

// What an element needs of its class. Each vector is (padded,); the padding is for a class with k = 0.
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

// ratio = F(k') - F(k) + offset and slope = B(k') for class i, with k'^2 = k^2 + increment.
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

// sum is that of e^(logit - peak), pull that of its product with the slope; out is this product times the weight.
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
    A shortened = 1;  // shortens features that are too long
    if (whole > largest) {
      // Their products may have overflowed, so they are computed again.
      double peak = 0, relative = 0;
      for (int64_t j = 0; j < width; ++j) peak = std::max(peak, std::abs(double(z[j])));
      for (int64_t j = 0; j < width; ++j) relative += (z[j] / peak) * (z[j] / peak);
      const double length = kVmfLongest<A> / (a.inverse_temperature * std::sqrt(relative));
      shortened = A(length / peak);
      for (int64_t i = 0; i < count; ++i) {
        const A* mu = static_cast<const A*>(a.directions) + (a.start + i) * width;
        double product = 0;
        for (int64_t j = 0; j < width; ++j) product += (z[j] / peak) * mu[j];
        products[i] = A(length * product);
      }
    }
    std::fill(products + count, products + padded, A(0));
#pragma omp simd
    for (int64_t i = 0; i < padded; ++i)
      vmf_element<Low>(order, classes, i, products[i] * classes.product_scale[i] + shift, logits[i],
                       slopes[i]);
    std::fill(logits + count, logits + padded, -std::numeric_limits<A>::infinity());

    double* state = a.state + 5 * row;
    A peak = first ? -std::numeric_limits<A>::max() : A(state[0]);  // not -inf, which all logits of a block may be
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
    // The part of the softmax less that of the label. The caller adds the product of `products` with the directions.
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

void kernel(On<kIsa>, const VmfRatioArguments& a) {
  by_precision(a.dtype, [&](auto zero) { vmf_ratio<decltype(zero)>(a); });
}

void kernel(On<kIsa>, const VmfCrossEntropyArguments& a) {
  by_precision(a.dtype, [&](auto zero) { vmf_cross_entropy<decltype(zero)>(a); });
}

#else

#include "../binding.h"

namespace {

void vmf_ratio(const std::string& dtype, double order, uintptr_t increments, uintptr_t kappa, uintptr_t ratio,
               uintptr_t slope, int64_t rows, int64_t classes, int threads) {
  threads = useful_threads(threads, rows, classes);
  const Dtype type = parse_dtype(dtype);
  const auto scratch = make_scratch(type, vmf_scratch(classes, threads));
  const VmfRatioArguments a{type, order, at(increments), at(kappa), at(ratio), at(slope), rows, classes,
                            scratch.get(), threads};
  run(a);
}
LTFAST_DEFINE(vmf_ratio);

// Returns the number of rows whose label is not ignored; `mean` divides the gradient by it.
int64_t vmf_cross_entropy(const std::string& dtype, double order, double inverse_temperature, double unit, bool mean,
                          uintptr_t products, int64_t stride, uintptr_t features, uintptr_t directions,
                          uintptr_t kappa, uintptr_t log_prior, uintptr_t target, int64_t ignore_index,
                          uintptr_t state, uintptr_t loss, uintptr_t gradient, int64_t rows, int64_t classes,
                          int64_t width, int64_t start, int64_t count, int threads) {
  const int64_t counted = target ? check_labels(at<int64_t>(target), rows, classes, &ignore_index) : rows;
  if (mean) unit /= double(counted);
  threads = useful_threads(threads, rows, count);
  const Dtype type = parse_dtype(dtype);
  const auto scratch = make_scratch(type, vmf_scratch(count, threads));
  const VmfCrossEntropyArguments a{type, order, inverse_temperature, unit, at(products), stride, at(features),
                                   at(directions), at(kappa), at(log_prior), at<int64_t>(target), ignore_index,
                                   at<double>(state), at(loss), at(gradient), rows, classes, width, start, count,
                                   scratch.get(), threads};
  run(a);
  return counted;
}
LTFAST_DEFINE(vmf_cross_entropy);

}  // namespace

#endif
