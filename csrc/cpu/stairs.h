// The mask of a masked layer as a staircase.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "common/launch.h"

namespace fastcsm {

// Inputs and outputs in order of degree, and how many inputs each output reads.
struct Staircase {
  std::vector<int64_t> in_order, out_order, reach;
  bool inputs_in_order, outputs_in_order;

  Staircase(const Tensor& in_degrees, const Tensor& out_degrees) {
    const auto* in = static_cast<const int64_t*>(in_degrees.const_data_ptr());
    const auto* out = static_cast<const int64_t*>(out_degrees.const_data_ptr());
    in_order = order(in, in_degrees.numel(), inputs_in_order);
    out_order = order(out, out_degrees.numel(), outputs_in_order);
    size_t count = 0;
    for (const int64_t o : out_order) {
      while (count < in_order.size() && in[in_order[count]] <= out[o]) ++count;
      reach.push_back(static_cast<int64_t>(count));
    }
  }
  static std::vector<int64_t> order(const int64_t* degrees, int64_t n, bool& sorted) {
    std::vector<int64_t> position(n);
    std::iota(position.begin(), position.end(), int64_t(0));
    sorted = std::is_sorted(degrees, degrees + n);
    if (!sorted)
      std::stable_sort(position.begin(), position.end(), [&](int64_t i, int64_t j) { return degrees[i] < degrees[j]; });
    return position;
  }
};

}  // namespace fastcsm
