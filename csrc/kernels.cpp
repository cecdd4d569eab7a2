// Compiled once for each instruction set, under the name LTFAST_ISA. Everything it includes has internal linkage,
// so that code for a newer processor is never the copy that an older one is linked to.
#include "kernels.h"

#include <algorithm>

#include "agcl.h"
#include "balanced_bce.h"
#include "bessel.h"
#include "class_sums.h"
#include "roi_pool.h"
#include "scale_rows.h"
#include "vmf.h"

#define LTFAST_TEXT_(a) #a
#define LTFAST_TEXT(a) LTFAST_TEXT_(a)

namespace {

template <class Arguments, void (*F32)(const Arguments&), void (*F64)(const Arguments&),
          void (*BF16)(const Arguments&), void (*F16)(const Arguments&)>
void by_dtype(const Arguments& a) {
  switch (a.dtype) {
    case Dtype::float32: return F32(a);
    case Dtype::float64: return F64(a);
    case Dtype::bfloat16: return BF16(a);
    case Dtype::float16: return F16(a);
  }
}

template <class Arguments, void (*F32)(const Arguments&), void (*F64)(const Arguments&)>
void by_width(const Arguments& a) {
  a.dtype == Dtype::float64 ? F64(a) : F32(a);
}

void half_normal_rows(const NoiseArguments& a) {
  parallel_rows(a.rows, a.threads, [&](int64_t row, int) {
    for (int64_t start = 0; start < a.columns; start += kNoiseBlock) {
      float noise[kNoiseBlock];
      const int64_t count = std::min(kNoiseBlock, a.columns - start);
      half_normal_block(noise, start, count, uint64_t(row), a.seed);
      std::memcpy(a.out + row * a.columns + start, noise, count * sizeof(float));
    }
  });
}

}  // namespace

#define LTFAST_BY_DTYPE(Arguments, kernel) \
  by_dtype<Arguments, kernel<float>, kernel<double>, kernel<BFloat16>, kernel<Float16>>

extern const Kernels LTFAST_JOIN(kernels_, LTFAST_ISA) = {
    LTFAST_TEXT(LTFAST_ISA),
    LTFAST_BY_DTYPE(AgclArguments, agcl),
    LTFAST_BY_DTYPE(AgclShareArguments, agcl_share),
    LTFAST_BY_DTYPE(BalancedBceArguments, balanced_bce),
    LTFAST_BY_DTYPE(ScaleRowsArguments, scale_rows),
    half_normal_rows,
    by_width<BesselArguments, bessel<float>, bessel<double>>,
    LTFAST_BY_DTYPE(ClassSumsArguments, class_sums),
    by_width<VmfRatioArguments, vmf_ratio<float>, vmf_ratio<double>>,
    by_width<VmfCrossEntropyArguments, vmf_cross_entropy<float>, vmf_cross_entropy<double>>,
    LTFAST_BY_DTYPE(RoiPoolArguments, roi_pool),
    &LTFAST_JOIN(taylor_, LTFAST_ISA),
};
