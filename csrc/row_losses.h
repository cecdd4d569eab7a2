// The losses of the rows of a batch, and their reduction.
#pragma once
#include "binding.h"

// A kernel writes a loss for each row: into the caller's vector, or into one of this object's own, which reduce() then
// reduces to the caller's scalar. The sum is in double; the mean is over `counted` rows.
class RowLosses {
 public:
  RowLosses(uintptr_t out, Dtype dtype, const std::string& reduction, int64_t rows, int64_t counted)
      : out_(out), dtype_(dtype), rows_(rows), divisor_(reduction == "mean" ? double(counted) : 1.0) {
    if (reduction != "none") own_.reset(new double[rows]);
  }
  void* rows() const { return own_ ? own_.get() : at(out_); }

  // The factor of the gradients. Those in float16 are stored without the division by the number of rows, under which
  // they would underflow: the backward pass divides.
  double gradient_scale(double scale) const { return dtype_ == Dtype::float16 ? scale : scale / divisor_; }

  void reduce() const {
    if (!own_) return;
    if (dtype_ == Dtype::float64)
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
  Dtype dtype_;
  int64_t rows_;
  double divisor_;
  std::unique_ptr<double[]> own_;
};
