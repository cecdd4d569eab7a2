// The uniform (Debye) expansion of log I_nu; ltfast/ops/bessel/debye.py explains it.
#pragma once
#include <cmath>
#include <cstdint>

namespace {

// From this order on, the expansion with this many terms is exact to the rounding of A. Lower orders take recurrences.
template <class A>
struct Debye {
  static constexpr int order = 8, terms = 5;
};
template <>
struct Debye<double> {
  static constexpr int order = 16, terms = 12;
};

template <int Terms>
struct DebyeTable {
  double d[Terms][Terms + 1] = {};  // d[k - 1][i] is the coefficient of q^i in d_k(q)
};

// D_1' = (1 - 5 t^2) / 8, D_{k+1}' = (a D_k')' + a sum_{i+j=k} D_i' D_j' with a = t^2 (1 - t^2) / 2.
template <int Terms>
constexpr DebyeTable<Terms> debye_table() {
  constexpr int size = 3 * Terms + 6;
  double slope[Terms][size] = {};
  slope[0][0] = 1.0 / 8;
  slope[0][2] = -5.0 / 8;
  for (int k = 1; k < Terms; ++k) {
    double products[size] = {};
    for (int i = 0; i < k - 1; ++i)
      for (int x = 0; x <= 3 * i + 2; ++x)
        for (int y = 0; y <= 3 * (k - 2 - i) + 2; ++y) products[x + y] += slope[i][x] * slope[k - 2 - i][y];
    for (int x = 0; x < 3 * k; ++x) {
      slope[k][x + 1] += 0.5 * (x + 2) * slope[k - 1][x];
      slope[k][x + 3] -= 0.5 * (x + 4) * slope[k - 1][x];
    }
    for (int x = 0; x < 3 * k; ++x) {
      slope[k][x + 2] += 0.5 * products[x];
      slope[k][x + 4] -= 0.5 * products[x];
    }
  }
  DebyeTable<Terms> table;
  for (int k = 1; k <= Terms; ++k)
    for (int i = 0; i <= k; ++i) table.d[k - 1][i] = slope[k - 1][k + 2 * i - 1] / (k + 2 * i);
  return table;
}

}  // namespace
