// How lanes, warps and blocks take turns, and the sentence of a fault.
#include <random>
#include <sstream>

#include "machine.h"

namespace machine {

std::string where(const Warp& w, int lane) {
  const Launch& launch = *w.block->launch;
  const Source& source = *launch.program->source;
  std::ostringstream text;
  text << "kernel " << source.name;
  if (w.pc < launch.program->code.size()) {
    const Statement& s = *launch.program->code[w.pc].source;
    text << (source.places[s.place].empty() ? "" : ", ") << source.places[s.place] << ", instruction " << w.pc << " ("
         << s.text.substr(0, 120) << ")";
  }
  const auto& place = w.block->place;
  text << ", block " << place[0];
  if (launch.grid[1] > 1 || launch.grid[2] > 1) text << "," << place[1] << "," << place[2];
  text << ", warp " << w.index << ", lane " << lane;
  return text.str();
}

void fault(const Warp& w, int lane, const std::string& what) { throw Fault(what + ": " + where(w, lane)); }

void note(Warp& w, int lane, const std::string& what, bool doubt) {
  Launch& launch = *w.block->launch;
  if (!launch.known.emplace(std::hash<std::string>()(what) ^ w.pc, true).second) return;
  (doubt ? launch.doubts : launch.faults).push_back(what + ": " + where(w, lane));
}

namespace {

int lowest(uint32_t lanes) { return lanes ? __builtin_ctz(lanes) : 0; }

// The lanes that must be at a `.sync` instruction together.
uint32_t wanted(Warp& w, const Instruction& i, uint32_t lanes, uint32_t born) {
  return i.flow == Flow::lanes ? w.at<uint32_t>(i.a[4])[lowest(lanes)] & born : born;
}

[[noreturn]] void never_meet(Warp& w) {
  std::ostringstream text;
  const Group& first = w.groups.front();
  w.pc = first.pc;
  const Program& program = *w.block->launch->program;
  text << "lanes that must meet at this instruction never do:" << std::hex;
  for (const Group& g : w.groups) {
    text << " lanes 0x" << g.lanes << " wait at " << program.source->places[program.code[g.pc].source->place]
         << std::dec << " instruction " << g.pc << std::hex << ",";
  }
  text << " lanes 0x" << ~w.live << " have left";
  fault(w, lowest(first.lanes), text.str());
}

// Takes the group that runs next out of the list; `next` is where the one after it stands.
Group take_group(Warp& w, uint32_t& next) {
  size_t best = w.groups.size();
  for (size_t k = 0; k < w.groups.size(); ++k) {
    if (!w.groups[k].waits && (best == w.groups.size() || w.groups[k].pc < w.groups[best].pc)) best = k;
  }
  if (best == w.groups.size()) never_meet(w);
  Group g = w.groups[best];
  w.groups.erase(w.groups.begin() + best);
  next = ~0u;
  for (size_t k = 0; k < w.groups.size();) {
    if (!w.groups[k].waits && w.groups[k].pc == g.pc) {
      g.lanes |= w.groups[k].lanes;
      w.groups.erase(w.groups.begin() + k);
      continue;
    }
    if (!w.groups[k].waits) next = std::min(next, w.groups[k].pc);
    ++k;
  }
  return g;
}

// Joins groups that wait at the same place; whether all that are wanted are there.
bool gather(Warp& w, Group& g, uint32_t need) {
  for (size_t k = 0; k < w.groups.size();) {
    if (w.groups[k].waits && w.groups[k].pc == g.pc) {
      g.lanes |= w.groups[k].lanes;
      w.groups.erase(w.groups.begin() + k);
    } else {
      ++k;
    }
  }
  return (g.lanes & need) == need;
}

void expect_landed(Warp& w, const Instruction& i) {
  const auto flies = [&](uint32_t at) {
    return at && std::find(w.flying.begin(), w.flying.end(), at) != w.flying.end();
  };
  bool found = std::any_of(i.a.begin(), i.a.end(), flies);
  if (i.flow == Flow::plain) found = found || std::any_of(i.more.begin(), i.more.end(), flies);
  if (found) fault(w, lowest(w.mask), "a register that wgmma writes is used before wgmma.wait_group");
}

void leave(Warp& w, uint32_t lanes) {
  w.live &= ~lanes;
  for (const Copy& c : w.copies) {
    if (lanes >> c.lane & 1) fault(w, c.lane, "a copy that was never waited for");
  }
  if (!w.products.empty()) fault(w, lowest(lanes), "a wgmma that was never waited for");
}

}  // namespace

void run_warp(Warp& w, uint64_t budget) {
  Launch& launch = *w.block->launch;
  const std::vector<Instruction>& code = launch.program->code;
  uint64_t* executed = launch.counts.executed.data();
  const int own = launch.threads - 32 * w.index;
  const uint32_t born = own >= 32 ? kEvery : (1u << own) - 1;
  while (w.live) {
    uint32_t next = 0;
    Group g = take_group(w, next);
    while (true) {
      if (g.pc >= next || budget == 0) {
        w.groups.push_back(g);
        if (budget == 0) return;
        break;
      }
      if (g.pc >= code.size()) {
        w.pc = uint32_t(code.size());
        leave(w, g.lanes);
        break;
      }
      const Instruction& i = code[g.pc];
      w.pc = g.pc;
      uint32_t m = g.lanes;
      if (i.guard >= 0) {
        const uint32_t p = *w.at<uint32_t>(uint32_t(i.guard));
        m &= i.negated ? ~p : p;
      }
      w.mask = m;
      ++executed[g.pc];
      --budget;
      if (++w.steps > launch.limit)
        fault(w, lowest(g.lanes), "still running after " + std::to_string(launch.limit) + " instructions of a warp");
      if (!w.flying.empty() && !i.asynchronous && m) expect_landed(w, i);
      if (i.flow == Flow::plain) {
        if (m) i.step(w, i);
        ++g.pc;
        continue;
      }
      if (i.flow == Flow::branch) {
        if (m == g.lanes) {
          g.pc = uint32_t(i.number);
          continue;
        }
        ++g.pc;
        if (m == 0) continue;
        w.groups.push_back({uint32_t(i.number), m, false});
        w.groups.push_back({g.pc, g.lanes & ~m, false});
        break;
      }
      if (i.flow == Flow::table) {
        const auto& table = launch.program->tables[size_t(i.number)];
        const uint32_t* index = w.at<uint32_t>(i.a[0]);
        for (int lane = 0; lane < 32; ++lane) {
          if (!(g.lanes >> lane & 1)) continue;
          if (!(m >> lane & 1)) {
            w.groups.push_back({g.pc + 1, 1u << lane, false});
          } else if (index[lane] < table.size()) {
            w.groups.push_back({table[index[lane]], 1u << lane, false});
          } else {
            fault(
                w, lane,
                "a branch by entry " + std::to_string(index[lane]) + " of a table of " + std::to_string(table.size()));
          }
        }
        break;
      }
      if (i.flow == Flow::leave) {
        leave(w, m);
        g.lanes &= ~m;
        ++g.pc;
        if (g.lanes) continue;
        break;
      }
      if (m == 0) {
        ++g.pc;
        continue;
      }
      const uint32_t need = wanted(w, i, m, born);
      if (m & ~need) fault(w, lowest(m & ~need), "the instruction's lanes do not include this one");
      if (need & ~w.live) {
        fault(w, lowest(m), "lanes " + std::to_string(lowest(need & ~w.live)) + " and maybe others have left before");
      }
      const uint32_t lanes_before = g.lanes;
      if (!gather(w, g, need)) {
        g.waits = true;
        w.groups.push_back(g);
        --executed[g.pc];
        break;
      }
      if (g.lanes != lanes_before) {
        m = g.lanes;
        if (i.guard >= 0) {
          const uint32_t p = *w.at<uint32_t>(uint32_t(i.guard));
          m &= i.negated ? ~p : p;
        }
        w.mask = m;
      }
      g.waits = false;
      if ((m & need) != need) fault(w, lowest(need & ~m), "its predicate is false for lanes that it needs");
      if (i.flow == Flow::barrier) {
        w.barrier = int(w.at<uint32_t>(i.a[0])[lowest(m)]);
        w.barrier_warps = int(w.at<uint32_t>(i.a[1])[lowest(m)]) / 32;
        ++g.pc;
        w.groups.push_back(g);
        return;
      }
      i.step(w, i);
      ++g.pc;
    }
  }
}

void release(Block& block, int barrier) {
  uint64_t arrived = 0;
  int n = 0, expected = int(block.warps.size());
  for (const Warp& w : block.warps) {
    if (w.barrier != barrier) continue;
    arrived |= 1ull << w.index;
    ++n;
    if (w.barrier_warps) expected = w.barrier_warps;
  }
  if (n < expected) return;
  for (Warp& w : block.warps) {
    if (w.barrier == barrier) w.barrier = -1;
  }
  block.shadow.join(arrived);
}

void run_block(Block& block) {
  Launch& launch = *block.launch;
  const int warps = (launch.threads + 31) / 32;
  block.memory.assign(size_t(std::max(launch.shared_bytes, launch.program->module->static_shared)), 0xff);
  block.shadow.begin(warps, block.memory.size());
  block.warps.resize(warps);
  for (int k = 0; k < warps; ++k) {
    Warp& w = block.warps[k];
    w = Warp();
    w.block = &block;
    w.index = k;
    w.file = launch.program->image;
    w.local.assign(size_t(launch.program->source->local_bytes) * 32, 0xff);
    const int own = launch.threads - 32 * k;
    w.live = own >= 32 ? kEvery : (1u << own) - 1;
    w.groups = {{0, w.live, false}};
    for (const auto& [name, at] : launch.program->specials) {
      uint32_t* to = w.at<uint32_t>(at);
      const int axis = name.back() == 'y' ? 1 : name.back() == 'z' ? 2 : 0;
      for (int lane = 0; lane < 32; ++lane) {
        uint32_t value = 0;
        if (name.compare(0, 5, "%tid.") == 0) value = axis ? 0 : uint32_t(32 * k + lane);
        else if (name.compare(0, 6, "%ntid.") == 0) value = axis ? 1 : uint32_t(launch.threads);
        else if (name.compare(0, 7, "%ctaid.") == 0) value = block.place[axis];
        else if (name.compare(0, 8, "%nctaid.") == 0) value = launch.grid[axis];
        else if (name == "%laneid") value = uint32_t(lane);
        else if (name == "%warpid") value = uint32_t(k);
        else if (name == "%lanemask_eq") value = 1u << lane;
        else if (name == "%lanemask_lt") value = (1u << lane) - 1;
        else if (name == "%lanemask_le") value = (2u << lane) - 1;
        else if (name == "%lanemask_gt") value = ~((2u << lane) - 1);
        else if (name == "%lanemask_ge") value = ~((1u << lane) - 1);
        else throw Fault("machine: no register " + name);
        to[lane] = value;
      }
    }
  }
  std::minstd_rand random(uint32_t(launch.order * 7919 + block.serial));
  while (true) {
    std::vector<int> ready;
    bool left = false;
    for (const Warp& w : block.warps) {
      left |= !w.done();
      if (!w.done() && w.barrier < 0) ready.push_back(w.index);
    }
    if (!left) return;
    if (ready.empty()) {
      Warp* waiting = nullptr;
      for (Warp& w : block.warps) {
        if (!w.done()) waiting = &w;
      }
      fault(*waiting, 0,
            "the block's warps never meet at barrier " + std::to_string(waiting->barrier) +
                ": divergent barriers, or warps that have left");
    }
    Warp& w = block.warps[launch.order ? ready[random() % ready.size()] : ready[0]];
    run_warp(w, launch.order ? 1 + random() % 96 : ~0ull);
    if (w.barrier >= 0) release(block, w.barrier);
  }
}

void run(Launch& launch) {
  const uint64_t blocks = uint64_t(launch.grid[0]) * launch.grid[1] * launch.grid[2];
  std::vector<uint64_t> order(blocks);
  for (uint64_t k = 0; k < blocks; ++k) order[k] = k;
  if (launch.order == 1) std::reverse(order.begin(), order.end());
  if (launch.order > 1) std::shuffle(order.begin(), order.end(), std::minstd_rand(uint32_t(launch.order)));
  launch.counts.executed.assign(launch.program->code.size(), 0);
  Block block;
  block.launch = &launch;
  for (uint64_t k : order) {
    block.place = {uint32_t(k % launch.grid[0]), uint32_t(k / launch.grid[0] % launch.grid[1]),
                   uint32_t(k / launch.grid[0] / launch.grid[1])};
    block.serial = k + 1;
    run_block(block);
  }
}

}  // namespace machine
