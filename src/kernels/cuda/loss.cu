// Classification losses, the mean over the batch, each with its gradient in the same launch.
//
//     for (row = 0; row < batch; row++) {
//         losses[row] = loss of logits[row][..] for the class targets[row];
//         grad[row][..] = its derivative / batch;
//     }
//     loss = sum of losses / batch;
//
// logits, grad (batch, classes); targets, losses (batch); loss (1). `grad` may be null. A target that is not a class makes its
// loss and its gradient NaN.
//
// A team of TEAM threads, a warp or the whole block, computes one row. The last block to end adds up the losses, in the order
// of the rows.

#ifndef TEAM
#define TEAM 32
#endif
#define THREADS 256
#define TEAMS (THREADS / TEAM)

// The row of this thread's team, and the thread's index in the team.
#define ROW (blockIdx.x * TEAMS + threadIdx.x / TEAM)
#define LANE (threadIdx.x % TEAM)

#if TEAM == 32
#define team_sum warp_sum
#define team_max warp_max
#else
#define team_sum block_sum
#define team_max block_max
#endif

// The number of blocks of this launch that have ended; launches run one after the other.
static __device__ unsigned done = 0;

// Stores the loss of a row; the last block stores the mean of all.
static __device__ void finish(real row_loss, real* losses, real* loss, int batch) {
    __shared__ bool last;
    __shared__ double sums[THREADS];
    if (ROW < batch && LANE == 0) losses[ROW] = row_loss;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(&done, 1u) == gridDim.x - 1;
        if (last) done = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    // Other blocks wrote most of these: a volatile read does not use this block's own cache.
    const volatile real* all = losses;
    double sum = 0;
    for (int row = threadIdx.x; row < batch; row += THREADS) sum += all[row];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int step = THREADS / 2; step > 0; step /= 2) {
        if (threadIdx.x < step) sums[threadIdx.x] += sums[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x == 0) *loss = (real)(sums[0] / batch);
}

// loss = ln(sum of exp(x)) - at_target * x[target] - everywhere * (sum of x): the two factors are the parts of the target
// distribution on the target and on every class. x is the logit, plus the bias of its class unless `bias` (classes) is null.
// `grad` may overwrite the logits.
extern "C" __global__ void __launch_bounds__(THREADS) softmax_cross_entropy(
    const real* logits, const unsigned* targets, real* grad, real* losses, real* loss, int batch,
    int classes, real at_target, real everywhere, const real* bias) {
    real row_loss = 0;
    if (ROW < batch) {
        long long start = (long long)ROW * classes;
        auto x = [=](int i) { return bias ? logits[start + i] + bias[i] : logits[start + i]; };
        unsigned target = targets[ROW];
        bool valid = target < classes;
        real largest = -infinity();
        for (int i = LANE; i < classes; i += TEAM) {
            real xi = x(i);
            largest = xi > largest ? xi : largest;
        }
        largest = team_max(largest);
        // All threads of the team read this before one of them writes a gradient in its place.
        real expected = valid ? at_target * (x(target) - largest) : not_a_number();
        __syncwarp();
        real sum = 0, shifted = 0;
        for (int i = LANE; i < classes; i += TEAM) {
            real d = x(i) - largest;
            sum += exp_real(d);
            shifted += d;
        }
        sum = team_sum(sum);
        shifted = team_sum(shifted);
        // Without smoothing, a logit of minus infinity must not turn 0 * x into NaN.
        if (everywhere > 0) expected += everywhere * shifted;
        row_loss = log_real(sum) - expected;
        if (grad) {
            real inverse = 1 / sum, share = (real)1 / (real)batch;
            for (int i = LANE; i < classes; i += TEAM) {
                real g = exp_real(x(i) - largest) * inverse - everywhere;
                if (i == target) g -= at_target;
                grad[start + i] = valid ? g * share : not_a_number();
            }
        }
    }
    finish(row_loss, losses, loss, batch);
}

// ln(1 + exp(x)), accurate for any x.
static __device__ real softplus(real x) {
    return (x > 0 ? x : 0) + log1p_real(exp_real(x > 0 ? -x : x));
}

// loss = factor * sum over the classes of Term::loss(x, whether it is the target); Term::slope is the derivative of a class's share.
template <class Term>
static __device__ void sum_over_classes(const real* logits, const unsigned* targets, real* grad, real* losses, real* loss,
                                        int batch, int classes, real factor) {
    real row_loss = 0;
    if (ROW < batch) {
        long long start = (long long)ROW * classes;
        unsigned target = targets[ROW];
        bool valid = target < classes;
        real share = (real)1 / (real)batch;
        for (int i = LANE; i < classes; i += TEAM) {
            real x = logits[start + i];
            row_loss += Term::loss(x, i == target);
            if (grad) grad[start + i] = valid ? Term::slope(x, i == target) * share : not_a_number();
        }
        row_loss = factor * team_sum(valid ? row_loss : not_a_number());
    }
    finish(row_loss, losses, loss, batch);
}

struct CrossEntropyTerm {
    static __device__ real loss(real x, bool is_target) { return softplus(is_target ? -x : x); }
    static __device__ real slope(real x, bool is_target) { return is_target ? -sigmoid(-x) : sigmoid(x); }
};

// loss = softplus(-x[target]) + sum over the other classes of softplus(x)
extern "C" __global__ void __launch_bounds__(THREADS) sigmoid_cross_entropy(
    const real* logits, const unsigned* targets, real* grad, real* losses, real* loss, int batch,
    int classes) {
    sum_over_classes<CrossEntropyTerm>(logits, targets, grad, losses, loss, batch, classes, 1);
}

struct QuadraticTerm {
    static __device__ real error(real y, bool is_target) { return is_target ? y - 1 : y; }
    static __device__ real loss(real x, bool is_target) {
        real e = error(sigmoid(x), is_target);
        return e * e;
    }
    // The derivative of `loss` / 2.
    static __device__ real slope(real x, bool is_target) {
        real y = sigmoid(x);
        return error(y, is_target) * y * (1 - y);
    }
};

// loss = (sum of (y - t)²) / 2 with y = sigmoid(x) and t = 1 for the target, 0 for the other classes
extern "C" __global__ void __launch_bounds__(THREADS) quadratic(
    const real* logits, const unsigned* targets, real* grad, real* losses, real* loss, int batch,
    int classes) {
    sum_over_classes<QuadraticTerm>(logits, targets, grad, losses, loss, batch, classes, (real)0.5);
}

// out[i] = grad[i] * *factor: the gradient of the logits, given the gradient of the loss. A thread computes one element.
extern "C" __global__ void scale_gradient(const real* grad, const real* factor, real* out, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = grad[i] * *factor;
}
