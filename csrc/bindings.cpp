// The module ltfast._native: functions that take addresses and sizes. It knows nothing of PyTorch, so one build serves
// every version; shapes, dtypes and lifetimes are the caller's to check (ltfast/ops/*/native.py).
#include <pybind11/pybind11.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>

#include "kernels.h"
#ifdef LTFAST_CUDA_ARCHITECTURES
#include "cuda/taylor.h"
#endif

namespace py = pybind11;

namespace {

const Kernels& kernels() {
  static const Kernels& best = []() -> const Kernels& {
#ifdef LTFAST_HAS_avx512
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
      return kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kernels_avx2;
#endif
    return kernels_baseline;
  }();
  return best;
}

// The instruction set in use: the best that the processor has, unless use_isa asked for a lesser one.
const Kernels* active = nullptr;

const Kernels& current() { return active ? *active : kernels(); }

void use_isa(const std::string& name) {
  const auto pick = [&](const Kernels& candidate) { return name == candidate.isa ? &candidate : nullptr; };
  const Kernels* chosen = pick(kernels_baseline);
#ifdef LTFAST_HAS_avx512
  const bool has_avx512 = std::string(kernels().isa) == "avx512";
  if (!chosen && std::string(kernels().isa) != "baseline") chosen = pick(kernels_avx2);
  if (!chosen && has_avx512) chosen = pick(kernels_avx512);
#endif
  if (!chosen) throw py::value_error("isa is '" + name + "': this build or processor does not have it");
  active = chosen;
}

Dtype parse_dtype(const std::string& name) {
  if (name == "float32") return Dtype::float32;
  if (name == "float64") return Dtype::float64;
  if (name == "bfloat16") return Dtype::bfloat16;
  if (name == "float16") return Dtype::float16;
  throw py::type_error("dtype is " + name + ": expected float32, float64, bfloat16 or float16");
}

template <class T = void>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Waking the other threads costs more than a few thousand elements do. Otherwise all of them: a smaller team would make
// OpenMP end the threads that it leaves out and start them again for the next one.
int useful_threads(int threads, int64_t rows, int64_t columns) {
  return rows == 1 || rows * columns < 16384 ? 1 : std::max(threads, 1);
}

// Refuses labels out of range; returns how many there are but those that are ignored.
int64_t check_labels(const int64_t* target, int64_t rows, int64_t classes, const int64_t* ignored = nullptr,
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

// A gradient's factor, for the mean over so many rows. In float16 it is stored without: it would underflow, so the
// backward pass divides.
double mean_scale(double scale, const std::string& dtype, const std::string& reduction, int64_t counted) {
  return reduction == "mean" && dtype != "float16" ? scale / double(counted) : scale;
}

// Where a kernel writes the losses of the rows: the caller's vector, or one of our own that is then reduced to the
// caller's scalar, in double; the mean is over `counted` rows.
class RowLosses {
 public:
  RowLosses(uintptr_t out, const std::string& reduction, int64_t rows, int64_t counted, bool wide)
      : out_(out), rows_(rows), wide_(wide), divisor_(reduction == "mean" ? double(counted) : 1.0) {
    if (reduction != "none") own_.reset(new double[rows]);
  }
  void* rows() const { return own_ ? own_.get() : at(out_); }
  void reduce() const {
    if (!own_) return;
    if (wide_)
      *at<double>(out_) = total<double>();
    else
      *at<float>(out_) = float(total<float>());
  }

 private:
  template <class T>
  double total() const {
    const T* rows = reinterpret_cast<const T*>(own_.get());
    double sum = 0;
    for (int64_t row = 0; row < rows_; ++row) sum += rows[row];
    return sum / divisor_;
  }
  uintptr_t out_;
  int64_t rows_;
  bool wide_;
  double divisor_;
  std::unique_ptr<double[]> own_;
};

void agcl(const std::string& dtype, uintptr_t logits, int64_t row_stride, uintptr_t target, uintptr_t class_noise,
          uint64_t seed, uintptr_t loss, uintptr_t gradient, int64_t rows, int64_t classes, double gradient_scale,
          double scale, double margin, double weight_pos, double weight_neg, double gamma_pos, double gamma_neg,
          int64_t ignore_index, const std::string& reduction, int threads) {
  const int64_t counted = check_labels(at<int64_t>(target), rows, classes, &ignore_index);
  threads = useful_threads(threads, rows, classes);
  const bool wide = dtype == "float64";
  const RowLosses losses(loss, reduction, rows, counted, wide);
  const size_t width = wide ? sizeof(double) : sizeof(float);
  const std::unique_ptr<char[]> scratch(new char[width * 2 * size_t(classes + 15) * size_t(threads)]);
  const AgclArguments a{parse_dtype(dtype), at(logits), row_stride, at<int64_t>(target), ignore_index, at(class_noise),
                        seed, losses.rows(), at(gradient), rows, classes, scale, margin, weight_pos, weight_neg,
                        gamma_pos, gamma_neg, mean_scale(gradient_scale, dtype, reduction, counted), scratch.get(),
                        threads};
  py::gil_scoped_release release;
  current().agcl(a);
  losses.reduce();
}

void agcl_share(const std::string& dtype, uintptr_t logits, int64_t row_stride, uintptr_t target, uintptr_t class_noise,
                uint64_t seed, uintptr_t statistics, uintptr_t incoming, uintptr_t gradient, int64_t rows, int64_t classes,
                int64_t first, double scale, double margin, double gamma_neg, int threads) {
  const AgclShareArguments a{parse_dtype(dtype), at(logits), row_stride, at<int64_t>(target), at(class_noise), seed,
                             first, at<double>(statistics), at<double>(incoming), at(gradient), rows, classes, scale,
                             margin, gamma_neg, useful_threads(threads, rows, classes)};
  py::gil_scoped_release release;
  current().agcl_share(a);
}

void balanced_bce(const std::string& dtype, uintptr_t logits, int64_t row_stride, uintptr_t target,
                  uintptr_t soft_target, int64_t soft_target_stride, uintptr_t bias, uintptr_t weight,
                  uintptr_t pos_weight, uintptr_t loss, uintptr_t gradient, int64_t rows, int64_t classes,
                  double on_value, double off_value, double gradient_scale, double threshold, int64_t ignore_index,
                  const std::string& reduction, int threads) {
  const int64_t counted = target ? check_labels(at<int64_t>(target), rows, classes, &ignore_index) : rows;
  const RowLosses losses(loss, reduction, rows, counted, dtype == "float64");
  const BalancedBceArguments a{parse_dtype(dtype), at(logits), row_stride, at<int64_t>(target), ignore_index,
                               at(soft_target), soft_target_stride, at(bias), at(weight), at(pos_weight), losses.rows(),
                               at(gradient), rows, classes, on_value, off_value,
                               mean_scale(gradient_scale, dtype, reduction, counted), threshold,
                               useful_threads(threads, rows, classes)};
  py::gil_scoped_release release;
  current().balanced_bce(a);
  losses.reduce();
}

void scale_rows(const std::string& dtype, uintptr_t matrix, uintptr_t factor, int64_t factor_stride, double unit,
                int64_t rows, int64_t columns, int threads) {
  const ScaleRowsArguments a{parse_dtype(dtype), at(matrix), at(factor), factor_stride, unit, rows, columns,
                             useful_threads(threads, rows, columns)};
  py::gil_scoped_release release;
  current().scale_rows(a);
}

void half_normal(uintptr_t out, uint64_t seed, int64_t rows, int64_t columns, int threads) {
  const NoiseArguments a{at<float>(out), seed, rows, columns, useful_threads(threads, rows, columns)};
  py::gil_scoped_release release;
  current().half_normal(a);
}

void bessel(const std::string& function, const std::string& dtype, uintptr_t nu, int64_t nu_stride, uintptr_t x,
            uintptr_t out, int64_t count, int threads) {
  const BesselFunction chosen = function == "log_iv"         ? BesselFunction::log_iv
                                : function == "bessel_ratio" ? BesselFunction::ratio
                                                             : BesselFunction::ratio_grad;
  const BesselArguments a{chosen, parse_dtype(dtype), at<double>(nu), nu_stride, at(x), at(out), count,
                          useful_threads(threads, count, 16)};
  py::gil_scoped_release release;
  current().bessel(a);
}

void class_sums(const std::string& dtype, uintptr_t features, int64_t row_stride, uintptr_t labels, uintptr_t sums,
                uintptr_t counts, int64_t rows, int64_t width, int64_t classes, int threads) {
  check_labels(at<int64_t>(labels), rows, classes, nullptr, "labels");
  const ClassSumsArguments a{parse_dtype(dtype), at(features), row_stride, at<int64_t>(labels), at(sums),
                             at<int64_t>(counts), rows, width, classes, useful_threads(threads, rows + classes, width)};
  py::gil_scoped_release release;
  current().class_sums(a);
}

std::unique_ptr<char[]> vmf_scratch(const std::string& dtype, int64_t count, int threads) {
  const size_t width = dtype == "float64" ? sizeof(double) : sizeof(float);
  return std::unique_ptr<char[]>(new char[width * size_t(::vmf_scratch(count, threads))]);
}

void vmf_ratio(const std::string& dtype, double order, uintptr_t increments, uintptr_t kappa, uintptr_t ratio,
               uintptr_t slope, int64_t rows, int64_t classes, int threads) {
  threads = useful_threads(threads, rows, classes);
  const auto scratch = vmf_scratch(dtype, classes, threads);
  const VmfRatioArguments a{parse_dtype(dtype), order, at(increments), at(kappa), at(ratio), at(slope), rows, classes,
                            scratch.get(), threads};
  py::gil_scoped_release release;
  current().vmf_ratio(a);
}

// Returns the number of rows whose label is not ignored; `mean` divides the gradient by it.
int64_t vmf_cross_entropy(const std::string& dtype, double order, double inverse_temperature, double unit, bool mean,
                          uintptr_t products, int64_t stride, uintptr_t features, uintptr_t directions,
                          uintptr_t kappa, uintptr_t log_prior, uintptr_t target, int64_t ignore_index,
                          uintptr_t state, uintptr_t loss, uintptr_t gradient, int64_t rows, int64_t classes,
                          int64_t width, int64_t start, int64_t count, int threads) {
  const int64_t counted = target ? check_labels(at<int64_t>(target), rows, classes, &ignore_index) : rows;
  if (mean) unit /= double(counted);
  threads = useful_threads(threads, rows, count);
  const auto scratch = vmf_scratch(dtype, count, threads);
  const VmfCrossEntropyArguments a{parse_dtype(dtype), order, inverse_temperature, unit, at(products), stride,
                                   at(features), at(directions), at(kappa), at(log_prior), at<int64_t>(target),
                                   ignore_index, at<double>(state), at(loss), at(gradient), rows, classes, width, start,
                                   count, scratch.get(), threads};
  py::gil_scoped_release release;
  current().vmf_cross_entropy(a);
  return counted;
}

void roi_pool(const std::string& dtype, uintptr_t features, uintptr_t boxes_at, uintptr_t pooled, int64_t images,
              int64_t channels, int64_t height, int64_t width, int64_t boxes, bool backward, bool channels_last,
              double spatial_scale, int64_t output_size, int64_t sampling_ratio, bool aligned, int threads) {
  RoiPoolArguments a{parse_dtype(dtype), at(features), at(boxes_at), at(pooled), images, channels, height, width, boxes,
                     backward, channels_last, spatial_scale, output_size, sampling_ratio, aligned, nullptr,
                     useful_threads(threads, images * channels, height * width)};
  const size_t size = dtype == "float64" ? sizeof(double) : sizeof(float);
  const std::unique_ptr<char[]> scratch(new char[size * size_t(roi_scratch(a))]);
  a.scratch = scratch.get();
  py::gil_scoped_release release;
  current().roi_pool(a);
}

// The table is a buffer of int64, five a tensor.
TensorList tensor_list(const py::buffer_info& table, int threads) {
  TensorList list{static_cast<const TensorRow*>(table.ptr), table.size * table.itemsize / py::ssize_t(sizeof(TensorRow)),
                  0, 1};
  for (int64_t i = 0; i < list.tensors; ++i) list.elements += list.rows[i].count;
  list.threads = useful_threads(threads, list.elements, 1);
  return list;
}

void taylor_importance(const py::buffer& table, int threads) {
  const py::buffer_info info = table.request();
  const TensorList list = tensor_list(info, threads);
  py::gil_scoped_release release;
  current().taylor->importance(list);
}

bool importance_threshold(const py::buffer& table, double fraction, uintptr_t out, int threads) {
  const py::buffer_info info = table.request();
  const TensorList list = tensor_list(info, threads);
  const std::unique_ptr<int64_t[]> histograms(new int64_t[size_t(threshold_histograms(list.threads))]);
  py::gil_scoped_release release;
  return current().taylor->threshold({list, fraction, histograms.get(), at(out)});
}

void apply_masks(const py::buffer& table, int threads) {
  const py::buffer_info info = table.request();
  const TensorList list = tensor_list(info, threads);
  py::gil_scoped_release release;
  current().taylor->apply_masks(list);
}

#ifdef LTFAST_CUDA_ARCHITECTURES
using CudaFunction = const char* (*)(const TensorRow*, int64_t, int, uintptr_t);

template <CudaFunction function>
void on_cuda(const py::buffer& table, int device, uintptr_t stream) {
  const py::buffer_info info = table.request();
  const TensorList list = tensor_list(info, 1);
  const char* error = function(list.rows, list.tensors, device, stream);
  if (error) throw std::runtime_error(std::string("CUDA refused the launch: ") + error);
}

// What each launch gets: its tensors, as (row's addresses, count, first chunk, code), and its number of chunks.
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
#endif

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.def("agcl", &agcl);
  m.def("agcl_share", &agcl_share);
  m.def("balanced_bce", &balanced_bce);
  m.def("scale_rows", &scale_rows);
  m.def("half_normal", &half_normal);
  m.def("bessel", &bessel);
  m.def("class_sums", &class_sums);
  m.def("vmf_ratio", &vmf_ratio);
  m.def("vmf_cross_entropy", &vmf_cross_entropy);
  m.def("roi_pool", &roi_pool);
  m.def("taylor_importance", &taylor_importance);
  m.def("importance_threshold", &importance_threshold);
  m.def("apply_masks", &apply_masks);
#ifdef LTFAST_CUDA_ARCHITECTURES
  m.def("cuda_taylor_importance", &on_cuda<cuda_importance>);
  m.def("cuda_apply_masks", &on_cuda<cuda_apply_masks>);
  m.def("cuda_launches", &cuda_launches);
  m.attr("cuda") = py::str(LTFAST_CUDA_ARCHITECTURES).attr("split")();
#else
  m.attr("cuda") = py::list();
#endif
  m.def("isa", [] { return current().isa; }, "The instruction set in use.");
  m.def("isas", [] {
    py::list names;
    names.append("baseline");
#ifdef LTFAST_HAS_avx512
    if (std::string(kernels().isa) != "baseline") names.append("avx2");
    if (std::string(kernels().isa) == "avx512") names.append("avx512");
#endif
    return names;
  }, "The instruction sets that this build and this processor have, least first.");
  m.def("use_isa", &use_isa, "Use another of isas() from now on.");
  m.attr("openmp") =
#ifdef _OPENMP
      true;
#else
      false;
#endif
}
