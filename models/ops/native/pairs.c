/* Element-wise operations on two tensors (rows, channels), forward and backward in one pass each:
 *
 *     kl         p (log p - log q), p = sigmoid(a), q = sigmoid(b)
 *     silu_gate  SiLU(b) a
 */
#include "kernels.h"

typedef struct { float *data; int64_t step; } Rows; /* floats from one row to the next */

typedef struct {
    Rows a, b, grad;                                /* grad: dL/dy, only in the backward pass */
    Rows y, grad_a, grad_b;                         /* written: y forward, the gradients backward */
    int64_t rows, channels;
    int32_t threads;
} Pair;

typedef struct { vec a, b; } Two;

INLINE vec kl(vec a, vec b) {                       /* log sigmoid(x) = -softplus(-x) */
    vec of_a = exp_minus_abs(a), of_b = exp_minus_abs(b);
    return sigmoid_of(a, of_a) * (softplus_of(-b, of_b) - softplus_of(-a, of_a));
}

INLINE Two kl_gradients(vec a, vec b, vec grad) {
    vec of_a = exp_minus_abs(a), of_b = exp_minus_abs(b), p = sigmoid_of(a, of_a);
    vec y = p * (softplus_of(-b, of_b) - softplus_of(-a, of_a));
    return (Two){grad * sigmoid_of(-a, of_a) * (y + p), -grad * p * sigmoid_of(-b, of_b)};
}

INLINE vec silu_gate(vec a, vec b) { return b * sigmoid(b) * a; }

INLINE Two silu_gate_gradients(vec a, vec b, vec grad) {
    vec s = sigmoid(b);
    return (Two){grad * b * s, grad * a * s * (1.0f + b * (1.0f - s))};
}

INLINE vec load_row(const Rows *r, int64_t row, int64_t c, int count) {
    return load(r->data + row * r->step + c, count);
}
INLINE void store_row(const Rows *r, int64_t row, int64_t c, int count, vec v) {
    store(r->data + row * r->step + c, v, count);
}

#define OPERATION(name)                                                                                                \
    void name##_forward(const Pair *p) {                                                                               \
        _Pragma("omp parallel for num_threads(p->threads) schedule(static)")                                           \
        for (int64_t row = 0; row < p->rows; row++)                                                                    \
            for (int64_t c = 0; c < p->channels; c += LANES) {                                                         \
                int count = count_of(p->channels, c);                                                                  \
                store_row(&p->y, row, c, count, name(load_row(&p->a, row, c, count), load_row(&p->b, row, c, count))); \
            }                                                                                                          \
    }                                                                                                                  \
    void name##_backward(const Pair *p) {                                                                              \
        _Pragma("omp parallel for num_threads(p->threads) schedule(static)")                                           \
        for (int64_t row = 0; row < p->rows; row++)                                                                    \
            for (int64_t c = 0; c < p->channels; c += LANES) {                                                         \
                int count = count_of(p->channels, c);                                                                  \
                vec a = load_row(&p->a, row, c, count), b = load_row(&p->b, row, c, count);                            \
                Two g = name##_gradients(a, b, load_row(&p->grad, row, c, count));                                     \
                store_row(&p->grad_a, row, c, count, g.a), store_row(&p->grad_b, row, c, count, g.b);                  \
            }                                                                                                          \
    }

OPERATION(kl)
OPERATION(silu_gate)
