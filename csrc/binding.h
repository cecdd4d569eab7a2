// What the binding of an op includes: a function that Python calls with addresses and sizes, and that runs the kernel.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "op.h"

namespace py = pybind11;

// module.cpp adds these to the module. Each op's file appends its own while the library is loaded.
std::vector<std::function<void(py::module_&)>>& definitions();

struct Definition {
  template <class Function>
  Definition(const char* name, Function* function) {
    definitions().push_back([=](py::module_& module) { module.def(name, function); });
  }
};

// Adds a function to the module under its own name.
#define LTFAST_DEFINE(function) const Definition function##_definition(#function, &function)

extern Isa isa_in_use;

// Runs the kernel that takes these arguments, for the instruction set in use. Releases the GIL meanwhile.
template <class Arguments>
void run(const Arguments& arguments) {
  const py::gil_scoped_release release;
#ifdef LTFAST_HAS_avx512
  if (isa_in_use == Isa::avx512) return kernel(On<Isa::avx512>(), arguments);
  if (isa_in_use == Isa::avx2) return kernel(On<Isa::avx2>(), arguments);
#endif
  kernel(On<Isa::baseline>(), arguments);
}

template <class T = void>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline Dtype parse_dtype(const std::string& name) {
  if (name == "float32") return Dtype::float32;
  if (name == "float64") return Dtype::float64;
  if (name == "bfloat16") return Dtype::bfloat16;
  if (name == "float16") return Dtype::float16;
  throw py::type_error("dtype is " + name + ": expected float32, float64, bfloat16 or float16");
}

// Memory for `count` numbers of the type that arithmetic on the dtype is done in.
inline std::unique_ptr<char[]> make_scratch(Dtype dtype, int64_t count) {
  const size_t size = dtype == Dtype::float64 ? sizeof(double) : sizeof(float);
  return std::unique_ptr<char[]>(new char[size * size_t(count)]);
}

// One thread for small inputs: to wake the others costs more than a few thousand elements do. Otherwise all threads:
// for a smaller team, OpenMP would end the threads that it leaves out and start them again for the next one.
inline int useful_threads(int threads, int64_t rows, int64_t columns) {
  return rows == 1 || rows * columns < 16384 ? 1 : std::max(threads, 1);
}

// Raises ValueError if a label is out of range. Returns the number of labels that are not ignored.
inline int64_t check_labels(const int64_t* target, int64_t rows, int64_t classes, const int64_t* ignored = nullptr,
                            const std::string& name = "target") {
  int64_t counted = rows;
  for (int64_t row = 0; row < rows; ++row) {
    if (ignored && target[row] == *ignored)
      --counted;
    else if (target[row] < 0 || target[row] >= classes)
      throw py::value_error(name + "[" + std::to_string(row) + "] is " + std::to_string(target[row]) +
                            ": expected a label in [0, " + std::to_string(classes) + ")");
  }
  return counted;
}
