// What a fiber waits for and who wakes it: named barriers, mbarriers in shared memory, operations of a whole warp,
// values that another block writes. Each orders accesses to memory as far as the GPU's own does; asynchronous copies
// are in copies.hpp.
#pragma once

#include "fibers.hpp"

namespace machine {

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

}  // namespace machine
