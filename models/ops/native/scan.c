/* The selective scan on a CPU, forward and backward (Gu & Dao 2023, Algorithm 2): h_t = exp(delta_t A) h_{t-1} +
 * delta_t B_t u_t, y_t = C_t h_t + D u_t, gated by SiLU(z). Symbols as in reference.py.
 *
 * A thread takes groups of neighbouring sequences, a sequence in chunks of CHUNK steps, a chunk in blocks of LANES
 * channels, whose STATES states stay in registers. For the backward pass only the states at the chunks' starts are kept;
 * it recomputes the others.
 */
#include "scan.h"

typedef struct {
    View y, u, delta, z, B, C;                      /* gradients; y is given, the others are written */
    float *A, *D, *bias;                            /* [thread][block][STATES][LANES], [thread][block][LANES] twice */
} Grad;

int64_t scan_lanes(void) { return LANES; }
int64_t scan_chunk(void) { return CHUNK; }

/* Returns 1 if out of memory, else 0. */
int scan_forward(const Scan *s) {
    int64_t blocks = num_blocks(s), chunks = num_chunks(s), groups = (s->batch1 + GROUP - 1) / GROUP;
    vec *A = pack_A(s);
    int failed = 0;
    if (!A) return 1;
#pragma omp parallel num_threads(s->threads) reduction(| : failed)
    {
        vec *h = reserve(GROUP * blocks * STATES * sizeof(vec));
        failed |= h == NULL;
#pragma omp for schedule(static)
        for (int64_t item = 0; item < s->batch0 * groups; item++) {
            if (failed) continue;
            int64_t b0 = item / groups, first = item % groups * GROUP, last = min64(first + GROUP, s->batch1);
            memset(h, 0, GROUP * blocks * STATES * sizeof(vec));
            for (int64_t k = 0; k < chunks; k++) {
                int64_t t = k * CHUNK, steps = min64(CHUNK, s->length - t);
                for (int64_t b1 = first; b1 < last; b1++) {
                    vec *states = h + (b1 - first) * blocks * STATES;
                    if (s->starts)
                        memcpy(s->starts + ((b0 * s->batch1 + b1) * chunks + k) * blocks * STATES * LANES, states,
                               blocks * STATES * sizeof(vec));
                    const float *u = at(&s->u, b0, b1, t);
                    const float *delta = at(&s->delta, b0, b1, t);
                    const float *z = s->z.data ? at(&s->z, b0, b1, t) : NULL;
                    const float *B = at(&s->B, b0, b1, t);
                    const float *C = at(&s->C, b0, b1, t);
                    float *y = at(&s->y, b0, b1, t);
                    for (int64_t block = 0; block < blocks; block++) {
                        int64_t c = block * LANES;
                        int count = count_of(s->channels, c);
                        forward_chunk(s, u + c, delta + c, z ? z + c : NULL, B, C, y + c, A + block * STATES,
                                      load(s->D + c, count), load(s->bias + c, count), states + block * STATES, steps,
                                      count);
                    }
                }
            }
        }
        free(h);
    }
    free(A);
    return failed;
}

/* A thread's scratch memory: the states of one chunk of one block, and B's and C's gradients summed over blocks. */
typedef struct {
    vec decay[CHUNK][STATES], h[CHUNK + 1][STATES], B[CHUNK][STATES], C[CHUNK][STATES], grad[CHUNK];
    Inputs in;
} Work;

/* Pointers to one chunk of one block. */
typedef struct { const float *u, *delta, *z, *gy; float *gu, *gdelta, *gz; } Place;

/* The states of a chunk again, from its first. */
INLINE void recompute(const Scan *s, const Grad *g, const Place *p, const float *B, const vec *A, const float *start,
                      Work *w, int64_t steps) {
    vec h[STATES];
    for (int n = 0; n < STATES; n++) w->h[0][n] = h[n] = load(start + n * LANES, LANES);
    for (int64_t t = 0; t < steps; t++) {
        fetch_next(&s->u, p->u, t), fetch_next(&s->delta, p->delta, t), fetch_next(&g->y, p->gy, t);
        fetch_next(&g->u, p->gu, t), fetch_next(&g->delta, p->gdelta, t);
        if (p->z) fetch_next(&s->z, p->z, t), fetch_next(&g->z, p->gz, t);
        vec d = w->in.d[t], dx = w->in.dx[t];
        const float *b = B + t * s->B.step;
#pragma GCC unroll 16
        for (int n = 0; n < STATES; n++) {
            vec decay = exp2_vec(d * A[n]);
            w->decay[t][n] = decay;
            w->h[t + 1][n] = h[n] = decay * h[n] + dx * b[n];
        }
    }
}

/* Writes dL/dz, and to w->grad the gradient with respect to the result before the gate. */
INLINE void backward_gate(const Scan *s, const Grad *g, const Place *p, const float *C, vec D, Work *w, int64_t steps,
                          int count) {
    for (int64_t t = 0; t < steps; t++) {
        w->grad[t] = load(p->gy + t * g->y.step, count);
        if (!p->z) continue;
        const float *c = C + t * s->C.step;
        vec gate = load(p->z + t * s->z.step, count), sig = sigmoid(gate), y0 = D * w->in.x[t], y1 = {0};
#pragma GCC unroll 16
        for (int n = 0; n < STATES; n++) {
            if (n % 2) y1 += w->h[t + 1][n] * c[n];
            else y0 += w->h[t + 1][n] * c[n];
        }
        store(p->gz + t * g->z.step, w->grad[t] * (y0 + y1) * sig * (1.0f + gate * (1.0f - sig)), count);
        w->grad[t] *= gate * sig;
    }
}

/* From a chunk's last step to its first; carry = exp(delta_{t+1} A) dL/dh_{t+1}. */
INLINE void backward_states(const Scan *s, const Grad *g, const Place *p, const float *B, const float *C,
                            const vec *A, vec D, vec *carry, vec *gA, vec *gD, vec *gbias, Work *w, int64_t steps,
                            int count) {
    vec D_sum = *gD, bias_sum = *gbias;
    for (int64_t t = steps - 1; t >= 0; t--) {
        vec x = w->in.x[t], d = w->in.d[t], dx = w->in.dx[t], grad = w->grad[t];
        const float *b = B + t * s->B.step, *c = C + t * s->C.step;
        vec of_input = {0}, of_exponent = {0};      /* dL/d(delta u), and log2(e) dL/d delta through the exponent */
#pragma GCC unroll 16
        for (int n = 0; n < STATES; n++) {
            vec grad_h = grad * c[n] + carry[n];
            w->C[t][n] += grad * w->h[t + 1][n];
            w->B[t][n] += grad_h * dx;
            of_input += grad_h * b[n];
            carry[n] = grad_h * w->decay[t][n];
            vec through = carry[n] * w->h[t][n];
            of_exponent += through * A[n];
            gA[n] += through * d;
        }
        vec grad_d = (of_exponent * (1.0f / LOG2_E) + of_input * x) * w->in.slope[t];
        store(p->gu + t * g->u.step, of_input * d + grad * D, count);
        store(p->gdelta + t * g->delta.step, grad_d, count);
        D_sum += grad * x;
        bias_sum += grad_d;
    }
    *gD = D_sum, *gbias = bias_sum;
}

int scan_backward(const Scan *s, const Grad *g) {
    int64_t blocks = num_blocks(s), chunks = num_chunks(s), groups = (s->batch1 + GROUP - 1) / GROUP;
    int64_t items = s->batch0 * groups;
    vec *A = pack_A(s);
    int failed = 0;
    if (!A) return 1;
#pragma omp parallel for num_threads(s->threads) schedule(static, 1) reduction(| : failed)
    for (int64_t thread = 0; thread < s->threads; thread++) {
        vec *carry = reserve(GROUP * blocks * STATES * sizeof(vec));
        Work *w = reserve(sizeof(Work));
        vec *gA = (vec *)g->A + thread * blocks * STATES, *gD = (vec *)g->D + thread * blocks,
            *gbias = (vec *)g->bias + thread * blocks;
        failed |= !carry || !w;
        /* Fixed shares, so that the same call gives the same bits. */
        for (int64_t item = thread * items / s->threads; !failed && item < (thread + 1) * items / s->threads; item++) {
            int64_t b0 = item / groups, first = item % groups * GROUP, last = min64(first + GROUP, s->batch1);
            memset(carry, 0, GROUP * blocks * STATES * sizeof(vec));
            for (int64_t k = chunks - 1; k >= 0; k--) {
                int64_t t = k * CHUNK, steps = min64(CHUNK, s->length - t);
                for (int64_t b1 = first; b1 < last; b1++) {
                    const float *start = s->starts + ((b0 * s->batch1 + b1) * chunks + k) * blocks * STATES * LANES;
                    const float *B = at(&s->B, b0, b1, t);
                    const float *C = at(&s->C, b0, b1, t);
                    memset(w->B, 0, steps * sizeof(w->B[0]));
                    memset(w->C, 0, steps * sizeof(w->C[0]));
                    for (int64_t block = 0; block < blocks; block++) {
                        int64_t c = block * LANES;
                        int count = count_of(s->channels, c);
                        Place p = {
                            .u = at(&s->u, b0, b1, t) + c,
                            .delta = at(&s->delta, b0, b1, t) + c,
                            .z = s->z.data ? at(&s->z, b0, b1, t) + c : NULL,
                            .gy = at(&g->y, b0, b1, t) + c,
                            .gu = at(&g->u, b0, b1, t) + c,
                            .gdelta = at(&g->delta, b0, b1, t) + c,
                            .gz = g->z.data ? at(&g->z, b0, b1, t) + c : NULL,
                        };
                        const vec *A_here = A + block * STATES;
                        vec D = load(s->D + c, count);
                        prepare(s, p.u, p.delta, load(s->bias + c, count), steps, count, &w->in);
                        recompute(s, g, &p, B, A_here, start + block * STATES * LANES, w, steps);
                        backward_gate(s, g, &p, C, D, w, steps, count);
                        backward_states(s, g, &p, B, C, A_here, D,
                                        carry + ((b1 - first) * blocks + block) * STATES, gA + block * STATES,
                                        gD + block, gbias + block, w, steps, count);
                    }
                    float *gB = at(&g->B, b0, b1, t), *gC = at(&g->C, b0, b1, t);
                    for (int64_t i = 0; i < steps; i++)
                        for (int n = 0; n < STATES; n++) {
                            gB[i * g->B.step + n] = sum(&w->B[i][n]);
                            gC[i * g->C.step + n] = sum(&w->C[i][n]);
                        }
                }
            }
        }
        free(carry);
        free(w);
    }
    free(A);
    return failed;
}
