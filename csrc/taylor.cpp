// Parameter importance, the pruning threshold and masks, each over a whole list of tensors. Like kernels.cpp compiled
// once for each instruction set, but with -ffp-contract=off: E += (w g)^2 is bit for bit PyTorch's plain loop.
#include <algorithm>
#include <cmath>

#include "dtypes.h"
#include "kernels.h"
#include "parallel.h"

namespace {

// body(row, first, count, thread) for stretches of the tensors, every thread an equal share of all their elements.
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

// Indexed by Dtype; what is accumulated is float32 or float64.
#define LTFAST_GRADIENTS(E, W) \
  { importance<E, W, float>, importance<E, W, double>, importance<E, W, BFloat16>, importance<E, W, Float16> }
#define LTFAST_PARAMETERS(E) \
  { LTFAST_GRADIENTS(E, float), LTFAST_GRADIENTS(E, double), LTFAST_GRADIENTS(E, BFloat16), LTFAST_GRADIENTS(E, Float16) }
constexpr Stretch kImportance[2][4][4] = {LTFAST_PARAMETERS(float), LTFAST_PARAMETERS(double)};

void importance_of_list(const TensorList& list) {
  parallel_elements(list, [](const TensorRow& row, int64_t first, int64_t count, int) {
    kImportance[row.code & 1][row.code >> 8 & 3][row.code >> 16 & 3](row, first, count);
  });
}

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

// Unsigned integers in the order of the numbers; every NaN is the greatest.
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

// Counts the digit that follows the prefix in each key that begins with it: what lies above the digits of a key's
// difference from the prefix is then 0. Neighbouring values share their first digit, so they count in several
// histograms in turn: an increment need not wait for the one before.
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
      for (int64_t i = 0; i < size; ++i) {  // without a branch: nobody could predict it
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

bool threshold_of_list(const ThresholdArguments& a) {
  if (!a.list.tensors) return false;
  return Dtype(a.list.rows->code) == Dtype::float64 ? threshold<double>(a) : threshold<float>(a);
}

// Elements are bits of their size here, and are copied as such.
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

void apply_to_list(const TensorList& list) {
  parallel_elements(list, [](const TensorRow& row, int64_t first, int64_t count, int) {
    switch (row.code) {
      case 1: return apply<uint8_t>(row, first, count);
      case 2: return apply<uint16_t>(row, first, count);
      case 4: return apply<uint32_t>(row, first, count);
      case 8: return apply<uint64_t>(row, first, count);
    }
  });
}

}  // namespace

extern const TaylorKernels LTFAST_JOIN(taylor_, LTFAST_ISA) = {importance_of_list, threshold_of_list, apply_to_list};
