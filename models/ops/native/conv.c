/* Mamba's short causal convolution and its SiLU on a CPU, forward and backward, one pass over channels-last tensors each:
 * y_t = SiLU(bias + sum over k of weight_k x_{t-WIDTH+1+k}), x = 0 before the first step.
 */
#include "kernels.h"

#define WIDTH 4
#define GROUP 16                                    /* columns at once, so that memory is read contiguously */

typedef struct {
    View x, y;                                      /* the backward pass: y is dL/dy */
    const float *weight, *bias;                     /* (WIDTH, channels), (channels,) */
    int64_t batch0, batch1, channels, length;
    int32_t threads;
} Conv;

typedef struct {
    View x;                                         /* dL/dx, written */
    float *weight, *bias;                           /* [thread][WIDTH][channels], [thread][channels], added to */
} Grad;

typedef struct { int64_t b0, first, last; } Item;


/* Rows are processed one by one, columns in groups. */
INLINE int64_t group_size(const Conv *c) { return c->x.step > c->x.batch1 ? GROUP : 1; }
INLINE int64_t num_items(const Conv *c) {
    return c->batch0 * ((c->batch1 + group_size(c) - 1) / group_size(c));
}
INLINE Item item_at(const Conv *c, int64_t i) {
    int64_t group = group_size(c), groups = (c->batch1 + group - 1) / group, first = i % groups * group;
    return (Item){i / groups, first, min64(first + group, c->batch1)};
}

/* The convolution at step t, to which `x` points. */
INLINE vec convolve(const Conv *c, const float *x, const float *weight, const float *bias, int64_t t, int count) {
    vec y = load(bias, count);
    for (int k = 0; k < WIDTH; k++)
        if (t + k >= WIDTH - 1)
            y += load(weight + k * c->channels, count) * load(x + (k - WIDTH + 1) * c->x.step, count);
    return y;
}

void conv_forward(const Conv *c) {
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t i = 0; i < num_items(c); i++) {
        Item item = item_at(c, i);
        for (int64_t t = 0; t < c->length; t++)
            for (int64_t b1 = item.first; b1 < item.last; b1++) {
                const float *x = at(&c->x, item.b0, b1, t);
                float *y = at(&c->y, item.b0, b1, t);
                for (int64_t d = 0; d < c->channels; d += LANES) {
                    int count = count_of(c->channels, d);
                    vec pre = convolve(c, x + d, c->weight + d, c->bias + d, t, count);
                    store(y + d, pre * sigmoid(pre), count);
                }
            }
    }
}

/* One step of one sequence. recent[t % WIDTH]: dL/d(before SiLU) of the last WIDTH steps visited. */
INLINE void backward_step(const Conv *c, const float *x, const float *gy, float *gx, float *recent,
                          float *gweight, float *gbias, int64_t t) {
    for (int64_t d = 0; d < c->channels; d += LANES) {
        int count = count_of(c->channels, d);
        vec pre = convolve(c, x + d, c->weight + d, c->bias + d, t, count), sig = sigmoid(pre);
        vec grad = load(gy + d, count) * sig * (1.0f + pre * (1.0f - sig)), of_x = {0};
        store(recent + t % WIDTH * c->channels + d, grad, count);
        store(gbias + d, load(gbias + d, count) + grad, count);
        for (int k = 0; k < WIDTH; k++) {
            int64_t source = t - WIDTH + 1 + k, target = t + WIDTH - 1 - k, row = k * c->channels + d;
            if (source >= 0)
                store(gweight + row, load(gweight + row, count) + grad * load(x + d + (source - t) * c->x.step, count),
                      count);
            if (target < c->length)
                of_x += load(c->weight + row, count) * load(recent + target % WIDTH * c->channels + d, count);
        }
        store(gx + d, of_x, count);
    }
}

/* Returns 1 if out of memory, else 0. */
int conv_backward(const Conv *c, const Grad *g) {
    int failed = 0;
#pragma omp parallel for num_threads(c->threads) schedule(static, 1) reduction(| : failed)
    for (int64_t thread = 0; thread < c->threads; thread++) {
        float *recent = reserve(GROUP * WIDTH * c->channels * sizeof(float));
        failed |= recent == NULL;
        int64_t items = num_items(c);
        for (int64_t i = thread * items / c->threads; !failed && i < (thread + 1) * items / c->threads; i++) {
            Item item = item_at(c, i);
            for (int64_t t = c->length - 1; t >= 0; t--)
                for (int64_t b1 = item.first; b1 < item.last; b1++)
                    backward_step(c, at(&c->x, item.b0, b1, t), at(&c->y, item.b0, b1, t),
                                  at(&g->x, item.b0, b1, t), recent + (b1 - item.first) * WIDTH * c->channels,
                                  g->weight + thread * WIDTH * c->channels, g->bias + thread * c->channels, t);
        }
        free(recent);
    }
    return failed;
}
