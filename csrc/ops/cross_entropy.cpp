// Softmax cross-entropy with a bias for each class: loss and gradient of a row.
// ltfast/ops/cross_entropy/reference.py is the definition.
#include "../op.h"

// Rows are contiguous along the classes; strides are in elements. All but logits, gradient and target are float, or
// double if logits are float64.
struct CrossEntropyArguments {
  Dtype dtype;
  const void* logits;         // (rows, classes)
  int64_t row_stride;
  const int64_t* target;      // (rows,), in [0, classes) or ignore_index; null if soft_target is not
  int64_t ignore_index;       // a row with this label has the loss 0 and the gradient 0
  const void* soft_target;    // (rows, classes) or null
  int64_t soft_target_stride;
  const void* bias;           // (classes,)
  const void* weight;         // (classes,) or null
  void* loss;                 // (rows,)
  void* gradient;             // (rows, classes), contiguous, or null
  int64_t rows, classes;
  double label_smoothing, gradient_scale;
  int threads;
};
LTFAST_KERNEL(CrossEntropyArguments);

#ifdef LTFAST_ISA

#include <algorithm>
#include <cmath>
#include <limits>

#include "../kernel.h"

namespace {

constexpr int32_t kScoreBlock = 1024;  // columns whose scores are stored
constexpr int32_t kScoreTail = 16;     // the end of a row is padded to whole vectors
// Columns that are summed in the arithmetic type before the sum is added to a double: 16 a lane of a vector of floats. Of
// equal terms, which are all rounded the same way, a float32 sum is then off by 15 / 2^24 (9e-7) at most.
constexpr int32_t kScoreSpan = 16 * (kIsa == Isa::avx512 ? 16 : kIsa == Isa::avx2 ? 8 : 4);
constexpr double kScoreLimit = 1e30;   // a score counts as at most this far below the largest, for a finite loss

LTFAST_INLINE float softmax_exp(float d) {
  const float t = d * 1.44269504f;
  return exp2_negative(t < -127.f ? -127.f : t);
}
LTFAST_INLINE double softmax_exp(double d) { return exp_negative(d); }

// A block of a row's columns. There are `count` of them, a multiple of kScoreTail; those from `valid` on are padding.
template <class T, class A>
struct ScoreBlock {
  int64_t start;
  int32_t count, valid;
  const T* logits;
  const A *bias, *weight, *soft;  // the last two may be null

  // Computes z = logits + bias, -inf in the padding. Returns the largest of them and of peak; NaN is left out.
  A scores(A* __restrict z, A peak) const {
#pragma omp simd
    for (int32_t c = 0; c < count; ++c) z[c] = load(logits[c]) + bias[c];
    for (int32_t c = valid; c < count; ++c) z[c] = -std::numeric_limits<A>::infinity();
    A high[kScoreTail];
    for (A& x : high) x = peak;
    for (int32_t c = 0; c < count; c += kScoreTail) {
#pragma omp simd
      for (int32_t j = 0; j < kScoreTail; ++j) high[j] = z[c + j] > high[j] ? z[c + j] : high[j];
    }
    for (A x : high) peak = x > peak ? x : peak;
    return peak;
  }
};

// Calls body(start, stop) for the spans of a block's columns.
template <class Body>
LTFAST_INLINE void for_spans(int32_t count, const Body& body) {
  for (int32_t start = 0; start < count; start += kScoreSpan) body(start, std::min(start + kScoreSpan, count));
}

// Calls body(block) for the blocks of a row.
template <class T, class A, class Body>
LTFAST_INLINE void for_score_blocks(const CrossEntropyArguments& a, const T* logits, const A* soft, const Body& body) {
  const A* bias = static_cast<const A*>(a.bias);
  const A* weight = static_cast<const A*>(a.weight);
  const int64_t whole = a.classes / kScoreTail * kScoreTail;
  for (int64_t start = 0; start < whole; start += kScoreBlock) {
    const int32_t count = int32_t(std::min<int64_t>(kScoreBlock, whole - start));
    body(ScoreBlock<T, A>{start, count, count, logits + start, bias + start, weight ? weight + start : nullptr,
                          soft ? soft + start : nullptr});
  }
  if (whole == a.classes) return;
  const int32_t left = int32_t(a.classes - whole);
  T last[kScoreTail] = {};
  A vectors[3][kScoreTail] = {};
  std::memcpy(last, logits + whole, left * sizeof(T));
  const A* sources[3] = {bias, weight, soft};
  for (int v = 0; v < 3; ++v)
    if (sources[v]) std::memcpy(vectors[v], sources[v] + whole, left * sizeof(A));
  body(ScoreBlock<T, A>{whole, kScoreTail, left, last, vectors[0], vectors[1], vectors[2]});
}

// The shares a_c of the classes in the loss, in a block of columns and without weights: of soft targets, or of a smoothed
// label, where all are equal but the label's, which the code takes by itself.
template <class A>
struct SoftShares {
  static constexpr bool kEqual = false;
  const A* values;
  A on, off;
  A operator()(int32_t c) const { return values[c] * on + off; }
};
template <class A>
struct EqualShares {
  static constexpr bool kEqual = true;
  A off;
  A operator()(int32_t) const { return off; }
};

// What the first walk over a row finds: the largest score, the sum of e^(z - peak), the sum of the shares, and that of
// share (z - peak).
template <class A>
struct RowSums {
  A peak = -std::numeric_limits<A>::max();  // not -inf, which all scores of a block may be
  double mass = 0, shares = 0, terms = 0;

  void move_peak(A higher) {
    const double shift = double(peak) - double(higher);
    mass *= std::exp(shift);
    // every score so far is further down than the limit
    terms = shift < -kScoreLimit ? -kScoreLimit * shares : terms + shift * shares;
    peak = higher;
  }
  // NaN if all scores are -inf: else the mass is at least 1.
  double log_mass() const { return mass == 0 ? std::numeric_limits<double>::quiet_NaN() : std::log(mass); }
};

// The row of a label without smoothing.
template <bool Gradient, class T>
double cross_entropy_row(const CrossEntropyArguments& a, const T* logits, T* gradient, int64_t y) {
  using A = typename Arithmetic<T>::type;
  RowSums<A> row;
  const A* no_soft = nullptr;
  for_score_blocks(a, logits, no_soft, [&](const ScoreBlock<T, A>& block) {
    A z[kScoreBlock];
    row.move_peak(block.scores(z, row.peak));
    const A peak = row.peak;
    for_spans(block.count, [&](int32_t start, int32_t stop) LTFAST_LAMBDA {
      A mass = 0;
#pragma omp simd reduction(+ : mass)
      for (int32_t c = start; c < stop; ++c) mass += softmax_exp(z[c] - peak);
      row.mass += mass;
    });
  });
  const A* weight = static_cast<const A*>(a.weight);
  const A z_own = load(logits[y]) + static_cast<const A*>(a.bias)[y];
  const double own_weight = weight ? double(weight[y]) : 1.0, d_own = double(z_own) - double(row.peak);
  const double bounded = z_own == -std::numeric_limits<A>::infinity() || !(d_own < -kScoreLimit) ? d_own : -kScoreLimit;
  if constexpr (Gradient) {
    const double unit = own_weight * a.gradient_scale;
    const A pull = A(unit / row.mass), peak = row.peak;
    for_score_blocks(a, logits, no_soft, [&](const ScoreBlock<T, A>& block) {
      T last[kScoreTail];
      T* __restrict out = block.valid < block.count ? last : gradient + block.start;
#pragma omp simd
      for (int32_t c = 0; c < block.count; ++c)
        store(out[c], pull * softmax_exp((load(block.logits[c]) + block.bias[c]) - peak));
      if (block.valid < block.count) std::memcpy(gradient + block.start, last, block.valid * sizeof(T));
    });
    store(gradient[y], A((std::exp(d_own) / row.mass - 1) * unit));
  }
  return own_weight * (row.log_mass() - bounded);
}

// The row of soft targets, or of the smoothed label y (else -1). shares_of(block) returns the shares of its columns.
template <bool Weighted, bool Gradient, class T, class A, class SharesOf>
double cross_entropy_shared_row(const CrossEntropyArguments& a, const T* logits, T* gradient, const A* soft, int64_t y,
                                SharesOf shares_of) {
  RowSums<A> row;
  const A limit = A(-kScoreLimit);
  for_score_blocks(a, logits, soft, [&](const ScoreBlock<T, A>& block) {
    A z[kScoreBlock];
    row.move_peak(block.scores(z, row.peak));
    const auto share_of = shares_of(block);
    constexpr bool kEqual = !Weighted && decltype(share_of)::kEqual;
    const A* __restrict weight = block.weight;
    const A peak = row.peak;
    const int32_t valid = block.valid;
    double block_terms = 0;
    for_spans(block.count, [&](int32_t start, int32_t stop) LTFAST_LAMBDA {
      A mass = 0, shares = 0, terms = 0;
#pragma omp simd reduction(+ : mass, shares, terms)
      for (int32_t c = start; c < stop; ++c) {
        const A d = z[c] - peak;
        mass += softmax_exp(d);
        A share = kEqual ? A(1) : share_of(c);
        if constexpr (Weighted) share *= weight[c];
        share = c < valid ? share : A(0);
        if constexpr (!kEqual) shares += share;
        terms += share * (d < limit ? limit : d);
      }
      row.mass += mass;
      row.shares += shares;
      block_terms += terms;
    });
    if constexpr (kEqual) row.shares += double(share_of(0)) * valid;
    row.terms += kEqual ? double(share_of(0)) * block_terms : block_terms;
  });
  double d_own = 0, share_own = 0;
  if (y >= 0) {
    const double own_weight = Weighted ? double(static_cast<const A*>(a.weight)[y]) : 1.0;
    const double extra = own_weight * (1 - a.label_smoothing);
    d_own = double(load(logits[y]) + static_cast<const A*>(a.bias)[y]) - double(row.peak);
    share_own = extra + own_weight * (a.label_smoothing / double(a.classes));
    row.shares += extra;
    row.terms += extra * (d_own < -kScoreLimit ? -kScoreLimit : d_own);
  }
  if constexpr (Gradient) {
    const A pull = A(row.shares / row.mass * a.gradient_scale), unit = A(a.gradient_scale), peak = row.peak;
    for_score_blocks(a, logits, soft, [&](const ScoreBlock<T, A>& block) {
      const auto share_of = shares_of(block);
      const A* __restrict weight = block.weight;
      T last[kScoreTail];
      T* __restrict out = block.valid < block.count ? last : gradient + block.start;
#pragma omp simd
      for (int32_t c = 0; c < block.count; ++c) {
        A share = share_of(c) * unit;
        if constexpr (Weighted) share *= weight[c];
        store(out[c], pull * softmax_exp((load(block.logits[c]) + block.bias[c]) - peak) - share);
      }
      if (block.valid < block.count) std::memcpy(gradient + block.start, last, block.valid * sizeof(T));
    });
    if (y >= 0) store(gradient[y], A((row.shares * (std::exp(d_own) / row.mass) - share_own) * a.gradient_scale));
  }
  return row.shares * row.log_mass() - row.terms;
}

template <bool Weighted, bool Gradient, class T>
void cross_entropy_rows(const CrossEntropyArguments& a) {
  using A = typename Arithmetic<T>::type;
  const A off = A(a.label_smoothing / double(a.classes)), on = A(1 - a.label_smoothing);
  parallel_rows(a.rows, a.threads, [&](int64_t row, int) {
    const T* logits = static_cast<const T*>(a.logits) + row * a.row_stride;
    T* gradient = Gradient ? static_cast<T*>(a.gradient) + row * a.classes : nullptr;
    double loss = 0;
    if (!a.target) {
      const A* soft = static_cast<const A*>(a.soft_target) + row * a.soft_target_stride;
      loss = cross_entropy_shared_row<Weighted, Gradient>(
          a, logits, gradient, soft, -1,
          [=](const ScoreBlock<T, A>& block) { return SoftShares<A>{block.soft, on, off}; });
    } else if (const int64_t y = a.target[row]; y == a.ignore_index) {
      if (Gradient) std::memset(gradient, 0, a.classes * sizeof(T));
    } else if (a.label_smoothing == 0) {
      loss = cross_entropy_row<Gradient>(a, logits, gradient, y);
    } else {
      loss = cross_entropy_shared_row<Weighted, Gradient>(
          a, logits, gradient, static_cast<const A*>(nullptr), y,
          [=](const ScoreBlock<T, A>&) { return EqualShares<A>{off}; });
    }
    static_cast<A*>(a.loss)[row] = A(loss);
  });
}

template <class T>
void cross_entropy(const CrossEntropyArguments& a) {
  if (a.weight) return a.gradient ? cross_entropy_rows<true, true, T>(a) : cross_entropy_rows<true, false, T>(a);
  return a.gradient ? cross_entropy_rows<false, true, T>(a) : cross_entropy_rows<false, false, T>(a);
}

}  // namespace

void kernel(On<kIsa>, const CrossEntropyArguments& a) {
  by_dtype(a.dtype, [&](auto zero) { cross_entropy<decltype(zero)>(a); });
}

#else

#include "../binding.h"
#include "../row_losses.h"

namespace {

void cross_entropy(const std::string& dtype, uintptr_t logits, int64_t row_stride, uintptr_t target,
                   uintptr_t soft_target, int64_t soft_target_stride, uintptr_t bias, uintptr_t weight, uintptr_t loss,
                   uintptr_t gradient, int64_t rows, int64_t classes, double label_smoothing, double gradient_scale,
                   int64_t ignore_index, const std::string& reduction, int threads) {
  const Dtype type = parse_dtype(dtype);
  const int64_t counted = target ? check_labels(at<int64_t>(target), rows, classes, &ignore_index) : rows;
  const RowLosses losses(loss, type, reduction, rows, counted);
  const CrossEntropyArguments a{type, at(logits), row_stride, at<int64_t>(target), ignore_index, at(soft_target),
                                soft_target_stride, at(bias), at(weight), losses.rows(), at(gradient), rows, classes,
                                label_smoothing, losses.gradient_scale(gradient_scale),
                                useful_threads(threads, rows, classes)};
  run(a);
  losses.reduce();
}
LTFAST_DEFINE(cross_entropy);

}  // namespace

#endif
