// Attention of queries to the elements of packed sequences, and its gradients. Nothing is padded, and the tanh of additive
// scores is computed again in the backward pass.
//
//     score[r][t]   = sum over f of v[f] * tanh(queries[r][f] + keys[e][f])    or, without v, of queries[r][f] * keys[e][f]
//     weights[r][t] = softmax over t of score[r][t]
//     sums[r][f]    = sum over t of weights[r][t] * values[e][f]
//
// Query r attends to the sequence sequences[r], whose element t is the row e = starts[t] + places[sequence], for t <
// lengths[sequence]. queries (rows, size); keys (elements, size); values (elements, features); weights (rows, steps), zero
// beyond the end of a sequence. A row of the result has `features` sums and, behind them, `more` columns of `beside`.
//
// v and beside may be null. All sums have a fixed order.

#define THREADS 256
#define WARPS (THREADS / 32)

// The elements of a query's sequence.
struct Elements {
    const unsigned* starts;
    int place, length;
    __device__ __forceinline__ long long row(int t) const { return (long long)(starts[t] + place); }
};

static __device__ __forceinline__ Elements elements_of(int sequence, const unsigned* starts, const unsigned* places,
                                                       const unsigned* lengths) {
    Elements elements = {starts, (int)places[sequence], (int)lengths[sequence]};
    return elements;
}

// The sum of a[i] * b[i] over the lanes of a warp.
static __device__ __forceinline__ real warp_dot(const real* __restrict__ a, const real* __restrict__ b, int n) {
    real sum = 0;
#pragma unroll 4
    for (int i = threadIdx.x % 32; i < n; i += 32) sum += a[i] * b[i];
    return warp_sum(sum);
}

// A block computes the weights and the sums of one query. A warp computes every eighth score; a thread every 256th feature.
extern "C" __global__ void __launch_bounds__(THREADS) attention_forward(
    const real* __restrict__ queries, const real* __restrict__ keys, const real* __restrict__ values,
    const real* __restrict__ v, const real* __restrict__ beside, const unsigned* __restrict__ sequences,
    const unsigned* __restrict__ starts, const unsigned* __restrict__ places, const unsigned* __restrict__ lengths,
    real* sums, real* weights, int size, int features, int more, int steps) {
    const long long r = blockIdx.x;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Elements elements = elements_of(sequences[r], starts, places, lengths);
    const real* query = queries + r * size;
    weights += r * steps;
    for (int t = warp; t < elements.length; t += WARPS) {
        const real* key = keys + elements.row(t) * size;
        real score = 0;
        if (v) {
#pragma unroll 4
            for (int f = lane; f < size; f += 32) score += v[f] * tanh_real(query[f] + key[f]);
            score = warp_sum(score);
        } else {
            score = warp_dot(query, key, size);
        }
        if (lane == 0) weights[t] = score;
    }
    __syncthreads();
    real largest = -infinity(), total = 0;
    for (int t = lane; t < elements.length; t += 32) largest = max_real(largest, weights[t]);
    largest = warp_max(largest);
    for (int t = lane; t < elements.length; t += 32) total += exp_real(weights[t] - largest);
    const real scale = 1 / warp_sum(total);
    __syncthreads();
    for (int t = threadIdx.x; t < steps; t += THREADS)
        weights[t] = t < elements.length ? exp_real(weights[t] - largest) * scale : (real)0;
    __syncthreads();
    sums += r * (features + more);
    for (int f = threadIdx.x; f < features; f += THREADS) {
        real sum = 0;
#pragma unroll 4
        for (int t = 0; t < elements.length; t++) sum += weights[t] * values[elements.row(t) * features + f];
        sums[f] = sum;
    }
    for (int f = threadIdx.x; f < more; f += THREADS) sums[features + f] = beside[r * more + f];
}

// With the gradient `grad` of the result:
//
//     g[r][t]           = sum over f of grad[r][f] * values[e][f]
//     score_grads[r][t] = weights[r][t] * (g[r][t] - sum over u of weights[r][u] * g[r][u])
//     query_grads[r][f] = sum over t of score_grads[r][t] * (v[f] * (1 - tanh(queries[r][f] + keys[e][f])^2)    or keys[e][f])
//     beside_grads[r]   = the last `more` columns of grad[r]
//
// A block computes one query, as above. query_grads and beside_grads may be null.
extern "C" __global__ void __launch_bounds__(THREADS) attention_queries_gradient(
    const real* __restrict__ queries, const real* __restrict__ keys, const real* __restrict__ values,
    const real* __restrict__ v, const real* __restrict__ weights, const real* __restrict__ grad,
    const unsigned* __restrict__ sequences, const unsigned* __restrict__ starts, const unsigned* __restrict__ places,
    const unsigned* __restrict__ lengths, real* score_grads, real* query_grads, real* beside_grads, int size, int features,
    int more, int steps) {
    const long long r = blockIdx.x;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Elements elements = elements_of(sequences[r], starts, places, lengths);
    weights += r * steps;
    score_grads += r * steps;
    grad += r * (features + more);
    for (int t = warp; t < elements.length; t += WARPS) {
        real g = warp_dot(grad, values + elements.row(t) * features, features);
        if (lane == 0) score_grads[t] = g;
    }
    __syncthreads();
    real mean = 0;
    for (int t = lane; t < elements.length; t += 32) mean += weights[t] * score_grads[t];
    mean = warp_sum(mean);
    __syncthreads();
    for (int t = threadIdx.x; t < elements.length; t += THREADS) score_grads[t] = weights[t] * (score_grads[t] - mean);
    __syncthreads();
    if (query_grads) {
        for (int f = threadIdx.x; f < size; f += THREADS) {
            const real query = v ? queries[r * size + f] : (real)0;
            real sum = 0;
#pragma unroll 4
            for (int t = 0; t < elements.length; t++) {
                real key = keys[elements.row(t) * size + f];
                if (v) {
                    real y = tanh_real(query + key);
                    key = 1 - y * y;
                }
                sum += score_grads[t] * key;
            }
            query_grads[r * size + f] = v ? v[f] * sum : sum;
        }
    }
    if (beside_grads)
        for (int f = threadIdx.x; f < more; f += THREADS) beside_grads[r * more + f] = grad[features + f];
}

// The queries of a sequence: query i is the row query_starts[i] + query_places[sequence] of the list `order`, or that number
// itself if there is no list, for i < query_lengths[sequence].
//
//     value_grads[e][f]        = sum over i of weights[r][t] * grad[r][f]
//     key_grads[e][f]          = sum over i of score_grads[r][t] * (v[f] * (1 - tanh(queries[r][f] + keys[e][f])^2)    or queries[r][f])
//     v_sums[sequence][f]      = sum over t and i of score_grads[r][t] * tanh(queries[r][f] + keys[e][f])
//
// A block (32, 8) computes 32 columns of the elements of a sequence, of the keys or, with blockIdx.y from ceil(size / 32) on,
// of the values. Thread (x, y) computes every eighth element; thread (x, 0) adds the eight sums of v in order. Unneeded
// results are null.
extern "C" __global__ void __launch_bounds__(THREADS) attention_elements_gradient(
    const real* __restrict__ queries, const real* __restrict__ keys, const real* __restrict__ v,
    const real* __restrict__ weights, const real* __restrict__ score_grads, const real* __restrict__ grad,
    const unsigned* __restrict__ starts, const unsigned* __restrict__ places, const unsigned* __restrict__ lengths,
    const unsigned* __restrict__ query_starts, const unsigned* __restrict__ query_places,
    const unsigned* __restrict__ query_lengths, const unsigned* __restrict__ order, real* key_grads, real* value_grads,
    real* v_sums, int size, int features, int more, int steps) {
    __shared__ real parts[WARPS][32];
    const int sequence = blockIdx.x, tiles = (size + 31) / 32;
    const Elements elements = elements_of(sequence, starts, places, lengths);
    const unsigned place = query_places[sequence], count = query_lengths[sequence];
    if (blockIdx.y >= tiles) {
        const int f = (blockIdx.y - tiles) * 32 + threadIdx.x;
        if (!value_grads || f >= features) return;
        for (int t = threadIdx.y; t < elements.length; t += WARPS) {
            real sum = 0;
#pragma unroll 4
            for (int i = 0; i < count; i++) {
                unsigned r = query_starts[i] + place;
                if (order) r = order[r];
                sum += weights[(long long)r * steps + t] * grad[(long long)r * (features + more) + f];
            }
            value_grads[elements.row(t) * features + f] = sum;
        }
        return;
    }
    const int f = blockIdx.y * 32 + threadIdx.x;
    const real factor = v && f < size ? v[f] : (real)1;
    real v_sum = 0;
    for (int t = threadIdx.y; t < elements.length && f < size; t += WARPS) {
        const long long element = elements.row(t);
        const real key = v ? keys[element * size + f] : (real)0;
        real sum = 0;
#pragma unroll 4
        for (int i = 0; i < count; i++) {
            unsigned r = query_starts[i] + place;
            if (order) r = order[r];
            real score_grad = score_grads[(long long)r * steps + t], query = queries[(long long)r * size + f];
            if (v) {
                real y = tanh_real(query + key);
                v_sum += score_grad * y;
                query = 1 - y * y;
            }
            sum += score_grad * query;
        }
        if (key_grads) key_grads[element * size + f] = factor * sum;
    }
    if (!v_sums) return;
    parts[threadIdx.y][threadIdx.x] = v_sum;
    __syncthreads();
    if (threadIdx.y > 0 || f >= size) return;
    for (int y = 1; y < WARPS; y++) v_sum += parts[y][threadIdx.x];
    v_sums[(long long)sequence * size + f] = v_sum;
}
