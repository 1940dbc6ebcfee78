// A GPU's blocks and threads on one thread of a CPU, for tests of CUDA C++ kernels.
//
// Every thread of a block is a fiber that runs until it has to wait: at a barrier, for the other lanes of its warp, for
// copies, for another block. Which fiber runs next is drawn from a seed, so a missing wait has a chance to show, and the
// same seed shows it again. Asynchronous copies are done as late as somebody waits for them, or at a random time before.
// Shared memory begins as NaN (all bits one). Where nobody can go on, the launch ends and says who waits for what.
//
// Between two waits a fiber is alone, and memory is sequentially consistent: what shows in results is what some order of
// fibers shows. Compiled with RACES, accesses that nothing orders are reported whatever the order was: races.hpp.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <string>
#include <vector>

#include "races.hpp"

extern "C" char __start_shared_memory[], __stop_shared_memory[];

namespace machine {

constexpr size_t STACK_BYTES = 64 << 10;
constexpr int NAMED_BARRIERS = 16, WARP = 32, LANE_WORDS = 10;

struct Index {
    unsigned x, y, z;
};

struct Copy {
    char* to;            // null for an arrival at a barrier
    const char* from;
    uint32_t barrier;
    bool early;          // the source was read when the copy was asked for
    char bytes[16];
    int group = 0;
    races::Stamp stamp = {};  // of an arrival
};

enum Wait { READY, NAMED, MBARRIER, LANES, VALUE, OVER };

struct Block;
struct Fiber {
    Block* block;
    int thread;
    Wait wait = READY;
    bool started = false;
    uint64_t place = 0;         // barrier, address or operation that it waits for
    uint32_t seen = 0;          // value or parity that must change
    const void* polled = nullptr;
    uint32_t lane[LANE_WORDS];  // operands of a warp's operation, then its results
    std::vector<Copy> copies;
    int group = 0;              // of the copies that it asks for now
    races::Thread clock;
    jmp_buf context;
    ucontext_t first;
};

struct Named {
    int arrived = 0, expected = 0;
};

struct Warp {
    int arrived = 0;        // lanes, for an operation that all of them take part in
    uint64_t operation = 0;
    uint32_t priority = 0;  // some warps run far ahead of others
    std::vector<Fiber*> ready;
};

struct Block {
    Index index;
    int live;
    bool in_order;  // some of its warps go before others, for a while
    bool prompt;    // its copies arrive soon, for a while
    std::vector<Fiber> fibers;
    std::vector<Warp*> able;  // those with fibers that are ready
    Named named[NAMED_BARRIERS];
    std::vector<Warp> warps;
    std::vector<char> shared;  // while another block runs
    races::Words accesses;     // to its shared memory
    std::unordered_map<uint32_t, races::Phase> phases;
    char* stacks;
};

// What the process is doing: one launch at a time.
struct Launch {
    std::vector<Block*> blocks;  // those that have begun and are not over
    Block* block = nullptr;      // whose shared memory is in place
    Fiber* fiber = nullptr;
    bool leaves_block = false;   // others are to run next
    jmp_buf scheduler;
    uint64_t random;
    std::string error;
    void (*kernel)(const void*);
    const void* argument;
    Index grid, threads;
    int64_t clock = 0;
    races::State races;

    uint32_t draw(uint32_t below) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        return (uint32_t)((random >> 11) % below);
    }
};

static Launch* now;

// So that there is such a section even in a kernel without shared memory.
static char anchor[16] __attribute__((section("shared_memory"), used));

inline char* shared_begin() { return __start_shared_memory; }
inline size_t shared_size() { return __stop_shared_memory - __start_shared_memory; }

// ---- Fibers

template <class T>
inline T taken(std::vector<T>& all, size_t which) {
    T one = all[which];
    all[which] = all.back(), all.pop_back();
    return one;
}

__attribute__((noinline)) static void leave() {
    const volatile int quiet = races::quiet;
    asm volatile("" ::: "memory");
    if (!_setjmp(now->fiber->context)) _longjmp(now->scheduler, 1);
    races::quiet = quiet;
    asm volatile("" ::: "memory");
}

__attribute__((noinline, format(printf, 1, 2))) static void fail(const char* format, ...) {
    char text[512];
    va_list rest;
    va_start(rest, format);
    vsnprintf(text, sizeof text, format, rest);
    va_end(rest);
    if (now->error.empty()) {
        const Fiber* f = now->fiber;
        char where[64] = "";
        if (f) snprintf(where, sizeof where, "block (%u, %u), thread %d: ", f->block->index.x, f->block->index.y, f->thread);
        now->error = std::string(where) + text;
    }
    if (now->fiber) _longjmp(now->scheduler, 1);
}

// It can go on.
inline void wake(Fiber* f) {
    Warp& w = f->block->warps[f->thread / WARP];
    f->wait = READY;
    if (w.ready.empty()) f->block->able.push_back(&w);
    w.ready.push_back(f);
}

// Others may run; the fiber goes on once it is woken.
inline void sleep(Wait wait, uint64_t place) {
    now->fiber->wait = wait, now->fiber->place = place;
    if (wait != VALUE) now->fiber->polled = nullptr;
    leave();
}

inline void let_others() {
    wake(now->fiber);
    leave();
}

// Where blocks say something to each other, others often run first.
inline void let_other_blocks() {
    races::Quiet here;
    now->leaves_block = now->draw(2);
    let_others();
}

// ---- Barriers

inline void meet(int barrier, int threads) {
    races::Quiet here;
    Block* b = now->block;
    if (barrier < 0 || barrier >= NAMED_BARRIERS) fail("there is no barrier %d", barrier);
    Named& n = b->named[barrier];
    if (n.arrived && n.expected != threads) fail("barrier %d is for %d threads and for %d", barrier, n.expected, threads);
    n.expected = threads;
    if (++n.arrived < threads) return sleep(NAMED, barrier);
    n.arrived = 0;
    std::vector<races::Thread*> met = {&now->fiber->clock};
    for (Fiber& f : b->fibers)
        if (f.wait == NAMED && f.place == (uint64_t)barrier) wake(&f), met.push_back(&f.clock);
    races::order(met);
    let_others();
}

inline char* at_shared(uint32_t address, unsigned bytes) {
    if (address % bytes) fail("shared address %u is not a multiple of %u", address, bytes);
    if (address + (size_t)bytes > shared_size()) fail("shared address %u lies beyond the end, %zu", address, shared_size());
    return shared_begin() + address;
}

// An mbarrier's 64 bits: arrivals that are missing, arrivals of a phase, the parity of the phase.
struct MBarrier {
    uint32_t missing : 24, parity : 8, count;
};
static_assert(sizeof(MBarrier) == 8, "");

inline MBarrier* mbarrier(uint32_t address) { return (MBarrier*)at_shared(address, 8); }

inline void arrive(Block* b, uint32_t address, const races::Stamp& stamp) {
    races::Quiet here;
    MBarrier* m = mbarrier(address);
    if (m->missing == 0 || m->missing > m->count || m->count > 1 << 20) fail("an arrival at shared address %u, which is no mbarrier or has enough", address);
    races::Phase& phase = b->phases[address];
    phase.arrive(stamp);
    if (--m->missing) return;
    phase.complete();
    m->missing = m->count, m->parity ^= 1;
    for (Fiber& f : b->fibers)
        if (f.wait == MBARRIER && f.place == address && f.seen != m->parity) wake(&f);
}

inline void wait_mbarrier(uint32_t address, uint32_t parity) {
    races::Quiet here;
    if (mbarrier(address)->parity == (parity & 1)) {
        now->fiber->seen = parity & 1;
        sleep(MBARRIER, address);
    }
    races::acquire(now->block->phases[address].passed);
}

// ---- Asynchronous copies

// All that a fiber asked for, up to and with its first arrival at a barrier.
inline void do_copies(Fiber* f, bool all) {
    size_t done = 0;
    bool arrived = false;
    while (done < f->copies.size() && (all || !arrived)) {
        const Copy& c = f->copies[done++];
        if (c.to) memcpy(c.to, c.early ? c.bytes : c.from, 16);
        else arrive(f->block, c.barrier, c.stamp), arrived = true;
    }
    f->copies.erase(f->copies.begin(), f->copies.begin() + done);
}

inline void copy_async(uint32_t to, const void* from, const void* caller) {
    races::Quiet here;
    if ((uintptr_t)from % 16) fail("a copy from an address that is no multiple of 16");
    Copy c = {at_shared(to, 16), (const char*)from, 0, now->draw(2) == 0, {}, now->fiber->group};
    if (c.early) memcpy(c.bytes, from, 16);
    races::copied(c.to, c.from, caller, c.group);
    now->fiber->copies.push_back(c);
}

inline void arrive_when_copied(uint32_t barrier) {
    races::Quiet here;
    now->fiber->copies.push_back({nullptr, nullptr, barrier, false, {}, now->fiber->group, races::copies_arrival()});
}

inline void wait_copies() {
    races::Quiet here;
    do_copies(now->fiber, true);
    races::waited(now->fiber->group + 1);
}

// Those of all groups but the newest ``later`` closed ones and the open one.
inline void do_groups(Fiber* f, int later) {
    races::Quiet here;
    races::waited(f->group - later);
    size_t count = 0;
    while (count < f->copies.size() && f->copies[count].group < f->group - later) count++;
    std::vector<Copy> rest(f->copies.begin() + count, f->copies.end());
    f->copies.resize(count);
    do_copies(f, true);
    f->copies = rest;
}

// ---- Warps

// Every lane's operands are there, ``compute(lanes)`` turns them into results, every lane goes on with its own.
template <class Compute>
inline void together(uint64_t operation, Compute compute) {
    races::Quiet here;
    Fiber* f = now->fiber;
    Block* b = now->block;
    const int first = f->thread / WARP * WARP;
    Warp& w = b->warps[f->thread / WARP];
    if (w.arrived && w.operation != operation) fail("lanes of a warp take part in operations %s and %s",
        std::string((const char*)&w.operation, 8).c_str(), std::string((const char*)&operation, 8).c_str());
    w.operation = operation;
    if (++w.arrived < WARP) return sleep(LANES, operation);
    w.arrived = 0;
    Fiber* lanes = &b->fibers[first];
    compute(lanes);
    for (int i = 0; i < WARP; i++)
        if (lanes + i != f) wake(lanes + i);
    let_others();
}

// What the lanes of a warp wrote before is there for all of them: other operations of a warp promise nothing of memory.
inline void order_lanes(Fiber* lanes) {
    std::vector<races::Thread*> met;
    for (int i = 0; i < WARP; i++) met.push_back(&lanes[i].clock);
    races::order(met);
}

constexpr uint64_t named(const char* text) {
    uint64_t value = 0;
    for (int i = 0; i < 8 && text[i]; i++) value |= (uint64_t)(unsigned char)text[i] << (8 * i);
    return value;
}

// ---- Memory between blocks

inline void changed(const void* address) {
    races::Quiet here;
    for (Block* b : now->blocks)
        for (Fiber& f : b->fibers)
            if (f.wait == VALUE && f.place == (uint64_t)(uintptr_t)address) wake(&f);
}

// A load in a waiting loop: asked for the same value once more, the fiber sleeps until it has changed.
inline uint32_t poll(const uint32_t* address, const void* caller) {
    races::Quiet here;
    Fiber* f = now->fiber;
    while (f->polled == address && f->seen == *address) sleep(VALUE, (uint64_t)(uintptr_t)address);
    f->polled = address, f->seen = *address;
    races::atomic(address, 4, races::READ, false, true, caller);
    return f->seen;
}

// ---- Launches

struct Position {
    Index thread, block;
};
static Position position;

static void enter() {
    races::quiet = 0;
    now->kernel(now->argument);
    races::quiet = 1;
    now->fiber->wait = OVER;
    do_copies(now->fiber, true);
    leave();
}

inline void put_in_place(Block* b) {
    if (now->block == b) return;
    if (now->block) memcpy(now->block->shared.data(), shared_begin(), shared_size());
    now->block = b;
    memcpy(shared_begin(), b->shared.data(), shared_size());
}

__attribute__((noinline)) static void run(Fiber* f) {
    now->fiber = f;
    position = {{(unsigned)f->thread, 0, 0}, f->block->index};
    races::go_on(&f->clock, &f->block->accesses, f->block->stacks + f->thread * STACK_BYTES, STACK_BYTES);
    if (!_setjmp(now->scheduler)) {
        if (f->started) _longjmp(f->context, 1);
        f->started = true;
        setcontext(&f->first);
    }
    races::quiet = 1;
    now->fiber = nullptr;
}

inline Block* make_block(Index index, int threads) {
    Block* b = new Block;
    b->index = index, b->live = threads, b->in_order = now->draw(2), b->prompt = now->draw(2);
    b->fibers.resize(threads), b->warps.resize((threads + WARP - 1) / WARP);
    for (Warp& w : b->warps) w.priority = now->draw(1 << 16);
    b->shared.assign(shared_size(), (char)0xff);
    b->stacks = (char*)mmap(nullptr, threads * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (b->stacks == (char*)MAP_FAILED) {
        fail("no memory for %d stacks", threads);
        return b;
    }
    for (int i = 0; i < threads; i++) {
        Fiber& f = b->fibers[i];
        f.block = b, f.thread = i;
        f.clock.id = (index.y * now->grid.x + index.x) * threads + i;
        getcontext(&f.first);
        f.first.uc_stack.ss_sp = b->stacks + i * STACK_BYTES, f.first.uc_stack.ss_size = STACK_BYTES, f.first.uc_link = nullptr;
        makecontext(&f.first, enter, 0);
        wake(&f);
    }
    return b;
}

inline void end_block(Block* b) {
    if (b->stacks != (char*)MAP_FAILED) munmap(b->stacks, b->fibers.size() * STACK_BYTES);
    if (now->block == b) now->block = nullptr;
    for (size_t i = 0; i < now->blocks.size(); i++)
        if (now->blocks[i] == b) taken(now->blocks, i);
    races::forget(b->accesses);
    delete b;
}

inline std::string waits(const Fiber& f) {
    char text[128];
    const Named& n = f.block->named[f.place % NAMED_BARRIERS];
    switch (f.wait) {
        case NAMED: snprintf(text, sizeof text, "at barrier %d, where %d of %d are", (int)f.place, n.arrived, n.expected); break;
        case MBARRIER: snprintf(text, sizeof text, "for phase %u of the mbarrier at shared address %u", f.seen, (unsigned)f.place); break;
        case LANES: snprintf(text, sizeof text, "in the warp's operation %.8s", (const char*)&f.place); break;
        case VALUE: snprintf(text, sizeof text, "for memory that holds %u", f.seen); break;
        default: snprintf(text, sizeof text, "for nothing");
    }
    return text;
}

// Who waits where, threads that wait alike together.
inline void report_deadlock() {
    std::string text = "nobody can go on:";
    for (const Block* b : now->blocks)
        for (size_t i = 0, next; i < b->fibers.size(); i = next) {
            const std::string why = waits(b->fibers[i]);
            for (next = i + 1; next < b->fibers.size() && waits(b->fibers[next]) == why; next++) {}
            if (b->fibers[i].wait == OVER) continue;
            char range[96];
            snprintf(range, sizeof range, " block (%u, %u), threads %zu to %zu wait ", b->index.x, b->index.y, i, next - 1);
            text += range + why + ";";
        }
    now->error = text;
}

// The block that runs next; null where all of them wait.
inline Block* choose_block() {
    std::vector<Block*> able;
    for (Block* b : now->blocks)
        if (!b->able.empty()) able.push_back(b);
    if (able.empty()) return nullptr;
    if (now->block && !now->block->able.empty() && !now->leaves_block && now->draw(4)) return now->block;
    return able[now->draw(able.size())];
}

// Some asynchronous copies of one block that are still on their way arrive; false where there are none.
inline bool finish_some_copies() {
    const int first = now->draw(now->blocks.size());
    for (size_t i = 0; i < now->blocks.size(); i++) {
        Block* b = now->blocks[(first + i) % now->blocks.size()];
        std::vector<Fiber*> able;
        for (Fiber& f : b->fibers)
            if (!f.copies.empty()) able.push_back(&f);
        if (able.empty()) continue;
        put_in_place(b);
        for (int turn = 0; turn < 64; turn++) do_copies(able[now->draw(able.size())], false);
        return true;
    }
    return false;
}

// Any fiber that can go on; or any of the warp that goes first.
inline Fiber* choose_fiber(Block* b, bool in_order) {
    size_t best = now->draw(b->able.size());
    for (size_t i = 0; in_order && i < b->able.size(); i++)
        if (b->able[i]->priority > b->able[best]->priority) best = i;
    Warp* w = b->able[best];
    Fiber* f = taken(w->ready, now->draw(w->ready.size()));
    if (w->ready.empty()) taken(b->able, best);
    return f;
}

// One block goes on for a while: all warps alike, or some before others.
inline void go_on() {
    Block* b = choose_block();
    if (!b) {
        if (!finish_some_copies()) report_deadlock();
        return;
    }
    put_in_place(b);
    const int turns = 1 << now->draw(13);
    if (now->draw(16) == 0) {
        b->in_order = now->draw(2), b->prompt = now->draw(2);
        for (Warp& w : b->warps) w.priority = now->draw(1 << 16);
    }
    if (b->prompt)
        for (Fiber& f : b->fibers) do_copies(&f, true);
    now->leaves_block = false;
    for (int turn = 0; turn < turns && !b->able.empty() && !now->leaves_block && now->error.empty(); turn++) {
        Fiber* f = choose_fiber(b, b->in_order);
        run(f);
        if (f->wait == OVER) b->live--;
    }
    if (b->live == 0) end_block(b);
    else if (now->draw(4) == 0) finish_some_copies();
}

static void bad_address(int) { fail("an address where there is no memory"); }

// While a kernel runs, what it reads or writes beyond all memory is an error of its own.
struct Guard {
    struct sigaction before[2];
    stack_t stack_before;
    char stack[64 << 10];
    Guard() {
        struct sigaction action = {};
        stack_t own = {};
        action.sa_handler = bad_address, action.sa_flags = SA_ONSTACK | SA_NODEFER;
        own.ss_sp = stack, own.ss_size = sizeof stack;
        sigaltstack(&own, &stack_before);
        sigaction(SIGSEGV, &action, &before[0]), sigaction(SIGBUS, &action, &before[1]);
    }
    ~Guard() {
        sigaction(SIGSEGV, &before[0], nullptr), sigaction(SIGBUS, &before[1], nullptr);
        sigaltstack(&stack_before, nullptr);
    }
};

// Runs a grid; at most ``resident`` of its blocks at once, begun in any order. Returns what went wrong, or nothing.
inline std::string launch(void (*kernel)(const void*), const void* argument, Index grid, int threads, int resident, uint64_t seed) {
    Launch launch;
    Guard guard;
    now = &launch;
    launch.kernel = kernel, launch.argument = argument, launch.grid = grid, launch.threads = {(unsigned)threads, 1, 1};
    launch.random = seed * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull;
    for (int i = 0; i < 8; i++) launch.draw(2);
    races::begin(launch.races, grid.x * grid.y * threads, threads, shared_begin(), shared_size());
    std::vector<Index> left;
    for (unsigned y = 0; y < grid.y; y++)
        for (unsigned x = 0; x < grid.x; x++) left.push_back({x, y, 0});
    while (launch.error.empty() && (!left.empty() || !launch.blocks.empty())) {
        while (!left.empty() && (int)launch.blocks.size() < resident) {
            launch.blocks.push_back(make_block(taken(left, launch.draw(left.size())), threads));
        }
        go_on();
    }
    while (!launch.blocks.empty()) end_block(launch.blocks.back());
    now = nullptr;
    return races::found(launch.races) + launch.error;
}

}  // namespace machine

// ---- The words of CUDA C++

#define __device__
#define __global__
#define __constant__
#define __forceinline__ SHOWN_WHERE_CALLED
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static __attribute__((section("shared_memory"), used))
#define threadIdx machine::position.thread
#define blockIdx machine::position.block
#define gridDim machine::now->grid
#define blockDim machine::now->threads

struct uint2 {
    unsigned x, y;
};
struct __align__(16) uint4 {
    unsigned x, y, z, w;
};
struct __align__(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
