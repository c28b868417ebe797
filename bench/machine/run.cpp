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
  if (!launch.known.insert(std::hash<std::string>()(what) ^ w.pc).second) return;
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

// Registers such as %tid.x, which do not change while a block runs.
uint32_t special(const Block& block, const std::string& name, int warp, int lane) {
  const Launch& launch = *block.launch;
  const int axis = name.back() == 'y' ? 1 : name.back() == 'z' ? 2 : 0;
  const uint32_t self = 1u << lane;
  if (name.compare(0, 5, "%tid.") == 0) return axis ? 0 : uint32_t(32 * warp + lane);
  if (name.compare(0, 6, "%ntid.") == 0) return axis ? 1 : uint32_t(launch.threads);
  if (name.compare(0, 7, "%ctaid.") == 0) return block.place[axis];
  if (name.compare(0, 8, "%nctaid.") == 0) return launch.grid[axis];
  if (name == "%laneid") return uint32_t(lane);
  if (name == "%warpid") return uint32_t(warp);
  if (name == "%lanemask_eq") return self;
  if (name == "%lanemask_lt") return self - 1;
  if (name == "%lanemask_le") return self | (self - 1);
  if (name == "%lanemask_gt") return ~(self | (self - 1));
  if (name == "%lanemask_ge") return ~(self - 1);
  throw Fault("machine: no register " + name);
}

void set_specials(Warp& w) {
  for (const auto& [name, at] : w.block->launch->program->specials) {
    for (int lane = 0; lane < 32; ++lane) w.at<uint32_t>(at)[lane] = special(*w.block, name, w.index, lane);
  }
}

uint32_t taking_part(Warp& w, const Instruction& i, uint32_t lanes) {
  if (i.guard < 0) return lanes;
  const uint32_t p = *w.at<uint32_t>(uint32_t(i.guard));
  return lanes & (i.negated ? ~p : p);
}

// Each lane goes where its entry of the table says.
void part_by_table(Warp& w, const Instruction& i, const Group& g, uint32_t m) {
  const auto& table = w.block->launch->program->tables[size_t(i.number)];
  const uint32_t* index = w.at<uint32_t>(i.a[0]);
  for (int lane = 0; lane < 32; ++lane) {
    if (!(g.lanes >> lane & 1)) continue;
    if (!(m >> lane & 1)) {
      w.groups.push_back({g.pc + 1, 1u << lane, false});
    } else if (index[lane] < table.size()) {
      w.groups.push_back({table[index[lane]], 1u << lane, false});
    } else {
      fault(w, lane,
            "a branch by entry " + std::to_string(index[lane]) + " of a table of " + std::to_string(table.size()));
    }
  }
}

// Whether the group goes on as one, at g.pc; else it is among the warp's groups, or has left.
bool go(Warp& w, const Instruction& i, Group& g, uint32_t m) {
  if (i.flow == Flow::table) {
    part_by_table(w, i, g, m);
    return false;
  }
  if (i.flow == Flow::leave) {
    leave(w, m);
    g.lanes &= ~m;
    ++g.pc;
    return g.lanes != 0;
  }
  const uint32_t target = uint32_t(i.number);
  g.pc = m == g.lanes ? target : g.pc + 1;
  if (m == 0 || m == g.lanes) return true;
  w.groups.push_back({target, m, false});
  w.groups.push_back({g.pc, g.lanes & ~m, false});
  return false;
}

// A `.sync` instruction or a barrier: whether its lanes were all there and go on.
bool meet(Warp& w, const Instruction& i, Group& g, uint32_t m) {
  const int own = w.block->launch->threads - 32 * w.index;
  const uint32_t need = wanted(w, i, m, own >= 32 ? kEvery : (1u << own) - 1);
  if (m & ~need) fault(w, lowest(m & ~need), "the instruction's lanes do not include this one");
  if (need & ~w.live) {
    fault(w, lowest(m), "lanes " + std::to_string(lowest(need & ~w.live)) + " and maybe others have left before");
  }
  if (!gather(w, g, need)) {
    g.waits = true;
    w.groups.push_back(g);
    --w.block->launch->counts.executed[g.pc];  // it is counted when the last lanes come
    return false;
  }
  g.waits = false;
  w.mask = m = taking_part(w, i, g.lanes);
  if ((m & need) != need) fault(w, lowest(need & ~m), "its predicate is false for lanes that it needs");
  ++g.pc;
  if (i.flow != Flow::barrier) {
    i.step(w, i);
    return true;
  }
  w.barrier = int(w.at<uint32_t>(i.a[0])[lowest(m)]);
  w.barrier_warps = int(w.at<uint32_t>(i.a[1])[lowest(m)]) / 32;
  w.groups.push_back(g);
  return false;
}

}  // namespace

void run_warp(Warp& w, uint64_t budget) {
  Launch& launch = *w.block->launch;
  const std::vector<Instruction>& code = launch.program->code;
  while (w.live && w.barrier < 0) {
    uint32_t next = 0;
    Group g = take_group(w, next);
    while (true) {
      if (g.pc >= next || budget == 0) {
        w.groups.push_back(g);
        if (budget == 0) return;
        break;
      }
      w.pc = g.pc;
      if (g.pc >= code.size()) {
        leave(w, g.lanes);
        break;
      }
      const Instruction& i = code[g.pc];
      const uint32_t m = w.mask = taking_part(w, i, g.lanes);
      ++launch.counts.executed[g.pc];
      --budget;
      if (++w.steps > launch.limit) {
        fault(w, lowest(g.lanes), "still running after " + std::to_string(launch.limit) + " instructions of a warp");
      }
      if (launch.paths && m) follow(w, i);
      if (!w.flying.empty() && !i.asynchronous && m) expect_landed(w, i);
      if (i.flow == Flow::plain || (m == 0 && i.flow > Flow::leave)) {
        if (m) i.step(w, i);
        if (m && i.tracks && launch.checks) track(w, i);
        ++g.pc;
        if (w.yields) budget = 0;
      } else if (!(i.flow <= Flow::leave ? go(w, i, g, m) : meet(w, i, g, m))) {
        break;
      }
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
  uint32_t last = 0;
  for (const Warp& w : block.warps) {
    if (w.barrier == barrier) last = std::max(last, w.clock.last);
  }
  for (Warp& w : block.warps) {
    if (w.barrier != barrier) continue;
    w.barrier = -1;
    w.clock.floor = std::max(w.clock.floor, last);
  }
  block.shadow.join(arrived);
}

void run_block(Block& block) {
  Launch& launch = *block.launch;
  const int warps = (launch.threads + 31) / 32;
  block.memory.assign(size_t(launch.shared_bytes), 0xff);
  block.shadow.begin(warps, block.memory.size());
  block.barriers.clear();
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
    if (launch.checks) w.origin.assign(w.file.size() / 64 + 1, kNowhere);
    if (launch.paths) w.clock.ready.assign(w.file.size() / 64 + 1, 0);
    set_specials(w);
  }
  std::minstd_rand random(uint32_t(launch.order * 7919 + block.serial));
  int first = 0;
  while (true) {
    std::vector<int> ready;
    bool left = false;
    for (const Warp& w : block.warps) {
      left |= !w.done();
      if (!w.done() && w.barrier < 0) ready.push_back(w.index);
    }
    if (!left) break;
    if (ready.empty()) {
      Warp* waiting = nullptr;
      for (Warp& w : block.warps) {
        if (!w.done()) waiting = &w;
      }
      fault(*waiting, 0,
            "the block's warps never meet at barrier " + std::to_string(waiting->barrier) +
                ": divergent barriers, or warps that have left");
    }
    const auto next = std::lower_bound(ready.begin(), ready.end(), first);
    const int ascending = next == ready.end() ? ready[0] : *next;
    Warp& w = block.warps[launch.order ? ready[random() % ready.size()] : ascending];
    w.yields = false;
    run_warp(w, launch.order ? 1 + random() % 96 : ~0ull);
    first = w.yields ? w.index + 1 : 0;
    if (w.barrier >= 0) release(block, w.barrier);
  }
  for (const Warp& w : block.warps) launch.counts.path = std::max<uint64_t>(launch.counts.path, w.clock.last);
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
