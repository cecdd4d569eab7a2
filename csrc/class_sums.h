// Sums of feature vectors by class. Each thread clears classes of its own, whose memory is in one piece, and then adds
// columns of its own, so every sum is taken in the rows' order.
#pragma once
#include <algorithm>

#include "dtypes.h"
#include "kernels.h"
#include "parallel.h"

namespace {

template <class T>
void class_sums(const ClassSumsArguments& a) {
  using A = typename Arithmetic<T>::type;
  constexpr int64_t line = 64 / sizeof(A);  // no two threads write to one cache line
  const int64_t share = (a.width + line * a.threads - 1) / (line * a.threads) * line;
  std::fill_n(a.counts, a.classes, int64_t(0));
  for (int64_t row = 0; row < a.rows; ++row) ++a.counts[a.labels[row]];
  parallel_parts(a.threads, [&](int64_t part) {
    const int64_t first = a.classes * part / a.threads, last = a.classes * (part + 1) / a.threads;
    std::fill(static_cast<A*>(a.sums) + first * a.width, static_cast<A*>(a.sums) + last * a.width, A(0));
  });
  parallel_rows(a.threads, a.threads, [&](int64_t part, int) {
    const int64_t first = part * share, columns = std::min(share, a.width - first);
    if (columns <= 0) return;
    A* sums = static_cast<A*>(a.sums) + first;
    const T* features = static_cast<const T*>(a.features) + first;
    for (int64_t row = 0; row < a.rows; ++row) {
      A* sum = sums + a.labels[row] * a.width;
      const T* x = features + row * a.row_stride;
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) sum[j] += load(x[j]);
    }
  });
}

}  // namespace
