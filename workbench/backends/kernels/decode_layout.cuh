// What the parts of the decode kernel share: sizes of a model's matrices, shared memory, the structures of a launch.
//
// A unit is 16 rows of a matrix (8 of gate and 8 of up under SwiGLU), a step 64 bytes of each row, a chunk 16 steps of
// one unit: two for every warp of a half of the consumers. Where no norm needs whole rows of x, and they do not fit shared
// memory or are 8, every warp streams what it multiplies of them through two steps of its own; W8A8, which quantizes rows,
// goes through k in segments (of no published model: its 2 rows fit up to 18,432 values).
//
// Macros: NB rows of x (1, 2, 4, 8); KIND and KIND_HEAD of the weights, as in skinny_gemm.cu; GROUPS scales a step and
// row, each of SUBS_PER_GROUP times 32 values (INT4); BLOCKS of the grid; HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, DIM,
// VOCAB of the model; KV8 for an INT8 cache; SCALE_STRIDE 1 where every head has its scale; SPLITS of a row's keys at
// most, of SPLIT_ROWS or more; QUERIES heads of a group that attend together; ATTENTION_SCALE of scores; MAX_SHARED bytes
// of shared memory; MAX_STAGES chunks that the ring holds; MAX_IN_FLIGHT of them asked for and not there yet; SEGMENT
// values of k in shared memory; UNITS whose sums are kept at once; WATCHDOG 1: a wait of seconds ends the kernel;
// TRACED_LAYER, whose times are kept, or -1.

#define CONSUMERS 16
#define PRODUCERS 4
#define HALVES 2
#define HALF_WARPS (CONSUMERS / HALVES)
#define WARP_STEPS 2
#define CHUNK_STEPS (HALF_WARPS * WARP_STEPS)
#define CONSUMER_THREADS (CONSUMERS * 32)
#define PRODUCER_THREADS (PRODUCERS * 32)
// Of a thread: what the compiler gives 640 of them at the launch, and what they have once the block exchanged them.
#define LAUNCH_REGISTERS 96
#define CONSUMER_REGISTERS 112
#define PRODUCER_REGISTERS 32
#define MOST_STAMPS 64
#define QKV ((HEADS + 2 * KV_HEADS) * DIM)
#define CONTEXT (HEADS * DIM)

static_assert(CONSUMERS * CONSUMER_REGISTERS + PRODUCERS * PRODUCER_REGISTERS <= (CONSUMERS + PRODUCERS) * LAUNCH_REGISTERS,
              "a block exchanges the registers that it has");
static_assert(NB == 1 || NB == 2 || NB == 4 || NB == 8, "warps divide the rows of x evenly");

constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr int up(int a, int b) { return (a + b - 1) / b; }
constexpr int step_values(int kind) { return kind == 0 ? 32 : kind == 2 ? 128 : 64; }
constexpr bool tiled(int kind) { return kind == 1 || kind == 2; }
constexpr int x_width(int kind) { return kind == 3 ? 1 : 2; }
// Row-major weights are written by lanes that lie 16 bytes apart in k: steps 64 bytes further apart do not collide.
constexpr int step_pitch(int kind) { return tiled(kind) ? 1024 : 1088; }
constexpr int slot_bytes(int kind) { return CHUNK_STEPS * step_pitch(kind) + (kind == 2 ? CHUNK_STEPS * GROUPS * 64 : 0); }

// A matrix and how a block goes through it. One code serves all products of a layer, so that it stays in the cache of
// instructions: sizes are read, not compiled in.
struct Shape {
    int glu;             // rows are gate, then up
    int out_rows;        // of y
    int units;           // of 16 rows, or of 8 and 8
    int values;          // k
    int steps, chunks;   // of a unit
    int segments, segment_chunks;
    int held_values;     // of x in one segment
    int pitch;           // bytes from one row of x to the next in shared memory
    int buffer;          // bytes of x; two of them where there are segments: one is filled while the other is read
    int streamed;        // every warp fetches its own x
    int round;           // units at once: their sums fit

    // ``normed``: the block norms whole rows of x, so that all of them must be there.
    constexpr Shape(int kind, bool pairs, bool normed, int rows, int k)
        : glu(pairs), out_rows(pairs ? rows / 2 : rows), units(rows / 16), values(k), steps(up(k, step_values(kind))),
          chunks(up(steps, CHUNK_STEPS)), segments(1), segment_chunks(chunks), held_values(steps * step_values(kind)), pitch(0), buffer(0),
          streamed(kind != 3 && !normed && (held_values > SEGMENT || (NB == 8 && chunks >= HALVES))),
          round(streamed ? (UNITS + 1) / HALVES : UNITS) {
        if (streamed) {
            segment_chunks = HALVES;  // that a unit takes before the next one does
            buffer = CONSUMERS * WARP_STEPS * NB * step_values(kind) * x_width(kind);
            return;
        }
        if (held_values > SEGMENT) {
            segment_chunks = larger(1, SEGMENT / 2 / step_values(kind) / CHUNK_STEPS);
            segments = up(chunks, segment_chunks);
            held_values = segment_chunks * CHUNK_STEPS * step_values(kind);
        }
        pitch = held_values * x_width(kind) + 64;
        buffer = NB * pitch;
    }
    constexpr int bytes() const { return segments > 1 ? 2 * buffer : buffer; }
};

constexpr Shape QKV_SHAPE(KIND, false, true, QKV, HIDDEN), O_SHAPE(KIND, false, false, HIDDEN, CONTEXT);
constexpr Shape GATE_UP_SHAPE(KIND, true, true, 2 * INTERMEDIATE, HIDDEN), DOWN_SHAPE(KIND, false, false, HIDDEN, INTERMEDIATE);
constexpr Shape HEAD_SHAPE(KIND_HEAD, false, true, VOCAB, HIDDEN);
__constant__ Shape shapes[5] = {QKV_SHAPE, O_SHAPE, GATE_UP_SHAPE, DOWN_SHAPE, HEAD_SHAPE};

// Shared memory: rows of x, those rows before they are quantized, sums of warps, the ring. A norm's weights lie where sums
// will: they come after a product's last sums are read, and the next product's rows are normed before it has any.
constexpr int SLOT = larger(slot_bytes(KIND), slot_bytes(KIND_HEAD));
// A piece of attention: sums of QUERIES heads, then their largest scores and totals; whole multiples of 16 bytes.
constexpr int PIECE = QUERIES * DIM + up(2 * QUERIES, 4) * 4;
constexpr int SCRATCH = CONSUMERS * PIECE * 4;
constexpr int WIDEST =
    larger(larger(larger(QKV_SHAPE.bytes(), O_SHAPE.bytes()), larger(GATE_UP_SHAPE.bytes(), DOWN_SHAPE.bytes())), HEAD_SHAPE.bytes());
constexpr int X_BYTES = up(larger(WIDEST, SCRATCH), 128) * 128;
constexpr int HALF_PITCH = HIDDEN * 2 + 64;
constexpr int HALF_BYTES = KIND == 3 || KIND_HEAD == 3 ? up(NB * HALF_PITCH, 128) * 128 : 0;
constexpr bool STREAMS = O_SHAPE.streamed || DOWN_SHAPE.streamed;
constexpr int NORM_BYTES = up(HIDDEN * 2, 128) * 128;
// The last unit of an odd number is divided between the halves of the consumers: it has two places, as all have in a
// product whose x is streamed.
constexpr int SUMS_BYTES = (UNITS + 1) * HALF_WARPS * NB * 16 * 4;
constexpr int AT_X = 0, AT_HALF = X_BYTES, AT_SUMS = AT_HALF + HALF_BYTES, AT_NORM = AT_SUMS;
constexpr int AT_RING = AT_SUMS + larger(SUMS_BYTES, NORM_BYTES);
constexpr int FITTING = (MAX_SHARED - AT_RING) / SLOT, STAGES = FITTING < MAX_STAGES ? FITTING : MAX_STAGES;
constexpr int IN_FLIGHT = MAX_IN_FLIGHT < STAGES ? MAX_IN_FLIGHT : STAGES - 1;
// Each half of the consumers keeps a chunk while it waits for its next one.
static_assert(STAGES > HALVES, "the ring does not fit shared memory");
static_assert(QKV_SHAPE.segments == 1 && GATE_UP_SHAPE.segments == 1 && HEAD_SHAPE.segments == 1, "a norm needs whole rows");

struct Matrix {
    const char* weight;
    const float* row_scale;
    const u32* group_scale;
    const float* input_scale;  // of calibrated activations, or null
    const u16* bias;           // or null
};

struct Layer {
    Matrix matrix[4];  // qkv, o, gate and up, down
    const u16* attention_norm;
    const u16* mlp_norm;
    char* key;  // [batch][kv head][max_len][DIM]
    char* value;
    const float* key_scale;
    const float* value_scale;
};

struct Step {
    const Layer* layers;
    Matrix head;
    const u16* embedding;
    const u16* final_norm;
    const float* cos;  // [positions][DIM / 2]
    const float* sin;
    i64* ids;    // [NB]: read, then replaced by the most probable next ones
    int* start;  // [NB]: tokens in the cache; one more afterwards
    float* logits;
    u16* qkv;
    u16* context;
    u16* residual;  // [NB][HIDDEN]: what layers add to
    u16* activated;
    float* partial;  // [NB * KV_HEADS * groups][SPLITS][PIECE]
    u32* arrived;    // [NB * KV_HEADS * groups], zero before and after
    u64* best;       // [blocks][NB]
    u32* largest;    // [layers][2][NB] bits of float32: of context and activations; zero before and after
    u32* counters;   // arrivals at the barrier, blocks that are done; zero before and after
    int num_layers;
    int max_len;
    float epsilon;
};

extern __shared__ __align__(128) char memory[];
__shared__ u64 full_barrier[STAGES];
__shared__ u64 empty_barrier[STAGES];
__shared__ float column_scale[NB];
__shared__ u32 row_largest[NB];  // bits of the largest absolute value of this block's part of y
__shared__ int held_start[NB];
__shared__ __align__(16) float angles[NB][2][DIM / 2];  // cosines, sines
__shared__ float warp_values[CONSUMERS];
__shared__ u64 block_best[NB];
__shared__ __align__(16) float held_scale[UNITS * 16];
__shared__ __align__(16) u16 held_bias[UNITS * 16];
__shared__ __align__(16) u16 held_residual[NB][UNITS * 16];
__shared__ u32 ticket, tickets[2];
__shared__ Layer held[2];
