// What the parts of an op's file agree on.
//
// Each op is one file, ops/NAME.cpp. CMake compiles it once for each instruction set, with LTFAST_ISA defined, for the
// kernel; and once without, for the function that Python calls. The file has three parts:
//   1. a struct of the kernel's arguments, and LTFAST_KERNEL(that struct);
//   2. under #ifdef LTFAST_ISA, the kernel (kernel.h);
//   3. under #else, the binding (binding.h).
// The files of all ops are compiled as one, so names outside functions must differ between ops.
#pragma once
#include <cstdint>

enum class Isa { baseline, avx2, avx512 };  // a processor that has one of them has those before it

enum class Dtype { float32, float64, bfloat16, float16 };

template <Isa>
struct On {};

// Declares the kernel that takes these arguments: one function for each instruction set.
#define LTFAST_KERNEL(Arguments)                    \
  void kernel(On<Isa::baseline>, const Arguments&); \
  void kernel(On<Isa::avx2>, const Arguments&);     \
  void kernel(On<Isa::avx512>, const Arguments&)
