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

constexpr double kLowest = -1e30;  // differences saturate here, and such classes are left out
constexpr int64_t kWidth = 16;     // rows are padded to whole vectors: a scalar tail costs as much as many of them

inline int64_t padded(int64_t count) { return (count + kWidth - 1) / kWidth * kWidth; }

// p^gamma for p = e^t. The published exponents 1, 2, 4, 8 are squarings; the general one is another exponential.
constexpr int kConstant = -1, kGeneral = -2;
template <int Squarings, class A>
LTFAST_INLINE A power(A e, A t, A gamma) {
  if constexpr (Squarings == kConstant) return t > A(kLowest) ? A(1) : A(0);
  if constexpr (Squarings == kGeneral) return t > A(kLowest) ? exp_negative(gamma * t) : A(0);
  for (int i = 0; i < Squarings; ++i) e *= e;
  return e;
}

// u = logits - spread * noise for count columns (a multiple of kWidth).
template <class T, class A>
inline void cloud(const T* __restrict logits, const A* __restrict spread, const float* __restrict noise,
                  A* __restrict u, int64_t count) {
  if (spread) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) u[c] = load(logits[c]) - spread[c] * noise[c];
  } else {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) u[c] = load(logits[c]);
  }
}

// dL/dx for count columns (a multiple of kWidth).
template <int Squarings, class T, class A>
inline void gradients(T* __restrict gradient, const A* __restrict t, const A* __restrict e, int64_t count, A gamma,
                      A slope, A offset, A pull) {
#pragma omp simd
  for (int64_t c = 0; c < count; ++c)
    store(gradient[c], power<Squarings>(e[c], t[c], gamma) * (slope * t[c] + offset) - e[c] * pull);
}

// u and e have room for the row padded to kWidth.
template <int Squarings, class T, class A>
double agcl_row(const AgclArguments& a, int64_t row, A* __restrict u, A* __restrict e) {
  const int64_t classes = a.classes, y = a.target[row];
  const T* logits = static_cast<const T*>(a.logits) + row * a.row_stride;
  const A* spread = static_cast<const A*>(a.class_noise);
  A peak = -std::numeric_limits<A>::infinity();
  for (int64_t start = 0; start < classes; start += kNoiseBlock) {
    const int64_t count = std::min(kNoiseBlock, classes - start), whole = count / kWidth * kWidth;
    float noise[kNoiseBlock];
    if (spread) half_normal_block(noise, start, padded(count), uint64_t(row), a.seed);
    cloud(logits + start, spread ? spread + start : nullptr, noise, u + start, whole);
    if (whole < count) {
      T last[kWidth] = {};
      A last_spread[kWidth] = {};
      std::memcpy(last, logits + start + whole, (count - whole) * sizeof(T));
      if (spread) std::memcpy(last_spread, spread + start + whole, (count - whole) * sizeof(A));
      cloud(last, spread ? last_spread : nullptr, noise + whole, u + start + whole, kWidth);
      for (int64_t c = count; c < whole + kWidth; ++c) u[start + c] = -std::numeric_limits<A>::infinity();
    }
    if (start <= y && y < start + count) u[y] -= A(a.margin);
#pragma omp simd reduction(max : peak)
    for (int64_t c = start; c < start + padded(count); ++c) peak = u[c] > peak ? u[c] : peak;
  }

  // The label is left out of the sums, as the padding is, so that 1 - p_y needs no subtraction.
  const A scale = A(a.scale), gamma = A(a.gamma_neg), lowest = A(kLowest);
  const A own = scale * (u[y] - peak), t_own = own < lowest ? lowest : own;
  u[y] = -std::numeric_limits<A>::infinity();
  double mass = 0, weight = 0, weighted = 0;  // sums of e^t, e^(gamma t) and t e^(gamma t)
  for (int64_t start = 0; start < classes; start += kNoiseBlock) {
    const int64_t stop = start + padded(std::min(kNoiseBlock, classes - start));
    A block_mass = 0, block_weight = 0, block_weighted = 0;
#pragma omp simd reduction(+ : block_mass, block_weight, block_weighted)
    for (int64_t c = start; c < stop; ++c) {
      const A difference = scale * (u[c] - peak);
      const A t = difference < lowest ? lowest : difference;
      const A exponential = exp_negative(t);
      const A w = power<Squarings>(exponential, t, gamma);
      u[c] = t;
      e[c] = exponential;
      block_mass += exponential;
      block_weight += w;
      block_weighted += w * t;
    }
    mass += block_mass;
    weight += block_weight;
    weighted += block_weighted;
  }

  const double e_own = exp_negative(double(t_own)), sum = mass + e_own, log_sum = std::log(sum);
  const double p = e_own / sum, rest = mass / sum, log_p = t_own - log_sum;
  const double focus = a.gamma_pos == 0 ? 1 : std::pow(rest, a.gamma_pos);
  const double shrink = std::exp(-a.gamma_neg * log_sum);  // p_c^gamma = shrink e^(gamma t_c)
  const double negatives = shrink * (weighted - log_sum * weight);
  const double loss = -(a.weight_pos * focus * log_p + a.weight_neg * negatives);
  if (!a.gradient) return loss;

  // f = dL / dlog p; dL/dv_c = f_c - p_c sum_k f_k. At p = 1 the focus term's derivative tends to 0.
  const double steep = rest > 0 && a.gamma_pos != 0 ? a.gamma_pos * std::pow(rest, a.gamma_pos - 1) * p * log_p : 0;
  const double f_own = -a.weight_pos * (focus - steep);
  const double f_others = -a.weight_neg * (a.gamma_neg * negatives + shrink * weight);
  const double unit = a.scale * a.gradient_scale;
  const A slope = A(-a.weight_neg * shrink * a.gamma_neg * unit);
  const A offset = A(-a.weight_neg * shrink * (1 - a.gamma_neg * log_sum) * unit);
  const A pull = A((f_own + f_others) / sum * unit);
  T* gradient = static_cast<T*>(a.gradient) + row * classes;
  const int64_t whole = classes / kWidth * kWidth;
  gradients<Squarings>(gradient, u, e, whole, gamma, slope, offset, pull);
  if (whole < classes) {
    T last[kWidth];
    gradients<Squarings>(last, u + whole, e + whole, kWidth, gamma, slope, offset, pull);
    std::memcpy(gradient + whole, last, (classes - whole) * sizeof(T));
  }
  store(gradient[y], A((f_own * rest - p * f_others) * unit));
  return loss;
}

template <int Squarings, class T>
void agcl_rows(const AgclArguments& a) {
  using A = typename Arithmetic<T>::type;
  parallel_rows(a.rows, a.threads, [&](int64_t row, int thread) {
    const int64_t room = padded(a.classes);
    A* scratch = static_cast<A*>(a.scratch) + 2 * room * thread;
    static_cast<A*>(a.loss)[row] = A(agcl_row<Squarings, T>(a, row, scratch, scratch + room));
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
