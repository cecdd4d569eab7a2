// Parameter importance, the pruning threshold and masks, each over a whole list of tensors. CMakeLists.txt sets
// -ffp-contract=off for this file, so that E += (w g)^2 has the same bits as PyTorch's plain loop.
#include "../op.h"
#include "../tensor_row.h"

struct TensorList {
  const TensorRow* rows;
  int64_t tensors, elements;  // elements is the sum of the counts
  int threads;
};

struct ImportanceArguments {
  TensorList list;
};
LTFAST_KERNEL(ImportanceArguments);

// The numbers of keys in the ranges that two bounds make.
struct ThresholdCounts {
  int64_t total, below, at_low, between;  // the last: above the lower bound, up to the higher one
  bool is_full;  // there was no room for the keys between the bounds
};

struct ThresholdArguments {
  TensorList list;            // all of one dtype; either all with masks or none
  double fraction;
  int64_t* histograms;        // threshold_histograms() values
  void* sample;               // kThresholdSample keys, or null for short lists
  void* between;              // (threads, capacity) keys
  int64_t capacity;
  ThresholdCounts* counts;    // one for each thread
  void* out;                  // one float or double
  bool* found;                // false on entry; set to true if a value was written to out
};
LTFAST_KERNEL(ThresholdArguments);

struct ApplyMasksArguments {
  TensorList list;
};
LTFAST_KERNEL(ApplyMasksArguments);

namespace {

constexpr int64_t kThresholdBins = 2048, kThresholdLanes = 4;

inline int64_t threshold_histograms(int threads) { return threads * kThresholdLanes * kThresholdBins; }

// Of longer lists a sample is taken first. Two bounds at three standard deviations have 1.2 % of the values between them,
// or less.
constexpr int64_t kThresholdSample = 1 << 16, kThresholdBlock = 1024;

inline bool is_sampled(int64_t elements) { return elements >= 8 * kThresholdSample; }

// The room of each thread: they may all be in the share of one. Memory that is not used is not touched.
inline int64_t between_capacity(int64_t elements) { return elements / 64 + kThresholdBlock; }

}  // namespace

#ifdef LTFAST_ISA

#include <algorithm>
#include <cmath>
#include <limits>

#include "../kernel.h"

namespace {

// Calls body(row, first, count, thread) for contiguous parts of the tensors. Each thread gets an equal share of the
// elements.
template <class Body>
void parallel_elements(const TensorList& list, const Body& body) {
  parallel_parts(list.threads, [&](int thread) {
    const int64_t begin = list.elements * thread / list.threads, end = list.elements * (thread + 1) / list.threads;
    int64_t start = 0;
    for (const TensorRow* row = list.rows; row != list.rows + list.tensors && start < end; start += row++->count) {
      const int64_t first = std::max(begin - start, int64_t(0)), last = std::min(end - start, row->count);
      if (first < last) body(*row, first, last - first, thread);
    }
  });
}

template <class T>
T* address(const TensorRow& row, int which, int64_t first) {
  return reinterpret_cast<T*>(row.address[which]) + first;
}

template <class E, class W, class G>
void importance(const TensorRow& row, int64_t first, int64_t count) {
  E* e = address<E>(row, 0, first);
  const W* w = address<const W>(row, 1, first);
  const G* g = address<const G>(row, 2, first);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const E product = E(load(w[i])) * E(load(g[i]));
    e[i] += product * product;
  }
}

using Stretch = void (*)(const TensorRow&, int64_t first, int64_t count);

// Indexed by the Dtypes of the accumulator (float32 or float64), the parameter and the gradient.
#define LTFAST_GRADIENTS(E, W) \
  { importance<E, W, float>, importance<E, W, double>, importance<E, W, BFloat16>, importance<E, W, Float16> }
#define LTFAST_PARAMETERS(E) \
  { LTFAST_GRADIENTS(E, float), LTFAST_GRADIENTS(E, double), LTFAST_GRADIENTS(E, BFloat16), LTFAST_GRADIENTS(E, Float16) }
constexpr Stretch kImportance[2][4][4] = {LTFAST_PARAMETERS(float), LTFAST_PARAMETERS(double)};

template <class T>
struct Ordered;
template <>
struct Ordered<float> {
  using Key = uint32_t;
  using Signed = int32_t;
};
template <>
struct Ordered<double> {
  using Key = uint64_t;
  using Signed = int64_t;
};

// Maps numbers to integers in the same order. Every NaN maps to the greatest.
template <class T, class Signed = typename Ordered<T>::Signed>
LTFAST_INLINE Signed to_signed_key(T x) {
  constexpr Signed greatest = std::numeric_limits<Signed>::max();
  const Signed bits = bit_cast<Signed>(x), key = bits ^ (bits >> (8 * sizeof(Signed) - 1) & greatest);
  return x != x ? greatest : key;
}

// The same in unsigned integers, whose digits are in this order too.
template <class Key>
constexpr Key kTop = Key(1) << (8 * sizeof(Key) - 1);

template <class T, class Key = typename Ordered<T>::Key>
LTFAST_INLINE Key to_key(T x) {
  return Key(to_signed_key(x)) ^ kTop<Key>;
}

template <class T, class Key = typename Ordered<T>::Key>
T from_key(Key key) {
  return bit_cast<T>(key & kTop<Key> ? key ^ kTop<Key> : ~key);
}

// Counts, over the keys that begin with the prefix, the digit that follows it. A key begins with the prefix if the bits
// of key ^ prefix above this digit are 0. Neighbouring values often share their first digit, so they are counted in
// several histograms in turn: no increment then waits for the one before.
template <class Key, class T>
void count_digits(const T* x, const uint8_t* mask, int64_t count, Key prefix, int shift, Key bins, bool all,
                  int64_t* histogram) {
  Key digits[kThresholdBlock];
  for (int64_t start = 0; start < count; start += kThresholdBlock) {
    const int64_t size = std::min(kThresholdBlock, count - start);
    Key found = 0;
#pragma omp simd reduction(+ : found)
    for (int64_t i = 0; i < size; ++i) {
      digits[i] = (to_key(x[start + i]) ^ prefix) >> shift;
      found += digits[i] < bins;
    }
    if (!found) continue;
    int64_t kept = size;
    if (!all) {
      kept = 0;
      for (int64_t i = 0; i < size; ++i) {  // without a branch, which would be unpredictable
        const Key digit = digits[i];
        digits[kept] = digit;
        kept += (digit < bins) & (!mask || mask[start + i] != 0);
      }
    }
    for (int64_t i = 0; i < kept; ++i) ++histogram[i % kThresholdLanes * kThresholdBins + int64_t(digits[i])];
  }
}

inline int64_t threshold_rank(double fraction, int64_t total) {
  return std::min(std::max(int64_t(std::nearbyint(fraction * double(total))), int64_t(1)), total);
}

// Finds the k-th smallest key digit by digit, eleven bits at a time: three passes for float, six for double.
template <class T, class Key = typename Ordered<T>::Key>
bool threshold_by_digits(const ThresholdArguments& a, Key& result) {
  const int64_t histograms = threshold_histograms(a.list.threads);
  Key prefix = 0;
  int64_t rank = 0;
  constexpr int key_bits = 8 * sizeof(Key);
  for (int shift = key_bits; shift > 0;) {
    const bool first_pass = shift == key_bits;
    const int width = std::min(11, shift);
    shift -= width;
    std::fill_n(a.histograms, histograms, int64_t(0));
    parallel_elements(a.list, [&](const TensorRow& row, int64_t first, int64_t count, int thread) {
      const uint8_t* mask = row.address[1] ? address<const uint8_t>(row, 1, first) : nullptr;
      count_digits(address<const T>(row, 0, first), mask, count, prefix, shift, Key(1) << width, first_pass && !mask,
                   a.histograms + threshold_histograms(thread));
    });
    for (int64_t i = kThresholdBins; i < histograms; ++i) a.histograms[i % kThresholdBins] += a.histograms[i];
    if (first_pass) {
      int64_t total = 0;
      for (int64_t bin = 0; bin < kThresholdBins; ++bin) total += a.histograms[bin];
      if (!total) return false;
      rank = threshold_rank(a.fraction, total);
    }
    int64_t bin = 0;
    while (a.histograms[bin] < rank) rank -= a.histograms[bin++];
    prefix |= Key(bin) << shift;
  }
  result = prefix;
  return true;
}

// Adds the keys to the counts, and appends those between the bounds.
template <bool Masked, class T, class Key = typename Ordered<T>::Key>
void count_ranges(const T* x, const uint8_t* mask, int64_t count, Key low, Key high, ThresholdCounts& counts,
                  Key* between, int64_t capacity) {
  using Signed = typename Ordered<T>::Signed;
  const Signed least = Signed(low ^ kTop<Key>), most = Signed(high ^ kTop<Key>);
  uint8_t inside[kThresholdBlock];
  for (int64_t start = 0; start < count; start += kThresholdBlock) {
    const int64_t size = std::min(kThresholdBlock, count - start);
    counts.is_full |= counts.between + size > capacity;
    if (counts.is_full) return;
    Key total = Masked ? 0 : Key(size), below = 0, at_low = 0;
#pragma omp simd reduction(+ : total, below, at_low)
    for (int64_t i = 0; i < size; ++i) {
      const Signed key = to_signed_key(x[start + i]);
      const Key kept = Masked ? Key(mask[start + i] != 0) : Key(1);
      if (Masked) total += kept;
      below += kept & Key(key < least);
      at_low += kept & Key(key == least);
      inside[i] = uint8_t(kept & Key(key > least) & Key(key <= most));
    }
    counts.total += int64_t(total), counts.below += int64_t(below), counts.at_low += int64_t(at_low);
    std::fill(inside + size, inside + kThresholdBlock, uint8_t(0));
    int64_t found = counts.between;
    for (int64_t group = 0; group < size; group += 8) {  // few groups have any
      uint64_t any;  // a byte of 1 for each
      std::memcpy(&any, inside + group, sizeof(any));
      for (; any; any &= any - 1) between[found++] = to_key(x[start + group + __builtin_ctzll(any) / 8]);
    }
    counts.between = found;
  }
}

// The key with n smaller ones, of `count` keys, which are reordered. With a comparison of this file's own, the standard
// library's function has internal linkage.
template <class Key>
Key nth_key(Key* keys, int64_t count, int64_t n) {
  std::nth_element(keys, keys + n, keys + count, [](Key x, Key y) { return x < y; });
  return keys[n];
}

// Evenly spaced keys of the list. Returns their number, which masks make smaller.
template <class T, class Key>
int64_t sample_keys(const TensorList& list, Key* sample) {
  int64_t size = 0, start = 0, number = 0;
  for (const TensorRow* row = list.rows; row != list.rows + list.tensors; start += row++->count) {
    const T* x = address<const T>(*row, 0, 0);
    const uint8_t* mask = row->address[1] ? address<const uint8_t>(*row, 1, 0) : nullptr;
    for (; number < kThresholdSample; ++number) {
      const int64_t i = list.elements / kThresholdSample * number - start;
      if (i >= row->count) break;
      if (!mask || mask[i]) sample[size++] = to_key(x[i]);
    }
  }
  return size;
}

// Finds the k-th smallest key in one pass. Between two keys of a sample lie few others, and nearly always that one.
// Returns false if it does not lie there, or if the sample is too small.
template <class T, class Key = typename Ordered<T>::Key>
bool threshold_by_sample(const ThresholdArguments& a, Key& result) {
  Key *const sample = static_cast<Key*>(a.sample), *const between = static_cast<Key*>(a.between);
  const int64_t size = sample_keys<T>(a.list, sample);
  if (size < kThresholdSample / 64) return false;
  const double middle = a.fraction * double(size), error = 3 * std::sqrt(middle * (1 - a.fraction)) + 3;
  const auto bound = [&](double place, Key beyond) {
    if (place < 0 || place >= double(size)) return beyond;
    return nth_key(sample, size, int64_t(place));
  };
  const Key low = bound(middle - error, 0), high = bound(middle + error, ~Key(0));

  std::fill_n(a.counts, a.list.threads, ThresholdCounts{});
  parallel_elements(a.list, [&](const TensorRow& row, int64_t first, int64_t count, int thread) {
    ThresholdCounts& own = a.counts[thread];
    Key* room = between + thread * a.capacity;
    const T* x = address<const T>(row, 0, first);
    if (row.address[1])
      count_ranges<true>(x, address<const uint8_t>(row, 1, first), count, low, high, own, room, a.capacity);
    else
      count_ranges<false>(x, nullptr, count, low, high, own, room, a.capacity);
  });
  ThresholdCounts sum{};
  for (int thread = 0; thread < a.list.threads; ++thread) {
    const ThresholdCounts& own = a.counts[thread];
    if (own.is_full) return false;
    std::memmove(between + sum.between, between + thread * a.capacity, size_t(own.between) * sizeof(Key));
    sum.total += own.total, sum.below += own.below, sum.at_low += own.at_low, sum.between += own.between;
  }
  const int64_t rank = threshold_rank(a.fraction, sum.total) - sum.below;  // among the keys from `low` on
  if (rank < 1 || rank > sum.at_low + sum.between) return false;
  result = rank <= sum.at_low ? low : nth_key(between, sum.between, rank - sum.at_low - 1);
  return true;
}

template <class T>
bool threshold(const ThresholdArguments& a) {
  typename Ordered<T>::Key key;
  if (!(a.sample && threshold_by_sample<T>(a, key)) && !threshold_by_digits<T>(a, key)) return false;
  *static_cast<T*>(a.out) = from_key<T>(key);
  return true;
}

// Elements are copied as unsigned integers of their size.
template <class Bits>
void apply(const TensorRow& row, int64_t first, int64_t count) {
  Bits* to = address<Bits>(row, 0, first);
  const uint8_t* mask = address<const uint8_t>(row, 1, first);
  if (row.address[2]) {
    const Bits* values = address<const Bits>(row, 2, first);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = mask[i] ? values[i] : to[i];
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = mask[i] ? Bits(0) : to[i];
  }
}

}  // namespace

void kernel(On<kIsa>, const ImportanceArguments& a) {
  parallel_elements(a.list, [](const TensorRow& row, int64_t first, int64_t count, int) {
    kImportance[row.code & 1][row.code >> 8 & 3][row.code >> 16 & 3](row, first, count);
  });
}

void kernel(On<kIsa>, const ThresholdArguments& a) {
  if (!a.list.tensors) return;
  by_precision(Dtype(a.list.rows->code), [&](auto zero) { *a.found = threshold<decltype(zero)>(a); });
}

void kernel(On<kIsa>, const ApplyMasksArguments& a) {
  parallel_elements(a.list, [](const TensorRow& row, int64_t first, int64_t count, int) {
    switch (row.code) {
      case 1: return apply<uint8_t>(row, first, count);
      case 2: return apply<uint16_t>(row, first, count);
      case 4: return apply<uint32_t>(row, first, count);
      case 8: return apply<uint64_t>(row, first, count);
    }
  });
}

#else

#include "../binding.h"
#ifdef LTFAST_CUDA_ARCHITECTURES
#include "../cuda/taylor.h"
#endif

namespace {

// The table is a buffer of int64, five for each tensor.
TensorList tensor_list(const py::buffer_info& table, int threads) {
  const int64_t tensors = table.size * table.itemsize / py::ssize_t(sizeof(TensorRow));
  TensorList list{static_cast<const TensorRow*>(table.ptr), tensors, 0, 1};
  for (int64_t i = 0; i < list.tensors; ++i) list.elements += list.rows[i].count;
  list.threads = useful_threads(threads, list.elements, 1);
  return list;
}

void taylor_importance(const py::buffer& table, int threads) {
  const py::buffer_info info = table.request();
  run(ImportanceArguments{tensor_list(info, threads)});
}
LTFAST_DEFINE(taylor_importance);

// Returns whether there is a threshold.
bool importance_threshold(const py::buffer& table, double fraction, uintptr_t out, int threads) {
  const py::buffer_info info = table.request();
  const TensorList list = tensor_list(info, threads);
  const std::unique_ptr<int64_t[]> histograms(new int64_t[size_t(threshold_histograms(list.threads))]);
  bool found = false;
  ThresholdArguments a{list, fraction, histograms.get(), nullptr, nullptr, 0, nullptr, at(out), &found};
  std::unique_ptr<char[]> keys;
  std::unique_ptr<ThresholdCounts[]> counts;
  if (is_sampled(list.elements)) {
    const Dtype dtype = Dtype(list.rows->code);
    a.capacity = between_capacity(list.elements);
    keys = make_scratch(dtype, kThresholdSample + list.threads * a.capacity);
    counts.reset(new ThresholdCounts[size_t(list.threads)]);
    a.sample = keys.get();
    a.between = keys.get() + kThresholdSample * (dtype == Dtype::float64 ? 8 : 4);
    a.counts = counts.get();
  }
  run(a);
  return found;
}
LTFAST_DEFINE(importance_threshold);

void apply_masks(const py::buffer& table, int threads) {
  const py::buffer_info info = table.request();
  run(ApplyMasksArguments{tensor_list(info, threads)});
}
LTFAST_DEFINE(apply_masks);

#ifdef LTFAST_CUDA_ARCHITECTURES
using CudaFunction = const char* (*)(const TensorRow*, int64_t, int, uintptr_t);

template <CudaFunction function>
void on_cuda(const py::buffer& table, int device, uintptr_t stream) {
  const py::buffer_info info = table.request();
  const TensorList list = tensor_list(info, 1);
  const char* error = function(list.rows, list.tensors, device, stream);
  if (error) throw std::runtime_error(std::string("CUDA refused the launch: ") + error);
}

// The parameters of each launch: its tensors, as (three addresses, count, first chunk, code), and its number of chunks.
py::list cuda_launches(const py::buffer& table) {
  const py::buffer_info info = table.request();
  const TensorList list = tensor_list(info, 1);
  py::list launches;
  const auto launch = std::make_unique<CudaTensors>();
  for (const TensorRow *row = list.rows, *end = row + list.tensors; row != end;) {
    row = pack(row, end, *launch);
    py::list tensors;
    for (uint32_t i = 0; i < launch->size; ++i) {
      const CudaTensor& t = launch->tensors[i];
      tensors.append(py::make_tuple(t.address[0], t.address[1], t.address[2], t.count, t.first_chunk, t.code));
    }
    launches.append(py::make_tuple(tensors, launch->chunks));
  }
  return launches;
}

const Definition cuda_definitions[] = {
    {"cuda_taylor_importance", &on_cuda<cuda_importance>},
    {"cuda_apply_masks", &on_cuda<cuda_apply_masks>},
    {"cuda_launches", &cuda_launches},
};
#endif

}  // namespace

#endif
