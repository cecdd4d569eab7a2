// Asymmetric Gaussian-clouded logit loss: loss and gradient of a row in one read of its logits.
// ltfast/ops/agcl/reference.py is the definition.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "dtypes.h"
#include "kernels.h"
#include "noise.h"
#include "parallel.h"

namespace {

constexpr double kLowest = -1e30;  // log-probabilities saturate here, so that finite logits give a finite loss

// p^gamma for p = e^t. The published exponents 1, 2, 4, 8 are squarings; the general one is another exponential.
constexpr int kConstant = -1, kGeneral = -2;
template <int Squarings, class A>
inline A power(A e, A t, A gamma) {
  if constexpr (Squarings == kConstant) return A(1);
  if constexpr (Squarings == kGeneral) return exp_negative(gamma * t);
  for (int i = 0; i < Squarings; ++i) e *= e;
  return e;
}

template <class A>
struct AgclSums {
  double mass = 0, weight = 0, weighted = 0;  // sums of e^t, e^(gamma t) and t e^(gamma t)
};

// t = scale (u - peak) in place of u, e = e^t, and the sums over [begin, end).
template <int Squarings, class A>
void agcl_exponentials(A* __restrict u, A* __restrict e, int64_t begin, int64_t end, A peak, A scale, A gamma,
                       AgclSums<A>& sums) {
  for (int64_t start = begin; start < end; start += kNoiseBlock) {
    const int64_t stop = std::min(start + kNoiseBlock, end);
    A mass = 0, weight = 0, weighted = 0;
#pragma omp simd reduction(+ : mass, weight, weighted)
    for (int64_t c = start; c < stop; ++c) {
      const A difference = scale * (u[c] - peak);
      const A t = difference < A(kLowest) ? A(kLowest) : difference;
      const A exponential = exp_negative(t);
      const A w = power<Squarings>(exponential, t, gamma);
      u[c] = t;
      e[c] = exponential;
      mass += exponential;
      weight += w;
      weighted += w * t;
    }
    sums.mass += mass;
    sums.weight += weight;
    sums.weighted += weighted;
  }
}

template <int Squarings, class T, class A>
double agcl_row(const AgclArguments& a, int64_t row, A* __restrict u, A* __restrict e) {
  const int64_t classes = a.classes, y = a.target[row];
  const T* logits = static_cast<const T*>(a.logits) + row * a.row_stride;
  const A* spread = static_cast<const A*>(a.class_noise);
  A peak = -std::numeric_limits<A>::infinity();
  for (int64_t start = 0; start < classes; start += kNoiseBlock) {
    const int64_t stop = std::min(start + kNoiseBlock, classes);
    if (spread) {
      float noise[kNoiseBlock];
      half_normal_block(noise, start, stop - start, uint64_t(row), a.seed);
#pragma omp simd
      for (int64_t c = start; c < stop; ++c) u[c] = load(logits[c]) - spread[c] * noise[c - start];
    } else {
#pragma omp simd
      for (int64_t c = start; c < stop; ++c) u[c] = load(logits[c]);
    }
    if (start <= y && y < stop) u[y] -= A(a.margin);
#pragma omp simd reduction(max : peak)
    for (int64_t c = start; c < stop; ++c) peak = u[c] > peak ? u[c] : peak;
  }

  const A scale = A(a.scale), gamma = A(a.gamma_neg);
  AgclSums<A> others, own;
  agcl_exponentials<Squarings>(u, e, 0, y, peak, scale, gamma, others);
  agcl_exponentials<Squarings>(u, e, y + 1, classes, peak, scale, gamma, others);
  agcl_exponentials<Squarings>(u, e, y, y + 1, peak, scale, gamma, own);

  const double sum = others.mass + own.mass, log_sum = std::log(sum);
  const double p = own.mass / sum, rest = others.mass / sum, log_p = u[y] - log_sum;
  const double focus = a.gamma_pos == 0 ? 1 : std::pow(rest, a.gamma_pos);
  const double shrink = std::exp(-a.gamma_neg * log_sum);  // p_c^gamma = shrink e^(gamma t_c)
  const double negatives = shrink * (others.weighted - log_sum * others.weight);
  const double loss = -(a.weight_pos * focus * log_p + a.weight_neg * negatives);
  if (!a.gradient) return loss;

  // f = dL / dlog p; dL/dv_c = f_c - p_c sum_k f_k. At p = 1 the focus term's derivative tends to 0.
  const double steep = rest > 0 && a.gamma_pos != 0 ? a.gamma_pos * std::pow(rest, a.gamma_pos - 1) * p * log_p : 0;
  const double f_own = -a.weight_pos * (focus - steep);
  const double f_others = -a.weight_neg * (a.gamma_neg * negatives + shrink * others.weight);
  const double unit = a.scale * a.gradient_scale;
  const A slope = A(-a.weight_neg * shrink * a.gamma_neg * unit);
  const A offset = A(-a.weight_neg * shrink * (1 - a.gamma_neg * log_sum) * unit);
  const A pull = A((f_own + f_others) / sum * unit);
  T* gradient = static_cast<T*>(a.gradient) + row * classes;
#pragma omp simd
  for (int64_t c = 0; c < classes; ++c) {
    const A w = power<Squarings>(e[c], u[c], gamma);
    store(gradient[c], w * (slope * u[c] + offset) - e[c] * pull);
  }
  store(gradient[y], A((f_own * rest - p * f_others) * unit));
  return loss;
}

template <int Squarings, class T>
void agcl_rows(const AgclArguments& a) {
  using A = typename Arithmetic<T>::type;
  parallel_rows(a.rows, a.threads, [&](int64_t row, int thread) {
    A* scratch = static_cast<A*>(a.scratch) + 2 * a.classes * thread;
    static_cast<A*>(a.loss)[row] = A(agcl_row<Squarings, T>(a, row, scratch, scratch + a.classes));
  });
}

template <class T>
void agcl(const AgclArguments& a) {
  if (a.gamma_neg == 0) return agcl_rows<kConstant, T>(a);
  if (a.gamma_neg == 1) return agcl_rows<0, T>(a);
  if (a.gamma_neg == 2) return agcl_rows<1, T>(a);
  if (a.gamma_neg == 4) return agcl_rows<2, T>(a);
  if (a.gamma_neg == 8) return agcl_rows<3, T>(a);
  return agcl_rows<kGeneral, T>(a);
}

}  // namespace
