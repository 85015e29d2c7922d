// Optimizer updates of all parameters in one launch, and the norm of all gradients.
//
//     for (parameter..) for (element i..) {
//         g = gradient[i] * scale, clipped to ±limit, then + l2 * p + l1 * sign(p);
//         parameter[i], moments[..][i] = rule(p, g, moments[..][i]);
//     }
//     norm = sqrt(sum over all gradients of gradient[i]²);
//
// The arithmetic is the CPU kernel's, operation by operation: given the same gradients and norm, parameters and moments equal
// the CPU's to the bit. RULE is the number of the rule, and MOMENTS its number of moments.
//
// The host describes a step in one buffer: a Step, its Parameters, and a Block for each block of threads, which tells what
// the block updates. A parameter with `columns` > 0 has a sparse update: a row whose gradient is all zero keeps its values.

#define THREADS 256
// Elements per block of a dense update.
#define ELEMENTS 1024
// The number that stands for no row.
#define NONE 0xffffffffu

#define SGD 0
#define MOMENTUM 1
#define NESTEROV 2
#define ADAM 3
#define RMS_PROP 4
#define RMS_PROP_MOMENTUM 5
#define ADAGRAD 6
#define ADADELTA 7

#ifndef RULE
#define RULE ADAM
#define MOMENTS 2
#endif

// Values that a training run keeps on the device, so that the host need not wait in each step.
struct Record {
    double loss_sum, norm_sum, largest_norm;
    double loss;                // of the last step
    double norm;                // of the last step
    double bad_loss, bad_norm;  // of the first step with one that was not finite
    double bad_step;            // its number, or 0
};

struct Step {
    Record* record;      // may be null
    const real* loss;    // if there is a record
    double* partials;    // one sum of squares per block
    double* norm;        // the norm of the gradients, then the factor that clips it
    double number;       // of the step, from 1
    double examples;     // the weight of its loss
    double max_norm;     // to which the gradients are scaled down, or infinity
    double limit;        // of a gradient's element, or infinity
    double rate, momentum, kept1, added1, kept2, added2, epsilon;
};

struct Parameter {
    real* values;
    const real* gradient;
    real* moments;         // one moment after the other, `len` elements each
    const unsigned* rows;  // the row of each row of a sparse update's gradient, or NONE; null if it has all rows
    long long len;         // elements of the parameter
    long long columns;     // of a sparse update, otherwise 0
    long long rows_given;  // rows of the gradient of a sparse update
    double l2, l1, step_size, root_scale, shrink;
};

struct Block {
    unsigned parameter, part;
};

// The factors of a rule, rounded to the parameters' type as on the CPU.
struct Rule {
    real scale, limit, l2, l1;
    real rate, momentum, kept1, added1, kept2, added2, epsilon, step_size, root_scale, shrink;
};

static __device__ Rule rule_of(const Step* step, const Parameter* parameter, double scale) {
    Rule rule;
    rule.scale = (real)scale, rule.limit = (real)step->limit;
    rule.l2 = (real)parameter->l2, rule.l1 = (real)parameter->l1;
    rule.rate = (real)step->rate, rule.momentum = (real)step->momentum;
    rule.kept1 = (real)step->kept1, rule.added1 = (real)step->added1;
    rule.kept2 = (real)step->kept2, rule.added2 = (real)step->added2;
    rule.epsilon = (real)step->epsilon, rule.step_size = (real)parameter->step_size;
    rule.root_scale = (real)parameter->root_scale, rule.shrink = (real)parameter->shrink;
    return rule;
}

// A product that no compiler fuses with a sum, as on the CPU.
static __device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
static __device__ __forceinline__ double times(double a, double b) { return __dmul_rn(a, b); }

static __device__ void update_element(const Rule& r, real& p, real g, real* m) {
    g = times(g, r.scale);
    g = g > r.limit ? r.limit : g;
    g = g < -r.limit ? -r.limit : g;
    real sign = (real)(p > 0) - (real)(p < 0);
    g = g + times(r.l2, p) + times(r.l1, sign);
#if RULE == SGD
    p = p - times(r.rate, g);
#elif RULE == MOMENTUM || RULE == NESTEROV
    m[0] = times(r.momentum, m[0]) + g;
    p = p - times(r.rate, RULE == NESTEROV ? g + times(r.momentum, m[0]) : m[0]);
#elif RULE == ADAM
    m[0] = times(r.kept1, m[0]) + times(r.added1, g);
    m[1] = times(r.kept2, m[1]) + times(r.added2, times(g, g));
    p = times(p, r.shrink) - times(r.step_size, m[0] / (times(sqrt_real(m[1]), r.root_scale) + r.epsilon));
#elif RULE == RMS_PROP
    m[0] = times(r.kept2, m[0]) + times(r.added2, times(g, g));
    p = p - times(r.rate, g / (sqrt_real(m[0]) + r.epsilon));
#elif RULE == RMS_PROP_MOMENTUM
    m[0] = times(r.kept2, m[0]) + times(r.added2, times(g, g));
    m[1] = times(r.momentum, m[1]) + g / (sqrt_real(m[0]) + r.epsilon);
    p = p - times(r.rate, m[1]);
#elif RULE == ADAGRAD
    m[0] = m[0] + times(g, g);
    p = p - times(r.rate, g / (sqrt_real(m[0]) + r.epsilon));
#elif RULE == ADADELTA
    m[0] = times(r.kept2, m[0]) + times(r.added2, times(g, g));
    real change = times(sqrt_real(m[1] + r.epsilon) / sqrt_real(m[0] + r.epsilon), g);
    m[1] = times(r.kept2, m[1]) + times(r.added2, times(change, change));
    p = p - times(r.rate, change);
#endif
}

// Updates the element `at`, given its gradient.
static __device__ void update_at(const Rule& rule, const Parameter& parameter, long long at, real g) {
    real m[MOMENTS + 1], p = parameter.values[at];
#pragma unroll
    for (int k = 0; k < MOMENTS; k++) m[k] = parameter.moments[k * parameter.len + at];
    update_element(rule, p, g, m);
    parameter.values[at] = p;
#pragma unroll
    for (int k = 0; k < MOMENTS; k++) parameter.moments[k * parameter.len + at] = m[k];
}

// The sum over the block, the same in all its threads.
static __device__ double sum_of_block(double x) {
    __shared__ double sums[THREADS];
    __syncthreads();
    sums[threadIdx.x] = x;
    __syncthreads();
    for (int step = THREADS / 2; step > 0; step /= 2) {
        if (threadIdx.x < step) sums[threadIdx.x] += sums[threadIdx.x + step];
        __syncthreads();
    }
    return sums[0];
}

static __device__ bool is_finite(double x) { return x - x == 0; }

// The number of blocks of this launch that have ended; launches run one after the other.
static __device__ unsigned done = 0;

// Adds up the blocks' sums of squares: the last block to end stores the norm, the factor that clips it, and the record.
static __device__ void finish_norm(const Step* step, double squares) {
    __shared__ bool last;
    squares = sum_of_block(squares);
    if (threadIdx.x == 0) {
        step->partials[blockIdx.x] = squares;
        __threadfence();
        last = atomicAdd(&done, 1u) == gridDim.x - 1;
        if (last) done = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    // Other blocks wrote most of these: a volatile read does not use this block's own cache.
    const volatile double* partials = step->partials;
    double sum = 0;
    for (int i = threadIdx.x; i < gridDim.x; i += THREADS) sum += partials[i];
    double norm = sqrt(sum_of_block(sum));
    if (threadIdx.x != 0) return;
    step->norm[0] = norm;
    // PyTorch adds 1e-6, too.
    step->norm[1] = norm + 1e-6 > step->max_norm ? step->max_norm / (norm + 1e-6) : 1.0;
    if (!step->record) return;
    Record record = *step->record;
    record.loss = *step->loss, record.norm = norm;
    record.loss_sum += record.loss * step->examples;
    record.norm_sum += norm;
    record.largest_norm = norm > record.largest_norm ? norm : record.largest_norm;
    if (record.bad_step == 0 && !(is_finite(record.loss) && is_finite(norm)))
        record.bad_step = step->number, record.bad_loss = record.loss, record.bad_norm = norm;
    *step->record = record;
}

// A block of a dense update: the elements from part * ELEMENTS on. With `squares` 1, returns the sum of the squares of this
// thread's gradients, and with `updates` 1 it applies the rule.
static __device__ double dense(const Rule& rule, const Parameter& parameter, unsigned part, int updates, int squares) {
    double sum = 0;
#pragma unroll
    for (int k = 0; k < ELEMENTS / THREADS; k++) {
        long long at = (long long)part * ELEMENTS + k * THREADS + threadIdx.x;
        if (at >= parameter.len) break;
        real g = parameter.gradient[at];
        if (squares) sum += (double)g * (double)g;
        if (updates) update_at(rule, parameter, at, g);
    }
    return sum;
}

// A block of a sparse update: a warp for one row of the gradient.
static __device__ double sparse(const Rule& rule, const Parameter& parameter, unsigned part, int updates, int squares) {
    long long i = (long long)part * (THREADS / 32) + threadIdx.x / 32;
    if (i >= parameter.rows_given) return 0;
    long long row = i;
    if (parameter.rows) {
        if (parameter.rows[i] == NONE) return 0;
        row = parameter.rows[i];
    }
    const real* gradient = parameter.gradient + i * parameter.columns;
    int lane = threadIdx.x % 32, any = 0;
    double sum = 0;
    for (long long k = lane; k < parameter.columns; k += 32) {
        real g = gradient[k];
        any |= g != 0;
        if (squares) sum += (double)g * (double)g;
    }
    for (int step = 16; step > 0; step /= 2) any |= __shfl_xor_sync(ALL, any, step);
    if (updates && any)
        for (long long k = lane; k < parameter.columns; k += 32)
            update_at(rule, parameter, row * parameter.columns + k, gradient[k]);
    return sum;
}

static __device__ double sweep(const Step* step, const Parameter* parameters, const Block* blocks, int updates, int squares) {
    Block block = blocks[blockIdx.x];
    Parameter parameter = parameters[block.parameter];
    double scale = updates && !squares ? step->norm[1] : 1;
    Rule rule = rule_of(step, &parameter, scale);
    return parameter.columns > 0 ? sparse(rule, parameter, block.part, updates, squares)
                                 : dense(rule, parameter, block.part, updates, squares);
}

// The norm of all gradients and the factor that clips it.
extern "C" __global__ void __launch_bounds__(THREADS) gradient_norm(const Step* step, const Parameter* parameters,
                                                                    const Block* blocks) {
    finish_norm(step, sweep(step, parameters, blocks, 0, 1));
}

// Updates with gradients scaled by the factor that `gradient_norm` found.
extern "C" __global__ void __launch_bounds__(THREADS) update_clipped(const Step* step, const Parameter* parameters,
                                                                     const Block* blocks) {
    sweep(step, parameters, blocks, 1, 0);
}

// Updates, and computes the norm of the gradients in the same pass.
extern "C" __global__ void __launch_bounds__(THREADS) update(const Step* step, const Parameter* parameters,
                                                             const Block* blocks) {
    finish_norm(step, sweep(step, parameters, blocks, 1, 1));
}

// Scales down each row of `columns` elements whose Euclidean norm exceeds `max`, to that norm; a NaN spreads over its row. A
// warp scales one row.
extern "C" __global__ void limit_row_norms(real* matrix, int rows, int columns, real max) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    real* x = matrix + (long long)row * columns;
    double sum = 0;
    for (int k = threadIdx.x % 32; k < columns; k += 32) sum += (double)x[k] * (double)x[k];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(ALL, sum, step);
    double norm = sqrt(sum);
    if (!(norm > max || norm != norm)) return;
    real scale = (real)(max / norm);
    for (int k = threadIdx.x % 32; k < columns; k += 32) x[k] *= scale;
}
