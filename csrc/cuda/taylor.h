// Parameter importance and masks on a GPU, over the same tables as on the CPU. The addresses of the tensors are in the
// launch parameters, so nothing is copied to the device and no memory is allocated.
#pragma once
#include <cstdint>
#include <vector>

#include "../tensor_row.h"

constexpr int64_t kCudaChunk = 4096;  // elements for each block
constexpr int kCudaTensors = 816;     // tensors of one launch, at most

// Address, count and dtypes as in TensorRow.
struct CudaTensor {
  int64_t address[3];
  int64_t count;
  uint32_t first_chunk;
  uint32_t code;
};

constexpr uint32_t kCudaAligned = 1u << 31;  // in code: all addresses are multiples of 16

struct CudaTensors {
  CudaTensor tensors[kCudaTensors];
  uint32_t size, chunks;
};
static_assert(sizeof(CudaTensors) <= 32764, "the parameters of a kernel, from CUDA 12.1 on");

// Fills the parameters of one launch. Returns the first row that is left for the next launch.
inline const TensorRow* pack(const TensorRow* rows, const TensorRow* end, CudaTensors& list) {
  list.size = list.chunks = 0;
  for (; rows != end && list.size < kCudaTensors; ++rows) {
    if (!rows->count) continue;
    CudaTensor& tensor = list.tensors[list.size++];
    uint32_t code = uint32_t(rows->code);
    if ((rows->address[0] | rows->address[1] | rows->address[2]) % 16 == 0) code |= kCudaAligned;
    tensor = {{rows->address[0], rows->address[1], rows->address[2]}, rows->count, list.chunks, code};
    list.chunks += uint32_t((rows->count + kCudaChunk - 1) / kCudaChunk);
  }
  return rows;
}

// Both return null, or the name of CUDA's error.
const char* cuda_importance(const TensorRow* rows, int64_t tensors, int device, uintptr_t stream);
const char* cuda_apply_masks(const TensorRow* rows, int64_t tensors, int device, uintptr_t stream);
