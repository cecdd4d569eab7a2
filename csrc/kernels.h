// What bindings.cpp and the kernels agree on: arguments as raw pointers and sizes, and a table of entry points
// for each instruction set.
#pragma once
#include <cstdint>

enum class Dtype { float32, float64, bfloat16, float16 };

// Rows are contiguous along the classes; row_stride is in elements. A gradient or option that is not wanted is null.
// class vectors and losses are float, or double for float64 logits.
struct AgclArguments {
  Dtype dtype;
  const void* logits;         // (rows, classes)
  int64_t row_stride;
  const int64_t* target;      // (rows,), in [0, classes) or ignore_index
  int64_t ignore_index;       // rows of this label have the loss 0 and the gradient 0
  const void* class_noise;    // (classes,) or null
  uint64_t seed;
  void* loss;                 // (rows,)
  void* gradient;             // (rows, classes), contiguous, or null
  int64_t rows, classes;
  double scale, margin, weight_pos, weight_neg, gamma_pos, gamma_neg, gradient_scale;
  void* scratch;              // (threads, 2, classes + 15): a row's noisy logits and their exponentials
  int threads;
};

// The same of a share of the classes: of each row the largest noisy logit, the label's (0 where it is elsewhere), and over
// the others, with t = scale (u - largest), the sums of e^t, e^(gamma t) and t e^(gamma t); or, given the gradient in
// these statistics, that in the logits.
struct AgclShareArguments {
  Dtype dtype;
  const void* logits;         // (rows, classes)
  int64_t row_stride;
  const int64_t* target;      // (rows,): the label's place in the share; outside [0, classes) it is in another
  const void* class_noise;    // (classes,) or null
  uint64_t seed;
  int64_t first;              // the share's first class: its noise is that of a column `first`
  double* statistics;         // (rows, 5): written where gradient is null, else read
  const double* incoming;     // (rows, 5)
  void* gradient;             // (rows, classes), contiguous, or null
  int64_t rows, classes;
  double scale, margin, gamma_neg;
  int threads;
};

struct BalancedBceArguments {
  Dtype dtype;
  const void* logits;         // (rows, classes)
  int64_t row_stride;
  const int64_t* target;      // (rows,), in [0, classes) or ignore_index, or null where soft_target is given
  int64_t ignore_index;       // rows of this label have the loss 0 and the gradient 0
  const void* soft_target;    // (rows, classes), float or double as class vectors, or null
  int64_t soft_target_stride;
  const void* bias;           // (classes,)
  const void* weight;         // (classes,) or null
  const void* pos_weight;     // (classes,) or null
  void* loss;                 // (rows,)
  void* gradient;             // (rows, classes), contiguous, or null
  int64_t rows, classes;
  double on_value, off_value, gradient_scale;
  double threshold;           // NaN: none
  int threads;
};

struct ScaleRowsArguments {
  Dtype dtype;
  void* matrix;               // (rows, columns), contiguous
  const void* factor;         // (rows,) if factor_stride is 1, one value if it is 0; as class vectors
  int64_t factor_stride;
  double unit;                // multiplies every factor
  int64_t rows, columns;
  int threads;
};

struct NoiseArguments {
  float* out;                 // (rows, columns), contiguous
  uint64_t seed;
  int64_t rows, columns;
  int threads;
};

enum class BesselFunction { log_iv, ratio, ratio_grad };

struct BesselArguments {
  BesselFunction function;
  Dtype dtype;                // float32 or float64, of x and out
  const double* nu;           // (count,) if nu_stride is 1, one value if it is 0
  int64_t nu_stride;
  const void* x;              // (count,)
  void* out;                  // (count,)
  int64_t count;
  int threads;
};

// Sums of the feature vectors of each class.
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

// Rows of F(k') - F(k), the von Mises-Fisher log-partition ratios; ltfast/ops/vmf/ explains the symbols. All matrices
// and vectors are float or, for float64, double.
struct VmfRatioArguments {
  Dtype dtype;                // float32 or float64
  double order;
  const void* increments;     // (rows, classes): k'^2 - k^2
  const void* kappa;          // (classes,)
  void* ratio;                // (rows, classes)
  void* slope;                // (rows, classes): d ratio / d increment, or null
  int64_t rows, classes;
  void* scratch;              // vmf_scratch() values
  int threads;
};

// Softmax cross-entropy of such rows, a block of classes at a time: [start, start + count).
struct VmfCrossEntropyArguments {
  Dtype dtype;                // float32 or float64
  double order, inverse_temperature, unit;  // unit multiplies the gradient
  void* products;             // (rows, stride): features . directions of the block; on return the weights of the
  int64_t stride;             // directions in the gradient. A multiple of 16, count or more
  const void* features;       // (rows, width)
  const void* directions;     // (classes, width)
  const void* kappa;          // (classes,)
  const void* log_prior;      // (classes,) or null
  const int64_t* target;      // (rows,), in [0, classes) or ignore_index; null for the log-sum-exp without labels
  int64_t ignore_index;       // rows of this label have the loss 0 and the gradient 0
  double* state;              // (rows, 5): peak, sum, pull, the label's logit and slope
  void* loss;                 // (rows,), written by the last block
  void* gradient;             // (rows, width), what the earlier blocks left; null where nobody wants it
  int64_t rows, classes, width, start, count;
  void* scratch;              // vmf_scratch() values
  int threads;
};

inline int64_t vmf_padded(int64_t count) { return (count + 15) / 16 * 16; }
inline int64_t vmf_scratch(int64_t count, int threads) { return vmf_padded(count) * (8 + 2 * int64_t(threads)); }

// Means of ROIAlign over boxes; ltfast/ops/roi_pool/ explains them. The backward pass reads pooled and writes features.
struct RoiPoolArguments {
  Dtype dtype;
  void* features;             // (images, channels, height, width), or channels last
  const void* boxes_at;       // (images, boxes, 4): x1 y1 x2 y2, float or double for float64
  void* pooled;               // (images, boxes, channels)
  int64_t images, channels, height, width, boxes;
  bool backward, channels_last;
  double spatial_scale;
  int64_t output_size, sampling_ratio;
  bool aligned;
  void* scratch;              // roi_scratch() values
  int threads;
};

constexpr int64_t kRoiChannels = 1024;  // of one task
constexpr int64_t kRoiLanes = 16;
inline int64_t roi_padded(int64_t pixels) { return (pixels + kRoiLanes - 1) / kRoiLanes * kRoiLanes; }
inline int64_t roi_thread_scratch(const RoiPoolArguments& a) {
  return (a.boxes + 4) * (roi_padded(a.height * a.width) + kRoiChannels);
}
inline int64_t roi_scratch(const RoiPoolArguments& a) { return a.threads * roi_thread_scratch(a); }

// A tensor of a list, beside up to two others of its shape and order in memory: five int64 of the table that
// ltfast/ops/taylor/tables.py packs.
struct TensorRow {
  int64_t address[3];         // importance: accumulator, parameter, gradient; the others: tensor, mask, values or 0
  int64_t count;              // elements, 1 or more
  int64_t code;               // importance: three Dtypes, 8 bits each; threshold: a Dtype; apply: bytes of an element
};

struct TensorList {
  const TensorRow* rows;
  int64_t tensors, elements;
  int threads;
};

struct ThresholdArguments {
  TensorList list;            // all of one dtype; all with masks, or none
  double fraction;
  int64_t* histograms;        // threshold_histograms() values
  void* out;                  // one float or double
};

constexpr int64_t kThresholdBins = 2048, kThresholdLanes = 4;
inline int64_t threshold_histograms(int threads) { return threads * kThresholdLanes * kThresholdBins; }

// taylor.cpp, which is compiled without fused multiply-adds.
struct TaylorKernels {
  void (*importance)(const TensorList&);
  bool (*threshold)(const ThresholdArguments&);  // false: there is no value, and nothing was written
  void (*apply_masks)(const TensorList&);
};

struct Kernels {
  const char* isa;
  void (*agcl)(const AgclArguments&);
  void (*agcl_share)(const AgclShareArguments&);
  void (*balanced_bce)(const BalancedBceArguments&);
  void (*scale_rows)(const ScaleRowsArguments&);
  void (*half_normal)(const NoiseArguments&);
  void (*bessel)(const BesselArguments&);
  void (*class_sums)(const ClassSumsArguments&);
  void (*vmf_ratio)(const VmfRatioArguments&);
  void (*vmf_cross_entropy)(const VmfCrossEntropyArguments&);
  void (*roi_pool)(const RoiPoolArguments&);
  const TaylorKernels* taylor;
};

extern const Kernels kernels_baseline, kernels_avx2, kernels_avx512;
extern const TaylorKernels taylor_baseline, taylor_avx2, taylor_avx512;

#define LTFAST_JOIN_(a, b) a##b
#define LTFAST_JOIN(a, b) LTFAST_JOIN_(a, b)
