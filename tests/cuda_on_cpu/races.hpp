// Which accesses to memory nothing orders: a happens-before detector for the kernels that machine.hpp plays.
//
// With RACES the kernel is compiled with -fsanitize=thread, and the functions that the compiler calls before every load
// and store are those at the end of this file instead of ThreadSanitizer's. Every thread has a vector clock (Lamport's
// order; FastTrack, Flanagan and Freund 2009, for the words); a word remembers its last write and the reads since, byte
// by byte. Orders come from barriers, mbarriers, operations of a warp, release and acquire, fences and the wait for
// copies only: never from the order in which fibers happen to run. An asynchronous copy is an access of its own, which
// begins when it is asked for and is not ordered with its thread until that thread has waited. Of a warp's operations
// only __syncwarp() orders memory. A word keeps a few reads of each warp: of more, some may be forgotten.
// Without RACES all of this is empty. Knows memory and clocks, no fibers.
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

namespace races {

#ifdef RACES

#define NOT_SEEN __attribute__((no_sanitize("thread")))
#define SHOWN_WHERE_CALLED inline __attribute__((always_inline))
#define HERE __builtin_return_address(0)

typedef std::__shared_ptr<std::vector<uint32_t>, __gnu_cxx::_S_single> Clock;  // without atomics, which would be calls

enum Kind { READ = 0, WRITE = 1, ATOMIC = 2, STREAM = 4 };  // STREAM: a load that may be older than this launch
constexpr int MOST_READS = 24, WORDS = 1024, MOST_REPORTS = 40;

struct Stamp {
    Clock seen;
    uint32_t id = 0, epoch = 0, copied = 0;
};

struct Thread {
    Clock seen;                // of others
    uint32_t id = 0, epoch = 1;
    uint32_t asked = 0, copied = 0;  // copies asked for, and waited for
    std::vector<std::pair<int, uint32_t>> groups;
    Stamp last_copy;
    Clock fence, observed;     // before its last fence; seen by relaxed loads since
};

struct Entry {
    uint32_t pc, epoch;
    uint32_t id : 24, mask : 4, kind : 4;
};

struct Word {
    uint16_t count = 0, room = 0;
    bool chain = false;  // an atomic's history hangs on it
    Entry few[2];
    Entry* many = nullptr;
    Word() {}
    ~Word() { delete[] many; }
    Entry* entries() { return many ? many : few; }
    void add(const Entry& e) {
        if (!many && count == 2) grow(8);
        if (many && count == room) grow(room * 2);
        entries()[count++] = e;
    }
    void grow(int to) {
        Entry* wider = new Entry[to];
        memcpy(wider, entries(), count * sizeof(Entry));
        delete[] many;
        many = wider, room = to;
    }
};

typedef std::unordered_map<uintptr_t, std::unique_ptr<Word[]>> Words;

struct State {
    uint32_t ids = 0;  // of threads; copies have as many
    int threads = 1;   // of a block
    Words global;
    std::unordered_map<uintptr_t, Clock> chains;
    std::set<std::pair<uint32_t, uint32_t>> seen;
    std::string text;
};

static State* state;
static int quiet = 1;
static Thread* current;
static Words *current_shared, *last_words;
static uintptr_t last_page;
static Word* last;
static const char *stack_begin, *stack_end, *shared_first, *shared_last;
extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" const char _end[] __attribute__((visibility("hidden")));

struct Quiet {
    int before;
    NOT_SEEN Quiet() : before(quiet) { quiet = 1; }
    NOT_SEEN ~Quiet() { quiet = before; }
};

// Of the call of a function that is shown where it is called.
__attribute__((noipa)) NOT_SEEN static const void* pc_here() { return HERE; }

// ---- Clocks

__attribute__((optimize("O3"))) NOT_SEEN static void raise_all(uint32_t* to, const uint32_t* from, size_t count) {
    for (size_t i = 0; i < count; i++) to[i] = to[i] > from[i] ? to[i] : from[i];
}

inline Clock copy_of(const Clock& c) {
    return c ? Clock(new std::vector<uint32_t>(*c)) : Clock(new std::vector<uint32_t>(2 * state->ids, 0u));
}

inline void join(Clock& to, const Clock& from) {
    if (!from || to == from) return;
    if (!to) {
        to = from;
        return;
    }
    if (to.use_count() > 1) to = copy_of(to);
    raise_all(to->data(), from->data(), from->size());
}

inline void set(Clock& c, const Stamp& s) {
    uint32_t &own = (*c)[s.id], &copies = (*c)[state->ids + s.id];
    if (s.epoch > own) own = s.epoch;
    if (s.copied > copies) copies = s.copied;
}

inline Clock merged(const std::vector<Stamp>& stamps) {
    Clock all;
    const std::vector<uint32_t>* last = nullptr;
    for (const Stamp& s : stamps)
        if (s.seen.get() != last) join(all, s.seen), last = s.seen.get();
    all = copy_of(all);
    for (const Stamp& s : stamps) set(all, s);
    return all;
}

inline Stamp stamp_of(const Thread& t) { return {t.seen, t.id, t.epoch, t.copied}; }

// All of them go on after all of them have come.
inline void order(const std::vector<Thread*>& threads) {
    std::vector<Stamp> stamps;
    for (Thread* t : threads) stamps.push_back(stamp_of(*t));
    const Clock all = merged(stamps);
    Clock fence, observed;  // what one fenced before they met is as far as that for whoever goes on
    for (Thread* t : threads) join(fence, t->fence), join(observed, t->observed);
    for (Thread* t : threads) t->seen = all, t->epoch++, t->fence = fence, t->observed = observed;
}

inline void release(Clock& to) {
    const Clock mine = merged({stamp_of(*current)});
    join(to, mine);
    current->epoch++;
}

inline void acquire(const Clock& from) { join(current->seen, from); }

// A phase of an mbarrier: who has arrived, and what those see who wait for the last phase that is over.
struct Phase {
    std::vector<Stamp> arrived;
    Clock passed;
    void arrive(const Stamp& s) {
        if (s.epoch) arrived.push_back(s);
    }
    void complete() { passed = merged(arrived), arrived.clear(); }
};

inline Stamp arrival() {
    const Stamp s = stamp_of(*current);
    current->epoch++;
    return s;
}

// ---- Accesses

inline uint32_t offset_of(const void* pc) { return (uint32_t)((const char*)pc - __ehdr_start); }

inline std::string described(const Entry& e) {
    char text[128];
    const uint32_t id = e.id % state->ids;
    snprintf(text, sizeof text, "%s%s by block %u, thread %u", e.kind & ATOMIC ? "atomic " : "",
             e.id >= state->ids ? (e.kind & WRITE ? "asynchronous copy to it" : "asynchronous copy from it") : e.kind & WRITE ? "write" : "read",
             id / state->threads, id % state->threads);
    return text;
}

inline void report(const Entry& before, const Entry& after, const char* where, const char* what) {
    if (!state->seen.insert({before.pc, after.pc}).second || state->seen.size() > MOST_REPORTS) return;
    char text[64];
    snprintf(text, sizeof text, "%x\t%x\t%s\t", before.pc, after.pc, where);
    state->text += std::string(text) + described(before) + "\t" + described(after) + "\t" + what + "\n";
}

inline bool ordered(const Entry& e, const Thread& t) {
    if (e.id == t.id) return true;
    if (e.id == t.id + state->ids && e.epoch <= t.copied) return true;
    return t.seen && (*t.seen)[e.id] >= e.epoch;
}

inline bool same_warp(uint32_t a, uint32_t b) { return a / 32 == b / 32; }

inline void touch_word(Word& w, Entry now, uintptr_t address, const char* where) {
    const Thread& t = *current;
    Entry* e = w.entries();
    int kept = 0;
    const bool full = w.count >= MOST_READS;
    for (int i = 0; i < w.count; i++) {
        Entry one = e[i];
        if (one.mask & now.mask) {
            const bool conflict = (one.kind | now.kind) & WRITE && !(one.kind & now.kind & ATOMIC);
            if (conflict && !ordered(one, t)) report(one, now, where, "nothing orders them");
            else if (now.kind & STREAM && one.kind & WRITE) report(one, now, where, "the load may see what was there before the launch");
            if (now.kind & WRITE) one.mask &= ~now.mask;
            else if (!(one.kind & WRITE) && one.kind == now.kind && !(one.mask & ~now.mask) && same_warp(one.id, now.id) &&
                     (full || (one.id == now.id && one.id < state->ids) || ordered(one, t)))
                one.mask = 0;
            if (!one.mask) continue;
        }
        e[kept++] = one;
    }
    w.count = kept;
    w.add(now);
    if (now.kind & WRITE && !(now.kind & ATOMIC) && w.chain) state->chains.erase(address), w.chain = false;
}

inline Word& word_at(Words& words, uintptr_t address) {
    const uintptr_t page = address / 4 / WORDS;
    if (last_words != &words || last_page != page) {
        std::unique_ptr<Word[]>& held = words[page];
        if (!held) held.reset(new Word[WORDS]);
        last = held.get(), last_page = page, last_words = &words;
    }
    return last[address / 4 % WORDS];
}

// ``copy``: of an asynchronous copy that the thread asks for.
NOT_SEEN static void touch(const void* at, unsigned bytes, int kind, const void* pc, bool copy = false) {
    const char* p = (const char*)at;
    if (!current || (p >= stack_begin && p < stack_end)) return;
    const bool shared = p >= shared_first && p < shared_last;
    if (!shared && p >= __ehdr_start && p < _end) return;
    Quiet here;
    Entry now;
    now.pc = offset_of(pc), now.kind = kind;
    now.id = current->id + (copy ? state->ids : 0), now.epoch = copy ? current->asked : current->epoch;
    const uintptr_t begin = (uintptr_t)at, end = begin + bytes;
    for (uintptr_t word = begin / 4 * 4; word < end; word += 4) {
        unsigned mask = 15;
        if (word < begin) mask &= 15u << (begin - word);
        if (word + 4 > end) mask &= 15u >> (word + 4 - end);
        now.mask = mask;
        touch_word(word_at(shared ? *current_shared : state->global, word), now, word, shared ? "shared" : "global");
    }
}

inline void copied(const void* to, const void* from, const void* pc, int group) {
    Thread& t = *current;
    t.asked++;
    touch(from, 16, READ, pc, true), touch(to, 16, WRITE, pc, true);
    t.groups.push_back({group, t.asked});
    t.last_copy = {t.seen, t.id, t.epoch, t.asked};
    t.epoch++;  // what the thread does next is not before the copy
}

inline void waited(int groups) {
    Thread& t = *current;
    size_t done = 0;
    for (; done < t.groups.size() && t.groups[done].first < groups; done++) t.copied = t.groups[done].second;
    t.groups.erase(t.groups.begin(), t.groups.begin() + done);
}

inline Stamp copies_arrival() { return current->last_copy; }

inline Clock& chain_at(const void* at) {
    word_at(state->global, (uintptr_t)at).chain = true;
    return state->chains[(uintptr_t)at];
}

// ---- Atomics on global or shared memory, and fences

inline void atomic(const void* at, unsigned bytes, int kind, bool releases, bool acquires, const void* pc) {
    Quiet here;
    if ((const char*)at >= shared_first && (const char*)at < shared_last) return touch(at, bytes, kind | ATOMIC, pc);
    touch(at, bytes, kind | ATOMIC, pc);
    Clock& chain = chain_at(at);
    if (acquires) acquire(chain);
    else join(current->observed, chain);
    if (releases) release(chain);
    else if (kind & WRITE) join(chain, current->fence);
}

inline void fence() {
    Quiet here;
    acquire(current->observed);
    current->fence = merged({stamp_of(*current)});
    current->epoch++;
}

// ---- Launches

inline void begin(State& s, uint32_t ids, int threads, const char* shared, size_t shared_bytes) {
    state = &s, s.ids = ids, s.threads = threads;
    current = nullptr, last_words = nullptr;
    shared_first = shared, shared_last = shared + shared_bytes;
}

inline void go_on(Thread* t, Words* shared, const char* stack, size_t stack_bytes) {
    last_words = current_shared == shared ? last_words : nullptr;
    current = t, current_shared = shared, stack_begin = stack, stack_end = stack + stack_bytes;
}

// Of a block that is over.
inline void forget(Words& shared) {
    shared.clear();
    last_words = nullptr;
}

inline std::string found(State& s) { return s.text.empty() ? "" : "races:\n" + s.text; }

extern "C" {
#define HOOK __attribute__((visibility("hidden"), used)) NOT_SEEN
#define HOOKS(name, bytes, kind) \
    HOOK void __tsan_##name(void* at) { \
        if (!quiet) touch(at, bytes, kind, HERE); \
    }
#define SIZED(bytes) \
    HOOKS(read##bytes, bytes, READ) HOOKS(write##bytes, bytes, WRITE) \
    HOOKS(unaligned_read##bytes, bytes, READ) HOOKS(unaligned_write##bytes, bytes, WRITE)
SIZED(1)
SIZED(2)
SIZED(4)
SIZED(8)
SIZED(16)
HOOK void __tsan_read_range(void* at, long bytes) {
    if (!quiet) touch(at, bytes, READ, HERE);
}
HOOK void __tsan_write_range(void* at, long bytes) {
    if (!quiet) touch(at, bytes, WRITE, HERE);
}
HOOK void __tsan_init() {}
HOOK void __tsan_func_entry(void*) {}
HOOK void __tsan_func_exit() {}
HOOK void __tsan_vptr_update(void**, void*) {}
HOOK void __tsan_vptr_read(void**) {}
}

#else

#define NOT_SEEN
#define SHOWN_WHERE_CALLED inline
#define HERE nullptr

enum Kind { READ = 0, WRITE = 1, ATOMIC = 2, STREAM = 4 };
inline const void* pc_here() { return nullptr; }
struct Stamp {};
struct Thread {
    uint32_t id;
};
struct Words {};
struct State {};
struct Quiet {
    Quiet() {}
};
struct Phase {
    void arrive(const Stamp&) {}
    void complete() {}
    int passed;
};
static int quiet;
inline Stamp arrival() { return {}; }
inline Stamp copies_arrival() { return {}; }
inline void order(const std::vector<Thread*>&) {}
inline void acquire(int) {}
inline void touch(const void*, unsigned, int, const void*) {}
inline void copied(const void*, const void*, const void*, int) {}
inline void waited(int) {}
inline void atomic(const void*, unsigned, int, bool, bool, const void*) {}
inline void fence() {}
inline void begin(State&, uint32_t, int, const char*, size_t) {}
inline void go_on(Thread*, Words*, const char*, size_t) {}
inline void forget(Words&) {}
inline std::string found(State&) { return ""; }

#endif

}  // namespace races
