// Convolution over the words of sentences, which keeps only each filter's maximum over time.
//
//     for (sentence..) for (filter..)
//         ys[sentence][filter] = maximum over first = -padding .. length + padding - width of
//             bias[filter] + sum over offset < width, feature of weight[filter][feature][offset] * word(first + offset)[feature];
//
// A word before or after the sentence is zero. xs (rows, features) holds the words of packed sentences: word(step) is the row
// starts[step] + places[sentence]. ys, positions (batch, total); a position is the `first` of a maximum.
//
// Filters of the same width are a group; there are up to eight. A filter has a column for each of its words: first all
// filters' first words of a group, then their second words. `filters` (columns, features) holds the weights in this
// order, so that one matrix product gives the responses (rows, columns) of all filters' words to all rows. The maxima add up
// `width` of them per window. The backward pass reads only the windows with the maxima.

#define THREADS 128
// Columns of `filters` or features per thread.
#define COLUMNS 4
// Threads that share the windows of a sentence.
#define PARTS 8

// The groups as parameters of a kernel: 32 bits each, the number of filters in the upper 20 and the width in the lower 12.
#define GROUPS                                                                                                 \
    unsigned long long groups01, unsigned long long groups23, unsigned long long groups45, unsigned long long groups67
#define FIND(at, by_column) find_filter(at, by_column, {groups01, groups23, groups45, groups67})

struct Groups {
    unsigned long long pairs[4];
};

struct Filter {
    int count, width;  // of the group
    int index;         // in the group
    int filters;       // in the groups before
    int column;        // the first of the group
};

// The filter number `at`, or, with `by_column`, the filter of the column `at`; `index` is then the index of the column.
static __device__ __forceinline__ Filter find_filter(int at, bool by_column, Groups groups) {
    Filter found = {0, 0, 0, 0, 0};
    int filters = 0, column = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        unsigned group = (unsigned)(groups.pairs[i / 2] >> (32 * (i % 2)));
        int count = group >> 12, width = group & 4095, index = at - (by_column ? column : filters);
        if (index >= 0 && count > 0) found = {count, width, index, filters, column};
        filters += count, column += count * width;
    }
    return found;
}

// The features of one group: filters[offset * count + i][feature] = weight[i][feature][offset], and a copy of the biases. A
// thread copies one element.
extern "C" __global__ void arrange_filters(const real* weight, const real* bias, real* filters, real* biases, int count,
                                           int width, int features) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) biases[at] = bias[at];
    if (at >= width * count * features) return;
    int feature = at % features, i = at / features % count, offset = at / features / count;
    filters[at] = weight[((long long)i * features + feature) * width + offset];
}

// The maxima: the first of equal ones, or the last NaN. Block (32 filters, one sentence) of (32, PARTS) threads; each finds
// the maximum of its part of the windows.
extern "C" __global__ void maxima(const real* responses, const real* biases, const unsigned* starts, const unsigned* places,
                                  const unsigned* lengths, real* ys, int* positions, int total, int columns, int padding, GROUPS) {
    __shared__ real bests[PARTS][32];
    __shared__ int firsts[PARTS][32];
    int filter = blockIdx.x * 32 + threadIdx.x, part = threadIdx.y, sentence = blockIdx.y;
    int length = lengths[sentence], place = places[sentence];
    Filter f = FIND(filter, false);
    int windows = length + 2 * padding + 1 - f.width, per_part = (windows + PARTS - 1) / PARTS;
    int start = part * per_part, end = start + per_part < windows ? start + per_part : windows;
    real best = 0;
    int first = -padding - 1;
    if (filter < total) {
        const real* response = responses + f.column + f.index;
        real bias = biases[filter];
        for (int window = start; window < end; window++) {
            real sum = bias;
#pragma unroll 5
            for (int offset = 0; offset < f.width; offset++) {
                int step = window - padding + offset;
                if (step >= 0 && step < length)
                    sum += response[(long long)(starts[step] + place) * columns + offset * f.count];
            }
            if (window == start || sum > best || sum != sum) best = sum, first = window - padding;
        }
    }
    bests[part][threadIdx.x] = best, firsts[part][threadIdx.x] = first;
    __syncthreads();
    if (part != 0 || filter >= total) return;
    for (int i = 1; i < PARTS; i++) {
        real other = bests[i][threadIdx.x];
        bool exists = firsts[i][threadIdx.x] >= -padding;
        if (exists && (other > best || other != other)) best = other, first = firsts[i][threadIdx.x];
    }
    ys[(long long)sentence * total + filter] = best;
    positions[(long long)sentence * total + filter] = first;
}

// xs_grad[row][feature] = sum over the filters whose maximum's window contains the row, of grad times the weight of this word
// of the filter. `steps` gives the step of each row, and `sentences` its sentence. Block (row, part of the features).
extern "C" __global__ void __launch_bounds__(THREADS) words_gradient(
    const real* filters, const int* positions, const real* grad, const unsigned* sentences, const unsigned* steps,
    real* xs_grad, int features, int total, GROUPS) {
    __shared__ int used[THREADS];
    __shared__ real factors[THREADS];
    int row = blockIdx.x, first_feature = blockIdx.y * (THREADS * COLUMNS) + threadIdx.x, step = steps[row];
    long long sentence = (long long)sentences[row] * total;
    real sum[COLUMNS] = {};
    for (int start = 0; start < total; start += THREADS) {
        int filter = start + threadIdx.x, column = -1, count;
        real factor = 0;
        if (filter < total) {
            Filter f = FIND(filter, false);
            int offset = step - positions[sentence + filter];
            factor = grad[sentence + filter];
            if (offset >= 0 && offset < f.width && factor != 0) column = f.column + offset * f.count + f.index;
        }
        // Its barriers also keep the list until all threads have read it.
        int at = sum_before(column >= 0, &count);
        if (column >= 0) used[at] = column, factors[at] = factor;
        __syncthreads();
#pragma unroll 4
        for (int i = 0; i < count; i++) {
            const real* filter = filters + (long long)used[i] * features;
#pragma unroll
            for (int k = 0; k < COLUMNS; k++) {
                int feature = first_feature + k * THREADS;
                if (feature < features) sum[k] += factors[i] * filter[feature];
            }
        }
    }
#pragma unroll
    for (int k = 0; k < COLUMNS; k++) {
        int feature = first_feature + k * THREADS;
        if (feature < features) xs_grad[(long long)row * features + feature] = sum[k];
    }
}

// weight_grad[filter][feature][offset] = sum over the sentences of grad times the word at `offset` of the maximum's window;
// bias_grad[filter] = sum over the sentences of grad. Both hold the groups one after the other, and either may be null. Block
// (column, part of the features).
extern "C" __global__ void __launch_bounds__(THREADS) filters_gradient(
    const real* xs, const int* positions, const real* grad, const unsigned* starts, const unsigned* places,
    const unsigned* lengths, real* weight_grad, real* bias_grad, int batch, int features, int total,
    GROUPS) {
    __shared__ unsigned rows[THREADS];
    __shared__ real factors[THREADS];
    int first_feature = blockIdx.y * (THREADS * COLUMNS) + threadIdx.x;
    Filter f = FIND(blockIdx.x, true);
    int offset = f.index / f.count, index = f.index % f.count, filter = f.filters + index;
    real sum[COLUMNS] = {}, bias = 0;
    for (int start = 0; start < batch; start += THREADS) {
        int sentence = start + threadIdx.x, count;
        bool used = false;
        real factor = 0;
        unsigned row = 0;
        if (sentence < batch) {
            factor = grad[(long long)sentence * total + filter];
            int step = positions[(long long)sentence * total + filter] + offset;
            // A bias takes every gradient, a weight only the gradients of words within the sentence.
            used = step >= 0 && step < (int)lengths[sentence] && factor != 0;
            if (used) row = starts[step] + places[sentence];
        }
        int at = sum_before(used, &count);
        if (used) rows[at] = row, factors[at] = factor;
        __syncthreads();
#pragma unroll 4
        for (int i = 0; i < count; i++) {
            const real* word = xs + (long long)rows[i] * features;
#pragma unroll
            for (int k = 0; k < COLUMNS; k++) {
                int feature = first_feature + k * THREADS;
                if (feature < features) sum[k] += factors[i] * word[feature];
            }
        }
    }
    if (bias_grad && offset == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
        for (int sentence = 0; sentence < batch; sentence++) bias += grad[(long long)sentence * total + filter];
        bias_grad[filter] = bias;
    }
    if (!weight_grad) return;
    real* to = weight_grad + (long long)f.column * features + (long long)index * features * f.width + offset;
#pragma unroll
    for (int k = 0; k < COLUMNS; k++) {
        int feature = first_feature + k * THREADS;
        if (feature < features) to[(long long)feature * f.width] = sum[k];
    }
}
