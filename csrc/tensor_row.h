// A tensor of a list, and up to two others of the same shape and memory layout: five int64 of the table that
// ltfast/ops/taylor/tables.py packs.
#pragma once
#include <cstdint>

#include "op.h"  // Dtype

struct TensorRow {
  int64_t address[3];  // importance: accumulator, parameter, gradient; the others: tensor, mask, values or 0
  int64_t count;       // number of elements, at least 1
  int64_t code;        // importance: three Dtypes, 8 bits each; threshold: a Dtype; masks: bytes of an element
};
