// One decoding step of a whole model for 1 to 8 rows, in one kernel that never stops reading weights.
//
// Every block stays on its processor for the whole step. Its producer warps stream the block's share of all weights, in
// the order in which they are needed, through a ring in shared memory: what they read depends on no data, so they run
// ahead over the ends of products while the consumer warps wait for the other blocks. Consumer warps multiply as in
// skinny_gemm.cu (weights are the A operand of mma.sync, 16 rows and 64 bytes of each a step), split k among them, and
// put their sums together at the end of a product. Between products all blocks meet at a counter in memory.
// Sizes and macros: decode_layout.cuh.

__device__ __forceinline__ void hold_layer(const Step& s, int index) {
    const int here = thread_here();
    constexpr int words = sizeof(Layer) / 8;
    if (index < s.num_layers && here < words)
        ((u64*)&held[index % 2])[here] = ((const u64*)(s.layers + index))[here];
}

__device__ __forceinline__ void hold_norm(const u16* weight) {
    const int here = thread_here();
#pragma unroll 1
    for (int i = here; i < HIDDEN / 8; i += CONSUMER_THREADS) ((uint4*)(memory + AT_NORM))[i] = __ldg((const uint4*)weight + i);
}

// Larger values have larger keys, NaN the largest; among equals the lowest index has.
__device__ __forceinline__ u64 key_of(float value, int index) {
    const u32 bits = __float_as_uint(value);
    const u32 ordered = value != value ? ~0u : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (u64)ordered << 32 | (u32)~index;
}

__device__ void choose(const Step& s) {
    const int here = thread_here();
    consumers_meet();
    if (here < NB) s.best[blockIdx.x * NB + here] = block_best[here];
    consumers_meet();
    if (here == 0) ticket = take_ticket(s.counters + 1);
    consumers_meet();
    if (ticket != BLOCKS - 1) return;
    const int warp = here / 32, lane = here % 32;
    if (warp < NB) {
        u64 best = 0;
#pragma unroll 1
        for (int block = lane; block < BLOCKS; block += 32) {
            const u64 other = __ldcg(s.best + block * NB + warp);
            best = other > best ? other : best;
        }
#pragma unroll
        for (int o = 16; o; o >>= 1) {
            const u64 other = __shfl_xor_sync(~0u, best, o);
            best = other > best ? other : best;
        }
        if (lane == 0) s.ids[warp] = (i64)(u32) ~(u32)best, s.start[warp] += 1;
    }
    if (here == 0) s.counters[0] = 0, s.counters[1] = 0;
    for (int i = here; i < 2 * NB * s.num_layers; i += CONSUMER_THREADS) s.largest[i] = 0;
}

// The most probable token of each row so far: a thread sees one row only.
__device__ __forceinline__ void keep_best(u64 best) {
    const int here = thread_here();
#pragma unroll
    for (int o = ROW_LANES_OF_Y / 2; o; o >>= 1) {
        const u64 other = __shfl_xor_sync(~0u, best, o);
        best = other > best ? other : best;
    }
    if (here % ROW_LANES_OF_Y == 0) atomicMax(&block_best[row_of_x()], best);
}

// What holds for the whole step: lengths, angles, the first layer.
__device__ __forceinline__ void begin(const Step& s) {
    const int here = thread_here();
    hold_layer(s, 0);
    if (here < NB) block_best[here] = 0, row_largest[here] = 0, held_start[here] = s.start[here];
    consumers_meet();
#pragma unroll 1
    for (int i = here; i < NB * DIM; i += CONSUMER_THREADS) {
        const int n = i / DIM, part = i % DIM / (DIM / 2), d = i % (DIM / 2);
        angles[n][part][d] = __ldg((part ? s.sin : s.cos) + (i64)held_start[n] * (DIM / 2) + d);
    }
    hold_norm(held[0].attention_norm);
    consumers_meet();
}

// The head's product, and the most probable token of every row.
__device__ __forceinline__ void multiply_head(const Step& s, Consumer& c) {
    u64 best = 0;
    STAMP(39);
    c.product<KIND_HEAD>(s.head, shapes[4], 4 * s.num_layers, nullptr, nullptr, [&](int) {
        const int row = thread_here() / ROW_THREADS;
        load_normed<KIND_HEAD>(shapes[4], s.epsilon, s.residual + row * HIDDEN, nullptr, s.head.input_scale);
    }, [&](int row, int n, float value) {
        const u64 key = key_of(value, row);
        s.logits[(i64)n * VOCAB + row] = value;
        best = key > best ? key : best;
    }, 40);
    STAMP(43);
    keep_best(best);
    choose(s);
    STAMP(44);
}

__device__ void consume(const Step& s) {
    Consumer c;
    Grid grid = {s.counters};
    begin(s);
#pragma unroll 1
    for (int turn = 0; turn < 4 * s.num_layers; turn++) {
        const int index = turn / 4, which = turn % 4;
        const Layer& layer = held[index % 2];
        const Matrix& m = layer.matrix[which];
        const Shape& shape = shapes[which];
        // Context and activations are quantized by scales of their own; what the norms make is, block by block.
        u32* largest = s.largest + (2 * index + which / 2) * NB;
        const u16* x = which == 1 ? s.context : which == 3 ? s.activated : s.residual;
        u16* y = which == 0 ? s.qkv : which == 2 ? s.activated : s.residual;
        TRACE_LAYER(index);
        STAMP(8 * which);
        float largest_here = 0.0f;
        c.product<KIND>(m, shape, turn, x, which % 2 ? s.residual : nullptr, [&](int segment) {
            if (which % 2) {
                if (KIND == 3 && segment == 0) hold_scales(largest, m.input_scale);
                load_plain<KIND>(shape, x, segment);
            } else {
                const int row = thread_here() / ROW_THREADS;
                load_normed<KIND>(shape, s.epsilon, turn ? x + row * HIDDEN : s.embedding + s.ids[row] * HIDDEN,
                                  turn || blockIdx.x ? nullptr : s.residual, m.input_scale);
            }
        }, [&](int row, int n, float value) {
            const u16 half = float_to_half(value);
            y[(i64)n * shape.out_rows + row] = half;
            if (KIND == 3) largest_here = fmaxf(largest_here, fabsf(half_to_float(half)));
        }, 8 * which + 1);
        if (KIND == 3 && which == 2) {
#pragma unroll
            for (int o = ROW_LANES_OF_Y / 2; o; o >>= 1) largest_here = fmaxf(largest_here, __shfl_xor_sync(~0u, largest_here, o));
            if (thread_here() % ROW_LANES_OF_Y == 0) atomicMax(&row_largest[row_of_x()], __float_as_uint(largest_here));
            leave_largest(largest);
        }
        STAMP(8 * which + 4);
        grid.announce();
        STAMP(8 * which + 5);
        if (which == 0) hold_layer(s, index + 1);
        if (which == 1) hold_norm(layer.mlp_norm);
        if (which == 3) hold_norm(index + 1 < s.num_layers ? held[(index + 1) % 2].attention_norm : s.final_norm);
        if (which == 0) {
            attend(s, layer, largest, [&] {
                grid.join();
                STAMP(6);
            });
            STAMP(32);
            grid.announce();
            grid.join();
            STAMP(33);
        } else {
            grid.join();
            STAMP(8 * which + 6);
        }
    }
    multiply_head(s, c);
}

extern "C" __global__ void __launch_bounds__(CONSUMER_THREADS + PRODUCER_THREADS, 1) decode_step(const Step s) {
    if (threadIdx.x == 0)
        for (int i = 0; i < STAGES; i++) init_barrier(&full_barrier[i], PRODUCER_THREADS), init_barrier(&empty_barrier[i], HALF_WARPS);
    __syncthreads();
    if (threadIdx.x < CONSUMER_THREADS) {
        take_registers<CONSUMER_REGISTERS>();
        consume(s);
    } else {
        give_registers<PRODUCER_REGISTERS>();
        Producer producer;
        producer.run(s);
    }
}
