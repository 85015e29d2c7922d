// Runs CUDA kernels on the CPU, for tests: g++ -std=gnu++20, x86-64 or AArch64, Linux.
//
// A test by hand:
//
//     // g++ -std=gnu++20 -O1 -g -DREAL=float -I src/kernels/cuda test.cc && ./a.out
//     #include "emulate.h"
//     #include "prelude.cu"
//     #include "activation.cu"
//     int main() {
//         float x[5] = {-2, -1, 0, 1, 2}, y[5];
//         // Name, grid, block, bytes of dynamic shared memory, kernel with its arguments.
//         if (const char* error = emulate::launch("relu", dim3(1), dim3(128), 0, [&] { relu(x, y, 5); }))
//             return puts(error), 1;
//     }
//
// `-fsanitize=thread` reports races between threads of a kernel (and between blocks), with `setarch -R` where the runtime
// asks for it; `-fsanitize=address,undefined` reports accesses out of bounds, misaligned vectors and the like.
//
// Blocks run one after the other, the last one first. The threads of a block are fibers: a kernel whose threads never wait
// for each other costs a function call per thread. Shared memory starts as NaN in each block. The value that a lane receives from
// one that has ended or does not take part is NaN (-1 as an integer). A launch returns a message if threads wait for different
// barriers, or for a barrier that others never reach.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <type_traits>
#include <unistd.h>
#include <utility>
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

static dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__
#ifdef __SANITIZE_THREAD__
#define __shared__ static thread_local
#else
#define __shared__ static __attribute__((section("emulated_shared")))
#endif
#define DYNAMIC_SHARED(type, name) type* name = (type*)emulate::dynamic_shared
#define EMULATOR __attribute__((no_sanitize("thread"), no_sanitize("address"), noinline))

namespace emulate {

constexpr int warp_size = 32, max_threads = 1024;
constexpr size_t stack_size = 128 << 10, guard = 4096;

enum State : uint8_t { ended, running, at_barrier, in_warp };

struct Thread {
    void* sp;
    void* fiber;
    uint64_t value, received;
    unsigned mask, ballot, from;
    int line;
    State state;
};

static Thread threads[max_threads];
static unsigned alive[max_threads / warp_size], waiting[max_threads / warp_size];
static int ready[max_threads], ready_first, ready_count;
static int count, current, unstarted, alive_count, barrier_count;
static int free_stacks[max_threads], free_stack_count;
static char* stacks;
static void* main_sp;
static void* main_fiber;
static void (*body)(void*);
static void* argument;
static char* dynamic_shared;
static char* sync_points;
static char end_point;
// The error of the launch; empty if there is none.
static char error[400];

// Saves the registers and the stack pointer, and continues on another stack.
extern "C" void emulate_switch(void** save, void* resume);
#if defined(__x86_64__)
asm(".text\n"
    "emulate_switch:\n"
    "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
    "movq %rsp, (%rdi)\n"
    "movq %rsi, %rsp\n"
    "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"
    "ret\n");
constexpr int saved_words = 7, saved_return = 6, top_words = 2;
#elif defined(__aarch64__)
asm(".text\n"
    "emulate_switch:\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp, #0]; stp x21, x22, [sp, #16]; stp x23, x24, [sp, #32]; stp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]; stp x29, x30, [sp, #80]; stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]\n"
    "stp d12, d13, [sp, #128]; stp d14, d15, [sp, #144]\n"
    "mov x2, sp; str x2, [x0]; mov sp, x1\n"
    "ldp x19, x20, [sp, #0]; ldp x21, x22, [sp, #16]; ldp x23, x24, [sp, #32]; ldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]; ldp x29, x30, [sp, #80]; ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112]\n"
    "ldp d12, d13, [sp, #128]; ldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\n"
    "ret\n");
constexpr int saved_words = 20, saved_return = 11, top_words = 2;
#else
#error "the emulator needs x86-64 or AArch64"
#endif

// ThreadSanitizer takes each CUDA thread for a thread of its own: switches order nothing, barriers do.
#ifdef __SANITIZE_THREAD__
constexpr bool checks_races = true;
EMULATOR inline void* new_fiber() { return __tsan_create_fiber(0); }
EMULATOR inline void end_fiber(void* fiber) { __tsan_destroy_fiber(fiber); }
EMULATOR inline void* this_fiber() { return __tsan_get_current_fiber(); }
#define EMULATE_SWITCH_FIBER(fiber) __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync)
#define EMULATE_ARRIVE(point) __tsan_release(point)
#define EMULATE_LEAVE(point) __tsan_acquire(point)
#else
constexpr bool checks_races = false;
inline void* new_fiber() { return nullptr; }
inline void end_fiber(void*) {}
inline void* this_fiber() { return nullptr; }
#define EMULATE_SWITCH_FIBER(fiber) (void)(fiber)
#define EMULATE_ARRIVE(point) (void)(point)
#define EMULATE_LEAVE(point) (void)(point)
#endif

inline char* block_point() { return sync_points; }
inline char* warp_point(int thread) { return sync_points + 8 + 8 * (thread / warp_size); }

EMULATOR inline void select(int thread) {
    current = thread;
    unsigned t = thread;
    threadIdx.x = t % blockDim.x, threadIdx.y = t / blockDim.x % blockDim.y;
    threadIdx.z = t / blockDim.x / blockDim.y;
}

EMULATOR inline void select_block(unsigned long long block) {
    blockIdx.x = block % gridDim.x, blockIdx.y = block / gridDim.x % gridDim.y;
    blockIdx.z = block / gridDim.x / gridDim.y;
}

EMULATOR inline void push_ready(int thread) {
    threads[thread].state = running;
    ready[(ready_first + ready_count++) % max_threads] = thread;
}

EMULATOR inline int pop_ready() {
    int thread = ready[ready_first];
    ready_first = (ready_first + 1) % max_threads, ready_count--;
    return thread;
}

#define EMULATE_ERROR(...) snprintf(error, sizeof error, __VA_ARGS__)

// Ends the block after an error: waiting threads do not continue.
EMULATOR inline void fail(void** save) {
    EMULATE_ARRIVE(&end_point);
    EMULATE_SWITCH_FIBER(main_fiber);
    emulate_switch(save, main_sp);
}

// Where a thread waits.
struct Place {
    char text[80];
    EMULATOR Place(int thread) {
        const Thread& t = threads[thread];
        if (t.state == in_warp)
            snprintf(text, sizeof text, "thread %d in line %d (for lanes 0x%x)", thread, t.line, t.mask);
        else
            snprintf(text, sizeof text, "thread %d in line %d (for the block)", thread, t.line);
    }
};

// Lets the threads of a barrier continue if it is complete.
EMULATOR inline bool release_block() {
    if (barrier_count == 0 || barrier_count < alive_count) return true;
    int first = -1;
    for (int i = 0; i < count; i++) {
        if (threads[i].state != at_barrier) continue;
        if (first < 0) first = i;
        if (threads[i].line != threads[first].line) {
            EMULATE_ERROR("threads wait for different barriers: %s, %s", Place(first).text, Place(i).text);
            return false;
        }
    }
    for (int i = 0; i < count; i++)
        if (threads[i].state == at_barrier) push_ready(i);
    barrier_count = 0;
    return true;
}

// Exchanges the values of lanes and lets them continue if all of `mask` that have not ended have arrived.
EMULATOR inline bool release_warp(int warp, unsigned mask) {
    unsigned taking = mask & alive[warp];
    if (taking == 0 || (waiting[warp] & taking) != taking) return true;
    Thread* lanes = threads + warp * warp_size;
    unsigned ballot = 0;
    for (int i = 0; i < warp_size; i++) {
        if (!(taking >> i & 1)) continue;
        if (lanes[i].mask != mask) {
            EMULATE_ERROR("lanes wait with different masks: %s and lanes 0x%x", Place(warp * warp_size + i).text, mask);
            return false;
        }
        ballot |= (lanes[i].value != 0) << i;
    }
    for (int i = 0; i < warp_size; i++) {
        if (!(taking >> i & 1)) continue;
        unsigned from = lanes[i].from;
        lanes[i].received = taking >> from & 1 ? lanes[from].value : ~uint64_t(0);
        lanes[i].ballot = ballot;
        push_ready(warp * warp_size + i);
    }
    waiting[warp] &= ~taking;
    return true;
}

void run_threads();

EMULATOR inline void* start_stack() {
    int stack = free_stacks[--free_stack_count];
    void** top = (void**)(stacks + (stack + 1) * stack_size) - top_words;
    top[0] = top[1] = nullptr;
    // x86-64: after the return into the function the stack is 8 below a multiple of 16, as after a call.
    void** sp = (void**)((char*)top + (saved_words == 7 ? 8 : 0)) - saved_words;
    memset((void*)sp, 0, saved_words * sizeof(void*));
    sp[saved_return] = (void*)run_threads;
    return sp;
}

// Saves the current thread and continues with the next one: a waiting thread that is ready, or one that has not started.
EMULATOR inline void go_on(void** save) {
    if (ready_count > 0) {
        int next = pop_ready();
        if (next == current) return;
        select(next);
        EMULATE_SWITCH_FIBER(threads[next].fiber);
        emulate_switch(save, threads[next].sp);
    } else if (unstarted < count) {
        emulate_switch(save, start_stack());
    } else if (alive_count > 0) {
        // The first that waits, and the first that waits elsewhere.
        int first = 0;
        while (threads[first].state == ended) first++;
        int other = first;
        auto same = [&](const Thread& t) {
            return t.state == ended || (t.line == threads[first].line && t.state == threads[first].state);
        };
        while (other < count && same(threads[other])) other++;
        EMULATE_ERROR("threads wait for others that never come: %s%s%s", Place(first).text, other < count ? ", " : "",
                      other < count ? Place(other).text : "");
        fail(save);
    } else {
        EMULATE_SWITCH_FIBER(main_fiber);
        emulate_switch(save, main_sp);
    }
}

// Runs threads that have not started, one after the other on this stack (under ThreadSanitizer a single one), until none is
// left or one that waits is ready.
EMULATOR inline void run_threads() {
    int stack = free_stacks[free_stack_count];
    while (true) {
        int me = unstarted++, warp = me / warp_size;
        select(me);
        EMULATE_SWITCH_FIBER(threads[me].fiber);
        body(argument);
        EMULATE_ARRIVE(&end_point);
        threads[me].state = ended;
        alive[warp] &= ~(1u << me % warp_size), alive_count--;
        bool fine = release_block();
        for (int i = 0; fine && waiting[warp] && i < warp_size; i++)
            if (waiting[warp] >> i & 1) fine = release_warp(warp, threads[warp * warp_size + i].mask);
        void* nowhere;
        if (!fine) fail(&nowhere);
        if (!checks_races && ready_count == 0 && unstarted < count) continue;
        // Threads are not ordered for ThreadSanitizer: on one stack, what they write there would be a race.
        if (!checks_races) free_stacks[free_stack_count++] = stack;
        go_on(&nowhere);
    }
}

EMULATOR inline void wait(State state, int line) {
    Thread& thread = threads[current];
    int me = current;
    char* point = state == at_barrier ? block_point() : warp_point(me);
    thread.state = state, thread.line = line;
    EMULATE_ARRIVE(point);
    bool fine;
    if (state == at_barrier) {
        barrier_count++;
        fine = release_block();
    } else {
        waiting[me / warp_size] |= 1u << me % warp_size;
        fine = release_warp(me / warp_size, thread.mask);
    }
    if (!fine) fail(&thread.sp);
    go_on(&thread.sp);
    EMULATE_LEAVE(point);
}

EMULATOR inline uint64_t exchange(unsigned mask, uint64_t value, unsigned from, unsigned* ballot, int line) {
    Thread& thread = threads[current];
    if (!(mask >> current % warp_size & 1)) {
        thread.line = line;
        EMULATE_ERROR("a lane waits without being in the mask: %s", Place(current).text);
        fail(&thread.sp);
    }
    thread.mask = mask, thread.value = value, thread.from = from;
    wait(in_warp, line);
    if (ballot) *ballot = thread.ballot;
    return thread.received;
}

#ifndef __SANITIZE_THREAD__
// The section exists even if no kernel has shared memory.
__attribute__((section("emulated_shared"), used)) static char shared_exists[16];
extern "C" char __start_emulated_shared[] __attribute__((visibility("hidden")));
extern "C" char __stop_emulated_shared[] __attribute__((visibility("hidden")));
#endif

// Writes NaN, not with memset: sanitizers check that one.
__attribute__((optimize("no-tree-loop-distribute-patterns"))) EMULATOR inline void fill(char* from, char* to) {
    while (from < to) *from++ = (char)0xff;
}

inline void* allocate(size_t bytes) {
    void* memory;
    if (posix_memalign(&memory, 64, bytes) != 0) abort();
    return memory;
}

EMULATOR inline void map_stacks() {
    constexpr size_t bytes = max_threads * stack_size;
    // ThreadSanitizer forgets what is unmapped, but takes a mapping for a write: it is not to know of this one.
    if (stacks) munmap(stacks, bytes);
    stacks = (char*)syscall(SYS_mmap, 0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) abort();
    // One guard for all: each costs a mapping, whose number is limited, and each module has its stacks.
    mprotect(stacks, guard, PROT_NONE);
}

EMULATOR inline void run_block(size_t shared) {
    if (checks_races) map_stacks();
#ifndef __SANITIZE_THREAD__
    fill(__start_emulated_shared, __stop_emulated_shared);
#endif
#ifdef __SANITIZE_ADDRESS__
    constexpr size_t canary = 0;
#else
    constexpr size_t canary = 64;
#endif
    // One piece of memory per block, exactly as long as the launch asks: a sanitizer reports accesses beyond it.
    dynamic_shared = (char*)allocate(shared + canary), sync_points = (char*)allocate(8 * (max_threads / warp_size + 1));
    fill(dynamic_shared, dynamic_shared + shared + canary);
    ready_first = ready_count = unstarted = barrier_count = 0, alive_count = count;
    for (int i = 0; i < max_threads; i++) free_stacks[i] = max_threads - 1 - i;
    free_stack_count = max_threads;
    memset(waiting, 0, sizeof waiting), memset(alive, 0, sizeof alive);
    main_fiber = this_fiber();
    for (int i = 0; i < count; i++) {
        threads[i].state = running, threads[i].line = 0;
        threads[i].fiber = checks_races ? new_fiber() : nullptr;
        alive[i / warp_size] |= 1u << i % warp_size;
    }
    go_on(&main_sp);
    for (size_t i = shared; i < shared + canary && !*error; i++)
        if (dynamic_shared[i] != (char)0xff) EMULATE_ERROR("a thread wrote beyond the dynamic shared memory");
    for (int i = 0; checks_races && i < count; i++) end_fiber(threads[i].fiber);
    // ThreadSanitizer's blocks are not ordered, so that none may use the memory of another: it is lost.
    if (!checks_races) std::free(dynamic_shared), std::free(sync_points);
}

inline void* run_block_of(void* shared) { return run_block((size_t)shared), nullptr; }

inline void check(dim3 grid, dim3 block, size_t shared) {
    unsigned long long blocks = (unsigned long long)grid.x * grid.y * grid.z;
    unsigned long long threads = (unsigned long long)block.x * block.y * block.z;
    if (blocks == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
        EMULATE_ERROR("found a grid of %ux%ux%u", grid.x, grid.y, grid.z);
    if (threads == 0 || threads > max_threads || block.z > 64)
        EMULATE_ERROR("found a block of %ux%ux%u", block.x, block.y, block.z);
    if (shared > 227 << 10) EMULATE_ERROR("found %zu bytes of dynamic shared memory", shared);
}

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static thread_local char message[500];

// Runs a kernel; returns an error message, valid until this thread's next launch, or null.
template <class Kernel>
const char* launch(const char* name, dim3 grid, dim3 block, size_t shared, Kernel kernel) {
    pthread_mutex_lock(&one_at_a_time);
    *error = 0;
    check(grid, block, shared);
    if (!stacks) map_stacks();
    gridDim = grid, blockDim = block, count = block.x * block.y * block.z;
    body = [](void* kernel) { (*(Kernel*)kernel)(); };
    argument = &kernel;
    for (unsigned long long i = (unsigned long long)grid.x * grid.y * grid.z; i-- > 0 && !*error;) {
        select_block(i);
        // A new thread of the system has new `thread_local` variables, so that blocks share none.
        pthread_t thread;
        if (!checks_races)
            run_block(shared);
        else if (pthread_create(&thread, nullptr, run_block_of, (void*)shared) != 0 || pthread_join(thread, nullptr) != 0)
            abort();
    }
    // Later blocks don't wait for earlier ones, but the launching thread waits for all.
    EMULATE_LEAVE(&end_point);
    snprintf(message, sizeof message, "%s: %s", name, error);
    bool fine = !*error;
    pthread_mutex_unlock(&one_at_a_time);
    return fine ? nullptr : message;
}

template <class T> T shuffle(unsigned mask, T value, unsigned from, int line) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = exchange(mask, bits, from, nullptr, line);
    memcpy(&value, &bits, sizeof(T));
    return value;
}

inline int lane() { return current % warp_size; }

// The arguments of a launch from the host: one character each for its type, and its address.
template <class T> constexpr char kind = std::is_pointer_v<T>                         ? 'p'
                                         : std::is_same_v<T, int>                     ? 'i'
                                         : std::is_same_v<T, unsigned>                ? 'u'
                                         : std::is_same_v<T, long long>               ? 'l'
                                         : std::is_same_v<T, unsigned long long>      ? 'L'
                                         : std::is_same_v<T, float>                   ? 'f'
                                         : std::is_same_v<T, double>                  ? 'd'
                                                                                      : '?';

template <class... Args, size_t... I>
const char* call(const char* name, void (*kernel)(Args...), std::index_sequence<I...>, int bounds, dim3 grid, dim3 block,
                 size_t shared, const char* kinds, void** args) {
    const char expected[] = {kind<Args>..., 0};
    if (strcmp(kinds, expected) != 0)
        snprintf(message, sizeof message, "%s: found arguments of types %s, expected %s", name, kinds, expected);
    else if (bounds > 0 && block.x * block.y * block.z > (unsigned)bounds)
        snprintf(message, sizeof message, "%s: found a block larger than the launch bounds of %d", name, bounds);
    else
        return launch(name, grid, block, shared, [&] { kernel(*(Args*)args[I]...); });
    return message;
}

template <class... Args>
const char* call(const char* name, void (*kernel)(Args...), int bounds, dim3 grid, dim3 block, size_t shared,
                 const char* kinds, void** args) {
    return call(name, kernel, std::index_sequence_for<Args...>(), bounds, grid, block, shared, kinds, args);
}

// The value of the first argument of __launch_bounds__, or 0 without arguments.
constexpr int launch_bounds(int threads = 0, int = 0, int = 0) { return threads; }

}  // namespace emulate

#define __syncthreads() emulate::wait(emulate::at_barrier, __LINE__)
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) { emulate::exchange(mask, 0, 0, nullptr, line); }
template <class T> T __shfl_sync(unsigned mask, T value, int from, int width = 32, int line = __builtin_LINE()) {
    return emulate::shuffle(mask, value, (emulate::lane() & -width) | (from & (width - 1)), line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int other, int width = 32, int line = __builtin_LINE()) {
    int from = emulate::lane() ^ other;
    return emulate::shuffle(mask, value, from < ((emulate::lane() & -width) + width) ? from : emulate::lane(), line);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
    int from = emulate::lane() + by;
    return emulate::shuffle(mask, value, from < ((emulate::lane() & -width) + width) ? from : emulate::lane(), line);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
    int from = emulate::lane() - (int)by;
    return emulate::shuffle(mask, value, from >= (emulate::lane() & -width) ? from : emulate::lane(), line);
}
inline unsigned __ballot_sync(unsigned mask, int x, int line = __builtin_LINE()) {
    unsigned ballot;
    emulate::exchange(mask, x != 0, 0, &ballot, line);
    return ballot;
}
inline int __any_sync(unsigned mask, int x, int line = __builtin_LINE()) { return __ballot_sync(mask, x, line) != 0; }
inline int __all_sync(unsigned mask, int x, int line = __builtin_LINE()) { return __ballot_sync(mask, !x, line) == 0; }

inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T> T __ldg(const T* p) { return *p; }
// Integers only: sums of floating-point atomics depend on the order.
template <class T, class = std::enable_if_t<std::is_integral_v<T>>> T atomicAdd(T* p, std::type_identity_t<T> x) {
    return __atomic_fetch_add(p, x, __ATOMIC_RELAXED);
}
template <class T, class = std::enable_if_t<std::is_integral_v<T>>> T atomicOr(T* p, std::type_identity_t<T> x) {
    return __atomic_fetch_or(p, x, __ATOMIC_RELAXED);
}
template <class T, class = std::enable_if_t<std::is_integral_v<T>>> T atomicExch(T* p, std::type_identity_t<T> x) {
    return __atomic_exchange_n(p, x, __ATOMIC_RELAXED);
}
template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
T atomicCAS(T* p, std::type_identity_t<T> old, std::type_identity_t<T> x) {
    __atomic_compare_exchange_n(p, &old, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return old;
}
template <class T, class = std::enable_if_t<std::is_integral_v<T>>> T atomicMin(T* p, std::type_identity_t<T> x) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (x < old && !__atomic_compare_exchange_n(p, &old, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return old;
}
template <class T, class = std::enable_if_t<std::is_integral_v<T>>> T atomicMax(T* p, std::type_identity_t<T> x) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (x > old && !__atomic_compare_exchange_n(p, &old, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return old;
}

template <class To, class From> To emulate_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline int __float_as_int(float x) { return emulate_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulate_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulate_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulate_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulate_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulate_bits<double>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
// `volatile` keeps the compiler from fusing a product and a sum, as these functions do on the GPU.
inline float __fmul_rn(float a, float b) { volatile float c = a * b; return c; }
inline float __fadd_rn(float a, float b) { volatile float c = a + b; return c; }
inline float __fsub_rn(float a, float b) { volatile float c = a - b; return c; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1 / a; }
inline double __dmul_rn(double a, double b) { volatile double c = a * b; return c; }
inline double __dadd_rn(double a, double b) { volatile double c = a + b; return c; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
    if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return fmin(a, b);
    else return b < a ? (std::common_type_t<A, B>)b : (std::common_type_t<A, B>)a;
}
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
    if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return fmax(a, b);
    else return a < b ? (std::common_type_t<A, B>)b : (std::common_type_t<A, B>)a;
}
