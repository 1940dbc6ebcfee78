// Products: fragments of weights and x through mma.sync, sums of warps, scales, biases and SwiGLU.

template <int K>
struct Sums {
    float value[4];
};
template <>
struct Sums<3> {
    int value[4];
};

// What a lane holds of one step: 16 bytes of two rows, what of x goes with them, and scales of INT4 groups.
template <int K>
struct Fragment {
    static constexpr int subs = K == 1 ? 2 : K == 2 ? 4 : 1, scales = K == 2 ? GROUPS : 1;
    uint4 low, high, x[subs];
    u32 scale[scales][2];
};

// Where the scales of a lane's two rows lie: INT4 scales of rows g and g + 8 of a tile share a word.
struct ScalePlace {
    int apart;  // bytes between the words of the two rows
    int first, second;  // shifts
    __device__ __forceinline__ ScalePlace(int glu, int unit)
        : apart(glu ? 32 : 0), first(glu ? unit % 2 * 16 : 0), second(glu ? unit % 2 * 16 : 16) {}
};

// All at shared addresses of this lane's own; lanes of columns that do not exist keep the zeros that they began with.
template <int K>
__device__ __forceinline__ void load_fragment(Fragment<K>& f, u32 weights, u32 scales, u32 at_x, int apart, bool has_column) {
    using F = Fragment<K>;
    f.low = load_shared(weights), f.high = load_shared(weights + 512);
    if (has_column)
#pragma unroll
        for (int s = 0; s < F::subs; s++) f.x[s] = load_shared(at_x + s * 64);
    if (K == 2)
#pragma unroll
        for (int i = 0; i < F::scales; i++) {
            f.scale[i][0] = load_shared_word(scales + i * 64);
            f.scale[i][1] = load_shared_word(scales + i * 64 + apart);
        }
}

// 16 rows and 64 bytes of each.
template <int K>
__device__ __forceinline__ void multiply(const Fragment<K>& f, ScalePlace place, Sums<K>& even, Sums<K>& odd) {
    const u32 *q = (const u32*)&f.low, *r = (const u32*)&f.high;
    if constexpr (K == 0 || K == 3) {
        mma(even.value, q[0], r[0], q[1], r[1], f.x[0].x, f.x[0].y);
        mma(odd.value, q[2], r[2], q[3], r[3], f.x[0].z, f.x[0].w);
    } else if constexpr (K == 1) {
#pragma unroll
        for (int s = 0; s < 2; s++) {
            u32 a[4], c[4];
            halves_of_bytes(q[2 * s], a[0], a[2]);
            halves_of_bytes(r[2 * s], a[1], a[3]);
            halves_of_bytes(q[2 * s + 1], c[0], c[2]);
            halves_of_bytes(r[2 * s + 1], c[1], c[3]);
            mma(even.value, a[0], a[1], a[2], a[3], f.x[s].x, f.x[s].y);
            mma(odd.value, c[0], c[1], c[2], c[3], f.x[s].z, f.x[s].w);
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
                mma(a.value, top[0], bottom[0], top[1], bottom[1], f.x[s].x, f.x[s].y);
                mma(c.value, top[2], bottom[2], top[3], bottom[3], f.x[s].z, f.x[s].w);
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

// One finished sum: row ``row`` (of 16) of a unit, for row n of x; ``divided`` between the halves of the consumers or not.
template <int K>
__device__ __forceinline__ float finished(const Matrix& m, int unit_in_base, bool divided, int row, int n) {
    using value_t = decltype(Sums<K>::value[0] + 0);
    const value_t* all = (const value_t*)(memory + AT_SUMS) + n * 16 + row;
    value_t sum = 0;
#pragma unroll
    for (int warp = 0; warp < HALF_WARPS; warp++) sum += all[(unit_in_base * HALF_WARPS + warp) * NB * 16];
    if (divided)
#pragma unroll
        for (int warp = 0; warp < HALF_WARPS; warp++) sum += all[(UNITS * HALF_WARPS + warp) * NB * 16];
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

struct Consumer {
    float* squares;  // of what a residual was added to
    Ring ring;

    // ``load(segment)`` puts rows of x into shared memory, or asks for copies of them; ``store(row, n, value)`` takes
    // finished values of output row ``row``, to which ``residual`` was added where there is one; n is the same in all
    // calls of a thread. A segment is on its way while the one before is multiplied.
    template <int K, class Load, class Store>
    __device__ __forceinline__ void product(const Matrix& m, const Shape& shape, int turn, const u16* residual, Load load,
                                            Store store, int stamp) {
        const int here = thread_here();
        const Share share(shape.units, turn);
        int base = share.begin;
#pragma unroll 1
        do {  // once where a block has nothing to multiply: what ``load`` does besides is wanted
            const int end = min(base + UNITS, share.end);
            const int first = shape.segments > 1 || base == share.begin ? 0 : 1;  // to be loaded
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
                if (next == 1 && base == share.begin) STAMP(stamp);
                if (next) add_units<K>(shape, base, end, next - 1);
            }
            STAMP(stamp + 1);
            wait_copies();
            consumers_meet();
            STAMP(stamp + 2);
            const int n = row_of_x(), unit_rows = shape.glu ? 8 : 16, rows = (end - base) * unit_rows;
            // Whole warps stay in the loop; with one row of x their halves take different units.
#pragma unroll 1
            for (int i = here / (NB * 16) * 16 + here % 16; i - (NB == 1 ? here & 16 : 0) < rows; i += CONSUMER_THREADS / NB) {
                float square = 0.0f;
                if (i < rows) {
                    const int unit = shape.glu ? i / 8 : i / 16, row = i % unit_rows;
                    const bool divided = (end - base) % 2 && unit == end - base - 1;
                    float value = finished<K>(m, unit, divided, row, n);
                    if (shape.glu) value = value / (1.0f + __expf(-value)) * finished<K>(m, unit, divided, row + 8, n);
                    if (residual) value = half_to_float(float_to_half(value + half_to_float(held_residual[n][i])));
                    square = value * value;
                    store(base * unit_rows + i, n, value);
                }
                if (residual) {
#pragma unroll
                    for (int o = 8; o; o >>= 1) square += __shfl_xor_sync(~0u, square, o);
                    if (here % 16 == 0 && i < rows) squares[n * (HIDDEN / 16) + base + i / 16] = square;
                }
            }
            base += UNITS;
            if (base < share.end) consumers_meet();
        } while (base < share.end);
    }

    // This warp's part of units over one segment, added to what it has of the segments before. Every half of the
    // consumers takes every second chunk that the producers bring: its own unit of a pair, then its part of a last one.
    // A step is loaded while the one before is multiplied.
    template <int K>
    __device__ __forceinline__ void add_units(const Shape& shape, int base, int end, int segment) {
        static_assert(WARP_STEPS == 2, "a chunk is two steps of a warp");
        constexpr int x_step = HALF_WARPS * step_values(K) * x_width(K), w_step = HALF_WARPS * step_pitch(K);
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
        auto load = [&](Fragment<K>& f, int step, int chunk) {
            if (chunk * WARP_STEPS + step < own_steps)
                load_fragment<K>(f, weights + at.slot * SLOT + step * w_step, scales + at.slot * SLOT + step * (HALF_WARPS * GROUPS * 64),
                                 x + (chunk * WARP_STEPS + step) * x_step, place.apart, has_column);
        };
        auto take = [&](const Fragment<K>& f, int step) {
            if (now.chunk * WARP_STEPS + step < own_steps) multiply<K>(f, place, even, odd);
        };
        int left = (count - half + 1) / HALVES;
        if (left) {
            wait_for(full_address + at.slot * 8, at.phase);
            load(one, 0, now.chunk);
        }
#pragma unroll 1
        while (left) {
            load(two, 1, now.chunk);
            __syncwarp();
            if (lane == 0) arrive(empty_address + at.slot * 8);  // all of the chunk is in registers
            take(one, 0);
            const Turn was = now;
            const bool done = now.next(chunks, end, half);
            at.advance(HALVES);
            if (--left) {
                wait_for(full_address + at.slot * 8, at.phase);
                load(one, 0, now.chunk);
            }
            if (was.chunk * WARP_STEPS + 1 < own_steps) multiply<K>(two, place, even, odd);
            if (done) {
                leave<K>(even, odd, was.stride == 1 || !half ? was.unit - base : UNITS, segment, warp, lane);
                place = ScalePlace(glu, now.unit);
            }
        }
        // Of an odd last unit with one chunk, the second half has nothing.
        if (half && chunks == 1 && (end - base) % 2 && segment == 0) leave<K>(even, odd, UNITS, 0, warp, lane);
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
