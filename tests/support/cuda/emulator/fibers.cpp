// The threads of a block as fibers of one thread of the system.
#include <csetjmp>
#include <memory>
#include <vector>

#include <ucontext.h>

#include "cuda_runtime.h"

dim3 threadIdx, blockIdx, gridDim;

namespace emulator {

double shuffled[1024];

namespace {

constexpr size_t kStackBytes = 160 * 1024;  // a kernel's arguments are copied to it

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  ucontext_t context;
  jmp_buf resume;
  bool started = false;
  bool done = false;
};

std::vector<Fiber> fibers;
jmp_buf scheduler;
ucontext_t beginning;
unsigned current;
void (*body_of_block)(void*);
void* argument_of_block;

void enter() {
  body_of_block(argument_of_block);
  fibers[current].done = true;
  _longjmp(scheduler, 1);
}

// Until its next barrier or its end. The first switch needs a context of its own, later ones only a jump.
void resume(unsigned thread) {
  Fiber& fiber = fibers[thread];
  current = thread;
  threadIdx.x = thread;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
  swapcontext(&beginning, &fiber.context);
}

}  // namespace

void meet() {
  if (_setjmp(fibers[current].resume) == 0) _longjmp(scheduler, 1);
}

void run_block(unsigned threads, void (*body)(void*), void* argument) {
  if (fibers.size() < threads) fibers.resize(threads);
  body_of_block = body;
  argument_of_block = argument;
  for (Fiber& fiber : fibers) fiber.started = fiber.done = false;
  for (unsigned finished = 0; finished < threads;) {
    finished = 0;
    for (unsigned thread = 0; thread < threads; ++thread) {
      if (fibers[thread].done) fail("a thread ended while others of its block wait at a barrier");
      resume(thread);
      finished += fibers[thread].done;
    }
    if (finished != 0 && finished != threads) fail("threads of a block do not meet at the same barrier");
  }
}

}  // namespace emulator
