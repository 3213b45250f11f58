/* Mamba's block S6 on a CPU, without gradients (Gu & Dao 2023, Figure 3): x and z by in_proj, the causal convolution, the
 * selective scan and out_proj, for CHUNK steps of a sequence at a time, so that what lies between stays in the cache.
 *
 * A thread takes groups of neighbouring sequences: where steps lie apart in memory, neighbours lie together.
 * Matrices are (outputs, inputs), as PyTorch keeps them.
 */
#include "matmul.h"
#include "scan.h"

#define WIDTH 4                                     /* of the convolution */
#define PAST (WIDTH - 1)

typedef struct {
    View x, y;                                      /* (batch0, batch1, length, model); they may be one */
    const float *W_in, *W_conv, *conv_bias, *W_x, *W_dt, *dt_bias, *A, *D, *W_out;
    int64_t batch0, batch1, length, model, inner, rank;
    int32_t threads;
} S6;

typedef struct { float *in, *conv, *x, *dt, *out; vec *A; } Weights;  /* packed */

/* A thread's buffers. For the current chunk: xz, after the last PAST steps of the chunk before; x after the convolution,
 * which y replaces; (dt, B, C); the step sizes; the output. For each sequence of the group: the last PAST steps of x before
 * the convolution, and the states. */
typedef struct { float *xz, *x, *dbc, *delta, *out, *past; vec *states; } Buffers;

INLINE int64_t inner(const S6 *s) { return padded(s->inner); }
INLINE int64_t dbc(const S6 *s) { return padded(s->rank + 2 * STATES); }
INLINE int64_t group_size(const S6 *s) {
    return s->x.step > s->x.batch1 ? max64(1, min64(GROUP, s->batch1 / s->threads)) : 1;
}

/* y_t = SiLU(bias + sum over k of w_k x_{t-PAST+k}) */
static void convolve(const S6 *s, const Weights *w, const Buffers *b, int64_t steps) {
    for (int64_t d = 0; d < inner(s); d += LANES) {
        vec tap[WIDTH], bias = load(w->conv + WIDTH * inner(s) + d, LANES);
        for (int k = 0; k < WIDTH; k++) tap[k] = load(w->conv + k * inner(s) + d, LANES);
        for (int64_t t = 0; t < steps; t++) {
            vec y = bias;
            for (int k = 0; k < WIDTH; k++) y += tap[k] * load(b->xz + (t + k) * 2 * inner(s) + d, LANES);
            store(b->x + t * inner(s) + d, y * sigmoid(y), LANES);
        }
    }
}

/* Steps t to t + steps of one sequence, the `i`th of its group. */
static void run_chunk(const S6 *s, const Scan *scan, const Weights *w, const Buffers *b, const float *x, float *y,
                      int64_t i, int64_t steps) {
    int64_t wide = 2 * inner(s), model = padded(s->model), blocks = inner(s) / LANES;
    float *past = b->past + i * PAST * inner(s);
    vec *states = b->states + i * blocks * STATES;
    for (int64_t t = 0; t < PAST; t++) memcpy(b->xz + t * wide, past + t * inner(s), inner(s) * sizeof(float));
    matmul(x, s->x.step, w->in, steps, s->model, wide, b->xz + PAST * wide, wide);
    for (int64_t t = 0; t < PAST; t++) memcpy(past + t * inner(s), b->xz + (steps + t) * wide, inner(s) * sizeof(float));
    convolve(s, w, b, steps);
    matmul(b->x, inner(s), w->x, steps, s->inner, dbc(s), b->dbc, dbc(s));
    matmul(b->dbc, dbc(s), w->dt, steps, s->rank, inner(s), b->delta, inner(s));
    const float *B = b->dbc + s->rank, *z = b->xz + PAST * wide + inner(s);
    for (int64_t block = 0; block < blocks; block++) {
        int64_t d = block * LANES;
        int count = count_of(s->inner, d);
        forward_chunk(scan, b->x + d, b->delta + d, z + d, B, B + STATES, b->x + d, w->A + block * STATES,
                      load(s->D + d, count), load(s->dt_bias + d, count), states + block * STATES, steps, count);
    }
    matmul(b->x, inner(s), w->out, steps, s->inner, model, b->out, model);
    for (int64_t t = 0; t < steps; t++)
        for (int64_t d = 0; d < s->model; d += LANES)
            store(y + t * s->y.step + d, load(b->out + t * model + d, LANES), count_of(s->model, d));
}

static void run_group(const S6 *s, const Scan *scan, const Weights *w, const Buffers *b, int64_t b0, int64_t first) {
    int64_t size = min64(group_size(s), s->batch1 - first);
    memset(b->past, 0, size * PAST * inner(s) * sizeof(float));
    memset(b->states, 0, size * inner(s) * STATES * sizeof(float));
    for (int64_t t = 0; t < s->length; t += CHUNK)
        for (int64_t i = 0; i < size; i++)
            run_chunk(s, scan, w, b, at(&s->x, b0, first + i, t), at(&s->y, b0, first + i, t), i,
                      min64(CHUNK, s->length - t));
}

static void pack_weights(const S6 *s, const Weights *w) {
    pack(s->W_in, s->model, s->inner, 2 * inner(s), 0, w->in);
    pack(s->W_in + s->inner * s->model, s->model, s->inner, 2 * inner(s), inner(s), w->in);
    pack(s->W_x, s->inner, s->rank + 2 * STATES, dbc(s), 0, w->x);
    pack(s->W_dt, s->rank, s->inner, inner(s), 0, w->dt);
    pack(s->W_out, s->inner, s->model, padded(s->model), 0, w->out);
    for (int64_t d = 0; d < s->inner; d++) {
        for (int k = 0; k < WIDTH; k++) w->conv[k * inner(s) + d] = s->W_conv[d * WIDTH + k];
        w->conv[WIDTH * inner(s) + d] = s->conv_bias[d];
    }
}

/* Returns 1 if out of memory, else 0. */
int s6(const S6 *s) {
    int64_t of_in = s->model * 2 * inner(s), of_conv = (WIDTH + 1) * inner(s), of_x = s->inner * dbc(s);
    int64_t of_dt = s->rank * inner(s), of_out = s->inner * padded(s->model);
    Weights w = {.in = reserve_zeros((of_in + of_conv + of_x + of_dt + of_out) * sizeof(float))};
    w.conv = w.in + of_in, w.x = w.conv + of_conv, w.dt = w.x + of_x, w.out = w.dt + of_dt;
    /* Padded channels of x and z are zero, and so is what is computed of them. */
    View wide = {.step = 2 * inner(s)}, narrow = {.step = inner(s)}, of_dbc = {.step = dbc(s)};
    Scan scan = {.u = narrow, .delta = narrow, .z = wide, .B = of_dbc, .C = of_dbc, .y = narrow, .A = s->A,
                 .channels = s->inner, .softplus = 1};
    w.A = pack_A(&scan);
    int failed = 0;
    if (!w.in || !w.A) {
        free(w.in), free(w.A);
        return 1;
    }
    pack_weights(s, &w);
    int64_t group = group_size(s), groups = (s->batch1 + group - 1) / group;
#pragma omp parallel num_threads(s->threads) reduction(| : failed)
    {
        int64_t of_xz = (CHUNK + PAST) * 2 * inner(s), of_chunk = CHUNK * inner(s);
        int64_t of_past = group * PAST * inner(s), of_states = group * inner(s) * STATES;
        float *memory = reserve((of_xz + 2 * of_chunk + CHUNK * (dbc(s) + padded(s->model)) + of_past + of_states) *
                               sizeof(float));
        Buffers b = {.xz = memory};
        b.x = b.xz + of_xz, b.delta = b.x + of_chunk, b.dbc = b.delta + of_chunk, b.out = b.dbc + CHUNK * dbc(s);
        b.past = b.out + CHUNK * padded(s->model), b.states = (vec *)(b.past + of_past);
        failed |= !memory;
#pragma omp for schedule(static)
        for (int64_t item = 0; item < s->batch0 * groups; item++)
            if (!failed) run_group(s, &scan, &w, &b, item / groups, item % groups * group);
        free(memory);
    }
    free(w.in), free(w.A);
    return failed;
}
