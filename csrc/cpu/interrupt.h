// Ctrl-C inside a call: the op that calls has no interpreter lock, so that Python's handlers of signals wait until it
// returns, unless they are asked for.
#pragma once

#include <stdexcept>

namespace fastcsm {

// What a call ends with after interrupted(); the caller has Python raise the handler's exception in its place.
struct Interrupted : std::runtime_error {
  Interrupted() : std::runtime_error("fastcsm: a signal's handler raised") {}
};

// On Python's main thread, runs the handlers of signals that came; whether one of them raised. Elsewhere false.
bool interrupted();

}  // namespace fastcsm
