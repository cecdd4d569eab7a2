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

struct ThresholdArguments {
  TensorList list;            // all of one dtype; either all with masks or none
  double fraction;
  int64_t* histograms;        // threshold_histograms() values
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

}  // namespace

#ifdef LTFAST_ISA

#include <algorithm>
#include <cmath>

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
};
template <>
struct Ordered<double> {
  using Key = uint64_t;
};

// Maps numbers to unsigned integers in the same order. Every NaN maps to the greatest.
template <class T, class Key = typename Ordered<T>::Key>
LTFAST_INLINE Key to_key(T x) {
  constexpr Key top = Key(1) << (8 * sizeof(Key) - 1);
  const Key bits = bit_cast<Key>(x), negative = Key(0) - (bits >> (8 * sizeof(Key) - 1));
  const Key key = bits ^ (negative | top);
  return x != x ? ~Key(0) : key;
}

template <class T, class Key = typename Ordered<T>::Key>
T from_key(Key key) {
  constexpr Key top = Key(1) << (8 * sizeof(Key) - 1);
  return bit_cast<T>(key & top ? key ^ top : ~key);
}

// Counts, over the keys that begin with the prefix, the digit that follows it. A key begins with the prefix if the bits
// of key ^ prefix above this digit are 0. Neighbouring values often share their first digit, so they are counted in
// several histograms in turn: no increment then waits for the one before.
template <class Key, class T>
void count_digits(const T* x, const uint8_t* mask, int64_t count, Key prefix, int shift, Key bins, bool all,
                  int64_t* histogram) {
  constexpr int64_t block = 1024;
  Key digits[block];
  for (int64_t start = 0; start < count; start += block) {
    const int64_t size = std::min(block, count - start);
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

// Finds the k-th smallest key digit by digit, eleven bits at a time.
template <class T>
bool threshold(const ThresholdArguments& a) {
  using Key = typename Ordered<T>::Key;
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
      rank = std::min(std::max(int64_t(std::nearbyint(a.fraction * double(total))), int64_t(1)), total);
    }
    int64_t bin = 0;
    while (a.histograms[bin] < rank) rank -= a.histograms[bin++];
    prefix |= Key(bin) << shift;
  }
  *static_cast<T*>(a.out) = from_key<T>(prefix);
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
  run(ThresholdArguments{list, fraction, histograms.get(), at(out), &found});
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
