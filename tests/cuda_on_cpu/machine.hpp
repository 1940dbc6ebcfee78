// A GPU's blocks and threads on one thread of a CPU, for tests of CUDA C++ kernels.
//
// Every thread of a block is a fiber that runs until it has to wait: at a barrier, for the other lanes of its warp, for
// copies, for another block. Which fiber runs next is drawn from a seed, so a missing wait has a chance to show, and the
// same seed shows it again. Asynchronous copies are done as late as somebody waits for them, or at a random time before.
// Shared memory begins as NaN (all bits one). Where nobody can go on, the launch ends and says who waits for what.
//
// Between two waits a fiber is alone, and memory is sequentially consistent: what shows in results is what some order of
// fibers shows. Compiled with RACES, accesses that nothing orders are reported whatever the order was: races.hpp.
//
// Here are launches and who runs next; fibers.hpp has what a launch consists of, waits.hpp and copies.hpp what a fiber
// waits for.
#pragma once

#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "copies.hpp"

namespace machine {

// ---- Blocks and their fibers

constexpr size_t STACK_BYTES = 64 << 10;

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

// ---- Deadlocks

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

// ---- Who runs next

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

// ---- Launches

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
