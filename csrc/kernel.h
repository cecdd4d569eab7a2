// What the kernel of an op includes. It is compiled for one instruction set, LTFAST_ISA.
//
// An older processor must never run code for a newer one. So everything here and in the kernels has internal linkage:
// of functions that several object files share, the linker keeps any one copy. And there is no static constructor:
// it would run on every processor.
#pragma once
#include "dtypes.h"
#include "op.h"
#include "parallel.h"

namespace {

constexpr Isa kIsa = Isa::LTFAST_ISA;

// function(T()) for the storage type T.
template <class Function>
void by_dtype(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::float32: return function(float());
    case Dtype::float64: return function(double());
    case Dtype::bfloat16: return function(BFloat16());
    case Dtype::float16: return function(Float16());
  }
}

// The same for kernels that know only float32 and float64.
template <class Function>
void by_precision(Dtype dtype, const Function& function) {
  dtype == Dtype::float64 ? function(double()) : function(float());
}

}  // namespace
