// CUDA on the CPU, as far as csrc/cuda needs it: the kernels' sources run unchanged. Blocks run one
// after the other; the threads of a block are fibers, which change at barriers and at the shuffles
// of a warp, as the programming model has it. The order of fibers can be varied: a result that
// depends on it lacks a barrier. Shared memory has exactly the size asked for and starts as NaN
// patterns.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#define CFAL_DEVICE inline
#define CFAL_DEVICE_CALL inline
#define CFAL_KERNEL(threads, blocks) void
#define CFAL_PARAMETER const
#define CFAL_DYNAMIC_SHARED(name) unsigned char* const name = emulated::machine().dynamic()
#define CFAL_STATIC_SHARED(type, name) type& name = emulated::machine().fixed<type>()
#define CFAL_DEVICE_ASSERT(condition) \
  if (!(condition)) emulated::machine().fail("device-side assertion: " #condition)
#define CFAL_WAIT() emulated::machine().yield()

struct Dimension {
  unsigned x = 0;
};

struct uint4 {
  uint32_t x, y, z, w;
};

// Half types: conversions of the compiler's own types.
struct __half {
  _Float16 value;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __half2float(__half h) { return static_cast<float>(h.value); }
inline __half __float2half(float f) { return {static_cast<_Float16>(f)}; }
inline float __bfloat162float(__nv_bfloat16 b) {
  const uint32_t bits = static_cast<uint32_t>(b.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline __nv_bfloat16 __float2bfloat16(float f) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if (f != f) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

namespace emulated {

constexpr int kLanes = 32;
constexpr size_t kStack = 64 * 1024;
constexpr size_t kFixed = 8192;

enum class Order { kForward, kBackward };

class Machine {
 public:
  Dimension thread, block, grid, threads;
  Order order = Order::kForward;

  // Runs kernel(arguments) over the grid.
  template <class Arguments>
  void launch(void (*kernel)(const Arguments), int64_t blocks, int64_t count, int64_t shared,
              const Arguments& arguments) {
    body_ = [](const void* k, const void* a) {
      reinterpret_cast<void (*)(const Arguments)>(const_cast<void*>(k))(
          *static_cast<const Arguments*>(a));
    };
    kernel_ = reinterpret_cast<const void*>(kernel);
    arguments_ = &arguments;
    grid.x = static_cast<unsigned>(blocks);
    threads.x = static_cast<unsigned>(count);
    if (static_cast<int64_t>(fibers_.size()) < count) fibers_.resize(count);
    for (unsigned i = 0; i < grid.x; ++i) {
      block.x = order == Order::kForward ? i : grid.x - 1 - i;
      dynamic_.reset(static_cast<unsigned char*>(std::aligned_alloc(16, (shared + 15) / 16 * 16)));
      std::memset(dynamic_.get(), 0xff, shared);
      std::memset(fixed_, 0xff, sizeof fixed_);
      run_block(static_cast<int>(count));
    }
  }

  unsigned char* dynamic() { return dynamic_.get(); }

  template <class T>
  T& fixed() {
    static_assert(sizeof(T) <= kFixed);
    return *reinterpret_cast<T*>(fixed_);
  }

  void block_barrier() { wait(State::kBlock); }
  void warp_barrier() { wait(State::kWarp); }
  void yield() { wait(State::kReady); }

  // What lane `source` of this warp passes to the same call.
  template <class T>
  T exchange(T value, int source) {
    static_assert(sizeof(T) <= 8);
    Fiber& me = fibers_[current_];
    // Two slots in turn: the next exchange does not overwrite what a slower lane has yet to read.
    const int turn = me.turn ^= 1;
    std::memcpy(me.slot[turn], &value, sizeof value);
    warp_barrier();
    T result;
    std::memcpy(&result, fibers_[current_ / kLanes * kLanes + source].slot[turn], sizeof result);
    return result;
  }

  int lane() const { return current_ % kLanes; }

  // An assertion ends the kernel: the first message is thrown when the block has unwound.
  [[noreturn]] void fail(const char* message) {
    failure_ = message;
    swapcontext(&fibers_[current_].context, &scheduler_);
    std::abort();
  }

 private:
  enum class State { kReady, kWarp, kBlock, kDone };
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    State state = State::kDone;
    int turn = 0;
    unsigned char slot[2][8];
  };

  static void enter() {
    Machine& m = instance();
    m.body_(m.kernel_, m.arguments_);
    m.fibers_[m.current_].state = State::kDone;
    swapcontext(&m.fibers_[m.current_].context, &m.scheduler_);
  }

  void wait(State state) {
    Fiber& me = fibers_[current_];
    me.state = state;
    swapcontext(&me.context, &scheduler_);
  }

  void resume(int index) {
    current_ = index;
    thread.x = static_cast<unsigned>(index);
    swapcontext(&scheduler_, &fibers_[index].context);
  }

  void run_block(int count) {
    failure_ = nullptr;
    for (int i = 0; i < count; ++i) {
      Fiber& fiber = fibers_[i];
      if (!fiber.stack) fiber.stack = std::make_unique<char[]>(kStack);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, reinterpret_cast<void (*)()>(&Machine::enter), 0);
      fiber.state = State::kReady;
      fiber.turn = 0;
    }
    for (;;) {
      bool ran = false;
      int done = 0, at_block = 0;
      for (int w = 0; w < count / kLanes; ++w) {
        const int warp = order == Order::kForward ? w : count / kLanes - 1 - w;
        ran |= run_warp(warp);
      }
      for (int i = 0; i < count; ++i) {
        done += fibers_[i].state == State::kDone;
        at_block += fibers_[i].state == State::kBlock;
      }
      if (done == count) return;
      if (at_block == count) {
        for (int i = 0; i < count; ++i) fibers_[i].state = State::kReady;
      } else if (!ran) {
        throw std::runtime_error("emulated kernel: threads wait at different barriers");
      }
    }
  }

  // Runs the lanes of a warp until none can go on without another warp.
  bool run_warp(int warp) {
    const int begin = warp * kLanes;
    bool ran = false;
    for (;;) {
      int at_warp = 0;
      bool here = false;
      for (int l = 0; l < kLanes; ++l) {
        const int lane = order == Order::kForward ? l : kLanes - 1 - l;
        if (fibers_[begin + lane].state != State::kReady) continue;
        resume(begin + lane);
        if (failure_ != nullptr) throw std::runtime_error(failure_);
        here = ran = true;
      }
      for (int l = 0; l < kLanes; ++l) at_warp += fibers_[begin + l].state == State::kWarp;
      if (at_warp == kLanes) {
        for (int l = 0; l < kLanes; ++l) fibers_[begin + l].state = State::kReady;
        continue;
      }
      // A lane that polls memory stays ready: other warps run before it looks again.
      if (!here || at_warp < kLanes) return ran;
    }
  }

  friend Machine& machine();
  static Machine& instance() {
    static Machine one;
    return one;
  }

  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  void (*body_)(const void*, const void*) = nullptr;
  const void* kernel_ = nullptr;
  const void* arguments_ = nullptr;
  ucontext_t scheduler_;
  std::vector<Fiber> fibers_;
  std::unique_ptr<unsigned char, Free> dynamic_;
  alignas(16) unsigned char fixed_[kFixed];
  int current_ = 0;
  const char* failure_ = nullptr;
};

inline Machine& machine() { return Machine::instance(); }

}  // namespace emulated

#define threadIdx (emulated::machine().thread)
#define blockIdx (emulated::machine().block)
#define gridDim (emulated::machine().grid)
#define blockDim (emulated::machine().threads)

inline void __syncthreads() { emulated::machine().block_barrier(); }
inline void __syncwarp() { emulated::machine().warp_barrier(); }
inline void __threadfence() {}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulated::machine().exchange(value, emulated::machine().lane() ^ mask);
}
template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return emulated::machine().exchange(value, source & 31);
}
inline unsigned __reduce_or_sync(unsigned, unsigned value) {
  for (int mask = 16; mask > 0; mask /= 2) value |= __shfl_xor_sync(0u, value, mask);
  return value;
}
inline unsigned __ballot_sync(unsigned, bool value) {
  return __reduce_or_sync(0u, value ? 1u << emulated::machine().lane() : 0u);
}

inline unsigned atomicAdd(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address += value;
  return before;
}

template <class T>
T __ldg(const T* address) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0)
    emulated::machine().fail("misaligned access");
  return *address;
}
template <class T>
void __stcg(T* address, T value) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T) != 0)
    emulated::machine().fail("misaligned access");
  *address = value;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
