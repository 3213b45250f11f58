/* A depth-wise 3x3 convolution of channels-last features on a CPU, zero padding, and its gate:
 *
 *     y = SiLU(a) * b, (a, b) = conv(x)             x (batch, height, width, channels), y has half the channels
 *
 * in one pass; a and b are recomputed in the backward pass, not kept.
 * A thread takes strips of rows of one image, a row in tiles that fit the cache, a tile in blocks of LANES channels: the
 * nine taps stay in registers, and memory is read and written contiguously.
 */
#include "depthwise.h"

#define STRIP 32                                    /* rows; the backward pass computes one more on either side */
#define TILE_FLOATS 2048                            /* of one row of a tile */

typedef struct {
    const float *x, *weight;                        /* weight (9, channels) */
    float *y;                                       /* the backward pass: dL/dy, read */
    int64_t batch, height, width, channels;         /* channels of x */
    int32_t threads;
} Depthwise;

typedef struct { float *x, *weight; } Grad;         /* (like x), [thread][9][channels], added to */

INLINE int64_t num_outputs(const Depthwise *c) { return c->channels / 2; }
INLINE int64_t strips_per_image(const Depthwise *c) { return (c->height + STRIP - 1) / STRIP; }
INLINE int64_t tile_width(const Depthwise *c) { return max64(TILE_FLOATS / c->channels, 4); }

INLINE Window window_of_x(const Depthwise *c, int64_t image, int64_t h, int64_t from) {
    Window v = {.channels = c->channels, .width = c->width, .from = from, .to = min64(from + tile_width(c), c->width)};
    for (int r = 0; r < 3; r++) {
        int64_t row = h + r - 1;
        if (row >= 0 && row < c->height) v.row[r] = c->x + (image * c->height + row) * c->width * c->channels;
    }
    return v;
}

/* Returns 1 if out of memory, else 0. */
int depthwise_forward(const Depthwise *c) {
    int failed = 0;
    int64_t outputs = num_outputs(c), tile = tile_width(c);
#pragma omp parallel num_threads(c->threads) reduction(| : failed)
    {
        float *a = reserve(2 * tile * LANES * sizeof(float)), *b = a + tile * LANES;
        failed |= a == NULL;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < c->batch * c->height; row++)
            for (int64_t from = 0; !failed && from < c->width; from += tile) {
                Window v = window_of_x(c, row / c->height, row % c->height, from);
                float *y = c->y + (row * c->width + from) * outputs;
                for (int64_t d = 0; d < outputs; d += LANES) {
                    int count = count_of(outputs, d);
                    convolve(&v, d, count, c->weight, 0, a, LANES);
                    convolve(&v, d + outputs, count, c->weight, 0, b, LANES);
                    for (int64_t w = 0; w < v.to - from; w++) {
                        vec gate = load(a + w * LANES, LANES);
                        store(y + w * outputs + d, gate * sigmoid(gate) * load(b + w * LANES, LANES), count);
                    }
                }
            }
        free(a);
    }
    return failed;
}

/* dL/d conv(x) of one tile and block, through the gate, (width, channels) in `grad`. */
INLINE void gradient(const Depthwise *c, const Window *v, const float *gy, int64_t d, int count, float *grad) {
    int64_t outputs = num_outputs(c);
    grad += v->from * c->channels + d, gy += v->from * outputs + d;
    convolve(v, d, count, c->weight, 0, grad, c->channels);
    convolve(v, d + outputs, count, c->weight, 0, grad + outputs, c->channels);
    for (int64_t w = 0; w < v->to - v->from; w++, grad += c->channels, gy += outputs) {
        vec g = load(gy, count), a = load(grad, count), b = load(grad + outputs, count), sig = sigmoid(a);
        store(grad, g * b * sig * (1.0f + a * (1.0f - sig)), count);
        store(grad + outputs, g * a * sig, count);
    }
}

/* Adds one tile and block to the taps' gradients (9, channels): the sum over w of grad[w] x[w + tap]. */
INLINE void add_to_taps(const Window *v, const float *grad, int64_t d, int count, float *taps) {
    vec s[9];
    Taps t = first_taps(v, d, count);
    for (int k = 0; k < 9; k++) s[k] = load(taps + k * v->channels + d, count);
    for (int64_t w = v->from; w < v->to; w++) {
        vec g = load(grad + w * v->channels + d, count);
#pragma GCC unroll 3
        for (int r = 0; r < 3; r++) {
            vec right = w + 1 < v->width ? load(t.row[r] + (w + 1) * v->channels, count) : splat(0);
            s[3 * r] += g * t.left[r], s[3 * r + 1] += g * t.here[r], s[3 * r + 2] += g * right;
            t.left[r] = t.here[r], t.here[r] = right;
        }
    }
    for (int k = 0; k < 9; k++)
        if (v->row[k / 3]) store(taps + k * v->channels + d, s[k], count);
}

/* One strip of rows. `ring`: the gradients dL/d conv(x) of the three rows last computed, [3][width][channels]. */
static void backward_strip(const Depthwise *c, float *gx, int64_t image, int64_t top, int64_t bottom, float *ring,
                           float *taps) {
    int64_t outputs = num_outputs(c), row_size = c->width * c->channels;
    for (int64_t h = max64(top - 1, 0); h <= bottom; h++) {
        float *grad = ring + h % 3 * row_size;
        const float *gy = c->y + (image * c->height + h) * c->width * outputs;
        for (int64_t from = 0; h < c->height && from < c->width; from += tile_width(c)) {
            Window v = window_of_x(c, image, h, from);
            for (int64_t d = 0; d < outputs; d += LANES)
                gradient(c, &v, gy, d, count_of(outputs, d), grad);
            for (int64_t d = 0; h >= top && h < bottom && d < c->channels; d += LANES)
                add_to_taps(&v, grad, d, count_of(c->channels, d), taps);
        }
        int64_t done = h - 1;                       /* the row whose neighbours' gradients are all computed */
        for (int64_t from = 0; done >= top && from < c->width; from += tile_width(c)) {
            Window v = window_of_x(c, image, done, from);
            for (int r = 0; r < 3; r++)
                if (v.row[r]) v.row[r] = ring + (done + r - 1) % 3 * row_size;
            float *out = gx + ((image * c->height + done) * c->width + from) * c->channels;
            for (int64_t d = 0; d < c->channels; d += LANES)
                convolve(&v, d, count_of(c->channels, d), c->weight, 1, out + d, c->channels);
        }
    }
}

int depthwise_backward(const Depthwise *c, const Grad *g) {
    int failed = 0;
    int64_t strips = c->batch * strips_per_image(c);
#pragma omp parallel for num_threads(c->threads) schedule(static, 1) reduction(| : failed)
    for (int64_t thread = 0; thread < c->threads; thread++) {
        float *ring = reserve(3 * c->width * c->channels * sizeof(float));
        failed |= ring == NULL;
        /* Fixed shares, so that the same call gives the same bits. */
        for (int64_t i = thread * strips / c->threads; !failed && i < (thread + 1) * strips / c->threads; i++) {
            int64_t top = i % strips_per_image(c) * STRIP;
            backward_strip(c, g->x, i / strips_per_image(c), top, min64(top + STRIP, c->height), ring,
                           g->weight + thread * 9 * c->channels);
        }
        free(ring);
    }
    return failed;
}
