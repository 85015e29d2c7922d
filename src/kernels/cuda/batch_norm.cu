// Batch normalisation with the residual add and the ReLU that follow it.
//
//     y[n][c][p] = (x[n][c][p] - mean[c]) * inverse[c] * weight[c] + bias[c], plus residual[n][c][p], then ReLU
//     inverse[c] = 1 / sqrt(variance[c] + epsilon)
//
// In training, mean[c] and variance[c] are computed from x over n and p; otherwise they are running averages. With g the
// gradient of y where the ReLU passes it, N the elements of a channel, and the sums over n and p:
//
//     dbias[c]   = sum of g
//     dweight[c] = sum of g * (x - mean[c]) * inverse[c]
//     dx         = weight[c] * inverse[c] * (g - dbias[c] / N - (x - mean[c]) * inverse[c] * dweight[c] / N)
//     dresidual  = g
//
// The two quotients by N are absent with running averages. Shapes: x, y (batch, channels, plane), with
// fewer than 2^31 elements in a channel; gridDim.y is the number of channels.
//
// A channel of up to 16 elements per thread of one block of up to 512 is held in registers and takes one launch per pass
// (`batch_norm_train`, `batch_norm_back`). A larger one is cut into slices, one per block: one launch computes the sums of
// each slice. In a second one each block adds the sums of its channel and computes the result. VECTOR elements, 1 or 4, are
// loaded at once.

// check: VECTOR=1
// check: VECTOR=4

#define HELD (16 / VECTOR)
#if VECTOR == 4
typedef real4 vector;
#else
typedef real vector;
#endif

// The mean of a channel rounded to an element, its rounding error, and the inverse of the deviation.
struct Statistics {
    real centre, error, inverse;
};

// The elements from `from` to `to` of a channel that this thread holds: vector number i is element at(i), if that is
// below `to`.
struct Slice {
    unsigned channel, plane, from, to;
    __device__ __forceinline__ unsigned at(int i) const { return from + (i * blockDim.x + threadIdx.x) * VECTOR; }
    __device__ __forceinline__ long long offset(int i) const {
        const unsigned example = at(i) / plane;
        return ((long long)example * gridDim.y + channel) * plane + (at(i) - example * plane);
    }
    __device__ __forceinline__ bool has(int i) const { return at(i) < to; }
};

static __device__ __forceinline__ Slice slice_of(int batch, int plane) {
    Slice slice;
    const unsigned size = blockDim.x * 16, all = batch * plane;
    slice.channel = blockIdx.y, slice.plane = plane;
    slice.from = blockIdx.x * size;
    slice.to = slice.from + size < all ? slice.from + size : all;
    return slice;
}

static __device__ __forceinline__ real* elements(vector& v) { return (real*)&v; }

static __device__ __forceinline__ double warp_sum_double(double x) {
    for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(ALL, x, lane);
    return x;
}

// Mean and sum of squared differences from it of the held elements: a first sum estimates the mean, and sums of the
// differences from the estimate correct it (Chan, Golub and LeVeque 1983).
static __device__ __forceinline__ void moments_of(const Slice& slice, vector (&held)[HELD], double& mean, double& squares) {
    real sum = 0;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (slice.has(i))
#pragma unroll
            for (int k = 0; k < VECTOR; k++) sum += elements(held[i])[k];
    const real count = (real)(slice.to - slice.from);
    const real centre = block_sum(sum) / count;
    real sums[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (slice.has(i))
#pragma unroll
            for (int k = 0; k < VECTOR; k++) {
                const real d = elements(held[i])[k] - centre;
                sums[0] += d, sums[1] += d * d;
            }
    block_sums(sums);
    const double error = (double)sums[0] / count;
    mean = centre + error;
    squares = sums[1] - error * sums[0];
}

static __device__ __forceinline__ Statistics statistics_of(double mean, double variance, double epsilon) {
    Statistics s;
    s.centre = (real)mean;
    s.error = (real)(mean - s.centre);
    s.inverse = (real)(1 / sqrt(variance + epsilon));
    return s;
}

// Writes the statistics of a channel of N elements: `saved` (2, channels) for the backward pass, `mean` and `variance`, and the
// running averages, which move by `momentum`, if there are any. One thread does so.
static __device__ __forceinline__ void write_statistics(int channel, double mean, double variance, double count, double* saved, real* of_batch, real* running_mean, real* running_variance, real momentum) {
    saved[channel] = mean, saved[gridDim.y + channel] = variance;
    of_batch[channel] = (real)mean, of_batch[gridDim.y + channel] = (real)variance;
    if (running_mean == 0) return;
    const real keep = (real)1 - momentum;
    running_mean[channel] = running_mean[channel] * keep + (real)mean * momentum;
    running_variance[channel] = running_variance[channel] * keep + (real)variance * (momentum * (real)(count / (count - 1)));
}

static __device__ __forceinline__ void load(const Slice& slice, const real* from, vector (&held)[HELD]) {
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (slice.has(i)) held[i] = *(const vector*)(from + slice.offset(i));
}

static __device__ __forceinline__ void normalise(const Slice& slice, vector (&held)[HELD], const Statistics& s, real weight, real bias, const real* residual, real* ys, int relu) {
    const real scale = weight * s.inverse, shift = bias - s.error * scale;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (slice.has(i)) {
            const long long offset = slice.offset(i);
            vector y = held[i];
#pragma unroll
            for (int k = 0; k < VECTOR; k++) elements(y)[k] = (elements(y)[k] - s.centre) * scale + shift;
            if (residual != 0) {
                vector r = *(const vector*)(residual + offset);
#pragma unroll
                for (int k = 0; k < VECTOR; k++) elements(y)[k] += elements(r)[k];
            }
            if (relu)
#pragma unroll
                for (int k = 0; k < VECTOR; k++) elements(y)[k] = relu_real(elements(y)[k]);
            *(vector*)(ys + offset) = y;
        }
}

// Forward in training: a block has a whole channel.
extern "C" __global__ void __launch_bounds__(512, 1) batch_norm_train(const real* __restrict__ xs, const real* __restrict__ weight, const real* __restrict__ bias, const real* __restrict__ residual, real* __restrict__ ys, double* saved, real* of_batch, real* running_mean, real* running_variance, double epsilon, double momentum, int batch, int plane, int relu) {
    const Slice slice = slice_of(batch, plane);
    vector held[HELD];
    load(slice, xs, held);
    double mean, squares;
    moments_of(slice, held, mean, squares);
    const double count = (double)batch * plane;
    if (threadIdx.x == 0)
        write_statistics(slice.channel, mean, squares / count, count, saved, of_batch, running_mean, running_variance, (real)momentum);
    const Statistics s = statistics_of(mean, squares / count, epsilon);
    normalise(slice, held, s, weight[slice.channel], bias[slice.channel], residual, ys, relu);
}

// Forward in training, first launch: moments (channels, gridDim.x, 2), mean and sum of squared differences of each slice.
extern "C" __global__ void __launch_bounds__(512, 1) batch_norm_moments(const real* __restrict__ xs, double* __restrict__ moments, int batch, int plane) {
    const Slice slice = slice_of(batch, plane);
    vector held[HELD];
    load(slice, xs, held);
    double mean, squares;
    moments_of(slice, held, mean, squares);
    if (threadIdx.x > 0) return;
    double* to = moments + ((long long)slice.channel * gridDim.x + blockIdx.x) * 2;
    to[0] = mean, to[1] = squares;
}

// Adds the moments of the slices of a channel, with the first warp; all threads of the block get the mean and the variance.
static __device__ __forceinline__ void add_moments(const double* moments, int batch, int plane, double& mean, double& variance) {
    __shared__ double shared[2];
    const double all = (double)batch * plane, size = (double)blockDim.x * 16;
    if (threadIdx.x < 32) {
        const double* from = moments + (long long)blockIdx.y * gridDim.x * 2;
        double sum = 0, squares = 0;
        for (int i = threadIdx.x; i < gridDim.x; i += 32)
            sum += from[2 * i] * (i + 1 < gridDim.x ? size : all - size * i);
        const double centre = warp_sum_double(sum) / all;
        for (int i = threadIdx.x; i < gridDim.x; i += 32) {
            const double d = from[2 * i] - centre;
            squares += from[2 * i + 1] + d * d * (i + 1 < gridDim.x ? size : all - size * i);
        }
        squares = warp_sum_double(squares);
        if (threadIdx.x == 0) shared[0] = centre, shared[1] = squares / all;
    }
    __syncthreads();
    mean = shared[0], variance = shared[1];
}

// Forward in training, second launch.
extern "C" __global__ void __launch_bounds__(512, 1) batch_norm_apply(const real* __restrict__ xs, const real* __restrict__ weight, const real* __restrict__ bias, const real* __restrict__ residual, real* __restrict__ ys, const double* __restrict__ moments, double* saved, real* of_batch, real* running_mean, real* running_variance, double epsilon, double momentum, int batch, int plane, int relu) {
    const Slice slice = slice_of(batch, plane);
    vector held[HELD];
    load(slice, xs, held);
    double mean, variance;
    add_moments(moments, batch, plane, mean, variance);
    if (blockIdx.x == 0 && threadIdx.x == 0)
        write_statistics(slice.channel, mean, variance, (double)batch * plane, saved, of_batch, running_mean, running_variance, (real)momentum);
    const Statistics s = statistics_of(mean, variance, epsilon);
    normalise(slice, held, s, weight[slice.channel], bias[slice.channel], residual, ys, relu);
}

// Forward with running averages, which go to `saved` for the backward pass.
extern "C" __global__ void __launch_bounds__(512, 1) batch_norm_evaluate(const real* __restrict__ xs, const real* __restrict__ weight, const real* __restrict__ bias, const real* __restrict__ residual, real* __restrict__ ys, const real* __restrict__ mean, const real* __restrict__ variance, double* saved, double epsilon, int batch, int plane, int relu) {
    const Slice slice = slice_of(batch, plane);
    if (blockIdx.x == 0 && threadIdx.x == 0)
        saved[slice.channel] = mean[slice.channel], saved[gridDim.y + slice.channel] = variance[slice.channel];
    vector held[HELD];
    load(slice, xs, held);
    const Statistics s = statistics_of(mean[slice.channel], variance[slice.channel], epsilon);
    normalise(slice, held, s, weight[slice.channel], bias[slice.channel], residual, ys, relu);
}

// The gradient where the ReLU has passed it, and the input minus its mean.
static __device__ __forceinline__ void load_gradients(const Slice& slice, const real* xs, const real* ys, const real* dy, real centre, vector (&g)[HELD], vector (&x)[HELD], int relu) {
    load(slice, dy, g);
    load(slice, xs, x);
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (slice.has(i)) {
            if (relu) {
                vector y = *(const vector*)(ys + slice.offset(i));
#pragma unroll
                for (int k = 0; k < VECTOR; k++)
                    if (elements(y)[k] <= (real)0) elements(g[i])[k] = 0;
            }
#pragma unroll
            for (int k = 0; k < VECTOR; k++) elements(x[i])[k] -= centre;
        }
}

// The sums of g and of its products with the centred input, over the block.
static __device__ __forceinline__ void sum_gradients(const Slice& slice, vector (&g)[HELD], vector (&x)[HELD], real (&sums)[2]) {
    sums[0] = sums[1] = 0;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (slice.has(i))
#pragma unroll
            for (int k = 0; k < VECTOR; k++) sums[0] += elements(g[i])[k], sums[1] += elements(g[i])[k] * elements(x[i])[k];
    block_sums(sums);
}

// Writes the gradients of the input and, if there is one, of the residual. One thread of the first slice writes the
// gradients of the weight and the bias. `sum` and `product` are the sums of the whole channel, not yet corrected for the
// rounding of the mean.
static __device__ __forceinline__ void write_gradients(const Slice& slice, vector (&g)[HELD], vector (&x)[HELD], const Statistics& s, double sum, double product, const real* weight, real* dx, real* dresidual, real* dweight, real* dbias, int batch, int plane, int of_batch) {
    product -= s.error * sum;
    if (blockIdx.x == 0 && threadIdx.x == 0) dweight[slice.channel] = (real)(product * s.inverse), dbias[slice.channel] = (real)sum;
    real level = 0, slope = 0;
    if (of_batch) {
        const double count = (double)batch * plane, steep = product * s.inverse * s.inverse / count;
        level = (real)(sum / count - s.error * steep), slope = (real)steep;
    }
    const real scale = weight[slice.channel] * s.inverse;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (slice.has(i)) {
            const long long offset = slice.offset(i);
            if (dresidual != 0) *(vector*)(dresidual + offset) = g[i];
            vector d = g[i];
#pragma unroll
            for (int k = 0; k < VECTOR; k++) elements(d)[k] = scale * (elements(d)[k] - level - elements(x[i])[k] * slope);
            *(vector*)(dx + offset) = d;
        }
}

// Backward: a block has a whole channel. `saved` (2, channels) holds the mean and the variance.
extern "C" __global__ void __launch_bounds__(512, 1) batch_norm_back(const real* __restrict__ xs, const real* __restrict__ ys, const real* __restrict__ dy, const real* __restrict__ weight, const double* __restrict__ saved, real* __restrict__ dx, real* __restrict__ dresidual, real* __restrict__ dweight, real* __restrict__ dbias, double epsilon, int batch, int plane, int relu, int of_batch) {
    const Slice slice = slice_of(batch, plane);
    const Statistics s = statistics_of(saved[slice.channel], saved[gridDim.y + slice.channel], epsilon);
    vector g[HELD], x[HELD];
    load_gradients(slice, xs, ys, dy, s.centre, g, x, relu);
    real sums[2];
    sum_gradients(slice, g, x, sums);
    write_gradients(slice, g, x, s, sums[0], sums[1], weight, dx, dresidual, dweight, dbias, batch, plane, of_batch);
}

// Backward, first launch: sums (channels, gridDim.x, 2), both sums of each slice.
extern "C" __global__ void __launch_bounds__(512, 1) batch_norm_back_sums(const real* __restrict__ xs, const real* __restrict__ ys, const real* __restrict__ dy, const double* __restrict__ saved, double* __restrict__ sums, int batch, int plane, int relu) {
    const Slice slice = slice_of(batch, plane);
    vector g[HELD], x[HELD];
    load_gradients(slice, xs, ys, dy, (real)saved[slice.channel], g, x, relu);
    real both[2];
    sum_gradients(slice, g, x, both);
    if (threadIdx.x > 0) return;
    double* to = sums + ((long long)slice.channel * gridDim.x + blockIdx.x) * 2;
    to[0] = both[0], to[1] = both[1];
}

// Backward, second launch.
extern "C" __global__ void __launch_bounds__(512, 1) batch_norm_back_apply(const real* __restrict__ xs, const real* __restrict__ ys, const real* __restrict__ dy, const real* __restrict__ weight, const double* __restrict__ saved, const double* __restrict__ sums, real* __restrict__ dx, real* __restrict__ dresidual, real* __restrict__ dweight, real* __restrict__ dbias, double epsilon, int batch, int plane, int relu, int of_batch) {
    __shared__ double shared[2];
    const Slice slice = slice_of(batch, plane);
    const Statistics s = statistics_of(saved[slice.channel], saved[gridDim.y + slice.channel], epsilon);
    vector g[HELD], x[HELD];
    load_gradients(slice, xs, ys, dy, s.centre, g, x, relu);
    if (threadIdx.x < 32) {
        const double* from = sums + (long long)slice.channel * gridDim.x * 2;
        double sum = 0, product = 0;
        for (int i = threadIdx.x; i < gridDim.x; i += 32) sum += from[2 * i], product += from[2 * i + 1];
        sum = warp_sum_double(sum), product = warp_sum_double(product);
        if (threadIdx.x == 0) shared[0] = sum, shared[1] = product;
    }
    __syncthreads();
    write_gradients(slice, g, x, s, shared[0], shared[1], weight, dx, dresidual, dweight, dbias, batch, plane, of_batch);
}
