// How blocks and warps wait for each other, and the ring of weights that producer warps fill ahead of the consumers.

struct Patience {
#if WATCHDOG
    i64 began = clock64();
    __device__ __forceinline__ void check() {
        if (clock64() - began > 4000000000ll) __trap();
    }
#else
    __device__ __forceinline__ void check() {}
#endif
};

__device__ __forceinline__ void wait_for(u32 barrier, u32 phase) {
    if (has_passed(barrier, phase)) return;
    Patience patience;
    while (!has_passed(barrier, phase)) patience.check();
}

__device__ __forceinline__ void consumers_meet() { meet<CONSUMER_THREADS>(1); }

// The consumers of all blocks meet: announce() after the last store of a product, join() before the first load of it.
struct Grid {
    u32* counter;
    u32 target = 0;
    __device__ __forceinline__ void announce() {
        consumers_meet();
        target += BLOCKS;
        if (threadIdx.x == 0) add_release(counter, 1);
    }
    __device__ __forceinline__ void join() {
        if (threadIdx.x == 0) {
            Patience patience;
            while (load_acquire(counter) < target) patience.check();
        }
        consumers_meet();
    }
};

// Times of one layer and of the head: what the stamps mean is said in kernel_trace.py.
#if TRACED_LAYER >= 0
__device__ i64 stamps[BLOCKS * MOST_STAMPS];
__shared__ int traced;
#define TRACE_LAYER(index) do { if (threadIdx.x == 0) traced = (index) == TRACED_LAYER; } while (0)
#define STAMP(i) do { if (threadIdx.x == 0 && traced) stamps[blockIdx.x * MOST_STAMPS + (i)] = clock64(); } while (0)
#else
#define TRACE_LAYER(index)
#define STAMP(i)
#endif

struct Ring {
    int slot = 0;
    u32 phase = 0;
    __device__ __forceinline__ void advance() {
        if (++slot == STAGES) slot = 0, phase ^= 1;
    }
    __device__ __forceinline__ void advance(int slots) {
        slot += slots;
        if (slot >= STAGES) phase ^= slot / STAGES & 1, slot %= STAGES;
    }
};

// Division of a product's units among the blocks; those with one more lie elsewhere for each product of a layer.
struct Share {
    int begin, end;
    __device__ __forceinline__ Share(int units, int turn) {
        const int block = (blockIdx.x + turn * 37) % BLOCKS;
        begin = units * block / BLOCKS, end = units * (block + 1) / BLOCKS;
    }
};

// A way through the chunks of this block's share of all matrices, in the order of use.
struct Walk {
    int turn = -1, unit = 0, chunk = 0;
    int base = 0, end = 0, share_end = 0, pair = 0, first = 0, past = 0;  // of the unit and the chunk
    const char* weight = nullptr;
    const u32* group_scale = nullptr;

    __device__ __forceinline__ bool over(const Step& s) const { return turn > 4 * s.num_layers; }

    __device__ __forceinline__ const Shape& shape(const Step& s) const { return shapes[turn < 4 * s.num_layers ? turn % 4 : 4]; }

    __device__ __forceinline__ void next(const Step& s) {
        if (STREAMS && turn >= 0 && shape(s).streamed) {  // chunks of a pair take turns: each half of the consumers has its own
            if (++chunk < past) return;
            chunk = first;
            if (++unit < end) return;
            next_segment(s);
            unit = base, chunk = first;
            return;
        }
        if (++unit < min(pair + HALVES, end)) return;
        unit = pair;
        if (++chunk < past) return;  // a pair of units takes turns
        pair += HALVES;
        if (pair >= end) next_segment(s);
        unit = pair, chunk = first;
    }

    __device__ __forceinline__ void next_segment(const Step& s) {
        first = past;
        if (turn < 0 || first >= shape(s).chunks) {
            base += turn < 0 ? 0 : shape(s).round, first = 0;
            while (base >= share_end) {
                if (++turn > 4 * s.num_layers) return;
                const Matrix& m = turn < 4 * s.num_layers ? s.layers[turn / 4].matrix[turn % 4] : s.head;
                const Share share(shape(s).units, turn);
                weight = m.weight, group_scale = m.group_scale;
                base = share.begin, share_end = share.end;
            }
            end = min(base + shape(s).round, share_end);
        }
        pair = base, past = min(first + shape(s).segment_chunks, shape(s).chunks);
    }
};

struct Producer {
    Ring ring;

    // One chunk into the next slot, once the slot is free and what was asked for IN_FLIGHT chunks ago is there. Before a
    // barrier's first phase a wait for the phase before passes at once: so it does in the first turn. What can be computed
    // is not kept: a producer has PRODUCER_REGISTERS.
    template <int K>
    __device__ __forceinline__ void fetch(const Walk& at, const Shape& shape) {
        const int thread = thread_here() - CONSUMER_THREADS, warp = thread / 32, lane = thread % 32;
        const u32 full = shared_address(full_barrier), empty = shared_address(empty_barrier);
        const bool wraps = ring.slot < IN_FLIGHT;
        wait_for(empty + ring.slot * 8, ring.phase ^ 1);
        wait_for(full + (ring.slot - IN_FLIGHT + wraps * STAGES) * 8, ring.phase ^ wraps);
        const u32 slot = shared_address(memory + AT_RING) + ring.slot * SLOT;
        const int first = at.chunk * CHUNK_STEPS, glu = shape.glu;
        if constexpr (tiled(K)) {
            // A warp brings rows 0 to 7 or 8 to 15 of every second step of those that are there.
            const int which = warp % 2, step = first + warp / 2;
            const i64 tile = glu ? at.unit / 2 + which * (shape.out_rows / 16) : at.unit, half = glu ? at.unit % 2 : which;
            const char* from = at.weight + ((tile * shape.steps + step) * 2 + half) * 512 + lane * 16;
            const u32 to = slot + warp * 512 + lane * 16;
#pragma unroll
            for (int i = 0; i < CHUNK_STEPS / 2; i++)
                if (step + 2 * i < shape.steps) copy_async(to + i * 2048, from + i * 2048);
        } else {
            const i64 row_bytes = (i64)shape.values * (K == 0 ? 2 : 1);
            const u32 to = slot + lane / 4 * step_pitch(K) + lane % 4 * 16 + warp * 64;
            const char* from = at.weight + (glu ? at.unit * 8 + warp : at.unit * 16 + warp) * row_bytes + (first * 4 + lane) * 16;
#pragma unroll
            for (int part = 0; part < CHUNK_STEPS / 8; part++) {
                const bool inside = first + part * 8 + lane / 4 < shape.steps;
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (inside)
                        copy_async(to + part * 8 * step_pitch(K) + i * 256,
                                   from + part * 512 + (glu ? i % 2 * 4 + i / 2 * shape.out_rows : i * 4) * row_bytes);
            }
        }
        if constexpr (K == 2) {
            // [step][group of the step][gate, up][8 pairs], 16 bytes at a time.
#pragma unroll 1
            for (int i = thread; i < (CHUNK_STEPS * GROUPS * 2) << glu; i += PRODUCER_THREADS) {
                const int side = glu ? i / 2 % 2 : 0, place = i >> (1 + glu), step = first + place / GROUPS;
                const i64 tile = glu ? at.unit / 2 + side * (shape.out_rows / 16) : at.unit;
                const i64 group = (step * 4 + place % GROUPS * (4 / GROUPS)) / SUBS_PER_GROUP;
                if (step < shape.steps)
                    copy_async(slot + CHUNK_STEPS * 1024 + place * 64 + side * 32 + i % 2 * 16,
                               (const char*)at.group_scale + (group * shape.units + tile) * 32 + i % 2 * 16);
            }
        }
        arrive_when_copied(full + ring.slot * 8);
        ring.advance();
    }

    __device__ void run(const Step& s) {
        Walk at;
        at.next(s);
#pragma unroll 1
        for (; !at.over(s); at.next(s)) {
            if (at.turn < 4 * s.num_layers) fetch<KIND>(at, at.shape(s));
            else fetch<KIND_HEAD>(at, at.shape(s));
        }
        wait_copies();
    }
};
