// The mean of ROIAlign over each box, as a weighted sum of the features of all pixels; and the transpose, its backward
// pass. ltfast/ops/roi_pool/ has the formulas. A task is a block of channels of one image.
#include "../op.h"

// The backward pass reads pooled and writes features.
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
  void* scratch;              // (threads, roi_scratch()), float or double for float64
  int threads;
};
LTFAST_KERNEL(RoiPoolArguments);

namespace {

constexpr int64_t kRoiChannels = 1024;  // the most channels of one task
constexpr int64_t kRoiLanes = 16;

inline int64_t roi_padded(int64_t pixels) { return (pixels + kRoiLanes - 1) / kRoiLanes * kRoiLanes; }

// The number of values in the scratch memory of one thread.
inline int64_t roi_scratch(const RoiPoolArguments& a) {
  return (a.boxes + kRoiLanes) * roi_padded(a.height * a.width) + (a.boxes + 1) * kRoiChannels;
}

}  // namespace

#ifdef LTFAST_ISA

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "../kernel.h"

namespace {

// The weights of the pixels of an axis for a box from `low` to `high`, in pixels.
template <class A>
void roi_axis_weights(const RoiPoolArguments& a, A low, A high, int64_t size, A* weights) {
  std::fill_n(weights, size, A(0));
  A extent = high - low;
  if (!a.aligned) extent = extent > A(1) ? extent : A(1);
  const A bin = extent / A(a.output_size);
  const A samples = a.sampling_ratio > 0 ? A(a.sampling_ratio) : std::ceil(bin);
  if (!(samples > 0 && std::isfinite(bin))) return;
  // In such wide bins, products with `bin` or `samples` may overflow. Positions are then multiples of `step`.
  const bool wide = std::abs(bin) > 1 / std::numeric_limits<A>::epsilon();
  const A step = bin / samples;
  for (int64_t b = 0; b < a.output_size; ++b) {
    const A start = low + A(b) * bin, least = bin < 0 ? start + bin : start;
    // The position of sample i, in ascending order. Rounded as in torchvision: the weight jumps at -1 and at size.
    const auto position = [&](A i) {
      const A middle = (bin < 0 ? samples - 1 - i : i) + A(0.5);
      return start + (wide ? middle * step : middle * bin / samples);
    };
    const auto is_below = [&](A i, A bound) { return bound == A(size) ? position(i) <= bound : position(i) < bound; };
    const auto count_below = [&](A bound) {
      const A before = wide ? (bound - least) / std::abs(step) : (bound - least) * samples / std::abs(bin);
      const A guess = std::ceil(before - A(0.5));                                      // wrong by one at most
      const A count = guess > 0 ? std::min(guess, samples) : A(0);                     // 0 for NaN
      if (count > 0 && !is_below(count - 1, bound)) return count - 1;
      return count < samples && is_below(count, bound) ? count + 1 : count;
    };
    A first = count_below(A(-1));
    for (int64_t pixel = -1; pixel < size; ++pixel) {  // the samples between this pixel and the next
      const A end = count_below(A(pixel + 1)), count = end - first;
      if (count > 0) {
        const A mean = (position(first) + position(end - 1)) / 2;
        const A share = pixel < 0 ? A(1) : pixel == size - 1 ? A(0) : std::clamp(mean - A(pixel), A(0), A(1));
        if (pixel >= 0) weights[pixel] += count * (1 - share);
        if (pixel + 1 < size) weights[pixel + 1] += count * share;
      }
      first = end;
    }
  }
  for (int64_t pixel = 0; pixel < size; ++pixel) weights[pixel] /= A(a.output_size) * samples;
}

// The weights (height, width) of a box; `axes` is room for height + width values.
template <class A>
void roi_box_weights(const RoiPoolArguments& a, const A* box, A* axes, A* weights) {
  A at[4];
  bool finite = true;
  for (int i = 0; i < 4; ++i) {
    finite &= std::isfinite(box[i]);
    at[i] = box[i] * A(a.spatial_scale) - A(a.aligned ? 0.5 : 0);
  }
  A *const y = axes, *const x = axes + a.height;
  roi_axis_weights(a, at[1], at[3], a.height, y);
  roi_axis_weights(a, at[0], at[2], a.width, x);
  for (int64_t row = 0; row < a.height; ++row) {
    const A weight = finite ? y[row] : A(NAN);
    for (int64_t column = 0; column < a.width; ++column) weights[row * a.width + column] = weight * x[column];
  }
}

template <class T, class A>
void roi_widen(const T* __restrict from, A* __restrict to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = load(from[i]);
}

template <class T, class A>
void roi_narrow(const A* __restrict from, T* __restrict to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) store(to[i], from[i]);
}

template <class A>
void roi_add(A* __restrict to, const A* __restrict from, A weight, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] += weight * from[i];
}

// Vectors that fit in a register. (Of an array the compiler would keep the sums in memory.)
#ifdef __AVX__
constexpr int64_t kVectorBytes = 32;
#else
constexpr int64_t kVectorBytes = 16;
#endif
template <class A>
constexpr int64_t kVectorLanes = kVectorBytes / sizeof(A);

template <class A>
struct RoiVector;
template <>
struct RoiVector<float> {
  typedef float Type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct RoiVector<double> {
  typedef double Type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
};

// Functions take vectors by reference: without AVX, they cannot be values in a call.
template <class A, class Vector>
LTFAST_INLINE void read_vector(const A* from, Vector& to) {
  std::memcpy(&to, from, sizeof(to));
}

// kRoiLanes values.
template <class A>
struct RoiSums {
  static constexpr int64_t kVectors = kRoiLanes / kVectorLanes<A>;
  typename RoiVector<A>::Type sums[kVectors] = {};

  LTFAST_INLINE void add(A factor, const A* from) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kVectors; ++v) {
      typename RoiVector<A>::Type x;
      read_vector(from + v * kVectorLanes<A>, x);
      sums[v] += factor * x;
    }
  }
};

template <class Bits>
LTFAST_INLINE bool any_lane(const Bits& bits) {
  uint64_t words[kVectorBytes / 8], any = 0;
  std::memcpy(words, &bits, sizeof(words));
  for (const uint64_t word : words) any |= word;
  return any;
}

// to[i] is the sum over the lanes of the i-th vector.
template <class A, class Vector>
LTFAST_INLINE void sum_lanes(const Vector* x, A* to) {
  for (int64_t i = 0; i < kVectorLanes<A>; ++i) {
    A sum = 0;
    for (int64_t lane = 0; lane < kVectorLanes<A>; ++lane) sum += x[i][lane];
    to[i] = sum;
  }
}

#ifdef __AVX__
#ifdef __clang__
#define LTFAST_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LTFAST_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, RoiVector<float>::Bits{__VA_ARGS__})
#endif

LTFAST_INLINE void sum_lanes(const RoiVector<float>::Type* x, float* to) {
  RoiVector<float>::Type pairs[4], fours[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    pairs[i] = LTFAST_SHUFFLE(x[2 * i], x[2 * i + 1], 0, 8, 2, 10, 4, 12, 6, 14) +
               LTFAST_SHUFFLE(x[2 * i], x[2 * i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    fours[i] = LTFAST_SHUFFLE(pairs[2 * i], pairs[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
               LTFAST_SHUFFLE(pairs[2 * i], pairs[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
  const auto sums = LTFAST_SHUFFLE(fours[0], fours[1], 0, 1, 2, 3, 8, 9, 10, 11) +
                    LTFAST_SHUFFLE(fours[0], fours[1], 4, 5, 6, 7, 12, 13, 14, 15);
  std::memcpy(to, &sums, sizeof(sums));
}
#endif

// The memory of a task of `columns` channels. weights is (boxes, padded) and 0 in the padding; block is
// (boxes, kRoiChannels) and has the pooled values; rows has room for kRoiLanes rows of pixels or one of channels.
template <class A>
struct RoiTask {
  int64_t columns, padded;
  const A* weights;
  A *block, *rows;
};

// Channels are contiguous. Those of each pixel are added to the boxes in which it has a weight; backward, the reverse.
template <class T, class A>
void roi_channels_last(const RoiPoolArguments& a, const RoiTask<A>& t, T* features) {
  const int64_t pixels = a.height * a.width;
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    T* own = features + pixel * a.channels;
    if (a.backward) {
      std::fill_n(t.rows, t.columns, A(0));
    } else {
      roi_widen(own, t.rows, t.columns);
    }
    for (int64_t box = 0; box < a.boxes; ++box) {
      const A weight = t.weights[box * t.padded + pixel];
      if (weight == 0) continue;
      A* other = t.block + box * kRoiChannels;
      a.backward ? roi_add(t.rows, other, weight, t.columns) : roi_add(other, t.rows, weight, t.columns);
    }
    if (a.backward) roi_narrow(t.rows, own, t.columns);
  }
}

// Pixels are contiguous. Vectors of them are multiplied by a box's weights, for as many channels as a vector has lanes.
template <class T, class A>
void roi_channels_first(const RoiPoolArguments& a, const RoiTask<A>& t, const T* features) {
  using Vector = typename RoiVector<A>::Type;
  using Bits = typename RoiVector<A>::Bits;
  constexpr int64_t lanes = kVectorLanes<A>;
  const int64_t pixels = a.height * a.width;
  for (int64_t channel = 0; channel < t.columns; channel += lanes) {
    const T* own = features + channel * pixels;
    // The last vector of a channel reaches into the next channel, so the last channels are read from a copy.
    const int64_t left = t.columns - channel;
    const bool is_copied = !std::is_same<T, A>::value || left <= lanes;
    if (is_copied) roi_widen(own, t.rows, std::min(left, lanes) * pixels);
    const A* from = is_copied ? t.rows : reinterpret_cast<const A*>(own);
    for (int64_t box = 0; box < a.boxes; ++box) {
      Vector sums[lanes] = {};
      for (int64_t pixel = 0; pixel < pixels; pixel += lanes) {
        Vector weights;
        read_vector(t.weights + box * t.padded + pixel, weights);
        const Bits used = weights != 0;  // where it is not, the value may be NaN
        if (!any_lane(used)) continue;
#pragma GCC unroll 8
        for (int64_t i = 0; i < lanes; ++i) {
          Bits x;
          read_vector(from + i * pixels + pixel, x);
          sums[i] += weights * (Vector)(x & used);
        }
      }
      sum_lanes(sums, t.block + box * kRoiChannels + channel);
    }
  }
}

// The transpose. The gradient of a channel is a sum of the boxes' weights.
template <class T, class A>
void roi_channels_first_backward(const RoiPoolArguments& a, const RoiTask<A>& t, T* features) {
  const int64_t pixels = a.height * a.width;
  for (int64_t channel = 0; channel < t.columns; ++channel) {
    T* own = features + channel * pixels;
    for (int64_t pixel = 0; pixel < pixels; pixel += kRoiLanes) {
      RoiSums<A> sum;
      for (int64_t box = 0; box < a.boxes; ++box)
        sum.add(t.block[box * kRoiChannels + channel], t.weights + box * t.padded + pixel);
      A values[kRoiLanes];
      std::memcpy(values, sum.sums, sizeof(values));
      if (pixel + kRoiLanes <= pixels)
        roi_narrow(values, own + pixel, kRoiLanes);
      else
        for (int64_t j = 0; j < pixels - pixel; ++j) store(own[pixel + j], values[j]);
    }
  }
}

template <class T>
void roi_pool(const RoiPoolArguments& a) {
  using A = typename Arithmetic<T>::type;
  const int64_t pixels = a.height * a.width, padded = roi_padded(pixels);
  const int64_t blocks = (a.channels + kRoiChannels - 1) / kRoiChannels;
  parallel_rows(a.images * blocks, a.threads, [&](int64_t task, int thread) {
    const int64_t image = task / blocks, first = task % blocks * kRoiChannels;
    A* const weights = static_cast<A*>(a.scratch) + thread * roi_scratch(a);
    A* const block = weights + a.boxes * padded;
    A* const rows = block + a.boxes * kRoiChannels;
    const RoiTask<A> t{std::min(kRoiChannels, a.channels - first), padded, weights, block, rows};
    std::fill_n(weights, a.boxes * padded, A(0));
    for (int64_t box = 0; box < a.boxes; ++box)
      roi_box_weights(a, static_cast<const A*>(a.boxes_at) + 4 * (image * a.boxes + box), rows, weights + box * padded);
    std::fill_n(block, a.boxes * kRoiChannels, A(0));
    T* pooled = static_cast<T*>(a.pooled) + image * a.boxes * a.channels + first;
    for (int64_t box = 0; a.backward && box < a.boxes; ++box)
      roi_widen(pooled + box * a.channels, t.block + box * kRoiChannels, t.columns);
    T* features = static_cast<T*>(a.features) + image * a.channels * pixels;
    if (a.channels_last)
      roi_channels_last(a, t, features + first);
    else if (a.backward)
      roi_channels_first_backward(a, t, features + first * pixels);
    else
      roi_channels_first(a, t, features + first * pixels);
    for (int64_t box = 0; !a.backward && box < a.boxes; ++box)
      roi_narrow(t.block + box * kRoiChannels, pooled + box * a.channels, t.columns);
  });
}

}  // namespace

void kernel(On<kIsa>, const RoiPoolArguments& a) {
  by_dtype(a.dtype, [&](auto zero) { roi_pool<decltype(zero)>(a); });
}

#else

#include "../binding.h"

namespace {

void roi_pool(const std::string& dtype, uintptr_t features, uintptr_t boxes_at, uintptr_t pooled, int64_t images,
              int64_t channels, int64_t height, int64_t width, int64_t boxes, bool backward, bool channels_last,
              double spatial_scale, int64_t output_size, int64_t sampling_ratio, bool aligned, int threads) {
  RoiPoolArguments a{parse_dtype(dtype), at(features), at(boxes_at), at(pooled), images, channels, height, width, boxes,
                     backward, channels_last, spatial_scale, output_size, sampling_ratio, aligned, nullptr,
                     useful_threads(threads, images * channels, height * width)};
  const auto scratch = make_scratch(a.dtype, a.threads * roi_scratch(a));
  a.scratch = scratch.get();
  run(a);
}
LTFAST_DEFINE(roi_pool);

}  // namespace

#endif
