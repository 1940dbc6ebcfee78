// What a launch consists of: its blocks, their warps and their threads, each a fiber that runs until it has to wait.
//
// A fiber stops where it says what it waits for, and somebody wakes it: who does so when is in waits.hpp and
// copies.hpp, which fiber runs next in machine.hpp.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <ucontext.h>

#include <string>
#include <vector>

#include "races.hpp"

extern "C" char __start_shared_memory[], __stop_shared_memory[];

namespace machine {

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

// ---- Going on and stopping

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

}  // namespace machine
