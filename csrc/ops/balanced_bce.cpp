// Balanced binary cross-entropy: loss and gradient of a row in one read of its logits.
// ltfast/ops/balanced_bce/reference.py is the definition.
#include "../op.h"

// Rows are contiguous along the classes; strides are in elements. All but logits, gradient and target are float, or
// double if logits are float64.
struct BalancedBceArguments {
  Dtype dtype;
  const void* logits;         // (rows, classes)
  int64_t row_stride;
  const int64_t* target;      // (rows,), in [0, classes) or ignore_index; null if soft_target is not
  int64_t ignore_index;       // a row with this label has the loss 0 and the gradient 0
  const void* soft_target;    // (rows, classes) or null
  int64_t soft_target_stride;
  const void* bias;           // (classes,)
  const void* weight;         // (classes,) or null
  const void* pos_weight;     // (classes,); null if weight is
  void* loss;                 // (rows,)
  void* gradient;             // (rows, classes), contiguous, or null
  int64_t rows, classes;
  double on_value, off_value, gradient_scale;
  double threshold;           // NaN if there is none
  int threads;
};
LTFAST_KERNEL(BalancedBceArguments);

#ifdef LTFAST_ISA

#include <algorithm>

#include "../kernel.h"

namespace {

constexpr int32_t kSumBlock = 1024;  // columns summed in the arithmetic type before the sum is added to a double
constexpr int32_t kTail = 16;        // the end of a row is padded to whole vectors

// The loss of one logit z against the target t, and its derivative in z. With q = 1 + (pos_weight - 1) t,
// L = (1 - t) z + q softplus(-z) and dL/dz = (1 - t) - q sigmoid(-z). For z < 0, where (1 - t) z and -q z nearly cancel,
// the code uses the equal L = pos_weight t |z| + q log1p(e^z) and dL/dz = q sigmoid(z) - pos_weight t.
template <class A>
struct BceTerm {
  A loss, derivative;
};
template <class A>
LTFAST_INLINE BceTerm<A> bce_term(A z, A t, A positive, A q) {  // positive = pos_weight t
  const A limit = A(1e30);  // so that finite logits give a finite sum
  const A low = z < -limit ? -limit : z;
  const A bounded = (low > limit ? limit : low) + (z - z);  // z - z is 0, or NaN for an infinite logit
  const A magnitude = bounded < 0 ? -bounded : bounded;
  const A slope = bounded < 0 ? positive : 1 - t;
  const A e = exp_negative(-magnitude);
  const A inverse = A(1) / ((1 + e) * (2 + e));  // one division for both 1 / (1 + e) and 1 / (2 + e)
  const A s = e * (1 + e) * inverse;
  const A log1p_e = s * atanh_series(s * s);
  const A rise = slope - q * (e * (2 + e) * inverse);  // e / (1 + e) = sigmoid(-|z|)
  return {slope * magnitude + q * log1p_e, bounded < 0 ? -rise : rise};
}

// The targets of a span of columns: of a label (own is its index in the span, or -1), soft ones, or thresholded ones.
// Soft ones are smoothed: values (1 - s) + s / C, with on = 1 - s and off = s / C.
template <class A>
struct Labels {
  A on, off;
  int32_t own;
  A operator()(int32_t c) const { return c == own ? on : off; }
};
template <class A>
struct Soft {
  const A* values;
  A on, off;
  A operator()(int32_t c) const { return values[c] * on + off; }
};
template <class A>
struct Cut {
  const A* values;
  A on, off, threshold;
  A operator()(int32_t c) const { return values[c] * on + off > threshold ? A(1) : A(0); }
};

// The sum of the losses of the first `valid` of `count` columns. count is a multiple of kTail, and a block at most.
template <bool Weighted, bool Gradient, class T, class A, class Target>
A bce_span(int32_t count, int32_t valid, const T* __restrict logits, const A* __restrict bias,
           const A* __restrict weight, const A* __restrict pos_weight, T* __restrict gradient, A unit, Target target) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int32_t c = 0; c < count; ++c) {
    const A t = target(c);
    A positive = t, q = A(1), w = A(1);
    if constexpr (Weighted) {
      positive = pos_weight[c] * t;
      q = A(1) + (pos_weight[c] - 1) * t;
      w = weight[c];
    }
    const auto term = bce_term<A>(load(logits[c]) + bias[c], t, positive, q);
    sum += c < valid ? w * term.loss : A(0);
    if constexpr (Gradient) store(gradient[c], w * term.derivative * unit);
  }
  return sum;
}

// The ends of the class vectors (null for none), padded: bias, weight and pos_weight.
template <class A>
struct BceTails {
  A vectors[3][kTail] = {};

  explicit BceTails(const BalancedBceArguments& a) {
    const int64_t whole = a.classes / kTail * kTail;
    const void* sources[3] = {a.bias, a.weight, a.pos_weight};
    for (int v = 0; v < 3; ++v)
      if (sources[v])
        std::memcpy(vectors[v], static_cast<const A*>(sources[v]) + whole, (a.classes - whole) * sizeof(A));
  }
};

// target_of(start, values) returns the targets of the columns from `start` on; soft targets are read from `values`.
template <bool Weighted, bool Gradient, class T, class A, class TargetOf>
double bce_row(const BalancedBceArguments& a, const BceTails<A>& tails, const T* logits, T* gradient, const A* soft,
               TargetOf target_of) {
  const A* bias = static_cast<const A*>(a.bias);
  const A* weight = static_cast<const A*>(a.weight);
  const A* pos_weight = static_cast<const A*>(a.pos_weight);
  const A unit = A(a.gradient_scale);
  const auto from = [](const A* vector, int64_t start) { return vector ? vector + start : nullptr; };
  const int64_t whole = a.classes / kTail * kTail;
  double total = 0;
  for (int64_t start = 0; start < whole; start += kSumBlock) {
    const int32_t count = int32_t(std::min<int64_t>(kSumBlock, whole - start));
    total += bce_span<Weighted, Gradient>(count, count, logits + start, bias + start, from(weight, start),
                                          from(pos_weight, start), Gradient ? gradient + start : nullptr, unit,
                                          target_of(start, from(soft, start)));
  }
  if (whole < a.classes) {
    const int32_t left = int32_t(a.classes - whole);
    T last[kTail] = {}, last_gradient[kTail];
    A last_soft[kTail] = {};
    std::memcpy(last, logits + whole, left * sizeof(T));
    if (soft) std::memcpy(last_soft, soft + whole, left * sizeof(A));
    total += bce_span<Weighted, Gradient>(kTail, left, last, tails.vectors[0], tails.vectors[1], tails.vectors[2],
                                          last_gradient, unit, target_of(whole, last_soft));
    if (Gradient) std::memcpy(gradient + whole, last_gradient, left * sizeof(T));
  }
  return total;
}

template <bool Weighted, bool Gradient, class T>
void bce_rows(const BalancedBceArguments& a) {
  using A = typename Arithmetic<T>::type;
  const BceTails<A> tails(a);
  parallel_rows(a.rows, a.threads, [&](int64_t row, int) {
    const T* logits = static_cast<const T*>(a.logits) + row * a.row_stride;
    T* gradient = Gradient ? static_cast<T*>(a.gradient) + row * a.classes : nullptr;
    if (a.target && a.target[row] == a.ignore_index) {
      static_cast<A*>(a.loss)[row] = 0;
      if (Gradient) std::memset(gradient, 0, a.classes * sizeof(T));
      return;
    }
    double loss;
    const A on = A(a.on_value), off = A(a.off_value);
    if (a.target) {
      const int64_t y = a.target[row];
      loss = bce_row<Weighted, Gradient>(a, tails, logits, gradient, static_cast<const A*>(nullptr),
                                         [=](int64_t start, const A*) {
                                           const int64_t own = y - start;
                                           return Labels<A>{on, off, own < 0 || own > kSumBlock ? -1 : int32_t(own)};
                                         });
    } else {
      const A* soft = static_cast<const A*>(a.soft_target) + row * a.soft_target_stride;
      const A threshold = A(a.threshold);
      if (a.threshold != a.threshold)
        loss = bce_row<Weighted, Gradient>(a, tails, logits, gradient, soft,
                                           [=](int64_t, const A* values) { return Soft<A>{values, on, off}; });
      else
        loss = bce_row<Weighted, Gradient>(a, tails, logits, gradient, soft,
                                           [=](int64_t, const A* values) { return Cut<A>{values, on, off, threshold}; });
    }
    static_cast<A*>(a.loss)[row] = A(loss);
  });
}

template <class T>
void balanced_bce(const BalancedBceArguments& a) {
  const bool weighted = a.weight != nullptr;
  if (weighted) return a.gradient ? bce_rows<true, true, T>(a) : bce_rows<true, false, T>(a);
  return a.gradient ? bce_rows<false, true, T>(a) : bce_rows<false, false, T>(a);
}

}  // namespace

void kernel(On<kIsa>, const BalancedBceArguments& a) {
  by_dtype(a.dtype, [&](auto zero) { balanced_bce<decltype(zero)>(a); });
}

#else

#include "../binding.h"
#include "../row_losses.h"

namespace {

void balanced_bce(const std::string& dtype, uintptr_t logits, int64_t row_stride, uintptr_t target,
                  uintptr_t soft_target, int64_t soft_target_stride, uintptr_t bias, uintptr_t weight,
                  uintptr_t pos_weight, uintptr_t loss, uintptr_t gradient, int64_t rows, int64_t classes,
                  double on_value, double off_value, double gradient_scale, double threshold, int64_t ignore_index,
                  const std::string& reduction, int threads) {
  const Dtype type = parse_dtype(dtype);
  const int64_t counted = target ? check_labels(at<int64_t>(target), rows, classes, &ignore_index) : rows;
  const RowLosses losses(loss, type, reduction, rows, counted);
  const BalancedBceArguments a{type, at(logits), row_stride, at<int64_t>(target), ignore_index, at(soft_target),
                               soft_target_stride, at(bias), at(weight), at(pos_weight), losses.rows(), at(gradient),
                               rows, classes, on_value, off_value, losses.gradient_scale(gradient_scale), threshold,
                               useful_threads(threads, rows, classes)};
  run(a);
  losses.reduce();
}
LTFAST_DEFINE(balanced_bce);

}  // namespace

#endif
