// What all accesses to memory share: addresses, alignment, bounds, and what they cost.
#pragma once

#include "decode.h"

namespace machine {

void note_if(Warp& w, int lane, const char* wrong);
void expect_shared(Warp& w, int lane, uint64_t address, int bytes, const char* what);
void expect_device(Warp& w, int lane, uint64_t address, int bytes, const char* what);
// Which of the launch's ranges, from 1, the address of an access to device memory was made from.
uint16_t origin_of(const Warp& w, const Instruction& i);
std::array<uint64_t, 32> addresses(Warp& w, uint32_t base, int64_t offset, bool wide);
Space space_of(Space named, uint64_t& address);
void expect_aligned(Warp& w, int lane, uint64_t address, int bytes);
Space named_space(Decoder& d);
void count_global(Warp& w, const uint64_t* address, uint32_t lanes, int bytes, bool write);

}  // namespace machine
