// Sums of the feature vectors of each class. Each thread first clears a range of classes, contiguous in memory. Then it
// adds up a range of columns, so that every sum is in the order of the rows.
#include "../op.h"

struct ClassSumsArguments {
  Dtype dtype;
  const void* features;       // (rows, width)
  int64_t row_stride;
  const int64_t* labels;      // (rows,), in [0, classes)
  void* sums;                 // (classes, width), float or double for float64 features
  int64_t* counts;            // (classes,)
  int64_t rows, width, classes;
  int threads;
};
LTFAST_KERNEL(ClassSumsArguments);

#ifdef LTFAST_ISA

#include <algorithm>

#include "../kernel.h"

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

void kernel(On<kIsa>, const ClassSumsArguments& a) {
  by_dtype(a.dtype, [&](auto zero) { class_sums<decltype(zero)>(a); });
}

#else

#include "../binding.h"

namespace {

void class_sums(const std::string& dtype, uintptr_t features, int64_t row_stride, uintptr_t labels, uintptr_t sums,
                uintptr_t counts, int64_t rows, int64_t width, int64_t classes, int threads) {
  check_labels(at<int64_t>(labels), rows, classes, nullptr, "labels");
  const ClassSumsArguments a{parse_dtype(dtype), at(features), row_stride, at<int64_t>(labels), at(sums),
                             at<int64_t>(counts), rows, width, classes, useful_threads(threads, rows + classes, width)};
  run(a);
}
LTFAST_DEFINE(class_sums);

}  // namespace

#endif
