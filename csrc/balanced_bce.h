// Balanced binary cross-entropy: loss and gradient of a row in one read of its logits.
// ltfast/ops/balanced_bce/reference.py is the definition.
#pragma once
#include <algorithm>
#include <cmath>

#include "dtypes.h"
#include "kernels.h"
#include "parallel.h"

namespace {

constexpr int64_t kSumBlock = 1024;  // columns summed in the arithmetic type before they are added to a double

// The loss of one logit z against the target t, and its derivative in z. With q = 1 + (pos_weight - 1) t:
// L = (1 - t) z + q softplus(-z),  dL/dz = (1 - t) - q sigmoid(-z).
template <class A>
struct BceTerm {
  A loss, derivative;
};
template <class A>
inline BceTerm<A> bce_term(A z, A t, A q) {
  const A limit = A(1e30);  // so that finite logits give a finite sum
  const A low = z < -limit ? -limit : z;
  const A bounded = (low > limit ? limit : low) + (z - z);  // z - z is 0, or NaN for an infinite logit
  const A magnitude = bounded < 0 ? -bounded : bounded;
  const A e = exp_negative(-magnitude);
  const A inverse = A(1) / ((1 + e) * (2 + e));  // one division for both 1 / (1 + e) and 1 / (2 + e)
  const A s = e * (1 + e) * inverse;
  const A log1p_e = s * atanh_series(s * s);
  const A sigmoid_negative = (bounded < 0 ? A(1) : e) * (2 + e) * inverse;  // sigmoid(-z)
  const A hinge = bounded < 0 ? magnitude : A(0);
  return {(1 - t) * bounded + q * (log1p_e + hinge), (1 - t) - q * sigmoid_negative};
}

template <bool Weighted, bool Gradient, class T, class A, class Target>
double bce_span(const BalancedBceArguments& a, const T* __restrict logits, T* __restrict gradient, int64_t begin,
                int64_t end, Target target) {
  const A* __restrict bias = static_cast<const A*>(a.bias);
  const A* __restrict weight = static_cast<const A*>(a.weight);
  const A* __restrict pos_weight = static_cast<const A*>(a.pos_weight);
  const A unit = A(a.gradient_scale);
  double total = 0;
  for (int64_t start = begin; start < end; start += kSumBlock) {
    const int64_t stop = std::min(start + kSumBlock, end);
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = start; c < stop; ++c) {
      const A t = target(c);
      A q = A(1), w = A(1);
      if constexpr (Weighted) {
        q = A(1) + (pos_weight[c] - 1) * t;
        w = weight[c];
      }
      const auto term = bce_term<A>(load(logits[c]) + bias[c], t, q);
      sum += w * term.loss;
      if constexpr (Gradient) store(gradient[c], w * term.derivative * unit);
    }
    total += sum;
  }
  return total;
}

template <bool Weighted, bool Gradient, class T>
void bce_rows(const BalancedBceArguments& a) {
  using A = typename Arithmetic<T>::type;
  parallel_rows(a.rows, a.threads, [&](int64_t row, int) {
    const T* logits = static_cast<const T*>(a.logits) + row * a.row_stride;
    T* gradient = Gradient ? static_cast<T*>(a.gradient) + row * a.classes : nullptr;
    double loss;
    if (a.target) {
      const A on = A(a.on_value), off = A(a.off_value);
      const int64_t y = a.target[row];
      const auto negative = [off](int64_t) { return off; };
      loss = bce_span<Weighted, Gradient, T, A>(a, logits, gradient, 0, y, negative);
      loss += bce_span<Weighted, Gradient, T, A>(a, logits, gradient, y, y + 1, [on](int64_t) { return on; });
      loss += bce_span<Weighted, Gradient, T, A>(a, logits, gradient, y + 1, a.classes, negative);
    } else {
      const A* soft = static_cast<const A*>(a.soft_target) + row * a.soft_target_stride;
      const A threshold = A(a.threshold);
      if (a.threshold != a.threshold)
        loss = bce_span<Weighted, Gradient, T, A>(a, logits, gradient, 0, a.classes,
                                                  [soft](int64_t c) { return soft[c]; });
      else
        loss = bce_span<Weighted, Gradient, T, A>(a, logits, gradient, 0, a.classes, [=](int64_t c) {
          return soft[c] > threshold ? A(1) : A(0);
        });
    }
    static_cast<A*>(a.loss)[row] = A(loss);
  });
}

template <class T>
void balanced_bce(const BalancedBceArguments& a) {
  const bool weighted = a.weight != nullptr;  // bindings.cpp gives both vectors or neither
  if (weighted) return a.gradient ? bce_rows<true, true, T>(a) : bce_rows<true, false, T>(a);
  return a.gradient ? bce_rows<false, true, T>(a) : bce_rows<false, false, T>(a);
}

}  // namespace
