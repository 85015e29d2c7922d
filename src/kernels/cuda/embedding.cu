// Rows of a table (table_rows, size) by index: lookup, means over sequences, and the gradient of the table.

// The number that stands for no row.
#define NONE 0xffffffffu

// found[i] = table[ids[i]] for i < count; zeros if the id is NONE, NaN if there is no such row. A warp copies one row.
extern "C" __global__ void lookup(const real* table, const unsigned* ids, real* found, int count, int size,
                                  unsigned table_rows) {
    int i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (i >= count) return;
    unsigned id = ids[i];
    const real* row = table + (long long)id * size;
    real* to = found + (long long)i * size;
    real missing = id == NONE ? 0 : not_a_number();
    for (int k = threadIdx.x % 32; k < size; k += 32) to[k] = id < table_rows ? row[k] : missing;
}

// means[sequence] = sum over step < lengths[sequence] of table[ids[starts[step] + places[sequence]]], divided by the length.
// NaN if there is no such row. Block (sequence, part of the columns); a thread computes one element.
extern "C" __global__ void means(const real* table, const unsigned* ids, const unsigned* starts, const unsigned* places,
                                 const unsigned* lengths, real* means, int size, unsigned table_rows) {
    int sequence = blockIdx.x, column = blockIdx.y * blockDim.x + threadIdx.x, length = lengths[sequence];
    if (column >= size) return;
    const unsigned* id = ids + places[sequence];
    real sum = 0;
#pragma unroll 4
    for (int step = 0; step < length; step++) {
        unsigned row = id[starts[step]];
        sum += row < table_rows ? table[(long long)row * size + column] : not_a_number();
    }
    means[(long long)sequence * size + column] = sum * ((real)1 / (real)length);
}

// The gradient of the rows in use, in the order of their first use:
//
//     for (place = 0; place < count; place++)
//         if (ids[place] is a row, and not among ids[..place])
//             rows[place] = ids[place], values[place] = sum over i with ids[i] == ids[place] of factor(i) * grad[vector(i)];
//         else
//             rows[place] = NONE;
//
// For a lookup, vector(i) = i and factor(i) = 1. For means, `sequences` (count) gives the sequence of each place:
// vector(i) = sequences[i] and factor(i) = 1 / lengths[sequences[i]]. With `rows` null, `values` is the whole table's gradient
// (table_rows, size), zero on entry, and values[ids[place]] takes the sum.
//
// Block (place, part of the columns) of THREADS threads, each with COLUMNS columns. The block finds the uses of its row among
// IDS ids at a time, lists them in order, and adds their vectors.

#define THREADS 128
#define COLUMNS 4
#define PER_THREAD 8
#define IDS (THREADS * PER_THREAD)

extern "C" __global__ void __launch_bounds__(THREADS) row_gradients(
    const unsigned* ids, const real* grad, const unsigned* sequences, const unsigned* lengths, unsigned* rows, real* values,
    int count, int size, unsigned table_rows) {
    __shared__ int uses[IDS];
    int place = blockIdx.x, first_column = blockIdx.y * (THREADS * COLUMNS) + threadIdx.x;
    unsigned id = ids[place];
    int earlier = 0, total;
    for (int i = threadIdx.x; i < place; i += THREADS) earlier |= ids[i] == id;
    sum_before(earlier, &total);
    bool first = id < table_rows && total == 0;
    if (rows && blockIdx.y == 0 && threadIdx.x == 0) rows[place] = first ? id : NONE;
    if (!first) return;
    real sum[COLUMNS] = {};
    for (int start = place; start < count; start += IDS) {
        unsigned found = 0;
        int at = start + threadIdx.x * PER_THREAD, own = 0;
        for (int k = 0; k < PER_THREAD; k++) {
            bool use = at + k < count && ids[at + k] == id;
            found |= (unsigned)use << k, own += use;
        }
        // Its barriers also keep the list until all threads have read it.
        int next = sum_before(own, &total);
        for (int k = 0; k < PER_THREAD; k++)
            if (found >> k & 1) uses[next++] = at + k;
        __syncthreads();
#pragma unroll 4
        for (int i = 0; i < total; i++) {
            int use = uses[i], vector = sequences ? (int)sequences[use] : use;
            real factor = sequences ? (real)1 / (real)lengths[vector] : (real)1;
            const real* g = grad + (long long)vector * size;
#pragma unroll
            for (int k = 0; k < COLUMNS; k++) {
                int column = first_column + k * THREADS;
                if (column < size) sum[k] += factor * g[column];
            }
        }
    }
    real* to = values + (long long)(rows ? (unsigned)place : id) * size;
#pragma unroll
    for (int k = 0; k < COLUMNS; k++) {
        int column = first_column + k * THREADS;
        if (column < size) to[column] = sum[k];
    }
}
