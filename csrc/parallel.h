// Distributes rows over threads. Meanwhile subnormal results are flushed to zero: arithmetic on subnormal numbers is a
// hundred times slower, and their difference from zero affects no loss or gradient. Inputs are never flushed.
#pragma once
#include <cstdint>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace {

#if defined(__SSE__)
class FlushSubnormals {
 public:
  FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8000u); }
  ~FlushSubnormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
};
#else
struct FlushSubnormals {
  ~FlushSubnormals() {}  // other processors handle subnormals at full speed
};
#endif

// Calls body(row, thread) for every row; thread is in [0, threads).
template <class Body>
void parallel_rows(int64_t rows, int threads, const Body& body) {
  (void)threads;
#pragma omp parallel num_threads(threads)
  {
    const FlushSubnormals flush;
#ifdef _OPENMP
    const int thread = omp_get_thread_num();
#else
    const int thread = 0;
#endif
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) body(row, thread);
  }
}

// Calls body(part) for every part, each on a thread of its own. Subnormal results are kept.
template <class Body>
void parallel_parts(int parts, const Body& body) {
#pragma omp parallel for schedule(static) num_threads(parts)
  for (int part = 0; part < parts; ++part) body(part);
}

}  // namespace
