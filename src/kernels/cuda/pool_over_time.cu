// Reductions of the elements of each sequence to one: their mean, or the maximum of each feature.
//
//     for (sequence..) for (feature..)
//         ys[sequence][feature] = mean or maximum over step < lengths[sequence] of xs[row(sequence, step)][feature];
//
// xs (rows, features) holds the elements of packed sequences: row(sequence, step) = starts[step] + places[sequence].
// ys (batch, features). A thread computes one element; neighbours in a warp read neighbouring features.

#define INDEX ((long long)blockIdx.x * blockDim.x + threadIdx.x)

extern "C" __global__ void mean_over_time(const real* xs, const unsigned* starts, const unsigned* places,
                                          const unsigned* lengths, real* ys, int batch, int features) {
    if (INDEX >= (long long)batch * features) return;
    int sequence = INDEX / features, feature = INDEX % features, length = lengths[sequence];
    const real* x = xs + (long long)places[sequence] * features + feature;
    real sum = 0;
#pragma unroll 8
    for (int step = 0; step < length; step++) sum += x[(long long)starts[step] * features];
    ys[INDEX] = sum / (real)length;
}

// xs_grad[row] = grad[sequence] / lengths[sequence] for the sequence of the row
extern "C" __global__ void mean_over_time_gradient(const real* grad, const unsigned* sequences, const unsigned* lengths,
                                                   real* xs_grad, int rows, int features) {
    if (INDEX >= (long long)rows * features) return;
    int sequence = sequences[INDEX / features], feature = INDEX % features;
    xs_grad[INDEX] = grad[(long long)sequence * features + feature] / (real)lengths[sequence];
}

// Also stores the step of each maximum: the first of equal ones, or the last NaN.
extern "C" __global__ void max_over_time(const real* xs, const unsigned* starts, const unsigned* places,
                                         const unsigned* lengths, real* ys, unsigned* rows, int batch, int features) {
    if (INDEX >= (long long)batch * features) return;
    int sequence = INDEX / features, feature = INDEX % features, length = lengths[sequence];
    const real* x = xs + feature;
    unsigned row = places[sequence];
    real best = x[(long long)row * features];
#pragma unroll 8
    for (int step = 1; step < length; step++) {
        unsigned other = starts[step] + places[sequence];
        real y = x[(long long)other * features];
        if (y > best || y != y) best = y, row = other;
    }
    ys[INDEX] = best, rows[INDEX] = row;
}

// xs_grad[row] = grad[sequence] where the maximum of the row's sequence is in this row, and 0 elsewhere
extern "C" __global__ void max_over_time_gradient(const real* grad, const unsigned* sequences, const unsigned* maxima,
                                                  real* xs_grad, int rows, int features) {
    if (INDEX >= (long long)rows * features) return;
    unsigned row = INDEX / features;
    long long at = (long long)sequences[row] * features + INDEX % features;
    xs_grad[INDEX] = maxima[at] == row ? grad[at] : (real)0;
}
