// All time steps of a recurrent layer in one launch. recurrent.cu has the formulas.
//
// behind: recurrent.cu
// check: CELL=3 HIDDEN=128 FIXED=128 ROWS=1 ALIGNED=1 KEPT=5 HELD=3 KEPT_BACK=11 HELD_BACK=5
// check: CELL=3 HIDDEN=128 FIXED=128 ROWS=4 ALIGNED=1 KEPT=5 HELD=3 KEPT_BACK=10 HELD_BACK=6
// check: CELL=3 HIDDEN=208 FIXED=200 ROWS=1 ALIGNED=1 KEPT=1 HELD=4 KEPT_BACK=3 HELD_BACK=8
// check: CELL=2 HIDDEN=128 FIXED=128 ROWS=1 ALIGNED=1 KEPT=8 HELD=0 KEPT_BACK=16 HELD_BACK=0
// check: CELL=0 HIDDEN=64 FIXED=0 ROWS=2 ALIGNED=0 KEPT=4 HELD=0 KEPT_BACK=2 HELD_BACK=0
//
// Options: -DHIDDEN=the most units of a direction, a multiple of 16; -DFIXED=the number of units, or 0 to take it from a
// parameter; -DROWS=sequences of a block, 1, 2 or 4; -DALIGNED=1 if each row of the hidden weights lies at a multiple of 16
// bytes. A thread multiplies with the same hidden weights in each step. The first of them are in registers, the next in
// shared memory and the others in global memory, where the L2 cache holds them: -DKEPT and -DHELD say how many chunks,
// -DKEPT_BACK and -DHELD_BACK how many vectors in the backward pass.
//
// A block runs ROWS sequences at neighbouring places in one direction (blockIdx.y), so that no block waits for another: a
// step costs one barrier.

#define OWN ((ROWS + 1) / 2)
#define THREADS (2 * HIDDEN)
#define EXACT (FIXED == HIDDEN)
#define UNITS (FIXED ? FIXED : units)

// The hidden weights from a gate's row `unit` to the units column .. column + 3; 0 where there is no such unit.
static __device__ __forceinline__ real4 weight4(const real* weights, int gate, int unit, int column, int units) {
    real4 w = {(real)0, (real)0, (real)0, (real)0};
    const real* from = weights + (gate * UNITS + unit) * UNITS + column;
    bool exists = (EXACT && HIDDEN % 32 == 0) || unit < UNITS;
#if ALIGNED
    if (exists && (EXACT || column < UNITS)) w = *(const real4*)from;
#else
    if (exists && column < UNITS) w.x = from[0];
    if (exists && column + 1 < UNITS) w.y = from[1];
    if (exists && column + 2 < UNITS) w.z = from[2];
    if (exists && column + 3 < UNITS) w.w = from[3];
#endif
    return w;
}

// The forward pass: four neighbouring threads compute the gates of a pair of units. Thread `part` of them takes the elements
// 16 j + 4 part .. + 3 of the hidden state before, for each chunk j. After the product, threads 0 and 1 have the first
// unit, and threads 2 and 3 the second; of several sequences each takes every other.
#define CHUNKS (HIDDEN / 16)

// The weights of a pair of units for a chunk.
struct Chunk {
    real4 w[GATES][2];
};

static __device__ __forceinline__ Chunk load_chunk(const real* weights, int pair, int column, int units) {
    Chunk chunk;
#pragma unroll
    for (int g = 0; g < GATES; g++)
#pragma unroll
        for (int i = 0; i < 2; i++) chunk.w[g][i] = weight4(weights, g, 2 * pair + i, column, units);
    return chunk;
}

// In shared memory the same vector of all threads lies together.
static __device__ __forceinline__ void hold_chunk(const Chunk& chunk, real4* held) {
#pragma unroll
    for (int i = 0; i < 2 * GATES; i++) held[i * THREADS] = chunk.w[i / 2][i % 2];
}

static __device__ __forceinline__ Chunk held_chunk(const real4* held) {
    Chunk chunk;
#pragma unroll
    for (int i = 0; i < 2 * GATES; i++) chunk.w[i / 2][i % 2] = held[i * THREADS];
    return chunk;
}

// Adds the products with a chunk of the states (ROWS, HIDDEN).
static __device__ __forceinline__ void add_chunk(const Chunk& chunk, const real* states, real (&sums)[GATES][2][ROWS]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        real4 h = *(const real4*)(states + r * HIDDEN);
#pragma unroll
        for (int g = 0; g < GATES; g++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                real4 w = chunk.w[g][i];
                sums[g][i][r] = w.w * h.w + (w.z * h.z + (w.y * h.y + (w.x * h.x + sums[g][i][r])));
            }
    }
}

// Runs a layer from the initial states (directions, batch, units) in the order of the batch, or from zero.
//
// `final_states` (1, directions, batch, units), for an LSTM (2, ..) with the cell states; recurrent.cu describes the others.
// Dynamic shared memory: HELD chunks for each thread, then two buffers of the states (ROWS, HIDDEN).
extern "C" __global__ void __launch_bounds__(THREADS, 1) recurrent_forward(
    const real* x0, const real* x1, const unsigned* ids, int tokens, const real* weights0, const real* weights1,
    const real* input_bias0, const real* input_bias1, const real* hidden_bias0, const real* hidden_bias1,
    const real* initial_hidden, const real* initial_cell, real* gates, real* kept, real* befores, real* ys,
    real* final_states, const unsigned* starts, const unsigned* all_lengths, const unsigned* order, int steps, int batch,
    int rows, int units) {
    DYNAMIC_SHARED(real4, held);
    real* states = (real*)(held + HELD * 2 * GATES * THREADS);
    Sequences sequences(starts, all_lengths, order, steps, batch);
    int direction = blockIdx.y, directions = gridDim.y, first = blockIdx.x * ROWS, tid = threadIdx.x;
    int part = tid & 3, odd = part & 1, pair = tid >> 2, u = 2 * pair + (part >> 1);
    bool is_unit = u < UNITS, writes = is_unit && (ROWS > 1 || odd == 0);
    const real* weights = direction ? weights1 : weights0;
    const real* input = direction ? x1 : x0;

    Chunk own[KEPT > 0 ? KEPT : 1];
#pragma unroll
    for (int j = 0; j < KEPT; j++) own[j] = load_chunk(weights, pair, 16 * j + 4 * part, units);
    for (int j = 0; j < HELD; j++)
        hold_chunk(load_chunk(weights, pair, 16 * (KEPT + j) + 4 * part, units), held + j * 2 * GATES * THREADS + tid);
    for (int i = tid; i < 2 * ROWS * HIDDEN; i += THREADS) states[i] = (real)0;
    __syncthreads();

    Biases biases = {};
    if (is_unit)
        biases = load_biases(direction ? input_bias1 : input_bias0, direction ? hidden_bias1 : hidden_bias0, u, UNITS);
    int lengths[OWN], count = sequences.length(first);
    real h[OWN], c[OWN], x[OWN][GATES];
    unsigned token[OWN];
#pragma unroll
    for (int q = 0; q < OWN; q++) {
        int r = ROWS == 1 ? 0 : 2 * q + odd, place = first + r;
        lengths[q] = is_unit ? sequences.length(place) : 0;
        h[q] = c[q] = (real)0;
        if (lengths[q] > 0) {
            long long state = ((long long)direction * batch + sequences.sequence(place)) * UNITS + u;
            if (initial_hidden) h[q] = initial_hidden[state];
            if (CELL == LSTM && initial_cell) c[q] = initial_cell[state];
        }
        if (writes) states[r * HIDDEN + u] = h[q];
        token[q] = 0;
    }
    // The loads for a step come one step early, the loads of its token two.
    auto load_token = [&](int n, int q) {
        int t = direction ? count - 1 - n : n, place = first + (ROWS == 1 ? 0 : 2 * q + odd);
        if (ids && n < count && t < lengths[q]) token[q] = ids[sequences.row(t, place)];
    };
    auto load = [&](int n, int q, real (&to)[GATES]) {
        int t = direction ? count - 1 - n : n, place = first + (ROWS == 1 ? 0 : 2 * q + odd);
        if (n >= count || t >= lengths[q]) return;
        long long row = ids ? token[q] : sequences.row(t, place);
        bool exists = !ids || row < tokens;
#pragma unroll
        for (int g = 0; g < GATES; g++) to[g] = exists ? input[(row * GATES + g) * UNITS + u] : nan_real();
    };
#pragma unroll
    for (int q = 0; q < OWN; q++) {
#pragma unroll
        for (int g = 0; g < GATES; g++) x[q][g] = (real)0;
        load_token(0, q);
        load(0, q, x[q]);
        load_token(1, q);
    }
    __syncthreads();

    for (int n = 0; n < count; n++) {
        int t = direction ? count - 1 - n : n;
        const real* from = states + (n & 1) * ROWS * HIDDEN + 4 * part;
        real* to = states + ((n + 1) & 1) * ROWS * HIDDEN;
        real next[OWN][GATES], sums[GATES][2][ROWS];
#pragma unroll
        for (int q = 0; q < OWN; q++) {
#pragma unroll
            for (int g = 0; g < GATES; g++) next[q][g] = (real)0;
            load(n + 1, q, next[q]);
            load_token(n + 2, q);
        }
#pragma unroll
        for (int g = 0; g < GATES; g++)
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int r = 0; r < ROWS; r++) sums[g][i][r] = (real)0;
#pragma unroll
        for (int j = 0; j < KEPT; j++) add_chunk(own[j], from + 16 * j, sums);
#pragma unroll 1
        for (int j = 0; j < HELD; j++)
            add_chunk(held_chunk(held + j * 2 * GATES * THREADS + tid), from + 16 * (KEPT + j), sums);
#pragma unroll 1
        for (int j = KEPT + HELD; j < CHUNKS; j++)
            add_chunk(load_chunk(weights, pair, 16 * j + 4 * part, units), from + 16 * j, sums);

        real total[OWN][GATES];
#pragma unroll
        for (int g = 0; g < GATES; g++) {
            real half[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                real mine = part >> 1 ? sums[g][1][r] : sums[g][0][r], other = part >> 1 ? sums[g][0][r] : sums[g][1][r];
                half[r] = mine + __shfl_xor_sync(ALL, other, 2);
            }
#pragma unroll
            for (int q = 0; q < OWN; q++) {
                real low = half[ROWS == 1 ? 0 : 2 * q], high = half[ROWS == 1 ? 0 : 2 * q + 1];
                total[q][g] = (odd ? high : low) + __shfl_xor_sync(ALL, odd ? low : high, 1);
            }
        }
#pragma unroll
        for (int q = 0; q < OWN; q++) {
            int r = ROWS == 1 ? 0 : 2 * q + odd, place = first + r;
            if (t < lengths[q]) {
                long long row = sequences.row(t, place);
                Unit unit = cell(x[q], total[q], biases, CELL == LSTM ? c[q] : h[q]);
                if (writes) {
                    store_unit(unit, h[q], gates, kept, befores, (long long)direction * rows + row, u, UNITS);
                    ys[(row * directions + direction) * UNITS + u] = unit.hidden;
                }
                h[q] = unit.hidden, c[q] = unit.kept;
            }
            if (writes) to[r * HIDDEN + u] = h[q];
#pragma unroll
            for (int g = 0; g < GATES; g++) x[q][g] = next[q][g];
        }
        __syncthreads();
    }
#pragma unroll
    for (int q = 0; q < OWN; q++) {
        int place = first + (ROWS == 1 ? 0 : 2 * q + odd);
        if (lengths[q] == 0 || !writes) continue;
        long long state = ((long long)direction * batch + sequences.sequence(place)) * UNITS + u;
        final_states[state] = h[q];
        if (CELL == LSTM) final_states[(long long)directions * batch * UNITS + state] = c[q];
    }
}

// The backward pass: eight neighbouring threads compute the gradient of four units, thread `part` of them from every eighth
// vector of the gates' gradients. A vector has the gates of one unit, which the hidden product covers, or four units of an
// Elman cell. After the product, threads p and p + 4 have unit p; of several sequences each takes every other.
#define UNITS_OF_VECTOR (GATES == 1 ? 4 : 1)
#define VECTORS ((HIDDEN + 8 * UNITS_OF_VECTOR - 1) / (8 * UNITS_OF_VECTOR))
#define COMPONENTS (GATES == 3 ? 3 : 4)

// The weights of four units for a vector.
struct Vector {
    real4 w[COMPONENTS];
};

static __device__ __forceinline__ Vector load_vector(const real* weights, int vector, int column, int units) {
    Vector result;
#pragma unroll
    for (int i = 0; i < COMPONENTS; i++) {
        int unit = GATES == 1 ? 4 * vector + i : vector;
        result.w[i] = weight4(weights, GATES == 1 ? 0 : i, unit, column, units);
    }
    return result;
}

static __device__ __forceinline__ void hold_vector(const Vector& vector, real4* held) {
#pragma unroll
    for (int i = 0; i < COMPONENTS; i++) held[i * THREADS] = vector.w[i];
}

static __device__ __forceinline__ Vector held_vector(const real4* held) {
    Vector vector;
#pragma unroll
    for (int i = 0; i < COMPONENTS; i++) vector.w[i] = held[i * THREADS];
    return vector;
}

static __device__ __forceinline__ void add_scaled(const real4& w, real by, real (&sums)[4][ROWS], int r) {
    sums[0][r] += w.x * by;
    sums[1][r] += w.y * by;
    sums[2][r] += w.z * by;
    sums[3][r] += w.w * by;
}

// Adds the products with a vector of the gradients (ROWS, 8 VECTORS).
static __device__ __forceinline__ void add_vector(const Vector& vector, const real4* grads, real (&sums)[4][ROWS]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        real4 grad = grads[r * 8 * VECTORS];
        add_scaled(vector.w[0], grad.x, sums, r);
        add_scaled(vector.w[1], grad.y, sums, r);
        add_scaled(vector.w[2], grad.z, sums, r);
        if (COMPONENTS > 3) add_scaled(vector.w[COMPONENTS - 1], grad.w, sums, r);
    }
}

// The inputs of the gradient of a unit's step.
struct Read {
    Unit unit;
    real before, grad;
};

// Goes back through time from the gradient `grad` of ys (rows, directions, units) and, for an LSTM, `cell_grad` of the final
// cell states (directions, batch, units) in the order of the batch, or null for zero.
//
// Writes the gradients of the gates, of the initial states where `hidden_grad` and `state_grad` are not null, and the sums
// over the steps and sequences of a block, sums (directions, blocks, GRADS, units). Dynamic shared memory: HELD_BACK vectors
// for each thread, then two buffers of the gradients (ROWS, 8 VECTORS, 4).
extern "C" __global__ void __launch_bounds__(THREADS, 1) recurrent_backward(
    const real* gates, const real* kept, const real* befores, const real* ys, const real* initial_cell, const real* weights0,
    const real* weights1, const real* grad, const real* cell_grad, real* input_grads, real* product_grads, real* hidden_grad,
    real* state_grad, real* block_sums, const unsigned* starts, const unsigned* all_lengths, const unsigned* order, int steps,
    int batch, int rows, int units) {
    DYNAMIC_SHARED(real4, held);
    real4* vectors = held + HELD_BACK * COMPONENTS * THREADS;
    Sequences sequences(starts, all_lengths, order, steps, batch);
    int direction = blockIdx.y, directions = gridDim.y, first = blockIdx.x * ROWS, tid = threadIdx.x;
    int part = tid & 7, odd = part >> 2, quad = tid >> 3, u = 4 * quad + (part & 3);
    bool is_unit = u < UNITS, writes = is_unit && (ROWS > 1 || odd == 0);
    const real* weights = direction ? weights1 : weights0;

    Vector own[KEPT_BACK > 0 ? KEPT_BACK : 1];
#pragma unroll
    for (int j = 0; j < KEPT_BACK; j++) own[j] = load_vector(weights, 8 * j + part, 4 * quad, units);
    for (int j = 0; j < HELD_BACK; j++)
        hold_vector(load_vector(weights, 8 * (KEPT_BACK + j) + part, 4 * quad, units), held + j * COMPONENTS * THREADS + tid);
    for (int i = tid; i < 2 * ROWS * 8 * VECTORS * 4; i += THREADS) ((real*)vectors)[i] = (real)0;

    int lengths[OWN], count = sequences.length(first);
    long long state[OWN];
    real h[OWN], c[OWN], sums_of_gates[GRADS];
#pragma unroll
    for (int g = 0; g < GRADS; g++) sums_of_gates[g] = (real)0;
#pragma unroll
    for (int q = 0; q < OWN; q++) {
        int place = first + (ROWS == 1 ? 0 : 2 * q + odd);
        lengths[q] = is_unit ? sequences.length(place) : 0;
        h[q] = c[q] = (real)0, state[q] = 0;
        if (lengths[q] == 0) continue;
        state[q] = ((long long)direction * batch + sequences.sequence(place)) * UNITS + u;
        if (CELL == LSTM && cell_grad) c[q] = cell_grad[state[q]];
    }
    // The loads for a step come one step early.
    auto load = [&](int n, int q, Read& read) {
        int t = direction ? n : count - 1 - n, place = first + (ROWS == 1 ? 0 : 2 * q + odd);
        if (n >= count || t >= lengths[q]) return;
        long long row = sequences.row(t, place);
#if CELL == LSTM || CELL == GRU
        long long all = (long long)direction * rows + row;
#pragma unroll
        for (int g = 0; g < GATES; g++) read.unit.gates[g] = gates[(all * GATES + g) * UNITS + u];
        read.unit.kept = kept[all * UNITS + u];
#else
        read.unit.hidden = ys[(row * directions + direction) * UNITS + u];
#endif
#if CELL == LSTM
        int last = direction ? t + 1 : t - 1;
        if (last >= 0 && last < lengths[q])
            read.before = kept[((long long)direction * rows + sequences.row(last, place)) * UNITS + u];
        else
            read.before = initial_cell ? initial_cell[state[q]] : (real)0;
#elif CELL == GRU
        read.before = befores[all * UNITS + u];
#endif
        read.grad = grad[(row * directions + direction) * UNITS + u];
    };
    Read reads[OWN] = {};
#pragma unroll
    for (int q = 0; q < OWN; q++) load(0, q, reads[q]);
    __syncthreads();

    for (int n = 0; n < count; n++) {
        int t = direction ? n : count - 1 - n;
        real4* buffer = vectors + (n & 1) * ROWS * 8 * VECTORS;
        real direct[OWN], sums[4][ROWS];
#pragma unroll
        for (int q = 0; q < OWN; q++) {
            int r = ROWS == 1 ? 0 : 2 * q + odd, place = first + r;
            real4 passed = {(real)0, (real)0, (real)0, (real)0};
            direct[q] = (real)0;
            if (t < lengths[q]) {
                const Read& read = reads[q];
                UnitGradient back = cell_gradient(read.unit, read.before, read.grad + h[q], c[q]);
                passed.x = back.gates[0];
#if CELL == LSTM || CELL == GRU
                passed.y = back.gates[1];
                passed.z = back.gates[CELL == GRU ? 3 : 2];
                passed.w = CELL == LSTM ? back.gates[3] : (real)0;
#endif
                direct[q] = back.hidden, c[q] = back.cell;
#pragma unroll
                for (int g = 0; g < GRADS; g++) sums_of_gates[g] += back.gates[g];
                if (writes)
                    store_gradient(back, input_grads, product_grads, (long long)direction * rows + sequences.row(t, place),
                                   u, UNITS);
            }
            if (writes) {
                if (GATES == 1)
                    ((real*)(buffer + r * 8 * VECTORS))[u] = passed.x;
                else
                    buffer[r * 8 * VECTORS + u] = passed;
            }
        }
        __syncthreads();
#pragma unroll
        for (int q = 0; q < OWN; q++) load(n + 1, q, reads[q]);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int r = 0; r < ROWS; r++) sums[i][r] = (real)0;
#pragma unroll
        for (int j = 0; j < KEPT_BACK; j++) add_vector(own[j], buffer + 8 * j + part, sums);
#pragma unroll 1
        for (int j = 0; j < HELD_BACK; j++)
            add_vector(held_vector(held + j * COMPONENTS * THREADS + tid), buffer + 8 * (KEPT_BACK + j) + part, sums);
#pragma unroll 2
        for (int j = KEPT_BACK + HELD_BACK; j < VECTORS; j++)
            add_vector(load_vector(weights, 8 * j + part, 4 * quad, units), buffer + 8 * j + part, sums);

        real mine[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            bool right = part & 1, low = (part & 2) == 0;
            real a = (right ? sums[1][r] : sums[0][r]) + __shfl_xor_sync(ALL, right ? sums[0][r] : sums[1][r], 1);
            real b = (right ? sums[3][r] : sums[2][r]) + __shfl_xor_sync(ALL, right ? sums[2][r] : sums[3][r], 1);
            mine[r] = (low ? a : b) + __shfl_xor_sync(ALL, low ? b : a, 2);
        }
#pragma unroll
        for (int q = 0; q < OWN; q++) {
            real low = mine[ROWS == 1 ? 0 : 2 * q], high = mine[ROWS == 1 ? 0 : 2 * q + 1];
            real total = (odd ? high : low) + __shfl_xor_sync(ALL, odd ? low : high, 4);
            if (t < lengths[q]) h[q] = direct[q] + total;
        }
    }
#pragma unroll
    for (int q = 0; q < OWN; q++) {
        if (lengths[q] == 0 || !writes) continue;
        if (hidden_grad) hidden_grad[state[q]] = h[q];
        if (CELL == LSTM && state_grad) state_grad[state[q]] = c[q];
    }
#pragma unroll
    for (int g = 0; g < GRADS; g++) {
        real other = __shfl_xor_sync(ALL, sums_of_gates[g], 4);
        if (!is_unit || odd) continue;
        long long block = (long long)direction * gridDim.x + blockIdx.x;
        block_sums[(block * GRADS + g) * UNITS + u] = ROWS > 1 ? sums_of_gates[g] + other : sums_of_gates[g];
    }
}
