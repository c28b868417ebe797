// The mask of a masked layer as its kernels see it: the edge i -> o exists iff in_degrees[i] <= out_degrees[o],
// whatever the order of the degrees.
#pragma once

#include <cstdint>
#include <limits>

#include "cuda/product.h"

namespace fastcsm {

constexpr int kBoundsThreads = 256;
constexpr int64_t kLeast = std::numeric_limits<int64_t>::min(), kMost = std::numeric_limits<int64_t>::max();

// (least, greatest) degree of every `group` units, and the degrees.
struct Stairs {
  const int64_t *in, *out;                // (I), (O)
  const int64_t *in_bounds, *out_bounds;  // (blocks, 2)
  int inputs, outputs, group;
};

struct BoundsArgs {
  Stairs stairs;
  int64_t *in_bounds, *out_bounds;
};

static __global__ void __launch_bounds__(kBoundsThreads)
    masked_linear_bounds_kernel(const __grid_constant__ BoundsArgs args) {
  const int group = args.stairs.group, blocks = (args.stairs.inputs + group - 1) / group;
  int block = (int(blockIdx.x) * kBoundsThreads + int(threadIdx.x)) / kWarp;
  const bool in = block < blocks;
  if (!in) block -= blocks;
  const int count = in ? args.stairs.inputs : args.stairs.outputs;
  const int64_t* degrees = in ? args.stairs.in : args.stairs.out;
  int64_t least = kMost, greatest = kLeast;
  for (int i = block * group + int(threadIdx.x) % kWarp; i < count && i < (block + 1) * group; i += kWarp) {
    least = degrees[i] < least ? degrees[i] : least;
    greatest = degrees[i] > greatest ? degrees[i] : greatest;
  }
#pragma unroll
  for (int lanes = 1; lanes < kWarp; lanes *= 2) {
    const int64_t low = __shfl_xor_sync(0xffffffffu, least, lanes);
    const int64_t high = __shfl_xor_sync(0xffffffffu, greatest, lanes);
    least = low < least ? low : least;
    greatest = high > greatest ? high : greatest;
  }
  if (threadIdx.x % kWarp == 0 && block * group < count) {
    int64_t* bounds = (in ? args.in_bounds : args.out_bounds) + 2 * block;
    bounds[0] = least;
    bounds[1] = greatest;
  }
}

// The degrees of units first .. first + size of `count`.
struct Range {
  int64_t least = kMost, greatest = kLeast;

  FASTCSM_INLINE Range(const int64_t* bounds, int group, int first, int size, int count) {
    for (int block = first / group; block * group < count && block * group < first + size; ++block) {
      least = bounds[2 * block] < least ? bounds[2 * block] : least;
      greatest = bounds[2 * block + 1] > greatest ? bounds[2 * block + 1] : greatest;
    }
  }
};

// A part of the blocks of the sum in which a tile of outputs (kForward) or inputs has edges. They are looked at 32 at a
// time, one by each lane.
template <bool kForward>
class EdgeBlocks {
 public:
  FASTCSM_INLINE EdgeBlocks(const Stairs& stairs, const Range& own, int part, int parts)
      : bounds_(kForward ? stairs.in_bounds : stairs.out_bounds),
        blocks_(((kForward ? stairs.inputs : stairs.outputs) + stairs.group - 1) / stairs.group),
        own_(own),
        left_(blocks_) {
    int skipped = 0;
    if (parts > 1) {
      int all = 0;
#pragma unroll 4
      for (int block = thread_number() % kWarp; block < blocks_; block += kWarp) all += present(block);
#pragma unroll
      for (int lanes = 1; lanes < kWarp; lanes *= 2) all += __shfl_xor_sync(0xffffffffu, all, lanes);
      skipped = int(int64_t(all) * part / parts);
      left_ = int(int64_t(all) * (part + 1) / parts) - skipped;
    }
    for (look(0); skipped > 0 && skipped >= __popc(present_); look(base_ + kWarp)) skipped -= __popc(present_);
    for (; skipped > 0; --skipped) present_ &= present_ - 1;
  }

  // Twice the number of the next one, and one more if an edge is missing in it; -1 after the last.
  FASTCSM_INLINE int next() {
    while (left_ > 0 && present_ == 0) {
      if (base_ + kWarp < blocks_) {
        look(base_ + kWarp);
      } else {
        left_ = 0;
      }
    }
    if (left_ == 0) return -1;
    --left_;
    const int bit = __ffs(present_) - 1;
    present_ &= present_ - 1;
    return 2 * (base_ + bit) + int(~whole_ >> bit & 1);
  }

 private:
  FASTCSM_INLINE bool present(int block) const {
    return kForward ? bounds_[2 * block] <= own_.greatest : own_.least <= bounds_[2 * block + 1];
  }
  FASTCSM_INLINE bool whole(int block) const {
    return kForward ? bounds_[2 * block + 1] <= own_.least : own_.greatest <= bounds_[2 * block];
  }
  FASTCSM_INLINE void look(int base) {
    base_ = base;
    const int block = base + thread_number() % kWarp;
    present_ = __ballot_sync(0xffffffffu, block < blocks_ && present(block));
    whole_ = __ballot_sync(0xffffffffu, block < blocks_ && whole(block));
  }

  const int64_t* bounds_;
  int blocks_;
  Range own_;
  int left_, base_;
  uint32_t present_, whole_;
};

// Zeros where a tile of W, from output o0 and input i0 on, has no edge; a barrier must follow.
template <class O, class T>
FASTCSM_INLINE void clear_masked(T* w, const Stairs& stairs, int o0, int i0) {
  constexpr int kCount = 8, kChunks = O::kColumns / kCount;
  const int thread = thread_number(), column = thread % kChunks * kCount;
  int64_t degrees[kCount];
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const int i = i0 + column + j;
    degrees[j] = i < stairs.inputs ? stairs.in[i] : kLeast;
  }
  for (int row = thread / kChunks; row < O::kRows && o0 + row < stairs.outputs; row += kProductThreads / kChunks) {
    const int64_t degree = stairs.out[o0 + row];
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (degrees[j] > degree) w[row * O::kStride + column + j] = T{};
    }
  }
}

}  // namespace fastcsm
