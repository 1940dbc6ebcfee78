// y[n][row] = sum_k W[row][k] * x[n][k] for few rows of x (1 to 8 * COLUMN_TILES), bound by reading W once.
//
// Weights are the A operand (16 rows) of mma.sync, activations its B operand (8 columns). Weights go from global memory
// straight to registers: 16 bytes a lane and row, all of it independent of what ran before, so the first loads are
// issued before the previous kernel has ended (programmatic dependent launch). A step is 64 bytes of every weight row.
// The order of k within a step is free as long as both operands agree on it, which is what makes plain 16-byte loads fit.
//
// Macros: KIND 0 float16 weights, 1 INT8 weights, 2 INT4 weights in groups (activations float16), 3 INT8 x INT8;
// ROW_TILES row tiles a warp, WM warps along rows, WK warps along k, DEPTH steps in flight, COLUMN_TILES column tiles, SPLIT blocks along k,
// GLU 1: row tiles are (gate, up) pairs and y = silu(gate) * up; PDL 1: started by the previous kernel's trigger.
// GROUPS: scales of INT4 groups that one step and row needs: 1, 2 or 4 (1 for the other kinds).
// PREFETCH: steps of a warp, beyond those in flight, that are brought into the L2 cache before the previous kernel ends.
// NORM 1: one column, x = RMSNorm(x + residual) * norm_weight (quantized for KIND 3), which every block computes for
// itself: the 2 us of a kernel of its own cost more than reading one row again.
// TILED 1: weights are stored in the order in which lanes read them: [row tile][step][half][lane] of 16 bytes.
// After ptx.cuh and fragments.cuh; no header is needed to compile this at run time.

#if KIND == 3
typedef int acc_t;
#else
typedef float acc_t;
#endif

// Granules: 16 bytes of one weight row. Sub-steps: 32 values of k for float16 activations, 64 for INT8.
#if KIND == 0
#define SUBS 1
#define PER_GRANULE 8
#elif KIND == 1
#define SUBS 2
#define PER_GRANULE 16
#elif KIND == 2
#define SUBS 4
#define PER_GRANULE 32
#else
#define SUBS 1
#define PER_GRANULE 16
#endif

#define TILES (GLU ? WM : WM * ROW_TILES)
#define ROWS (WM * ROW_TILES * 16)
#define COLUMNS (COLUMN_TILES * 8)
#define PITCH (COLUMNS + 1)

struct Problem {
    const uint4* weight;       // granules of all rows, see TILED
    const void* x;             // [columns][k] float16, or int8 for KIND 3
    const float* row_scale;    // [rows]; KIND 1 and 3
    const u32* group_scale;    // [groups][row tiles][8] pairs of float16 (row g, row g + 8); KIND 2
    const float* column_scale; // [columns] or one; KIND 3
    const u16* bias;           // [rows] float16, or null
    u16* y;                    // [columns][rows], or [columns][rows / 2] for GLU
    acc_t* partial;            // [SPLIT][row tiles][columns * 16] where SPLIT > 1
    u32* arrived;              // [blocks along rows], zero before and after
    int rows;
    int k;
    int columns;
    int steps_per_group;       // KIND 2: sub-steps of 32 values in a group
    int column_scale_stride;   // 0 where one scale serves all columns
    float epsilon;             // NORM
    const u16* residual;       // [k], or null
    u16* summed;               // [k]: x + residual, where there is a residual
    const u16* norm_weight;    // [k]
};

__device__ __forceinline__ void wait_for_previous() {
#if PDL
    wait_for_previous_kernel();
#endif
}

__device__ __forceinline__ void start_next() {
#if PDL
    start_next_kernel();
#endif
}

struct Warp {
    int lane, g, t, wm, wk;
};

// First row of row tile r of this warp; pairs of tiles lie half the matrix apart under GLU.
__device__ __forceinline__ int tile_of(const Problem& p, const Warp& w, int r) {
#if GLU
    return blockIdx.x * WM + w.wm + r * (p.rows / 32);
#else
    return (blockIdx.x * WM + w.wm) * ROW_TILES + r;
#endif
}

// What a lane holds of one step: 16 bytes of two rows of every row tile, and the scales that go with them.
struct Held {
    uint4 a[ROW_TILES][2];
    u32 scale[ROW_TILES][GROUPS];
};

// Where a lane reads 16 bytes of row tile r, half h; null beyond the matrix.
__device__ __forceinline__ const uint4* granule_of(const Problem& p, const Warp& w, int step, int steps, int r, int h) {
    long tile = tile_of(p, w, r);
#if TILED
    const uint4* at = p.weight + ((tile * steps + step) * 2 + h) * 32 + w.lane;
    bool inside = step < steps && tile * 16 < p.rows;
#else
    int granules = p.k / PER_GRANULE, granule = step * 4 + w.t;
    long row = tile * 16 + w.g + 8 * h;
    const uint4* at = p.weight + row * granules + granule;
    bool inside = granule < granules && row < p.rows;
#endif
    return inside ? at : nullptr;
}

// Bring a step's weights into the L2 cache: what can be done about them while the previous kernel still runs.
__device__ __forceinline__ void prefetch_weights(const Problem& p, const Warp& w, int step, int steps) {
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint4* at = granule_of(p, w, step, steps, r, h);
            if (at) prefetch_l2(at);
        }
    }
}

__device__ __forceinline__ void load_weights(const Problem& p, const Warp& w, int step, int steps, Held& held) {
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint4* at = granule_of(p, w, step, steps, r, h);
            held.a[r][h] = at ? load_stream(at) : make_uint4(0, 0, 0, 0);
        }
#if KIND == 2
        // A tile or step beyond the matrix multiplies zeros: any scale inside will do.
        int tiles = (p.rows + 15) / 16, tile = min(tile_of(p, w, r), tiles - 1), sub = min(step, steps - 1) * SUBS;
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            int group = (sub + i * (SUBS / GROUPS)) / p.steps_per_group;
            held.scale[r][i] = __ldg(p.group_scale + ((long)group * tiles + tile) * 8 + w.g);
        }
#endif
    }
}

#if NORM
#define THREADS (WM * WK * 32)
#define WARPS (WM * WK)
#define REDUCTION_BYTES (WK * ROWS * PITCH * 4)

// Of the dynamic shared memory: sums of the block, then x, the norm's weights and x quantized.
__device__ __forceinline__ uint4* shared_x(acc_t* shared) { return (uint4*)((char*)shared + REDUCTION_BYTES); }

// The sum or the largest of one value of every thread.
template <bool LARGEST>
__device__ __forceinline__ float reduced(float value) {
    __shared__ float parts[WARPS];
#pragma unroll
    for (int o = 16; o; o >>= 1) {
        float other = __shfl_xor_sync(~0u, value, o);
        value = LARGEST ? fmaxf(value, other) : value + other;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    value = parts[0];
#pragma unroll
    for (int i = 1; i < WARPS; i++) value = LARGEST ? fmaxf(value, parts[i]) : value + parts[i];
    return value;
}

// What does not depend on the previous kernel.
__device__ __forceinline__ void load_norm_weights(const Problem& p, acc_t* shared) {
    const int granules = p.k / 8;
    for (int i = threadIdx.x; i < granules; i += THREADS)
        shared_x(shared)[granules + i] = ((const uint4*)p.norm_weight)[i];
}

// x in shared memory; returns its scale for KIND 3. Every thread reads back only what it wrote, until the last barrier.
__device__ __forceinline__ float normalize(const Problem& p, acc_t* shared) {
    const int granules = p.k / 8;
    uint4* xs = shared_x(shared);
    float squares = 0.0f;
    for (int i = threadIdx.x; i < granules; i += THREADS) {
        uint4 x = ((const uint4*)p.x)[i];
        u16* value = (u16*)&x;
        if (p.residual) {
            uint4 r = ((const uint4*)p.residual)[i];
            const u16* other = (const u16*)&r;
#pragma unroll
            for (int j = 0; j < 8; j++) value[j] = float_to_half(half_to_float(value[j]) + half_to_float(other[j]));
            if (blockIdx.x == 0 && blockIdx.y == 0) ((uint4*)p.summed)[i] = x;
        }
#pragma unroll
        for (int j = 0; j < 8; j++) squares += half_to_float(value[j]) * half_to_float(value[j]);
        xs[i] = x;
    }
    const float root = __fsqrt_rn(__fdiv_rn(reduced<false>(squares), (float)p.k) + p.epsilon);
    float largest = 0.0f;
    for (int i = threadIdx.x; i < granules; i += THREADS) {
        uint4 x = xs[i], w = xs[granules + i];
        u16* value = (u16*)&x;
        const u16* weight = (const u16*)&w;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float normed = half_to_float(float_to_half(__fdiv_rn(half_to_float(value[j]), root)));
            value[j] = float_to_half(normed * half_to_float(weight[j]));
            largest = fmaxf(largest, fabsf(half_to_float(value[j])));
        }
        xs[i] = x;
    }
    float scale = 1.0f;
#if KIND == 3
    scale = p.column_scale ? *p.column_scale : __fdiv_rn(reduced<true>(largest), 127.0f);
    if (!p.column_scale && scale == 0.0f) scale = 1.0f;
    for (int i = threadIdx.x; i < granules; i += THREADS) {
        uint4 x = xs[i];
        const u16* value = (const u16*)&x;
        u32 q[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float real = fminf(fmaxf(__fdiv_rn(half_to_float(value[j]), scale), -127.0f), 127.0f);
            q[j / 4] |= ((u32)__float2int_rn(real) & 0xffu) << (8 * (j % 4));
        }
        ((uint2*)(xs + 2 * granules))[i] = make_uint2(q[0], q[1]);
    }
#endif
    __syncthreads();
    return scale;
}
#endif

// 16 bytes of the activations of column n: 8 values of float16, 16 of INT8.
__device__ __forceinline__ uint4 load_x(const Problem& p, const Warp& w, const uint4* xs, int sub, int nt) {
    const int width = KIND == 3 ? 16 : 8;
    int n = nt * 8 + w.g, k = (sub * 4 + w.t) * width;
    if (n >= p.columns || k >= p.k) return make_uint4(0, 0, 0, 0);
#if NORM
    return xs[sub * 4 + w.t];
#endif
    return *(const uint4*)((const char*)p.x + ((long)n * p.k + k) * (KIND == 3 ? 1 : 2));
}

__device__ __forceinline__ void multiply(const Problem& p, const Warp& w, const uint4* xs, int step, const Held& held,
                                         acc_t (&acc)[ROW_TILES][COLUMN_TILES][4]) {
#pragma unroll
    for (int s = 0; s < SUBS; s++) {
        int sub = step * SUBS + s;
        u32 m[ROW_TILES][2][4];  // per row tile: two A fragments, whose registers are (g, g + 8) x (first, second pair)
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32* q = (const u32*)&held.a[r][h];
#if KIND == 0 || KIND == 3
                m[r][0][h] = q[0], m[r][0][2 + h] = q[1], m[r][1][h] = q[2], m[r][1][2 + h] = q[3];
#elif KIND == 1
                halves_of_bytes(q[2 * s], m[r][0][h], m[r][0][2 + h]);
                halves_of_bytes(q[2 * s + 1], m[r][1][h], m[r][1][2 + h]);
#else
                u32 pairs[4], both = held.scale[r][s * GROUPS / SUBS];
                u32 scale = (h ? both >> 16 : both & 0xffffu) * 0x10001u;
                halves_of_nibbles(q[s], scale, pairs);
                m[r][0][h] = pairs[0], m[r][0][2 + h] = pairs[1], m[r][1][h] = pairs[2], m[r][1][2 + h] = pairs[3];
#endif
            }
        }
#pragma unroll
        for (int nt = 0; nt < COLUMN_TILES; nt++) {
            uint4 b = load_x(p, w, xs, sub, nt);
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++) {
                mma(acc[r][nt], m[r][0][0], m[r][0][1], m[r][0][2], m[r][0][3], b.x, b.y);
                mma(acc[r][nt], m[r][1][0], m[r][1][1], m[r][1][2], m[r][1][3], b.z, b.w);
            }
        }
    }
}

// One output before the bias: scaled in float32 in the oracle's order, rounded once.
__device__ __forceinline__ u16 scaled(const Problem& p, acc_t sum, int row, int n) {
#if KIND == 3
    return float_to_half((float)sum * (p.column_scale[n * p.column_scale_stride] * p.row_scale[row]));
#elif KIND == 1
    return float_to_half(sum * p.row_scale[row]);
#else
    return float_to_half(sum);
#endif
}

__device__ __forceinline__ u16 finished(const Problem& p, acc_t sum, int row, int n) {
    u16 y = scaled(p, sum, row, n);
    if (p.bias) y = float_to_half(half_to_float(y) + half_to_float(p.bias[row]));
    return y;
}

__device__ __forceinline__ acc_t sum_of(const acc_t* shared, int row, int n) {
    acc_t sum = 0;
#pragma unroll
    for (int wk = 0; wk < WK; wk++) sum += shared[(wk * ROWS + row) * PITCH + n];
    return sum;
}

// Rows of the block are (warp along rows, row tile, row in tile); ``value(row, n)`` is the finished sum.
template <class Value>
__device__ __forceinline__ void store(const Problem& p, Value value) {
    for (int i = threadIdx.x; i < TILES * 16 * p.columns; i += WM * WK * 32) {
        int row = i % (TILES * 16), n = i / (TILES * 16);
        int to = blockIdx.x * TILES * 16 + row;
#if GLU
        int half_rows = p.rows / 2, gate = (row / 16) * 32 + row % 16;
        if (to >= half_rows) continue;
        float g = half_to_float(finished(p, value(gate, n), to, n));
        float u = half_to_float(finished(p, value(gate + 16, n), to + half_rows, n));
        p.y[(long)n * half_rows + to] = float_to_half(g / (1.0f + __expf(-g)) * u);
#else
        if (to >= p.rows) continue;
        p.y[(long)n * p.rows + to] = finished(p, value(row, n), to, n);
#endif
    }
}

#if SPLIT > 1
// Blocks along k leave their sums in memory; the last one to arrive adds them in a fixed order and stores.
__device__ __forceinline__ void store_split(const Problem& p, const acc_t* shared) {
    __shared__ u32 ticket;
    const long block = (long)ROWS * COLUMNS;
    acc_t* mine = p.partial + (blockIdx.y * gridDim.x + blockIdx.x) * block;
    for (int i = threadIdx.x; i < ROWS * p.columns; i += WM * WK * 32) mine[i] = sum_of(shared, i % ROWS, i / ROWS);
    __syncthreads();
    if (threadIdx.x == 0) ticket = take_ticket(p.arrived + blockIdx.x);
    __syncthreads();
    if (ticket != SPLIT - 1) return;
    if (threadIdx.x == 0) p.arrived[blockIdx.x] = 0;
    store(p, [&](int row, int n) {
        acc_t sum = 0;
#pragma unroll
        for (int s = 0; s < SPLIT; s++)
            sum += __ldcg(p.partial + (s * gridDim.x + blockIdx.x) * block + n * ROWS + row);
        return sum;
    });
}
#endif

// This warp's sums go where the block adds them up.
__device__ __forceinline__ void leave_sums(const Warp& w, const acc_t (&acc)[ROW_TILES][COLUMN_TILES][4], acc_t* shared) {
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int nt = 0; nt < COLUMN_TILES; nt++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int row = (w.wm * ROW_TILES + r) * 16 + w.g + (c / 2) * 8;
                shared[(w.wk * ROWS + row) * PITCH + nt * 8 + w.t * 2 + c % 2] = acc[r][nt][c];
            }
}

extern "C" __global__ void __launch_bounds__(WM* WK * 32) skinny_gemm(const Problem p) {
    extern __shared__ acc_t shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Warp w = {lane, lane / 4, lane % 4, warp / WK, warp % WK};
    const int steps = (p.k + PER_GRANULE * 4 - 1) / (PER_GRANULE * 4);
    const int first = SPLIT > 1 ? (int)((long)steps * blockIdx.y / SPLIT) : 0;
    const int end = SPLIT > 1 ? (int)((long)steps * (blockIdx.y + 1) / SPLIT) : steps;
    acc_t acc[ROW_TILES][COLUMN_TILES][4] = {};
    Held now[DEPTH], next[DEPTH];
    start_next();
#pragma unroll
    for (int u = 0; u < DEPTH; u++) {
        int step = first + w.wk + u * WK;
        load_weights(p, w, step < end ? step : steps, steps, now[u]);
    }
#if PDL
    for (int ahead = 0; ahead < PREFETCH; ahead++) {
        int step = first + w.wk + (DEPTH + ahead) * WK;
        if (step >= end) break;
        prefetch_weights(p, w, step, steps);
    }
#endif
    const uint4* xs = nullptr;
    Problem own = p;
#if NORM
    load_norm_weights(p, shared);
    wait_for_previous();
    __shared__ float scale;
    const float found = normalize(p, shared);
    xs = shared_x(shared) + (KIND == 3 ? 2 * (p.k / 8) : 0);
    if (threadIdx.x == 0) scale = found;
    own.column_scale = &scale;
#else
    wait_for_previous();
#endif
    for (int base = first + w.wk; base < end; base += WK * DEPTH) {
#pragma unroll
        for (int u = 0; u < DEPTH; u++) {
            int step = base + (DEPTH + u) * WK;
            load_weights(p, w, step < end ? step : steps, steps, next[u]);
        }
#pragma unroll
        for (int u = 0; u < DEPTH; u++)
            if (base + u * WK < end) multiply(p, w, xs, base + u * WK, now[u], acc);
#pragma unroll
        for (int u = 0; u < DEPTH; u++) now[u] = next[u];
    }
    leave_sums(w, acc, shared);
    __syncthreads();
#if SPLIT > 1
    store_split(own, shared);
#else
    store(own, [&](int row, int n) { return sum_of(shared, row, n); });
#endif
}

#if KIND == 1 || KIND == 2
// The same weights as float16 [rows][k], rounded as the oracle rounds them: for products of many rows of x.
extern "C" __global__ void __launch_bounds__(256) expand(const Problem p) {
    const int steps = (p.k + PER_GRANULE * 4 - 1) / (PER_GRANULE * 4), tiles = (p.rows + 15) / 16;
    const long index = (long)blockIdx.x * 256 + threadIdx.x;
    if (index >= (long)tiles * steps * 64) return;
    const int lane = index % 32, h = index / 32 % 2, step = index / 64 % steps, tile = index / 64 / steps;
    const int row = tile * 16 + lane / 4 + 8 * h;
    if (row >= p.rows) return;
    const uint4 granule = p.weight[index];
    const u32* q = (const u32*)&granule;
#pragma unroll
    for (int s = 0; s < SUBS; s++) {
        const int sub = step * SUBS + s, k = (sub * 4 + lane % 4) * 8;
        if (k >= p.k) return;
        u32 out[4];
#if KIND == 1
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u16 low = float_to_half((float)(signed char)(q[2 * s + i / 2] >> (16 * (i % 2))) * p.row_scale[row]);
            u16 high = float_to_half((float)(signed char)(q[2 * s + i / 2] >> (16 * (i % 2) + 8)) * p.row_scale[row]);
            out[i] = low | (u32)high << 16;
        }
#else
        u32 scale = p.group_scale[((long)(sub / p.steps_per_group) * tiles + tile) * 8 + lane / 4];
        halves_of_nibbles(q[s], (h ? scale >> 16 : scale & 0xffffu) * 0x10001u, out);
#endif
        *(uint4*)(p.y + (long)row * p.k + k) = make_uint4(out[0], out[1], out[2], out[3]);
    }
}
#endif
