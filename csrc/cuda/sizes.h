// How much shared memory the ops' kernels need; each is defined in the file of its op. Of the head they look at the
// number of layers and of inputs, and at the storage type. Where a kernel has tiles of two sizes it is that of the
// larger one, if that is at most `limit`, else of the smaller.
#pragma once

#include <string>

#include "common/head.h"

namespace fastcsm {

int64_t score_head_bytes(const HeadArgs& head, int64_t limit);  // of the forward pass
int64_t csm_loss_bytes(const HeadArgs& head, int64_t limit);
int64_t langevin_bytes(const HeadArgs& head);  // the least: frequencies, contexts and a network may need more
int64_t conditional_density_bytes(const HeadArgs& head);  // the least: of a block of one warp
int64_t probability_flow_bytes(const HeadArgs& head);     // likewise, with the change of log p
// Of a kernel of masked_linear, by its name less "_kernel", with tiles of `tile` columns.
int64_t masked_linear_bytes(const std::string& kernel, bool half, int64_t tile);

}  // namespace fastcsm
