// The part of CUDA's language that our kernels use, on the host: one block at a time, one fiber a thread. A fiber runs until it
// waits (__syncthreads, a shuffle) or ends; `order` says which one is next, so that kernels that race give other results in
// another order. What CUDA leaves undefined ends the launch with a message: threads that wait at different barriers, threads
// that end while others wait, lanes of a warp that never come to a shuffle.
#define _XOPEN_SOURCE 700
#undef _FORTIFY_SOURCE
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __device__ static inline
#define __shared__ static  // blocks run one after the other; like CUDA's, it holds leftovers when a block begins

struct Index { unsigned x, y, z; };
static Index threadIdx, blockIdx, blockDim;

struct bfloat16 {
  uint16_t bits;
  bfloat16() = default;
  explicit bfloat16(float value) {  // to the nearest, ties to even
    uint32_t b;
    memcpy(&b, &value, 4);
    bits = value != value ? 0x7fc0 : (b + 0x7fff + (b >> 16 & 1)) >> 16;
  }
  operator float() const {
    const uint32_t b = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &b, 4);
    return value;
  }
};

static inline int min(int a, int b) { return a < b ? a : b; }
static inline unsigned atomicAdd(unsigned* at, unsigned more) { const unsigned was = *at; *at += more; return was; }

enum State { READY, AT_BARRIER, AT_SHUFFLE, ENDED };
struct Fiber { ucontext_t start; jmp_buf resume; State state; int line; bool begun; unsigned shuffles; char* stack; };
static const int MOST = 1024, WARP = 32, STACK = 64 << 10;
static Fiber fibers[MOST];
static uint64_t deposits[2][MOST];  // by the parity of the shuffle: no lane is more than one ahead
static jmp_buf scheduler;
static char fault[200];

static void wait(State state, int line) {
  Fiber& me = fibers[threadIdx.x];
  me.state = state;
  me.line = line;
  if (!_setjmp(me.resume)) _longjmp(scheduler, 1);
}

#define __syncthreads() wait(AT_BARRIER, __LINE__)
#define __shfl_sync(mask, value, lane) shuffle(value, mask, lane, __LINE__)
#define __shfl_up_sync(mask, value, delta) \
  shuffle(value, mask, (int)threadIdx.x % WARP < (delta) ? (int)threadIdx.x % WARP : (int)threadIdx.x % WARP - (delta), __LINE__)

template <typename V> static V shuffle(V value, unsigned mask, int lane, int line) {
  uint64_t* slots = deposits[fibers[threadIdx.x].shuffles++ % 2] + threadIdx.x / WARP * WARP;
  memcpy(slots + threadIdx.x % WARP, &value, sizeof(V));
  if (mask != 0xffffffffu) snprintf(fault, sizeof fault, "line %d: a shuffle of a part of a warp is not emulated", line);
  wait(AT_SHUFFLE, line);
  memcpy(&value, slots + lane, sizeof(V));
  return value;
}

static void kernel();

static void fiber_main() {
  kernel();
  fibers[threadIdx.x].state = ENDED;
  _longjmp(scheduler, 1);
}

static void run_fiber(int i) {
  Fiber& f = fibers[i];
  threadIdx.x = i;
  if (_setjmp(scheduler)) return;
  if (f.begun) _longjmp(f.resume, 1);
  f.begun = true;
  setcontext(&f.start);
}

// Those that wait from `first` to `end` go on if all of them wait for the same.
static bool release(int first, int end, State state) {
  for (int i = first; i < end; i++)
    if (fibers[i].state != state || fibers[i].line != fibers[first].line) return false;
  for (int i = first; i < end; i++) fibers[i].state = READY;
  return true;
}

static void run_block(int threads, const int* order) {
  for (int i = 0; i < threads; i++) {
    Fiber& f = fibers[i];
    if (!f.stack) f.stack = (char*)malloc(STACK);
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack;
    f.start.uc_stack.ss_size = STACK;
    f.start.uc_link = 0;
    makecontext(&f.start, fiber_main, 0);
    f.state = READY;
    f.begun = false;
    f.shuffles = 0;
  }
  for (bool moved = true; moved && !*fault;) {
    moved = false;
    for (int i = 0; i < threads; i++)
      if (fibers[order[i]].state == READY) run_fiber(order[i]), moved = true;
    for (int warp = 0; warp < threads; warp += WARP) moved |= release(warp, warp + WARP, AT_SHUFFLE);
    moved |= release(0, threads, AT_BARRIER);
  }
  for (int i = 0; i < threads && !*fault; i++)
    if (fibers[i].state != ENDED)
      snprintf(fault, sizeof fault, "line %d: thread %d waits for ever; thread %d: %s, line %d", fibers[i].line, i,
               i ? 0 : threads - 1, fibers[i ? 0 : threads - 1].state == ENDED ? "ended" : "waits", fibers[i ? 0 : threads - 1].line);
}

static void** arguments;

// The last block runs twice, so that every one finds another's leftovers in its shared memory.
extern "C" const char* launch(void** pointers, int blocks, int threads, const int* order) {
  arguments = pointers;
  *fault = 0;
  if (threads > MOST || threads % WARP) return "expected whole warps of at most 1024 threads";
  blockDim = {(unsigned)threads, 1, 1};
  for (int b = -1; b < blocks && !*fault; b++) {
    blockIdx.x = b < 0 ? blocks - 1 : b;
    run_block(threads, order);
  }
  for (int i = 0; i < MOST; i++) free(fibers[i].stack), fibers[i].stack = 0;
  return *fault ? fault : 0;
}
