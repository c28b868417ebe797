// What Python calls: texts in and out, JSON where there is more than a number. An error is a text that begins with "!".
#include <sstream>

#include "machine.h"

namespace {

using namespace machine;

struct Loaded {
  Module module;
  std::map<std::string, std::unique_ptr<Program>> programs;
  std::string answer;
};

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 32 ? ' ' : c;
  }
  return out + "\"";
}

std::string describe(const Module& module) {
  std::ostringstream out;
  out << "{";
  bool first = true;
  for (const auto& [name, source] : module.kernels) {
    out << (first ? "" : ",") << quoted(name) << ":{\"parameters\":[";
    for (size_t k = 0; k < source.parameters.size(); ++k) {
      out << (k ? "," : "") << "[" << source.parameters[k].offset << "," << source.parameters[k].bytes << "]";
    }
    out << "],\"parameter_bytes\":" << source.parameter_bytes << ",\"static_shared\":" << module.static_shared
        << ",\"threads\":" << source.threads << "}";
    first = false;
  }
  out << "}";
  return out.str();
}

// Executed instructions by kind, and by their first and last word.
std::string report(const Launch& launch) {
  const Program& program = *launch.program;
  uint64_t kinds[size_t(Kind::count)] = {};
  std::map<std::string, std::pair<uint64_t, uint64_t>> words;  // executed, and in the code
  uint64_t all = 0;
  for (size_t k = 0; k < program.code.size(); ++k) {
    const uint64_t n = launch.counts.executed[k];
    kinds[size_t(program.code[k].kind)] += n;
    all += n;
    const Words& op = program.code[k].source->op;
    auto& entry = words[op[0] + (op.size() > 1 ? "." + op.back() : "")];
    entry.first += n;
    ++entry.second;
  }
  const Counts& c = launch.counts;
  std::ostringstream out;
  out << "{\"instructions\":" << all << ",\"kinds\":{";
  for (size_t k = 0; k < size_t(Kind::count); ++k) out << (k ? "," : "") << quoted(kKindNames[k]) << ":" << kinds[k];
  out << "},\"words\":{";
  bool first = true;
  for (const auto& [name, n] : words) {
    out << (first ? "" : ",") << quoted(name) << ":[" << n.first << "," << n.second << "]";
    first = false;
  }
  out << "},\"static\":" << program.code.size() << ",\"device_accesses\":" << c.device_accesses
      << ",\"traced\":" << c.traced << ",\"shared_accesses\":" << c.shared_accesses
      << ",\"shared_wavefronts\":" << c.shared_wavefronts << ",\"shared_least\":" << c.shared_least
      << ",\"global_sectors\":" << c.global_sectors << ",\"global_least\":" << c.global_least
      << ",\"bytes_read\":" << c.bytes_read << ",\"bytes_written\":" << c.bytes_written
      << ",\"distinct_read\":" << launch.memory.distinct_read
      << ",\"distinct_written\":" << launch.memory.distinct_written << ",\"flops\":" << c.flops
      << ",\"path\":" << c.path << ",\"duplicates\":" << c.duplicates << ",\"dead_reads\":" << c.dead_reads
      << ",\"unfenced_copies\":" << c.unfenced_copies << ",\"faults\":[";
  for (size_t k = 0; k < launch.faults.size(); ++k) out << (k ? "," : "") << quoted(launch.faults[k]);
  out << "]}";
  return out.str();
}

using Pages = std::map<uint64_t, std::vector<uint8_t>>;

// A page also holds what is not of the launch, and must stay: f(begin, end) of its parts within ranges.
template <class F>
void within_ranges(const Launch& launch, uint64_t key, F f) {
  const uint64_t begin = key * kPage, end = begin + kPage;
  auto range = std::upper_bound(launch.memory.ranges.begin(), launch.memory.ranges.end(), begin,
                                [](uint64_t at, const Range& r) { return at < r.end; });
  for (; range != launch.memory.ranges.end() && range->begin < end; ++range) {
    f(std::max(begin, range->begin), std::min(end, range->end));
  }
}

// What the launch wrote, and memory as it was before.
Pages take_back(Launch& launch) {
  Pages written;
  for (auto& [key, page] : launch.memory.pages) {
    if (!page.saved) continue;
    auto* at = reinterpret_cast<uint8_t*>(key * kPage);
    written[key].assign(at, at + kPage);
    within_ranges(launch, key, [&](uint64_t begin, uint64_t end) {
      std::memcpy(reinterpret_cast<void*>(begin), page.before.data() + begin % kPage, end - begin);
    });
  }
  return written;
}

void put_back(const Launch& launch, const Pages& pages) {
  for (const auto& [key, bytes] : pages) {
    within_ranges(launch, key, [&, at = bytes.data()](uint64_t begin, uint64_t end) {
      std::memcpy(reinterpret_cast<void*>(begin), at + begin % kPage, end - begin);
    });
  }
}

// The first byte of any range that two runs left different, in a sentence, or "".
std::string difference(const Launch& launch, const Pages& a, const Pages& b) {
  Pages all = a;
  all.insert(b.begin(), b.end());
  std::string found;
  for (const auto& entry : all) {
    const auto x = a.find(entry.first), y = b.find(entry.first);
    const auto* before = reinterpret_cast<const uint8_t*>(entry.first * kPage);
    const uint8_t* first = x == a.end() ? before : x->second.data();
    const uint8_t* second = y == b.end() ? before : y->second.data();
    within_ranges(launch, entry.first, [&](uint64_t begin, uint64_t end) {
      for (uint64_t at = begin; at < end && found.empty(); ++at) {
        if (first[at % kPage] == second[at % kPage]) continue;
        const Range& range = *launch.memory.find(at, 1);
        found = "another order of warps and blocks gives other bits: kernel " + launch.program->source->name +
                ", byte " + std::to_string(at - range.begin) + " of " + range.name;
      }
    });
  }
  return found;
}

}  // namespace

#define MACHINE_API __attribute__((visibility("default")))

extern "C" {

struct LaunchRequest {
  const char* kernel;
  uint32_t grid[3];
  int32_t threads, architecture, orders, checks, paths;
  int64_t shared_bytes;
  const uint8_t* parameters;
  int64_t parameter_bytes;
  const uint64_t* begins;
  const uint64_t* sizes;
  const char* const* names;
  int64_t ranges;
  uint64_t limit;
};

MACHINE_API void* machine_load(const char* text) {
  auto* loaded = new Loaded;
  try {
    loaded->module = parse(text);
    loaded->answer = describe(loaded->module);
  } catch (const std::exception& error) {
    loaded->answer = std::string("!") + error.what();
  }
  return loaded;
}

MACHINE_API void machine_free(void* loaded) { delete static_cast<Loaded*>(loaded); }

MACHINE_API const char* machine_answer(void* loaded) { return static_cast<Loaded*>(loaded)->answer.c_str(); }

// Runs a launch, in as many orders as asked for; memory is as the first of them left it.
MACHINE_API const char* machine_launch(void* handle, const LaunchRequest* request) {
  Loaded& loaded = *static_cast<Loaded*>(handle);
  Launch launch;
  try {
    auto& program = loaded.programs[request->kernel];
    if (!program) program = std::make_unique<Program>(prepare(loaded.module, request->kernel));
    launch.program = program.get();
    std::copy_n(request->grid, 3, launch.grid.begin());
    launch.threads = request->threads;
    launch.architecture = request->architecture;
    launch.shared_bytes = request->shared_bytes + loaded.module.static_shared;
    launch.parameters.assign(request->parameters, request->parameters + request->parameter_bytes);
    launch.limit = request->limit;
    launch.checks = request->checks;
    launch.paths = request->paths;
    for (int64_t k = 0; k < request->ranges; ++k) {
      launch.memory.add(request->begins[k], request->sizes[k], request->names[k]);
    }
    for (const auto& [name, table] : program->globals) {
      launch.memory.add(table.begin, table.bytes, "the module's " + name);
    }
    launch.memory.sort();
    Launch again = launch;
    again.checks = again.paths = false;
    run(launch);
    if (request->orders > 1 || !launch.doubts.empty()) {
      const Pages first = take_back(launch);
      if (!launch.doubts.empty()) {
        Launch other = again;
        other.poison = true;
        other.memory.suspects = launch.memory.suspects;
        run(other);
        if (difference(launch, first, take_back(other)).empty()) {
          launch.counts.dead_reads += launch.doubts.size();
        } else {
          launch.faults.insert(launch.faults.end(), launch.doubts.begin(), launch.doubts.end());
        }
      }
      for (int order = 1; order < request->orders; ++order) {
        Launch other = again;
        other.order = uint64_t(order);
        run(other);
        const std::string differs = difference(launch, first, take_back(other));
        if (!differs.empty()) launch.faults.push_back(differs);
      }
      put_back(launch, first);
    }
    loaded.answer = report(launch);
  } catch (const std::exception& error) {
    loaded.answer = "!";
    for (const std::string& found : launch.faults) loaded.answer += found + "\n";
    loaded.answer += error.what();
  }
  return loaded.answer.c_str();
}
}
