// Asymmetric Gaussian-clouded logit loss: loss and gradient of a row in one read of its logits.
// ltfast/ops/agcl/reference.py is the definition.
#include "../op.h"

// Rows are contiguous along the classes; row_stride is in elements. class_noise and loss are float, or double if logits
// are float64.
struct AgclArguments {
  Dtype dtype;
  const void* logits;         // (rows, classes)
  int64_t row_stride;
  const int64_t* target;      // (rows,), in [0, classes) or ignore_index
  int64_t ignore_index;       // a row with this label has the loss 0 and the gradient 0
  const void* class_noise;    // (classes,) or null
  const void* class_weight;   // (classes padded with 0 to a multiple of 16,) or null
  uint64_t seed;
  void* loss;                 // (rows,)
  void* gradient;             // (rows, classes), contiguous, or null
  int64_t rows, classes;
  int64_t first_row;          // of the noise
  double scale, margin, weight_pos, weight_neg, gamma_pos, gamma_neg, gradient_scale;
  void* scratch;              // (threads, 2, classes + 15): the noisy logits of a row, and their exponentials
  int threads;
};
LTFAST_KERNEL(AgclArguments);

// The same loss where each process has a share of the classes. If gradient is null, the kernel computes statistics of
// each row: the largest noisy logit; the label's noisy logit (0 if the label is in another share); and the sums of e^t,
// e^(gamma t) and t e^(gamma t) over the other classes, with t = scale (u - largest). Otherwise it computes the gradient
// in the logits from that in the statistics.
struct AgclShareArguments {
  Dtype dtype;
  const void* logits;         // (rows, classes)
  int64_t row_stride;
  const int64_t* target;      // (rows,): index of the label in the share; outside [0, classes), it is in another share
  const void* class_noise;    // (classes,) or null
  uint64_t seed;
  int64_t first;              // index of the share's first class among all classes, which determines its noise
  double* statistics;         // (rows, 5): written if gradient is null, else read
  const double* incoming;     // (rows, 5): the gradient in the statistics
  void* gradient;             // (rows, classes), contiguous, or null
  int64_t rows, classes;
  double scale, margin, gamma_neg;
  int threads;
};
LTFAST_KERNEL(AgclShareArguments);

#ifdef LTFAST_ISA

#include <algorithm>
#include <cmath>
#include <limits>

#include "../kernel.h"
#include "../noise.h"

namespace {

// Exponents are in powers of two: e^(scale (u - peak)) = 2^t with t = scale log2(e) (u - peak).
constexpr double kLog2 = 0.69314718055994531;
constexpr double kLowest = -0x1p100 / kLog2;  // t saturates here; a class at this value does not count
constexpr int64_t kWidth = 16;        // rows are padded to whole vectors: a scalar tail costs as much as many of them

inline int64_t padded(int64_t count) { return (count + kWidth - 1) / kWidth * kWidth; }

// p^gamma is computed from p = 2^t by squaring for the published exponents 1, 2, 4 and 8, and is 0 where p is. For any
// other it takes a second exponential.
constexpr int kConstant = -1, kGeneral = -2;

// Computes exponents t and the powers of 2^t from them.
template <int Squarings, class A>
struct Powers {
  static constexpr bool kSquares = Squarings >= 0;
  A scale, gamma;
  A lowest = opaque(A(kLowest)), smallest = opaque(A(-127));  // 2^smallest is 0 in float

  Powers(double natural_scale, double gamma_neg) : scale(A(natural_scale / kLog2)), gamma(A(gamma_neg)) {}

  LTFAST_INLINE A exponent(A u, A peak) const {
    const A t = scale * (u - peak), low = kSquares && sizeof(A) == 4 ? smallest : lowest;
    return t < low ? low : t;
  }
  LTFAST_INLINE A exp2(A t) const {
    if constexpr (sizeof(A) == 8) return exp2_negative(t);
    if constexpr (kSquares) return exp2_negative(t);
    return exp2_negative(t < smallest ? smallest : t);
  }
  LTFAST_INLINE A power(A p, A t) const {
    if constexpr (Squarings == kConstant) return t > lowest ? A(1) : A(0);
    if constexpr (Squarings == kGeneral) {
      const A x = gamma * t;
      return t > lowest ? exp2_negative(sizeof(A) == 4 && x < smallest ? smallest : x) : A(0);
    }
    for (int i = 0; i < Squarings; ++i) p *= p;
    return p;
  }
};

// u = logits - spread * noise for count columns (a multiple of kWidth).
template <class T, class A>
inline void cloud(const T* __restrict logits, const A* __restrict spread, const NoiseBits::Half* __restrict bits,
                  A* __restrict u, int64_t count) {
  if (spread) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) u[c] = load(logits[c]) - spread[c] * half_normal(bits[c]);
  } else {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) u[c] = load(logits[c]);
  }
}

// The same for any count of columns. The first has the noise of column `first`. u is padded with -inf to a multiple of
// kWidth.
template <class T, class A>
inline void noisy_block(const T* logits, const A* spread, int64_t first, int64_t count, int64_t row, uint64_t seed,
                        A* u) {
  const int64_t whole = count / kWidth * kWidth, skipped = first % 8;
  NoiseBits noise;
  const NoiseBits::Half* bits =
      spread ? noise.draw(first - skipped, padded(count) + skipped, uint64_t(row), seed) + skipped : nullptr;
  cloud(logits, spread, bits, u, whole);
  if (whole == count) return;
  T last[kWidth] = {};
  A last_spread[kWidth] = {};
  std::memcpy(last, logits + whole, (count - whole) * sizeof(T));
  if (spread) std::memcpy(last_spread, spread + whole, (count - whole) * sizeof(A));
  cloud(last, spread ? last_spread : nullptr, spread ? bits + whole : nullptr, u + whole, kWidth);
  for (int64_t c = count; c < whole + kWidth; ++c) u[c] = -std::numeric_limits<A>::infinity();
}

// The largest of u and peak, for count columns (a multiple of kWidth). NaN is left out.
template <class A>
inline A largest(const A* u, int64_t count, A peak) {
  A high[kWidth];
  for (A& x : high) x = peak;
  for (int64_t c = 0; c < count; c += kWidth) {
#pragma omp simd
    for (int64_t j = 0; j < kWidth; ++j) high[j] = u[c + j] > high[j] ? u[c + j] : high[j];
  }
  for (A x : high) peak = x > peak ? x : peak;
  return peak;
}

// dL/dx for count columns (a multiple of kWidth).
template <bool Weighted = false, class T, class A, class Powers>
inline void gradients(T* __restrict gradient, const A* __restrict t, const A* __restrict p, int64_t count,
                      const Powers& powers, A slope, A offset, A pull, const A* __restrict class_weight = nullptr) {
#pragma omp simd
  for (int64_t c = 0; c < count; ++c) {
    A w = powers.power(p[c], t[c]);
    if constexpr (Weighted) w *= class_weight[c];
    store(gradient[c], w * (slope * t[c] + offset) - p[c] * pull);
  }
}

// u and p have room for the row, padded to a multiple of kWidth.
template <int Squarings, bool Weighted, class T, class A>
double agcl_row(const AgclArguments& a, int64_t row, A* __restrict u, A* __restrict p) {
  const int64_t classes = a.classes, y = a.target[row];
  const T* logits = static_cast<const T*>(a.logits) + row * a.row_stride;
  const A* spread = static_cast<const A*>(a.class_noise);
  const A* class_weight = static_cast<const A*>(a.class_weight);
  A peak = -std::numeric_limits<A>::infinity();
  for (int64_t start = 0; start < classes; start += kNoiseBlock) {
    const int64_t count = std::min(kNoiseBlock, classes - start);
    noisy_block(logits + start, spread ? spread + start : nullptr, start, count, a.first_row + row, a.seed, u + start);
    if (start <= y && y < start + count) u[y] -= A(a.margin);
    peak = largest(u + start, padded(count), peak);
  }

  // The sums leave the label out, like the padding, so that 1 - p_y needs no subtraction.
  const Powers<Squarings, A> powers(a.scale, a.gamma_neg);
  const double t_own = std::max(a.scale / kLog2 * (double(u[y]) - double(peak)), kLowest);
  u[y] = -std::numeric_limits<A>::infinity();
  double mass = 0, weight = 0, weighted = 0;  // sums of 2^t, 2^(gamma t) and t 2^(gamma t)
  for (int64_t start = 0; start < classes; start += kNoiseBlock) {
    const int64_t stop = start + padded(std::min(kNoiseBlock, classes - start));
    A block_mass = 0, block_weight = 0, block_weighted = 0;
#pragma omp simd reduction(+ : block_mass, block_weight, block_weighted)
    for (int64_t c = start; c < stop; ++c) {
      const A t = powers.exponent(u[c], peak);
      const A exponential = powers.exp2(t);
      A w = powers.power(exponential, t);
      if constexpr (Weighted) w *= class_weight[c];
      u[c] = t;
      p[c] = exponential;
      block_mass += exponential;
      block_weight += w;
      block_weighted += w * t;
    }
    mass += block_mass;
    weight += block_weight;
    weighted += block_weighted;
  }

  weighted *= kLog2;
  const double p_unscaled = exp2_negative(t_own), sum = mass + p_unscaled, log_sum = std::log(sum);
  const double p_own = p_unscaled / sum, rest = mass / sum, log_p = t_own * kLog2 - log_sum;
  const double focus = a.gamma_pos == 0 ? 1 : std::pow(rest, a.gamma_pos);
  const double shrink = std::exp(-a.gamma_neg * log_sum);  // p_c^gamma = shrink 2^(gamma t_c)
  const double negatives = shrink * (weighted - log_sum * weight);
  const double weight_pos = Weighted ? a.weight_pos * double(class_weight[y]) : a.weight_pos;
  const double loss = -(weight_pos * focus * log_p + a.weight_neg * negatives);
  if (!a.gradient) return loss;

  // f = dL / dlog p; dL/dv_c = f_c - p_c sum_k f_k. At p = 1 the focus term's derivative tends to 0.
  const double steep = rest > 0 && a.gamma_pos != 0 ? a.gamma_pos * std::pow(rest, a.gamma_pos - 1) * p_own * log_p : 0;
  const double f_own = -weight_pos * (focus - steep);
  const double f_others = -a.weight_neg * (a.gamma_neg * negatives + shrink * weight);
  const double unit = a.scale * a.gradient_scale;
  const A slope = A(-a.weight_neg * shrink * a.gamma_neg * unit * kLog2);
  const A offset = A(-a.weight_neg * shrink * (1 - a.gamma_neg * log_sum) * unit);
  const A pull = A((f_own + f_others) / sum * unit);
  T* gradient = static_cast<T*>(a.gradient) + row * classes;
  const int64_t whole = classes / kWidth * kWidth;
  gradients<Weighted>(gradient, u, p, whole, powers, slope, offset, pull, class_weight);
  if (whole < classes) {
    T last[kWidth];
    gradients<Weighted>(last, u + whole, p + whole, kWidth, powers, slope, offset, pull,
                        Weighted ? class_weight + whole : nullptr);
    std::memcpy(gradient + whole, last, (classes - whole) * sizeof(T));
  }
  store(gradient[y], A((f_own * rest - p_own * f_others) * unit));
  return loss;
}

template <int Squarings, class T, bool Weighted = false>
void agcl_rows(const AgclArguments& a) {
  using A = typename Arithmetic<T>::type;
  parallel_rows(a.rows, a.threads, [&](int64_t row, int thread) {
    if (a.target[row] == a.ignore_index) {
      static_cast<A*>(a.loss)[row] = 0;
      if (a.gradient) std::memset(static_cast<T*>(a.gradient) + row * a.classes, 0, a.classes * sizeof(T));
      return;
    }
    const int64_t room = padded(a.classes);
    A* scratch = static_cast<A*>(a.scratch) + 2 * room * thread;
    static_cast<A*>(a.loss)[row] = A(agcl_row<Squarings, Weighted, T>(a, row, scratch, scratch + room));
  });
}

template <class T>
void agcl(const AgclArguments& a) {
  if (a.class_weight) return agcl_rows<kGeneral, T, true>(a);
  if (a.gamma_neg == 0) return agcl_rows<kConstant, T>(a);
  if (a.gamma_neg == 1) return agcl_rows<0, T>(a);
  if (a.gamma_neg == 2) return agcl_rows<1, T>(a);
  if (a.gamma_neg == 4) return agcl_rows<2, T>(a);
  if (a.gamma_neg == 8) return agcl_rows<3, T>(a);
  return agcl_rows<kGeneral, T>(a);
}

// A share is computed in blocks of columns. They are shorter than kNoiseBlock because their noise may be unaligned.
constexpr int64_t kShareBlock = kNoiseBlock - kWidth;

// Computes the noisy logits of a block. Returns the index of the label in the block, or -1.
template <class T, class A>
inline int64_t share_block(const AgclShareArguments& a, int64_t row, int64_t start, int64_t count, A* __restrict u) {
  const A* spread = static_cast<const A*>(a.class_noise);
  noisy_block(static_cast<const T*>(a.logits) + row * a.row_stride + start, spread ? spread + start : nullptr,
              a.first + start, count, row, a.seed, u);
  const int64_t own = a.target[row] - start;
  if (own < 0 || own >= count) return -1;
  u[own] -= A(a.margin);
  return own;
}

template <int Squarings, class T>
void agcl_share_statistics(const AgclShareArguments& a) {
  using A = typename Arithmetic<T>::type;
  const Powers<Squarings, A> powers(a.scale, a.gamma_neg);
  parallel_rows(a.rows, a.threads, [&](int64_t row, int) {
    A peak = -std::numeric_limits<A>::max();  // not -inf, which all logits of a block may be
    double own_logit = 0, mass = 0, weight = 0, weighted = 0;
    for (int64_t start = 0; start < a.classes; start += kShareBlock) {
      const int64_t count = std::min(kShareBlock, a.classes - start), whole = padded(count);
      A u[kShareBlock];
      const int64_t own = share_block<T>(a, row, start, count, u);
      const A higher = largest(u, whole, peak);
      if (own >= 0) {
        own_logit = u[own];
        u[own] = -std::numeric_limits<A>::infinity();  // the sums leave it out, like the padding
      }
      const double lowest = kLowest * kLog2, shift = std::max(a.scale * (double(peak) - double(higher)), lowest);
      const double faded = shift > lowest ? std::exp(a.gamma_neg * shift) : 0;  // 0 if no class counted before
      weighted = faded * (weighted + shift * weight);
      weight *= faded;
      mass *= std::exp(shift);
      peak = higher;
      A block_mass = 0, block_weight = 0, block_weighted = 0;
#pragma omp simd reduction(+ : block_mass, block_weight, block_weighted)
      for (int64_t c = 0; c < whole; ++c) {
        const A t = powers.exponent(u[c], peak);
        const A p = powers.exp2(t);
        const A w = powers.power(p, t);
        block_mass += p;
        block_weight += w;
        block_weighted += w * t;
      }
      mass += block_mass;
      weight += block_weight;
      weighted += block_weighted * kLog2;
    }
    double* statistics = a.statistics + 5 * row;
    statistics[0] = peak, statistics[1] = own_logit;
    statistics[2] = mass, statistics[3] = weight, statistics[4] = weighted;
  });
}

template <int Squarings, class T>
void agcl_share_gradient(const AgclShareArguments& a) {
  using A = typename Arithmetic<T>::type;
  const Powers<Squarings, A> powers(a.scale, a.gamma_neg);
  parallel_rows(a.rows, a.threads, [&](int64_t row, int) {
    const A peak = A(a.statistics[5 * row]);
    const double* incoming = a.incoming + 5 * row;
    const A slope = A(a.scale * a.gamma_neg * incoming[4] * kLog2);
    const A offset = A(a.scale * (a.gamma_neg * incoming[3] + incoming[4]));
    const A pull = A(-a.scale * incoming[2]);
    for (int64_t start = 0; start < a.classes; start += kShareBlock) {
      const int64_t count = std::min(kShareBlock, a.classes - start), whole = count / kWidth * kWidth;
      A t[kShareBlock], p[kShareBlock];
      const int64_t own = share_block<T>(a, row, start, count, t);
#pragma omp simd
      for (int64_t c = 0; c < padded(count); ++c) {
        t[c] = powers.exponent(t[c], peak);
        p[c] = powers.exp2(t[c]);
      }
      T* gradient = static_cast<T*>(a.gradient) + row * a.classes + start;
      gradients(gradient, t, p, whole, powers, slope, offset, pull);
      if (whole < count) {
        T last[kWidth];
        gradients(last, t + whole, p + whole, kWidth, powers, slope, offset, pull);
        std::memcpy(gradient + whole, last, (count - whole) * sizeof(T));
      }
      if (own >= 0) store(gradient[own], A(incoming[1]));
    }
  });
}

template <int Squarings, class T>
void agcl_share_rows(const AgclShareArguments& a) {
  a.gradient ? agcl_share_gradient<Squarings, T>(a) : agcl_share_statistics<Squarings, T>(a);
}

template <class T>
void agcl_share(const AgclShareArguments& a) {
  if (a.gamma_neg == 0) return agcl_share_rows<kConstant, T>(a);
  if (a.gamma_neg == 1) return agcl_share_rows<0, T>(a);
  if (a.gamma_neg == 2) return agcl_share_rows<1, T>(a);
  if (a.gamma_neg == 4) return agcl_share_rows<2, T>(a);
  if (a.gamma_neg == 8) return agcl_share_rows<3, T>(a);
  return agcl_share_rows<kGeneral, T>(a);
}

}  // namespace

void kernel(On<kIsa>, const AgclArguments& a) {
  by_dtype(a.dtype, [&](auto zero) { agcl<decltype(zero)>(a); });
}

void kernel(On<kIsa>, const AgclShareArguments& a) {
  by_dtype(a.dtype, [&](auto zero) { agcl_share<decltype(zero)>(a); });
}

#else

#include "../binding.h"
#include "../row_losses.h"

namespace {

void agcl(const std::string& dtype, uintptr_t logits, int64_t row_stride, uintptr_t target, uintptr_t class_noise,
          uintptr_t class_weight, uint64_t seed, uintptr_t loss, uintptr_t gradient, int64_t rows, int64_t classes,
          double gradient_scale, double scale, double margin, double weight_pos, double weight_neg, double gamma_pos, double gamma_neg,
          int64_t ignore_index, const std::string& reduction, int64_t first_row, int threads) {
  const Dtype type = parse_dtype(dtype);
  const int64_t counted = check_labels(at<int64_t>(target), rows, classes, &ignore_index);
  const RowLosses losses(loss, type, reduction, rows, counted);
  threads = useful_threads(threads, rows, classes);
  const auto scratch = make_scratch(type, threads * 2 * (classes + 15));
  const AgclArguments a{type, at(logits), row_stride, at<int64_t>(target), ignore_index, at(class_noise),
                        at(class_weight), seed, losses.rows(), at(gradient), rows, classes, first_row, scale, margin,
                        weight_pos, weight_neg, gamma_pos, gamma_neg, losses.gradient_scale(gradient_scale), scratch.get(), threads};
  run(a);
  losses.reduce();
}
LTFAST_DEFINE(agcl);

void agcl_share(const std::string& dtype, uintptr_t logits, int64_t row_stride, uintptr_t target, uintptr_t class_noise,
                uint64_t seed, uintptr_t statistics, uintptr_t incoming, uintptr_t gradient, int64_t rows, int64_t classes,
                int64_t first, double scale, double margin, double gamma_neg, int threads) {
  const AgclShareArguments a{parse_dtype(dtype), at(logits), row_stride, at<int64_t>(target), at(class_noise), seed,
                             first, at<double>(statistics), at<double>(incoming), at(gradient), rows, classes, scale,
                             margin, gamma_neg, useful_threads(threads, rows, classes)};
  run(a);
}
LTFAST_DEFINE(agcl_share);

}  // namespace

#endif
