// y[n][row] = sum_k W[row][k] * x[n][k] for up to 64 rows of x, bound by reading W once. For Hopper (sm_90a).
//
// A cluster of blocks multiplies a tile of rows, each block a part of k; their sums meet in shared memory, in the order
// of k. All blocks run at once and end together. One warp streams weights and x into shared memory by bulk copies, all
// stages' weights before the previous kernel has ended. The others multiply, weights as the A operand, x as the B
// operand: with wgmma where both lie in shared memory as the tensor cores take them, with mma.sync where weights become
// float16 on the way. wgmma matters: with mma.sync, where each warp reads x for itself, no block took more than 29 GB/s
// of weights, too few for what was fetched ahead to help.
// For mma.sync the order of k within a step is free as long as both operands agree on it: lane 4 g + t takes 16 bytes.
//
// Macros: KIND 0 float16 weights, 1 INT8 weights, 2 INT4 weights in groups (x float16), 3 INT8 x INT8; kinds 1 and 2
// are stored as packing.py says, the others row by row. WM, WN warps along rows and along columns; ROW_TILES row tiles
// and COLUMN_TILES column tiles of a warp; CLUSTER blocks along k; STAGES buffers of DEPTH boxes each (a box is 128
// bytes of a row of kinds 0 and 3, 64 of kinds 1 and 2). GLU 1: half of a block's row tiles are gates, half their ups,
// y = silu(gate) * up. GROUPS: scales of INT4 groups that 128 values of a row need: 1, 2 or 4 (1 for the other kinds).
// PDL 1: started by the previous kernel's trigger.
// Half arithmetic is written in PTX, so that no header is needed to compile this at run time.

typedef unsigned long long u64;

#if KIND == 3
typedef int acc_t;
#else
typedef float acc_t;
#endif

#define TILED (KIND == 1 || KIND == 2)
#define WHOLE !TILED  // weights go to the tensor cores as they are: wgmma reads both operands from shared memory
#define CONSUMERS (WM * WN)
#define THREADS (CONSUMERS * 32)  // that multiply
#define BLOCK_TILES (WM * ROW_TILES)
#define BLOCK_ROWS (BLOCK_TILES * 16)
#define COLUMNS (WN * COLUMN_TILES * 8)
#define X_BOXES (DEPTH * (KIND == 2 ? 2 : 1))
#define SUBS (KIND == 2 ? 4 : 2)  // of a weight box: 64 bytes of a row of x
#define WEIGHT_BOX (BLOCK_ROWS * (TILED ? 64 : 128))
#define X_BOX (COLUMNS * 128)
#define SCALE_BYTES (KIND == 2 ? DEPTH * GROUPS * BLOCK_TILES * 32 : 0)
#define SCALES_AT (DEPTH * WEIGHT_BOX + X_BOXES * X_BOX)
#define STAGE_BYTES ((SCALES_AT + SCALE_BYTES + 1023) / 1024 * 1024)
#define OUT_ROWS (GLU ? BLOCK_ROWS / 2 : BLOCK_ROWS)
#define PITCH (BLOCK_ROWS + (WHOLE ? 4 : 8))  // of the sums [columns][rows]: lanes that write together use all banks
#define QUAD 4                             // rows of an output that a thread finishes
#define TOO_LONG 8000000000ll              // clock ticks after which a wait is a mistake

struct alignas(64) TensorMap {
    u64 opaque[16];
};

struct Problem {
    TensorMap weight;
    TensorMap x;
    const float* row_scale;    // [rows]; KIND 1 and 3
    const u32* group_scale;    // [groups][row tiles][8] pairs of float16 (row g, row g + 8); KIND 2
    const float* column_scale; // [columns] or one; KIND 3
    const u16* bias;           // [rows] float16, or null
    u16* y;                    // [columns][rows], or [columns][rows / 2] for GLU
    int rows;
    int columns;
    int steps;                 // stages of weights in a tile
    int groups;                // KIND 2
    int steps_per_group;       // KIND 2: sub-steps of 32 values in a group
    int column_scale_stride;   // 0 where one scale serves all columns
};

#if TILED
__device__ __forceinline__ void mma(acc_t* c, const u32* a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

__device__ __forceinline__ void wait_for_previous() {
#if PDL
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void start_next() {
#if PDL
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Barriers in shared memory, by their address there.
__device__ __forceinline__ void barrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ bool barrier_passed(u32 barrier, u32 parity) {
    u32 passed;
    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(passed) : "r"(barrier), "r"(parity) : "memory");
    return passed;
}

__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    if (barrier_passed(barrier, parity)) return;
    const long long begin = clock64();
    while (!barrier_passed(barrier, parity))
        if (clock64() - begin > TOO_LONG) asm volatile("trap;");
}

// Consumers only: the warp that copies takes no part.
__device__ __forceinline__ void consumers_sync() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

__device__ __forceinline__ void copy_box(u32 to, const TensorMap& map, int inner, int outer, u32 barrier, u64 policy) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(&map), "r"(inner), "r"(outer), "r"(barrier),
                 "l"(policy) : "memory");
}

__device__ __forceinline__ void copy_bytes(u32 to, const void* from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

// What a block does: steps begin .. end - 1 of a tile.
struct Part {
    int tile, rank, begin, end;
};

__device__ __forceinline__ Part part_of(const Problem& p) {
    const int rank = blockIdx.x % CLUSTER;
    return {(int)(blockIdx.x / CLUSTER), rank, p.steps * rank / CLUSTER, p.steps * (rank + 1) / CLUSTER};
}

// Blocks of the cluster wait for each other, and see what the others wrote to shared memory.
__device__ __forceinline__ void cluster_sync() {
#if CLUSTER > 1
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

// The warp that copies. Row tiles that are gates and those that are ups lie half the matrix apart.
struct Producer {
    const Problem& p;
    u32 stages, full;
    u64 stream, keep;

    __device__ __forceinline__ void weights(int stage, int tile, int step) const {
        const u32 to = stages + stage * STAGE_BYTES, barrier = full + stage * 8;
        const int parts = GLU ? 2 : 1, unit = TILED ? 16 : 1, height = OUT_ROWS / unit;
        u32 bytes = DEPTH * WEIGHT_BOX + X_BOXES * X_BOX;
#if KIND == 2
        const int scale_tiles = (p.rows + 15) / 16, own = BLOCK_TILES / parts;
        int first[2] = {tile * own, tile * own + p.rows / 32}, count[2];
#pragma unroll
        for (int part = 0; part < parts; part++) {
            count[part] = min(own, scale_tiles - first[part]) * 32;
            bytes += DEPTH * GROUPS * count[part];
        }
#endif
        barrier_expect(barrier, bytes);
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
#pragma unroll
            for (int part = 0; part < parts; part++)
                copy_box(to + d * WEIGHT_BOX + part * (WEIGHT_BOX / parts), p.weight,
                         (step * DEPTH + d) * (TILED ? 256 : 128), tile * height + part * (p.rows / 2 / unit), barrier,
                         stream);
#if KIND == 2
#pragma unroll
        for (int i = 0; i < DEPTH * GROUPS; i++) {
            const int sub = step * DEPTH * 4 + i * (4 / GROUPS), group = min(sub / p.steps_per_group, p.groups - 1);
#pragma unroll
            for (int part = 0; part < parts; part++)
                copy_bytes(to + SCALES_AT + (i * BLOCK_TILES + part * own) * 32,
                           p.group_scale + ((long)group * scale_tiles + first[part]) * 8, count[part], barrier);
        }
#endif
    }

    __device__ __forceinline__ void x(int stage, int step) const {
        const u32 to = stages + stage * STAGE_BYTES + DEPTH * WEIGHT_BOX, barrier = full + stage * 8;
#pragma unroll
        for (int i = 0; i < X_BOXES; i++)
            copy_box(to + i * X_BOX, p.x, (step * X_BOXES + i) * 128, 0, barrier, keep);
    }
};

__device__ __forceinline__ void produce(const Problem& p, const Part& part, u32 stages, u32 full, u32 empty) {
    u64 stream, keep;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(stream));
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(keep));
    const Producer producer = {p, stages, full, stream, keep};
    const int ahead = min(part.end, part.begin + STAGES);
    for (int i = part.begin; i < ahead; i++) producer.weights(i - part.begin, part.tile, i);
    wait_for_previous();
    for (int i = part.begin; i < ahead; i++) producer.x(i - part.begin, i);
    int stage = 0, turn = 0;
    for (int i = ahead; i < part.end; i++) {
        barrier_wait(empty + stage * 8, turn & 1);
        producer.weights(stage, part.tile, i);
        producer.x(stage, i);
        if (++stage == STAGES) stage = 0, turn++;
    }
}

struct Warp {
    int lane, g, t, wm, wn;
};

typedef acc_t Sums[ROW_TILES][COLUMN_TILES][4];

#if WHOLE
// 64 rows of weights times all columns of x, 32 bytes of k. Rows are 128 bytes, swizzled; eight of them 1024 apart.
#if KIND == 3
#define SHAPE(n) "m64n" n "k32.s32.s8.s8"
#define FLAGS "p;"
#define SUM "+r"
#else
#define SHAPE(n) "m64n" n "k16.f32.f16.f16"
#define FLAGS "p, 1, 1, 0, 0;"
#define SUM "+f"
#endif
#define QUAD_OF(i) SUM(c[i][0]), SUM(c[i][1]), SUM(c[i][2]), SUM(c[i][3])
#define WGMMA "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\nwgmma.mma_async.sync.aligned."

__device__ __forceinline__ u64 matrix_at(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

__device__ __forceinline__ void multiply_rows(acc_t (&c)[COLUMN_TILES][4], u64 weights, u64 x) {
#if COLUMN_TILES == 1
    asm volatile(WGMMA SHAPE("8") " {%0,%1,%2,%3}, %4, %5, " FLAGS "\n}" : QUAD_OF(0) : "l"(weights), "l"(x));
#elif COLUMN_TILES == 2
    asm volatile(WGMMA SHAPE("16") " {%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, " FLAGS "\n}"
                 : QUAD_OF(0), QUAD_OF(1) : "l"(weights), "l"(x));
#elif COLUMN_TILES == 4
    asm volatile(WGMMA SHAPE("32") " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, %16, %17, " FLAGS "\n}"
                 : QUAD_OF(0), QUAD_OF(1), QUAD_OF(2), QUAD_OF(3) : "l"(weights), "l"(x));
#else
    asm volatile(WGMMA SHAPE("64") " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,"
                 "%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, " FLAGS "\n}"
                 : QUAD_OF(0), QUAD_OF(1), QUAD_OF(2), QUAD_OF(3), QUAD_OF(4), QUAD_OF(5), QUAD_OF(6), QUAD_OF(7)
                 : "l"(weights), "l"(x));
#endif
}

// Begins to multiply a stage, which may be overwritten once ``finish`` has waited for it.
__device__ __forceinline__ void multiply(const Warp& w, u32 stage, Sums& acc) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int d = 0; d < DEPTH; d++)
#pragma unroll
        for (int k = 0; k < 128; k += 32)
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++)
                multiply_rows(acc[r], matrix_at(stage + d * WEIGHT_BOX + (r * WM + w.wm) / 4 * 8192 + k),
                              matrix_at(stage + DEPTH * WEIGHT_BOX + d * X_BOX + k));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until no more than so many stages are being multiplied.
template <int RUNNING>
__device__ __forceinline__ void finish() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(RUNNING) : "memory");
}

__device__ __forceinline__ int row_in_block(const Warp& w, int r, int h) { return (r * WM + w.wm) * 16 + h * 8 + w.g; }
__device__ __forceinline__ int column_in_block(const Warp& w, int nt, int e) { return nt * 8 + 2 * w.t + e; }
#endif

#if TILED
// Rows of x are 128 bytes, swizzled: eight lanes that read together take rows 4 apart, whose chunks are in other banks.
__device__ __forceinline__ int spread(int g) { return (g & 1) << 2 | g >> 1; }

// A warp's row tile among those of the block: first its gates, then their ups.
__device__ __forceinline__ int tile_of(const Warp& w, int r) {
    const int own = GLU ? ROW_TILES / 2 : ROW_TILES;
    return r / own * WM * own + w.wm * own + r % own;
}

__device__ __forceinline__ void multiply(const Warp& w, u32 stage, Sums& acc) {
    const int g = spread(w.g);
#pragma unroll
    for (int d = 0; d < DEPTH; d++) {
        const u32 weights = stage + d * WEIGHT_BOX;
        uint4 held[ROW_TILES][2];
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                held[r][h] = load_shared(weights + tile_of(w, r) * 1024 + h * 512 + w.lane * 16);
#if KIND == 2
        u32 scales[ROW_TILES][GROUPS];
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
            for (int i = 0; i < GROUPS; i++) {
                const int tile = (d * GROUPS + i) * BLOCK_TILES + tile_of(w, r);
                scales[r][i] = load_shared_word(stage + SCALES_AT + tile * 32 + w.g * 4);
            }
#endif
#pragma unroll
        for (int s = 0; s < SUBS; s++) {
            u32 m[ROW_TILES][2][4];  // per row tile: two A fragments, registers are (g, g + 8) x (first, second pair)
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const u32* q = (const u32*)&held[r][h];
#if KIND == 1
                    halves_of_bytes(q[2 * s], m[r][0][h], m[r][0][2 + h]);
                    halves_of_bytes(q[2 * s + 1], m[r][1][h], m[r][1][2 + h]);
#else
                    u32 pairs[4];
                    const u32 both = scales[r][s * GROUPS / SUBS];
                    halves_of_nibbles(q[s], (h ? both >> 16 : both & 0xffffu) * 0x10001u, pairs);
                    m[r][0][h] = pairs[0], m[r][0][2 + h] = pairs[1], m[r][1][h] = pairs[2], m[r][1][2 + h] = pairs[3];
#endif
                }
            const u32 x = stage + DEPTH * WEIGHT_BOX + (d * SUBS + s) / 2 * X_BOX;
#pragma unroll
            for (int nt = 0; nt < COLUMN_TILES; nt++) {
                const int n = (w.wn * COLUMN_TILES + nt) * 8 + g;
                const uint4 b = load_shared(x + n * 128 + (((4 * (s % 2)) + w.t) ^ g) * 16);
#pragma unroll
                for (int r = 0; r < ROW_TILES; r++) mma(acc[r][nt], m[r][0], b.x, b.y);
#pragma unroll
                for (int r = 0; r < ROW_TILES; r++) mma(acc[r][nt], m[r][1], b.z, b.w);
            }
        }
    }
}

__device__ __forceinline__ int row_in_block(const Warp& w, int r, int h) { return tile_of(w, r) * 16 + h * 8 + w.g; }

__device__ __forceinline__ int column_in_block(const Warp& w, int nt, int e) {
    return (w.wn * COLUMN_TILES + nt) * 8 + spread(2 * w.t + e);
}
#endif

// What the end of a block needs beside sums, brought along while the weights come.
struct Scales {
    float row[BLOCK_ROWS];
    float bias[BLOCK_ROWS];
    float column[COLUMNS];
};

__device__ __forceinline__ void load_row_scales(const Problem& p, const Part& part, Scales& scales) {
    const int out = GLU ? p.rows / 2 : p.rows;
    for (int i = threadIdx.x; i < BLOCK_ROWS; i += THREADS) {
        const int row = min(part.tile * OUT_ROWS + i % OUT_ROWS, out - 1) + i / OUT_ROWS * out;
        if (KIND == 1 || KIND == 3) scales.row[i] = p.row_scale[row];
        if (p.bias) scales.bias[i] = half_to_float(p.bias[row]);
    }
}

__device__ __forceinline__ void load_column_scales(const Problem& p, Scales& scales) {
    for (int n = threadIdx.x; KIND == 3 && n < p.columns; n += THREADS)
        scales.column[n] = p.column_scale[n * p.column_scale_stride];
}

// One output: scaled in float32 in the oracle's order, rounded once; then the bias.
__device__ __forceinline__ u16 finished(const Scales& scales, acc_t sum, int at, int n, bool has_bias) {
#if KIND == 3
    u16 y = float_to_half((float)sum * (scales.column[n] * scales.row[at]));
#elif KIND == 1
    u16 y = float_to_half(sum * scales.row[at]);
#else
    u16 y = float_to_half(sum);
#endif
    return has_bias ? float_to_half(half_to_float(y) + scales.bias[at]) : y;
}

#if KIND == 3
#define VALUES(v) "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
#define FOUR ".v4.s32 {%0,%1,%2,%3}, [%4];"
#else
#define VALUES(v) "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
#define FOUR ".v4.f32 {%0,%1,%2,%3}, [%4];"
#endif

// Sums of the cluster's blocks for four rows of column n, added in the order of k.
__device__ __forceinline__ void add_up(u32 sums, int n, int row, acc_t (&sum)[QUAD]) {
    const u32 own = sums + (n * PITCH + row) * 4;
    acc_t held[CLUSTER][QUAD];
#pragma unroll
    for (int rank = 0; rank < CLUSTER; rank++) {
#if CLUSTER > 1
        u32 there;
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(own), "r"(rank));
        asm volatile("ld.shared::cluster" FOUR : VALUES(held[rank]) : "r"(there) : "memory");
#else
        asm volatile("ld.shared" FOUR : VALUES(held[rank]) : "r"(own) : "memory");
#endif
    }
#pragma unroll
    for (int i = 0; i < QUAD; i++) sum[i] = 0;
#pragma unroll
    for (int rank = 0; rank < CLUSTER; rank++)
#pragma unroll
        for (int i = 0; i < QUAD; i++) sum[i] += held[rank][i];
}

// A block's share of the tile: some columns, all rows.
__device__ __forceinline__ void store(const Problem& p, const Part& part, const Scales& scales, u32 sums) {
    const int out = GLU ? p.rows / 2 : p.rows, quads = OUT_ROWS / QUAD;
    const int first = p.columns * part.rank / CLUSTER, count = p.columns * (part.rank + 1) / CLUSTER - first;
    const bool has_bias = p.bias;
#pragma unroll 2
    for (int i = threadIdx.x; i < quads * count; i += THREADS + 32) {
        const int n = first + i / quads, at = i % quads * QUAD, row = part.tile * OUT_ROWS + at;
        if (row >= out) continue;
        acc_t sum[QUAD];
        add_up(sums, n, at, sum);
        u16 y[QUAD];
#pragma unroll
        for (int j = 0; j < QUAD; j++) y[j] = finished(scales, sum[j], at + j, n, has_bias);
#if GLU
        add_up(sums, n, at + OUT_ROWS, sum);
#pragma unroll
        for (int j = 0; j < QUAD; j++) {
            const float gate = half_to_float(y[j]);
            const float up = half_to_float(finished(scales, sum[j], OUT_ROWS + at + j, n, has_bias));
            y[j] = float_to_half(__fdividef(gate, 1.0f + __expf(-gate)) * up);
        }
#endif
        u16* to = p.y + (long)n * out + row;
        if (out % QUAD == 0) {
            *(uint2*)to = make_uint2(y[0] | (u32)y[1] << 16, y[2] | (u32)y[3] << 16);
        } else {
#pragma unroll
            for (int j = 0; j < QUAD; j++)
                if (row + j < out) to[j] = y[j];
        }
    }
}

__device__ __forceinline__ void store_shared(u32 to, int value) {
    asm volatile("st.shared.s32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

__device__ __forceinline__ void store_shared(u32 to, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}

// A block's sums of its part of k, left in shared memory where the stages were.
__device__ __forceinline__ void consume(const Part& part, const Warp& w, u32 stages, u32 full, u32 empty) {
    Sums acc = {};
    int stage = 0, turn = 0;
    for (int i = part.begin; i < part.end; i++) {
        barrier_wait(full + stage * 8, turn & 1);
        multiply(w, stages + stage * STAGE_BYTES, acc);
#if WHOLE
        finish<1>();
        __syncwarp();
        const int done = stage == 0 ? STAGES - 1 : stage - 1;
        if (w.lane == 0 && i > part.begin) barrier_arrive(empty + done * 8);
#else
        __syncwarp();
        if (w.lane == 0) barrier_arrive(empty + stage * 8);
#endif
        if (++stage == STAGES) stage = 0, turn++;
    }
#if WHOLE
    finish<0>();
#pragma unroll
    for (int i = 0; i < ROW_TILES * COLUMN_TILES * 4; i++)  // nothing may read the sums before the wait
        asm volatile("" : SUM(acc[i / 4 / COLUMN_TILES][i / 4 % COLUMN_TILES][i % 4])::"memory");
#endif
    consumers_sync();
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int nt = 0; nt < COLUMN_TILES; nt++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const u32 to = stages + (column_in_block(w, nt, c % 2) * PITCH + row_in_block(w, r, c / 2)) * 4;
                store_shared(to, acc[r][nt][c]);
            }
}

#if CLUSTER > 1
#define IN_CLUSTERS __cluster_dims__(CLUSTER, 1, 1)
#else
#define IN_CLUSTERS
#endif

extern "C" __global__ void IN_CLUSTERS __launch_bounds__(THREADS + 32, 1) wide_gemm(const __grid_constant__ Problem p) {
    extern __shared__ char dynamic[];
    __shared__ alignas(8) u64 barriers[2 * STAGES];
    __shared__ Scales scales;
    const u32 stages = (shared_address(dynamic) + 1023) / 1024 * 1024;
    const u32 full = shared_address(barriers), empty = full + STAGES * 8;
    start_next();
    if (threadIdx.x == THREADS) {
        asm volatile("prefetch.tensormap [%0];" ::"l"(&p.weight) : "memory");
        asm volatile("prefetch.tensormap [%0];" ::"l"(&p.x) : "memory");
        for (int i = 0; i < STAGES; i++) barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, CONSUMERS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    const Part part = part_of(p);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp == CONSUMERS) {
        if (lane == 0) produce(p, part, stages, full, empty);
        __syncwarp();
    } else {
        load_row_scales(p, part, scales);
        wait_for_previous();
        load_column_scales(p, scales);
        consume(part, {lane, lane / 4, lane % 4, warp / WN, warp % WN}, stages, full, empty);
    }
    wait_for_previous();
    cluster_sync();
    store(p, part, scales, stages);
#if CLUSTER > 1
    cluster_sync();  // the others may still read this block's sums
#endif
}
