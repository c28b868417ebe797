// A score head as every kernel receives it: sizes and raw pointers into contiguous tensors in nn.Linear's layout.
#pragma once

#include <cstdint>

namespace fastcsm {

constexpr int kMaxLayers = 4;

enum class Storage { f32, f64, bf16 };

struct HeadArgs {
  int64_t context;                     // C
  int64_t frequencies;                 // E; the head reads C + 1 + 2E columns: [c, x, sin(w x), cos(w x)]
  int64_t layers;                      // K hidden layers
  int64_t width[kMaxLayers];           // H_1 .. H_K
  const void* weight[kMaxLayers + 1];  // (H_1, C+1+2E), ..., (1, H_K)
  const void* bias[kMaxLayers + 1];
  const void* frequency;  // (E)
  int activation;
  Storage storage;
  bool reduced;  // products of float32 may use narrower units: bfloat16 on processors, tf32 on GPUs

  constexpr int64_t features() const { return 1 + 2 * frequencies; }
};

// Where the gradients go; a null pointer means not wanted.
struct HeadGradients {
  void* context;  // (N, C)
  void* x;        // (N)
  void* weight[kMaxLayers + 1];
  void* bias[kMaxLayers + 1];
  bool params;
};

struct Bf16 {
  uint16_t bits;
};

}  // namespace fastcsm
