// Multiplies the rows of a matrix in place: how a gradient written in the forward pass meets the incoming one.
#pragma once
#include "dtypes.h"
#include "kernels.h"
#include "parallel.h"

namespace {

template <class T>
void scale_rows(const ScaleRowsArguments& a) {
  using A = typename Arithmetic<T>::type;
  const A* factor = static_cast<const A*>(a.factor);
  parallel_rows(a.rows, a.threads, [&](int64_t row, int) {
    const A f = factor[row * a.factor_stride] * A(a.unit);
    if (f == A(1)) return;
    T* x = static_cast<T*>(a.matrix) + row * a.columns;
#pragma omp simd
    for (int64_t c = 0; c < a.columns; ++c) store(x[c], load(x[c]) * f);
  });
}

}  // namespace
