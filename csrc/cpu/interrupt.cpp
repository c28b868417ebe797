#include "cpu/interrupt.h"

#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif

namespace fastcsm {
namespace {

// What is used of Python, found in the process: the library links against torch alone.
struct Python {
  int (*ensure)() = find<int (*)()>("PyGILState_Ensure");
  void (*release)(int) = find<void (*)(int)>("PyGILState_Release");
  int (*check_signals)() = find<int (*)()>("PyErr_CheckSignals");
  void (*fetch)(void**, void**, void**) = find<void (*)(void**, void**, void**)>("PyErr_Fetch");
  void (*restore)(void*, void*, void*) = find<void (*)(void*, void*, void*)>("PyErr_Restore");

  template <class Function>
  static Function find(const char* name) {
    return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  }
  bool found() const { return ensure && release && check_signals && fetch && restore; }
};

const Python& python() {
  static const Python found;
  return found;
}

bool on_main_thread() {
#if defined(__linux__)
  return syscall(SYS_gettid) == getpid();
#elif defined(__APPLE__)
  return pthread_main_np() != 0;
#else
  return false;
#endif
}

// The exception that a handler raised, until Python takes it; used by the main thread only.
void* raised[3];

}  // namespace

bool interrupted() {
  if (!on_main_thread() || !python().found()) return false;
  const int state = python().ensure();
  const bool any = python().check_signals() != 0;
  if (any) python().fetch(&raised[0], &raised[1], &raised[2]);
  python().release(state);
  return any;
}

}  // namespace fastcsm

// Called with the interpreter's lock; sets the exception of the call that ended last by Interrupted.
extern "C" __attribute__((visibility("default"))) void fastcsm_raise_interruption() {
  using fastcsm::raised;
  if (raised[0] != nullptr) fastcsm::python().restore(raised[0], raised[1], raised[2]);
  raised[0] = raised[1] = raised[2] = nullptr;
}
