// Asynchronous copies of 16 bytes into shared memory: done as late as somebody waits for them, or at a random time
// before, when the scheduler says so. Some read their source when they are asked for, others when they are done.
#pragma once

#include <string.h>

#include "waits.hpp"

namespace machine {

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

}  // namespace machine
