// How much shared memory the ops' kernels need; each is defined in the file of its op. Of the head they look at the
// number of layers and of inputs, and at the storage type.
#pragma once

#include "common/head.h"

namespace fastcsm {

int64_t score_head_bytes(const HeadArgs& head);  // of the forward pass
int64_t csm_loss_bytes(const HeadArgs& head);
int64_t langevin_bytes(const HeadArgs& head);  // the least: frequencies, contexts and a network may need more

}  // namespace fastcsm
