// The noise of a matrix of logits. Only tests use it: ops/agcl.cpp draws the same noise a block at a time.
// ltfast/ops/noise/reference.py is the definition.
#include "../op.h"

struct HalfNormalArguments {
  float* out;                 // (rows, columns), contiguous
  uint64_t seed;
  int64_t rows, columns;
  int threads;
};
LTFAST_KERNEL(HalfNormalArguments);

#ifdef LTFAST_ISA

#include <algorithm>

#include "../kernel.h"
#include "../noise.h"

void kernel(On<kIsa>, const HalfNormalArguments& a) {
  parallel_rows(a.rows, a.threads, [&](int64_t row, int) {
    for (int64_t start = 0; start < a.columns; start += kNoiseBlock) {
      const int64_t count = std::min(kNoiseBlock, a.columns - start);
      NoiseBits noise;
      const NoiseBits::Half* bits = noise.draw(start, count, uint64_t(row), a.seed);
      float* out = a.out + row * a.columns + start;
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) out[j] = half_normal(bits[j]);
    }
  });
}

#else

#include "../binding.h"

namespace {

void half_normal(uintptr_t out, uint64_t seed, int64_t rows, int64_t columns, int threads) {
  run(HalfNormalArguments{at<float>(out), seed, rows, columns, useful_threads(threads, rows, columns)});
}
LTFAST_DEFINE(half_normal);

}  // namespace

#endif
