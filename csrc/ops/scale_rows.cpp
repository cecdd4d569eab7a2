// Multiplies each row of a matrix in place. The backward pass so scales the gradient that the forward pass wrote.
#include "../op.h"

struct ScaleRowsArguments {
  Dtype dtype;
  void* matrix;               // (rows, columns), contiguous
  const void* factor;         // (rows,) if factor_stride is 1, one value if it is 0; float, or double for float64
  int64_t factor_stride;
  double unit;                // multiplies every factor
  int64_t rows, columns;
  int threads;
};
LTFAST_KERNEL(ScaleRowsArguments);

#ifdef LTFAST_ISA

#include "../kernel.h"

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

void kernel(On<kIsa>, const ScaleRowsArguments& a) {
  by_dtype(a.dtype, [&](auto zero) { scale_rows<decltype(zero)>(a); });
}

#else

#include "../binding.h"

namespace {

void scale_rows(const std::string& dtype, uintptr_t matrix, uintptr_t factor, int64_t factor_stride, double unit,
                int64_t rows, int64_t columns, int threads) {
  const ScaleRowsArguments a{parse_dtype(dtype), at(matrix), at(factor), factor_stride, unit, rows, columns,
                             useful_threads(threads, rows, columns)};
  run(a);
}
LTFAST_DEFINE(scale_rows);

}  // namespace

#endif
