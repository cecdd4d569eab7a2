// The module ltfast._native: functions that take addresses and sizes. It does not use PyTorch, so one build fits every
// version of it. The callers (ltfast/ops/*/native.py) check shapes and dtypes, and keep the memory alive.
#include "binding.h"

std::vector<std::function<void(py::module_&)>>& definitions() {
  static std::vector<std::function<void(py::module_&)>> all;
  return all;
}

namespace {

Isa best_isa() {
#ifdef LTFAST_HAS_avx512
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::baseline;
}

const std::string& name_of(Isa isa) {
  static const std::string names[] = {"baseline", "avx2", "avx512"};
  return names[int(isa)];
}

// Those that this build and this processor have.
std::vector<Isa> isas() {
  std::vector<Isa> found;
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (isa <= best_isa()) found.push_back(isa);
  return found;
}

void use_isa(const std::string& name) {
  for (const Isa isa : isas())
    if (name_of(isa) == name) {
      isa_in_use = isa;
      return;
    }
  throw py::value_error("isa is '" + name + "': this build or processor does not have it");
}

}  // namespace

Isa isa_in_use = best_isa();

PYBIND11_MODULE(_native, m) {
  for (const auto& define : definitions()) define(m);
  m.def("isa", [] { return name_of(isa_in_use); }, "The instruction set in use.");
  m.def("isas", [] {
    py::list names;
    for (const Isa isa : isas()) names.append(name_of(isa));
    return names;
  }, "The instruction sets that this build and this processor have, least first.");
  m.def("use_isa", &use_isa, "Use another of isas() from now on.");
#ifdef LTFAST_CUDA_ARCHITECTURES
  m.attr("cuda") = py::str(LTFAST_CUDA_ARCHITECTURES).attr("split")();
#else
  m.attr("cuda") = py::list();
#endif
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}
