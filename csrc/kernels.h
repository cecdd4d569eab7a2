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
  const int64_t* target;      // (rows,), in [0, classes)
  const void* class_noise;    // (classes,) or null
  uint64_t seed;
  void* loss;                 // (rows,)
  void* gradient;             // (rows, classes), contiguous, or null
  int64_t rows, classes;
  double scale, margin, weight_pos, weight_neg, gamma_pos, gamma_neg, gradient_scale;
  void* scratch;              // (threads, 2, classes + 15): a row's noisy logits and their exponentials
  int threads;
};

struct BalancedBceArguments {
  Dtype dtype;
  const void* logits;         // (rows, classes)
  int64_t row_stride;
  const int64_t* target;      // (rows,), in [0, classes), or null where soft_target is given
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

struct Kernels {
  const char* isa;
  void (*agcl)(const AgclArguments&);
  void (*balanced_bce)(const BalancedBceArguments&);
  void (*scale_rows)(const ScaleRowsArguments&);
  void (*half_normal)(const NoiseArguments&);
};

extern const Kernels kernels_baseline, kernels_avx2, kernels_avx512;
