// One block for each chunk of a tensor; it finds its tensor by bisection in the launch parameters.
//
// These kernels only move memory. An H200 gives 4.8 TB/s, and a load takes about 0.7 us under that traffic, so some
// 3.4 MB must be on their way at any time: 26 KB for each of its 132 multiprocessors, and about 64 KB to be safe against
// blocks that begin and end. A thread asks for eight vectors of 16 bytes or more before it needs the first, and with 48
// registers each 1280 threads fit: 160 KB.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "taylor.h"

namespace {

constexpr int kThreads = 256, kVectors = 4;
static_assert(kCudaChunk == kThreads * kVectors * 4, "a full chunk is four vectors of four elements a thread");

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

__device__ float number(float x) { return x; }
__device__ double number(double x) { return x; }
__device__ float number(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ float number(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <class T>
struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) Four {
  T at[4];
};

struct Chunk {
  const CudaTensor& tensor;
  int64_t start;
  int count;
  bool wide;  // full and aligned

  template <class T>
  __device__ T* at(int which) const {
    return reinterpret_cast<T*>(tensor.address[which]) + start;
  }
};

__device__ Chunk find_chunk(const CudaTensors& list) {
  const uint32_t chunk = blockIdx.x;
  uint32_t low = 0, high = list.size;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    (list.tensors[middle].first_chunk <= chunk ? low : high) = middle;
  }
  const CudaTensor& tensor = list.tensors[low];
  const int64_t start = int64_t(chunk - tensor.first_chunk) * kCudaChunk;
  const int count = int(min(tensor.count - start, kCudaChunk));
  return {tensor, start, count, count == kCudaChunk && (tensor.code & kCudaAligned)};
}

template <class E, class W, class G>
__device__ void add(E& total, W w, G g) {
  const E product = E(number(w)) * E(number(g));
  total += product * product;
}

template <class E, class W, class G>
__device__ void importance(const Chunk& chunk) {
  E* e = chunk.at<E>(0);
  const W* w = chunk.at<const W>(1);
  const G* g = chunk.at<const G>(2);
  if (!chunk.wide) {
    for (int i = threadIdx.x; i < chunk.count; i += kThreads) add(e[i], w[i], g[i]);
    return;
  }
  Four<E> total[kVectors];
  Four<W> weight[kVectors];
  Four<G> gradient[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = v * kThreads + threadIdx.x;
    total[v] = reinterpret_cast<const Four<E>*>(e)[i];
    weight[v] = reinterpret_cast<const Four<W>*>(w)[i];
    gradient[v] = reinterpret_cast<const Four<G>*>(g)[i];
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
#pragma unroll
    for (int j = 0; j < 4; ++j) add(total[v].at[j], weight[v].at[j], gradient[v].at[j]);
    reinterpret_cast<Four<E>*>(e)[v * kThreads + threadIdx.x] = total[v];
  }
}

template <class W>
__device__ void importance_by_gradient(const Chunk& chunk, uint32_t gradient) {
  switch (Dtype(gradient)) {
    case Dtype::float32: return importance<float, W, float>(chunk);
    case Dtype::float64: return importance<float, W, double>(chunk);
    case Dtype::bfloat16: return importance<float, W, BFloat16>(chunk);
    case Dtype::float16: return importance<float, W, Float16>(chunk);
  }
}

__device__ double number_of(const Chunk& chunk, int which, Dtype dtype, int i) {
  switch (dtype) {
    case Dtype::float32: return chunk.at<const float>(which)[i];
    case Dtype::float64: return chunk.at<const double>(which)[i];
    case Dtype::bfloat16: return number(chunk.at<const BFloat16>(which)[i]);
    default: return number(chunk.at<const Float16>(which)[i]);
  }
}

__global__ void __launch_bounds__(kThreads) importance_kernel(const __grid_constant__ CudaTensors list) {
  const Chunk chunk = find_chunk(list);
  const uint32_t code = chunk.tensor.code, weight = code >> 8 & 255, gradient = code >> 16 & 255;
  if (Dtype(code & 255) == Dtype::float64) {  // seldom: one loop for all dtypes
    for (int i = threadIdx.x; i < chunk.count; i += kThreads)
      add(chunk.at<double>(0)[i], number_of(chunk, 1, Dtype(weight), i), number_of(chunk, 2, Dtype(gradient), i));
    return;
  }
  switch (Dtype(weight)) {
    case Dtype::float32: return importance_by_gradient<float>(chunk, gradient);
    case Dtype::float64: return importance_by_gradient<double>(chunk, gradient);
    case Dtype::bfloat16: return importance_by_gradient<BFloat16>(chunk, gradient);
    case Dtype::float16: return importance_by_gradient<Float16>(chunk, gradient);
  }
}

template <class Bits, bool with_values>
__device__ void apply(const Chunk& chunk) {
  Bits* to = chunk.at<Bits>(0);
  const uint8_t* mask = chunk.at<const uint8_t>(1);
  const Bits* values = chunk.at<const Bits>(2);
  if (!chunk.wide) {
    for (int i = threadIdx.x; i < chunk.count; i += kThreads)
      if (mask[i]) to[i] = with_values ? values[i] : Bits(0);
    return;
  }
  Four<Bits> old[kVectors], value[kVectors] = {};
  Four<uint8_t> chosen[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = v * kThreads + threadIdx.x;
    old[v] = reinterpret_cast<const Four<Bits>*>(to)[i];
    chosen[v] = reinterpret_cast<const Four<uint8_t>*>(mask)[i];
    if (with_values) value[v] = reinterpret_cast<const Four<Bits>*>(values)[i];
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
#pragma unroll
    for (int j = 0; j < 4; ++j) old[v].at[j] = chosen[v].at[j] ? value[v].at[j] : old[v].at[j];
    reinterpret_cast<Four<Bits>*>(to)[v * kThreads + threadIdx.x] = old[v];
  }
}

template <class Bits>
__device__ void apply_bits(const Chunk& chunk) {
  chunk.tensor.address[2] ? apply<Bits, true>(chunk) : apply<Bits, false>(chunk);
}

__global__ void __launch_bounds__(kThreads) apply_masks_kernel(const __grid_constant__ CudaTensors list) {
  const Chunk chunk = find_chunk(list);
  switch (chunk.tensor.code & ~kCudaAligned) {
    case 1: return apply_bits<uint8_t>(chunk);
    case 2: return apply_bits<uint16_t>(chunk);
    case 4: return apply_bits<uint32_t>(chunk);
    case 8: return apply_bits<uint64_t>(chunk);
  }
}

const char* launch(void (*kernel)(CudaTensors), const TensorRow* rows, int64_t tensors, int device, uintptr_t stream) {
  cudaError_t error = cudaSetDevice(device);
  CudaTensors list;
  for (const TensorRow* end = rows + tensors; error == cudaSuccess && rows != end;) {
    rows = pack(rows, end, list);
    if (!list.chunks) break;
    void* arguments[] = {&list};
    error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(list.chunks), dim3(kThreads), arguments, 0,
                             reinterpret_cast<cudaStream_t>(stream));
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorName(error);
}

}  // namespace

const char* cuda_importance(const TensorRow* rows, int64_t tensors, int device, uintptr_t stream) {
  return launch(importance_kernel, rows, tensors, device, stream);
}

const char* cuda_apply_masks(const TensorRow* rows, int64_t tensors, int device, uintptr_t stream) {
  return launch(apply_masks_kernel, rows, tensors, device, stream);
}
