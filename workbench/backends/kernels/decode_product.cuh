// Products: fragments of weights and x through mma.sync, sums of warps, scales, biases and SwiGLU.

template <int K>
struct Sums {
    float value[4];
};
template <>
struct Sums<3> {
    int value[4];
};

// What a lane holds of one step: 16 bytes of two rows, and scales of INT4 groups.
template <int K>
struct Fragment {
    static constexpr int scales = K == 2 ? GROUPS : 1;
    uint4 low, high;
    u32 scale[scales][2];
};

// What of x goes with them.
template <int K>
struct Columns {
    static constexpr int subs = K == 1 ? 2 : K == 2 ? 4 : 1;
    uint4 x[subs];
};

// Where the scales of a lane's two rows lie: INT4 scales of rows g and g + 8 of a tile share a word.
struct ScalePlace {
    int apart;  // bytes between the words of the two rows
    int first, second;  // shifts
    __device__ __forceinline__ ScalePlace(int glu, int unit)
        : apart(glu ? 32 : 0), first(glu ? unit % 2 * 16 : 0), second(glu ? unit % 2 * 16 : 16) {}
};

// At shared addresses of this lane's own.
template <int K>
__device__ __forceinline__ void load_fragment(Fragment<K>& f, u32 weights, u32 scales, int apart) {
    f.low = load_shared(weights), f.high = load_shared(weights + 512);
    if (K == 2)
#pragma unroll
        for (int i = 0; i < Fragment<K>::scales; i++) {
            f.scale[i][0] = load_shared_word(scales + i * 64);
            f.scale[i][1] = load_shared_word(scales + i * 64 + apart);
        }
}

// Lanes of columns that do not exist keep the zeros that they began with.
template <int K>
__device__ __forceinline__ void load_columns(Columns<K>& c, u32 at_x, bool has_column) {
    if (has_column)
#pragma unroll
        for (int s = 0; s < Columns<K>::subs; s++) c.x[s] = load_shared(at_x + s * 64);
}

// 16 rows and 64 bytes of each.
template <int K>
__device__ __forceinline__ void multiply(const Fragment<K>& f, const Columns<K>& columns, ScalePlace place, Sums<K>& even, Sums<K>& odd) {
    const uint4* x = columns.x;
    const u32 *q = (const u32*)&f.low, *r = (const u32*)&f.high;
    if constexpr (K == 0 || K == 3) {
        mma(even.value, q[0], r[0], q[1], r[1], x[0].x, x[0].y);
        mma(odd.value, q[2], r[2], q[3], r[3], x[0].z, x[0].w);
    } else if constexpr (K == 1) {
#pragma unroll
        for (int s = 0; s < 2; s++) {
            u32 a[4], c[4];
            halves_of_bytes(q[2 * s], a[0], a[2]);
            halves_of_bytes(r[2 * s], a[1], a[3]);
            halves_of_bytes(q[2 * s + 1], c[0], c[2]);
            halves_of_bytes(r[2 * s + 1], c[1], c[3]);
            mma(even.value, a[0], a[1], a[2], a[3], x[s].x, x[s].y);
            mma(odd.value, c[0], c[1], c[2], c[3], x[s].z, x[s].w);
        }
    } else {
        constexpr int subs = 4 / GROUPS;
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            Sums<2> a = {}, c = {};
#pragma unroll
            for (int s = group * subs; s < (group + 1) * subs; s++) {
                u32 top[4], bottom[4];
                integers_of_nibbles(q[s], top);
                integers_of_nibbles(r[s], bottom);
                mma(a.value, top[0], bottom[0], top[1], bottom[1], x[s].x, x[s].y);
                mma(c.value, top[2], bottom[2], top[3], bottom[3], x[s].z, x[s].w);
            }
            const float first = half_to_float((u16)(f.scale[group][0] >> place.first));
            const float second = half_to_float((u16)(f.scale[group][1] >> place.second));
#pragma unroll
            for (int i = 0; i < 4; i++) even.value[i] += (a.value[i] + c.value[i]) * (i < 2 ? first : second);
        }
    }
}

// Scales and biases of units ``base .. end - 1``: on their way while the block multiplies.
__device__ __forceinline__ void hold_rows(const Matrix& m, const Shape& shape, int base, int end) {
    const int here = thread_here(), glu = shape.glu;
    const u32 scales = shared_address(held_scale), biases = shared_address(held_bias);
    if (m.row_scale)
#pragma unroll 1
        for (int i = here; i < (end - base) * 4; i += CONSUMER_THREADS) {
            const int unit = base + i / 4, row = glu ? unit * 8 + i % 2 * 4 + i % 4 / 2 * shape.out_rows : unit * 16 + i % 4 * 4;
            copy_async(scales + i * 16, m.row_scale + row);
        }
    if (m.bias)
#pragma unroll 1
        for (int i = here; i < (end - base) * 2; i += CONSUMER_THREADS) {
            const int unit = base + i / 2, row = glu ? unit * 8 + i % 2 * shape.out_rows : unit * 16 + i % 2 * 8;
            copy_async(biases + i * 16, m.bias + row);
        }
}

// What the layer adds to, of the same units: for row n of x at HIDDEN * n.
__device__ __forceinline__ void hold_residual(const u16* residual, int base, int end) {
#pragma unroll 1
    for (int i = thread_here(); i < NB * (end - base) * 2; i += CONSUMER_THREADS) {
        const int n = i % NB, piece = i / NB;
        copy_async(shared_address(&held_residual[n][piece * 8]), residual + n * HIDDEN + base * 16 + piece * 8);
    }
}

// Where the sums of a unit lie: both places where it was divided between the halves of the consumers, else the second is -1.
struct Places {
    int first, second;
    __device__ __forceinline__ Places(const Shape& shape, int unit_in_base, int count) : first(unit_in_base), second(-1) {
        if (STREAMS && shape.streamed) first = HALVES * unit_in_base, second = first + 1;
        else if (count % 2 && unit_in_base == count - 1) second = UNITS;
    }
};

// One finished sum: row ``row`` (of 16) of a unit, for row n of x.
template <int K>
__device__ __forceinline__ float finished(const Matrix& m, int unit_in_base, Places places, int row, int n) {
    using value_t = decltype(Sums<K>::value[0] + 0);
    const value_t* all = (const value_t*)(memory + AT_SUMS) + n * 16 + row;
    value_t sum = 0;
#pragma unroll
    for (int warp = 0; warp < HALF_WARPS; warp++) sum += all[(places.first * HALF_WARPS + warp) * NB * 16];
    if (places.second >= 0)
#pragma unroll
        for (int warp = 0; warp < HALF_WARPS; warp++) sum += all[(places.second * HALF_WARPS + warp) * NB * 16];
    const float scale = K == 1 || K == 3 ? held_scale[unit_in_base * 16 + row] : 1.0f;
    u16 y = float_to_half((float)sum * (K == 3 ? column_scale[n] * scale : scale));
    if (m.bias) y = float_to_half(half_to_float(y) + half_to_float(held_bias[unit_in_base * 16 + row]));
    return half_to_float(y);
}

// At the end of a product 16 threads in a row take 16 rows of y for one row of x, which stays the same.
constexpr int ROW_LANES_OF_Y = NB == 1 ? 32 : 16;
__device__ __forceinline__ int row_of_x() { return thread_here() / 16 % NB; }

// The chunk that a half of the consumers takes.
struct Turn {
    int unit, chunk, stride;
    __device__ __forceinline__ Turn(int base, int end, int half) { enter(base, end, half); }
    __device__ __forceinline__ void enter(int pair, int end, int half) {
        const bool whole = pair + 1 < end;
        unit = whole ? pair + half : pair, chunk = whole ? 0 : half, stride = whole ? 1 : HALVES;
    }
    // Whether the unit is done.
    __device__ __forceinline__ bool next(int chunks, int end, int half) {
        chunk += stride;
        if (chunk < chunks) return false;
        enter(unit - (stride == 1 ? half : 0) + HALVES, end, half);
        return true;
    }
};

// x of one warp of a product whose x is streamed: its two steps of a chunk, in a place of its own, rows of 16-byte pieces.
// Where a step has 128 bytes of a row or more, pieces of odd rows are exchanged, or lanes would collide.
template <int K>
struct OwnColumns {
    static constexpr int width = step_values(K) * x_width(K), pieces = width / 16, mixed = width >= 128 ? 4 : 0;
    const Shape& shape;
    const u16* x;
    int half, warp, lane;
    char* to;

    __device__ __forceinline__ OwnColumns(const Shape& shape, const u16* x, int half, int warp, int lane)
        : shape(shape), x(x), half(half), warp(warp), lane(lane),
          to(memory + AT_X + (half * HALF_WARPS + warp) * WARP_STEPS * NB * width) {}

    // The chunk of this half among two, or the last one, of which both halves have units.
    __device__ __forceinline__ void ask(int first) const {
        const int chunk = first + 1 < shape.chunks ? first + half : first;
        if (chunk >= shape.chunks) return;
#pragma unroll
        for (int i = lane; i < WARP_STEPS * NB * pieces; i += 32) {
            const int step = i / (NB * pieces), n = i / pieces % NB, piece = i % pieces;
            const int at = (chunk * CHUNK_STEPS + step * HALF_WARPS + warp) * step_values(K) + piece * 8;
            char* place = to + ((step * NB + n) * pieces + (piece ^ (n % 2 * mixed))) * 16;
            if (at < shape.values) copy_async(shared_address(place), x + (i64)n * shape.values + at);
            else *(uint4*)place = make_uint4(0, 0, 0, 0);
        }
    }
    __device__ __forceinline__ void take(Columns<K>& one, Columns<K>& two) const {
        const int n = lane / 4;
        if (n >= NB) return;
#pragma unroll
        for (int s = 0; s < Columns<K>::subs; s++) {
            const u32 from = shared_address(to) + (n * pieces + ((s * 4 + lane % 4) ^ (n % 2 * mixed))) * 16;
            one.x[s] = load_shared(from), two.x[s] = load_shared(from + NB * width);
        }
    }
};

struct Consumer {
    Ring ring;

    // ``load(segment)`` puts rows of x into shared memory, or asks for copies of them; a product whose x is streamed takes
    // them from ``plain``. ``store(row, n, value)`` takes finished values of output row ``row``, to which ``residual`` was
    // added where there is one; n is the same in all calls of a thread.
    template <int K, class Load, class Store>
    __device__ __forceinline__ void product(const Matrix& m, const Shape& shape, int turn, const u16* plain, const u16* residual,
                                            Load load, Store store, int stamp) {
        const int here = thread_here();
        const Share share(shape.units, turn);
        int base = share.begin;
#pragma unroll 1
        do {  // once where a block has nothing to multiply: what ``load`` does besides is wanted
            const int end = min(base + shape.round, share.end);
            if (STREAMS && shape.streamed) {
                if constexpr (STREAMS && K == KIND) stream_units<K>(m, shape, base, end, plain, residual, base == share.begin ? stamp : -1);
            } else {
                add_segments<K>(m, shape, base, end, shape.segments > 1 || base == share.begin ? 0 : 1, residual, load, stamp);
            }
            STAMP(stamp + 1);
            wait_copies();
            consumers_meet();
            STAMP(stamp + 2);
            const int n = row_of_x(), unit_rows = shape.glu ? 8 : 16, rows = (end - base) * unit_rows;
#pragma unroll 1
            for (int i = here / (NB * 16) * 16 + here % 16; i < rows; i += CONSUMER_THREADS / NB) {
                const int unit = shape.glu ? i / 8 : i / 16, row = i % unit_rows;
                const Places places(shape, unit, end - base);
                float value = finished<K>(m, unit, places, row, n);
                if (shape.glu) value = value / (1.0f + __expf(-value)) * finished<K>(m, unit, places, row + 8, n);
                if (residual) value = half_to_float(float_to_half(value + half_to_float(held_residual[n][i])));
                store(base * unit_rows + i, n, value);
            }
            base += shape.round;
            if (base < share.end) consumers_meet();
        } while (base < share.end);
    }

    // All segments of units, from ``first`` on; the rows before it are in shared memory. One is on its way while the one
    // before is multiplied.
    template <int K, class Load>
    __device__ __forceinline__ void add_segments(const Matrix& m, const Shape& shape, int base, int end, int first,
                                                 const u16* residual, Load load, int stamp) {
#pragma unroll 1
        for (int next = first; next <= shape.segments; next++) {
            if (next) {
                if (next == 1) wait_groups<1>();  // the rows' scales may come later
                else wait_groups<0>();
                consumers_meet();  // nobody reads the other buffer any more
            }
            if (next < shape.segments) load(next);
            group_copies();
            if (next == first) {
                hold_rows(m, shape, base, end);
                if (residual) hold_residual(residual, base, end);
                group_copies();
            }
            if (next == 1 && first == 0) STAMP(stamp);
            if (next) add_units<K>(shape, base, end, next - 1);
        }
    }

    // This warp's part of units over one segment, added to what it has of the segments before. Every half of the
    // consumers takes every second chunk that the producers bring: its own unit of a pair, then its part of a last one.
    // A step is loaded while the one before is multiplied.
    template <int K>
    __device__ __forceinline__ void add_units(const Shape& shape, int base, int end, int segment) {
        static_assert(WARP_STEPS == 2, "a chunk is two steps of a warp");
        constexpr int x_step = HALF_WARPS * step_values(K) * x_width(K), w_step = HALF_WARPS * step_pitch(K);
        constexpr int scale_step = HALF_WARPS * GROUPS * 64;
        const int here = thread_here(), half = here / (32 * HALF_WARPS), warp = here / 32 % HALF_WARPS, lane = here % 32;
        const u32 base_address = shared_address(memory), ring_address = base_address + AT_RING;
        const u32 x = base_address + AT_X + segment % 2 * shape.buffer + lane / 4 * shape.pitch +
                      (warp * (step_values(K) * x_width(K) / 16) + lane % 4) * 16;
        const u32 weights = ring_address + warp * step_pitch(K) + lane * 16;
        const u32 scales = ring_address + CHUNK_STEPS * 1024 + warp * GROUPS * 64 + lane / 4 * 4;
        const u32 full_address = shared_address(full_barrier), empty_address = shared_address(empty_barrier);
        const bool has_column = NB == 8 || lane / 4 < NB;
        const int first = segment * shape.segment_chunks, chunks = min(shape.segment_chunks, shape.chunks - first);
        const int own_steps = (shape.steps - first * CHUNK_STEPS - warp + HALF_WARPS - 1) / HALF_WARPS;  // of this segment on
        const int count = (end - base) * chunks, glu = shape.glu;
        Ring at = ring;
        at.advance(half);
        ring.advance(count);
        Sums<K> even = {}, odd = {};
        Fragment<K> one = {}, two = {};  // not what they held a layer ago: that would keep registers
        Turn now(base, end, half);
        ScalePlace place(glu, now.unit);
        Columns<K> x_one = {}, x_two = {};
        auto load = [&](Fragment<K>& f, Columns<K>& columns, int step, int chunk) {
            if (chunk * WARP_STEPS + step >= own_steps) return;
            load_fragment<K>(f, weights + at.slot * SLOT + step * w_step, scales + at.slot * SLOT + step * scale_step, place.apart);
            load_columns<K>(columns, x + (chunk * WARP_STEPS + step) * x_step, has_column);
        };
        int left = (count - half + 1) / HALVES;
        if (left) {
            wait_for(full_address + at.slot * 8, at.phase);
            load(one, x_one, 0, now.chunk);
        }
#pragma unroll 1
        while (left) {
            load(two, x_two, 1, now.chunk);
            __syncwarp();
            if (lane == 0) arrive(empty_address + at.slot * 8);  // all of the chunk is in registers
            if (now.chunk * WARP_STEPS < own_steps) multiply<K>(one, x_one, place, even, odd);
            const Turn was = now;
            const bool done = now.next(chunks, end, half);
            at.advance(HALVES);
            if (--left) {
                wait_for(full_address + at.slot * 8, at.phase);
                load(one, x_one, 0, now.chunk);
            }
            if (was.chunk * WARP_STEPS + 1 < own_steps) multiply<K>(two, x_two, place, even, odd);
            if (done) {
                leave<K>(even, odd, was.stride == 1 || !half ? was.unit - base : UNITS, segment, warp, lane);
                place = ScalePlace(glu, now.unit);
            }
        }
        // Of an odd last unit with one chunk, the second half has nothing.
        if (half && chunks == 1 && (end - base) % 2 && segment == 0) leave<K>(even, odd, UNITS, 0, warp, lane);
    }

    // This warp's part of units whose x is streamed. Of two chunks of k each half of the consumers takes its own, unit by
    // unit; of an odd last chunk it takes every second unit. A warp keeps its x of a chunk in registers for all units,
    // while that of its next chunk is on its way to where it lay: nobody else reads it, so that no warp waits for others.
    template <int K>
    __device__ __forceinline__ void stream_units(const Matrix& m, const Shape& shape, int base, int end, const u16* x,
                                                 const u16* residual, int stamp) {
        constexpr int w_step = HALF_WARPS * step_pitch(K), scale_step = HALF_WARPS * GROUPS * 64;
        const int here = thread_here(), half = here / (32 * HALF_WARPS), warp = here / 32 % HALF_WARPS, lane = here % 32;
        const u32 base_address = shared_address(memory), ring_address = base_address + AT_RING;
        const u32 weights = ring_address + warp * step_pitch(K) + lane * 16;
        const u32 scales = ring_address + CHUNK_STEPS * 1024 + warp * GROUPS * 64 + lane / 4 * 4;
        const u32 full_address = shared_address(full_barrier), empty_address = shared_address(empty_barrier);
        const int units = end - base, count = units * shape.chunks;
        Ring at = ring;
        at.advance(half);
        ring.advance(count);
        int left = (count - half + 1) / HALVES;
        const OwnColumns<K> own(shape, x, half, warp, lane);
        own.ask(0);
        group_copies();
        hold_rows(m, shape, base, end);
        hold_residual(residual, base, end);
        group_copies();
        Sums<K> even = {}, odd = {};
        Fragment<K> one = {}, two = {};
        Columns<K> x_one = {}, x_two = {};
        const ScalePlace place(0, 0);
        auto load = [&](Fragment<K>& f, int step) {
            load_fragment<K>(f, weights + at.slot * SLOT + step * w_step, scales + at.slot * SLOT + step * scale_step, place.apart);
        };
        if (left) {
            wait_for(full_address + at.slot * 8, at.phase);
            load(one, 0);
        }
#pragma unroll 1
        for (int first = 0; first < shape.chunks; first += HALVES) {
            if (first) wait_groups<0>();
            else wait_groups<1>();  // the rows' scales may come later
            __syncwarp();
            own.take(x_one, x_two);
            __syncwarp();
            if (first == 0 && stamp >= 0) STAMP(stamp);
            own.ask(first + HALVES);
            group_copies();
            const bool both = first + 1 < shape.chunks;
            const int steps = shape.steps - (both ? first + half : first) * CHUNK_STEPS - warp;  // 0 or less: beyond k
#pragma unroll 1
            for (int unit = both ? 0 : half; unit < units; unit += both ? 1 : HALVES) {
                load(two, 1);
                __syncwarp();
                if (lane == 0) arrive(empty_address + at.slot * 8);
                if (steps > 0) multiply<K>(one, x_one, place, even, odd);
                at.advance(HALVES);
                if (--left) {
                    wait_for(full_address + at.slot * 8, at.phase);
                    load(one, 0);
                }
                if (steps > HALF_WARPS) multiply<K>(two, x_two, place, even, odd);
                leave<K>(even, odd, HALVES * unit + half, first, warp, lane);
            }
        }
    }

    // Put the sums of one unit where the block adds them up, and begin anew.
    template <int K>
    __device__ __forceinline__ void leave(Sums<K>& even, Sums<K>& odd, int unit_in_base, int segment, int warp, int lane) {
        using value_t = decltype(Sums<K>::value[0] + 0);
        value_t* sums = (value_t*)(memory + AT_SUMS) + (unit_in_base * HALF_WARPS + warp) * NB * 16;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int n = lane % 4 * 2 + i % 2, row = lane / 4 + i / 2 * 8;
            if (n < NB) {
                const value_t sum = even.value[i] + odd.value[i];
                value_t* to = sums + n * 16 + row;
                *to = segment ? *to + sum : sum;
            }
            even.value[i] = odd.value[i] = 0;
        }
    }
};
