// What the processor's launchers need: tensors to pointers, the kernels' arguments, and the choice of instruction set.
#pragma once

#include "common/launch.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace fastcsm {

// Whether products may run on pairs of bfloat16.
template <class Args>
bool uses_pairs(const Args& a) {
  return a.reduced && a.storage != Storage::f64;
}

}  // namespace fastcsm
