// Gradients that several processes sum: packed into a bucket, and added part by part.

// Copies `parts` arrays, multiplied by a factor, to their places in a bucket:
//
//     bucket[start + i] = from[i] * factor, or 0 if `from` is null
//
// The table holds the address, the start and the length of each array. The blocks (.., y) copy array y.
extern "C" __global__ void pack(const unsigned long long* __restrict__ table, real* __restrict__ bucket, real factor) {
    const unsigned long long* part = table + 3 * blockIdx.y;
    const real* from = (const real*)part[0];
    real* to = bucket + part[1];
    const long long length = part[2], step = (long long)gridDim.x * blockDim.x;
    for (long long i = grid_index(); i < length; i += step) to[i] = from ? from[i] * factor : (real)0;
}

// Adds `count` arrays of n elements, which follow one another, in their order.
extern "C" __global__ void add_parts(const real* __restrict__ parts, real* __restrict__ sums, long long n, int count) {
    const long long i = grid_index();
    if (i >= n) return;
    real sum = parts[i];
    for (int part = 1; part < count; part++) sum += parts[part * n + i];
    sums[i] = sum;
}
