/* The recurrence of the selective scan, a chunk of steps and a block of channels at a time: see scan.c. */
#pragma once
#include "kernels.h"

#ifndef STATES
#define STATES 16
#endif
#define CHUNK 32
#define GROUP 16

typedef struct {
    View u, delta, z, B, C, y;                      /* z.data may be NULL */
    const float *A, *D, *bias;                      /* (channels, STATES), (channels,), (channels,) */
    float *starts;                                  /* [sequence][chunk][block][STATES][LANES], or NULL */
    int64_t batch0, batch1, channels, length;
    int32_t softplus, threads;
} Scan;

INLINE int64_t num_blocks(const Scan *s) { return (s->channels + LANES - 1) / LANES; }
INLINE int64_t num_chunks(const Scan *s) { return (s->length + CHUNK - 1) / CHUNK; }

/* Prefetch step t of the next sequence: down a column every step is on another page, which hardware does not prefetch. */
INLINE void fetch_next(const View *v, const float *p, int64_t t) {
    __builtin_prefetch(p + t * v->step + v->batch1, 1, 2);
}

/* A log2(e), so that exp(delta A) is a power of two: [block][STATES][LANES]. */
static vec *pack_A(const Scan *s) {
    vec *packed = reserve_zeros(num_blocks(s) * STATES * sizeof(vec));
    for (int64_t c = 0; packed && c < s->channels; c++)
        for (int n = 0; n < STATES; n++)
            ((float *)&packed[c / LANES * STATES + n])[c % LANES] = s->A[c * STATES + n] * LOG2_E;
    return packed;
}

/* What does not depend on the states, for a chunk of one block: x, delta after bias and softplus, delta x, and the slope
 * of softplus. In a loop of its own, so that the steps' long chains of operations overlap. */
typedef struct { vec x[CHUNK], d[CHUNK], dx[CHUNK], slope[CHUNK]; } Inputs;

INLINE void prepare(const Scan *s, const float *u, const float *delta, vec bias, int64_t steps, int count, Inputs *in) {
    for (int64_t t = 0; t < steps; t++) {
        vec d = load(delta + t * s->delta.step, count) + bias, slope = splat(1.0f);
        if (s->softplus) {
            vec e = exp_minus_abs(d);
            slope = sigmoid_of(d, e);
            d = softplus_of(d, e);
        }
        in->x[t] = load(u + t * s->u.step, count), in->d[t] = d, in->dx[t] = d * in->x[t], in->slope[t] = slope;
    }
}

/* `steps` steps of one block of channels, from the states h on. */
INLINE void forward_chunk(const Scan *s, const float *u, const float *delta, const float *z, const float *B,
                          const float *C, float *y, const vec *A, vec D, vec bias, vec *h_kept, int64_t steps,
                          int count) {
    Inputs in;
    vec h[STATES], out[CHUNK];
    prepare(s, u, delta, bias, steps, count, &in);
    for (int n = 0; n < STATES; n++) h[n] = h_kept[n];
    for (int64_t t = 0; t < steps; t++) {
        fetch_next(&s->u, u, t), fetch_next(&s->delta, delta, t), fetch_next(&s->y, y, t);
        if (z) fetch_next(&s->z, z, t);
        vec d = in.d[t], dx = in.dx[t], sum0 = D * in.x[t], sum1 = {0};
        const float *b = B + t * s->B.step, *c = C + t * s->C.step;
#pragma GCC unroll 16
        for (int n = 0; n < STATES; n++) {
            h[n] = exp2_vec(d * A[n]) * h[n] + dx * b[n];
            if (n % 2) sum1 += h[n] * c[n];
            else sum0 += h[n] * c[n];
        }
        out[t] = sum0 + sum1;
    }
    for (int n = 0; n < STATES; n++) h_kept[n] = h[n];
    for (int64_t t = 0; t < steps; t++) {
        if (z) {
            vec gate = load(z + t * s->z.step, count);
            out[t] *= gate * sigmoid(gate);
        }
        store(y + t * s->y.step, out[t], count);
    }
}
