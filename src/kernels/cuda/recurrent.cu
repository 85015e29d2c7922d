// Recurrent layers over packed sequences (PackedSequences): the cells, one time step in a launch, and the sums after it.
// recurrent_sequence.cu, compiled behind this file, runs all time steps in one launch.
//
// Options: -DCELL=TANH, RELU, GRU or LSTM.
//
// check: CELL=1
// check: CELL=2
// check: CELL=3
//
// Names: direction d (1 reads each sequence from its end); place p of a sequence, in the order of descending length; step t;
// row r = starts[t] + p; hidden unit u; gate g. A layer computes, for each sequence with an element at step t and with t'
// the step before it in the direction of reading,
//
//     x[d][r][g][u] = sum over k of w[d][g][u][k] * xs[r][k]                   (a product before, or a row per token)
//     s[d][r][g][u] = sum over k of weights[d][g][u][k] * h[d][t'][p][k]
//     h[d][t][p][u] = cell(x[d][r][..][u] + input_bias[d], s[d][r][..][u] + hidden_bias[d], state of unit u before)

#define TANH 0
#define RELU 1
#define GRU 2
#define LSTM 3

// Gates, rows of gate gradients (a GRU's n has two: through the input and through the hidden product).
#if CELL == LSTM
#define GATES 4
#define GRADS 4
#elif CELL == GRU
#define GATES 3
#define GRADS 4
#else
#define GATES 1
#define GRADS 1
#endif

static __device__ __forceinline__ real nan_real() { return infinity() - infinity(); }

// The layout of packed sequences: the first row of each step and the number of rows (steps + 1), the length of each sequence
// (batch) and the sequence at each place (batch, or more). If all are null, all sequences have `steps` elements.
struct Sequences {
    const unsigned *starts, *lengths, *order;
    int steps, batch;

    __device__ __forceinline__ Sequences(const unsigned* starts, const unsigned* lengths, const unsigned* order, int steps,
                                         int batch)
        : starts(starts), lengths(lengths), order(order), steps(steps), batch(batch) {}
    // The row of an element that exists.
    __device__ __forceinline__ long long row(int step, int place) const {
        return (starts ? starts[step] : (long long)step * batch) + place;
    }
    __device__ __forceinline__ int sequence(int place) const { return starts ? order[place] : place; }
    // The length of the sequence at a place; 0 beyond the batch.
    __device__ __forceinline__ int length(int place) const {
        return place < batch ? (starts ? lengths[order[place]] : steps) : 0;
    }
};

// The biases of a unit: `input` of each gate, with the hidden bias where only their sum counts; `product`, the hidden bias
// of a GRU's n, which its reset gate scales.
struct Biases {
    real input[GATES];
    real product;
};

static __device__ __forceinline__ Biases load_biases(const real* input, const real* hidden, int unit, int units) {
    Biases biases;
    biases.product = (real)0;
#pragma unroll
    for (int g = 0; g < GATES; g++) {
        biases.input[g] = input[(long long)g * units + unit];
        real added = hidden[(long long)g * units + unit];
        if (CELL == GRU && g == 2)
            biases.product = added;
        else
            biases.input[g] += added;
    }
    return biases;
}

// The results of a unit in a step: the activated gates; `kept`, an LSTM's cell state or the product of a GRU's n.
struct Unit {
    real gates[GATES];
    real kept, hidden;
};

// One step of one unit. `before` is the state before: of an LSTM the cell state, else the hidden state.
static __device__ __forceinline__ Unit cell(const real* x, const real* s, const Biases& biases, real before) {
    Unit unit;
#pragma unroll
    for (int g = 0; g < GATES; g++) unit.gates[g] = x[g] + biases.input[g] + s[g];
#if CELL == LSTM
    unit.gates[0] = sigmoid(unit.gates[0]);
    unit.gates[1] = sigmoid(unit.gates[1]);
    unit.gates[2] = tanh_real(unit.gates[2]);
    unit.gates[3] = sigmoid(unit.gates[3]);
    unit.kept = unit.gates[1] * before + unit.gates[0] * unit.gates[2];
    unit.hidden = unit.gates[3] * tanh_real(unit.kept);
#elif CELL == GRU
    unit.gates[0] = sigmoid(unit.gates[0]);
    unit.gates[1] = sigmoid(unit.gates[1]);
    unit.kept = s[2] + biases.product;
    unit.gates[2] = tanh_real(x[2] + biases.input[2] + unit.gates[0] * unit.kept);
    unit.hidden = unit.gates[2] + unit.gates[1] * (before - unit.gates[2]);
#else
    unit.kept = (real)0;
    unit.hidden = CELL == TANH ? tanh_real(unit.gates[0]) : relu_real(unit.gates[0]);
#endif
    return unit;
}

// The gradients that a unit passes on in a step: of its gates before activation (a GRU's r, z, n through the input, n
// through the product), of the hidden state before without the part through the product, and of an LSTM's cell state before.
struct UnitGradient {
    real gates[GRADS];
    real hidden, cell;
};

// The gradient of `cell` from the gradients of the new hidden state and, for an LSTM, of the new cell state.
static __device__ __forceinline__ UnitGradient cell_gradient(const Unit& unit, real before, real hidden, real state) {
    UnitGradient back;
    back.hidden = back.cell = (real)0;
#if CELL == LSTM
    real i = unit.gates[0], f = unit.gates[1], g = unit.gates[2], o = unit.gates[3], tanh = tanh_real(unit.kept);
    real c = state + hidden * o * ((real)1 - tanh * tanh);
    back.gates[0] = c * g * i * ((real)1 - i);
    back.gates[1] = c * before * f * ((real)1 - f);
    back.gates[2] = c * i * ((real)1 - g * g);
    back.gates[3] = hidden * tanh * o * ((real)1 - o);
    back.cell = c * f;
#elif CELL == GRU
    real r = unit.gates[0], z = unit.gates[1], n = unit.gates[2];
    real inner = hidden * ((real)1 - z) * ((real)1 - n * n);
    back.gates[0] = inner * unit.kept * r * ((real)1 - r);
    back.gates[1] = hidden * (before - n) * z * ((real)1 - z);
    back.gates[2] = inner;
    back.gates[3] = inner * r;
    back.hidden = hidden * z;
#elif CELL == TANH
    back.gates[0] = hidden * ((real)1 - unit.hidden * unit.hidden);
#else
    back.gates[0] = unit.hidden <= (real)0 ? (real)0 : hidden;
#endif
    return back;
}

// Buffers of a layer. Each holds the first direction, then the second.
//
//     x            (directions, rows, GATES, units), or with ids a table (tokens, GATES, units) for each direction; the
//                  gates of an id beyond the table are NaN
//     gates        (directions, rows, GATES, units), which may be x; activated; GRU and LSTM
//     kept         (directions, rows, units): cell states of an LSTM, products of a GRU's n
//     before       (directions, rows, units): the hidden states before each step
//     ys           (rows, directions, units)
//     input_grads  (directions, rows, GATES, units): gradients of the gates before activation, through the input
//     product_grads  the same through the product, for a GRU; other cells use input_grads instead
//
// `gates`, `kept` and `before` serve the backward pass; null if there will be none.

// Writes the results of a unit. `row` is the row in its direction, over all directions.
static __device__ __forceinline__ void store_unit(const Unit& unit, real before, real* gates, real* kept, real* befores,
                                                  long long row, int u, int units) {
    if (befores == nullptr) return;
    befores[row * units + u] = before;
#if CELL == LSTM || CELL == GRU
#pragma unroll
    for (int g = 0; g < GATES; g++) gates[(row * GATES + g) * units + u] = unit.gates[g];
    kept[row * units + u] = unit.kept;
#endif
}

// Writes the gradients of a unit's gates.
static __device__ __forceinline__ void store_gradient(const UnitGradient& back, real* input_grads, real* product_grads,
                                                      long long row, int u, int units) {
#pragma unroll
    for (int g = 0; g < GATES; g++) input_grads[(row * GATES + g) * units + u] = back.gates[g];
#if CELL == GRU
#pragma unroll
    for (int g = 0; g < GATES; g++) product_grads[(row * GATES + g) * units + u] = back.gates[g == 2 ? 3 : g];
#endif
}

// One step of both directions, from the products s (directions, batch, GATES, units); without them, of zero states.
//
// The sequences at places below count0 have an element in this step, in rows from row0 on; in the second direction below
// count1, from row1 on. Updates the states h and c (directions, batch, units), c of an LSTM only. A thread computes one unit
// of one sequence; blockIdx.y is the direction.
extern "C" __global__ void recurrent_step(const real* x0, const real* x1, const unsigned* ids, int tokens,
                                          const real* s, const real* input_bias0, const real* input_bias1,
                                          const real* hidden_bias0, const real* hidden_bias1, real* h, real* c,
                                          real* gates, real* kept, real* befores, real* ys, int row0, int count0,
                                          int row1, int count1, int rows, int batch, int units) {
    int direction = blockIdx.y, directions = gridDim.y;
    int place = grid_index() / units, u = grid_index() % units;
    if (place >= (direction ? count1 : count0)) return;
    long long row = (direction ? row1 : row0) + place, all = (long long)direction * rows + row;
    long long input = ids ? ids[row] : row;
    long long state = ((long long)direction * batch + place) * units + u;
    real x[GATES], product[GATES];
#pragma unroll
    for (int g = 0; g < GATES; g++) {
        x[g] = ids && input >= tokens ? nan_real() : (direction ? x1 : x0)[(input * GATES + g) * units + u];
        product[g] = s ? s[(state - u) * GATES + (long long)g * units + u] : (real)0;
    }
    Biases biases = load_biases(direction ? input_bias1 : input_bias0, direction ? hidden_bias1 : hidden_bias0, u, units);
    real before = h[state];
    Unit unit = cell(x, product, biases, CELL == LSTM ? c[state] : before);
    store_unit(unit, before, gates, kept, befores, all, u, units);
    if (CELL == LSTM) c[state] = unit.kept;
    h[state] = unit.hidden;
    ys[(row * directions + direction) * units + u] = unit.hidden;
}

// The gradient of recurrent_step, from the gradient `grad` of ys and the gradients h and c of the states after the step.
//
// Replaces h and c by the gradients of the states before the step; in h only the part that does not go through the product, which
// is zero except for a GRU. In each direction the sequences at places below `carried` have a step before, in rows from
// `previous` on; the others start here, an LSTM from the cell state `initial` (directions, batch, units), or null for zero.
// Adds the gradients of the gates to `sums` (directions, batch, GRADS, units).
extern "C" __global__ void recurrent_step_gradient(const real* gates, const real* kept, const real* befores,
                                                   const real* ys, const real* initial, const real* grad, real* h, real* c,
                                                   real* input_grads, real* product_grads, real* sums, int row0, int count0,
                                                   int previous0, int carried0, int row1, int count1, int previous1,
                                                   int carried1, int rows, int batch, int units) {
    int direction = blockIdx.y, directions = gridDim.y;
    int place = grid_index() / units, u = grid_index() % units;
    if (place >= (direction ? count1 : count0)) return;
    long long row = (direction ? row1 : row0) + place, first = (long long)direction * rows, all = first + row;
    long long state = ((long long)direction * batch + place) * units + u;
    long long output = (row * directions + direction) * units + u;
    Unit unit;
    unit.kept = (real)0;
    real before = (real)0;
#if CELL == LSTM || CELL == GRU
#pragma unroll
    for (int g = 0; g < GATES; g++) unit.gates[g] = gates[(all * GATES + g) * units + u];
    unit.kept = kept[all * units + u];
#endif
#if CELL == LSTM
    if (place < (direction ? carried1 : carried0))
        before = kept[(first + (direction ? previous1 : previous0) + place) * units + u];
    else if (initial)
        before = initial[state];
#elif CELL == GRU
    before = befores[all * units + u];
#endif
    unit.hidden = ys[output];
    UnitGradient back = cell_gradient(unit, before, grad[output] + h[state], CELL == LSTM ? c[state] : (real)0);
    store_gradient(back, input_grads, product_grads, all, u, units);
#pragma unroll
    for (int g = 0; g < GRADS; g++) sums[(state - u) * GRADS + (long long)g * units + u] += back.gates[g];
    h[state] = back.hidden;
    if (CELL == LSTM) c[state] = back.cell;
}

// Copies states (parts, batch, units) from batch order to packed order, or back: to[place] = from[sequence]
// or to[sequence] = from[place]. A thread copies one element.
extern "C" __global__ void recurrent_reorder(const real* from, real* to, const unsigned* starts, const unsigned* lengths,
                                             const unsigned* order, int back, int parts, int steps, int batch, int units) {
    Sequences sequences(starts, lengths, order, steps, batch);
    long long i = grid_index();
    if (i >= (long long)parts * batch * units) return;
    int u = i % units, place = i / units % batch, part = i / units / batch;
    long long other = ((long long)part * batch + sequences.sequence(place)) * units + u;
    if (back)
        to[other] = from[i];
    else
        to[i] = from[other];
}

// The gradients of the biases from sums of the gates' gradients: of each column of sums (directions, count, GRADS, units) the
// total over `count`.
//
// A block of 32 x 8 threads totals 32 columns of one direction (blockIdx.y): thread (x, y) every eighth row from y on.
extern "C" __global__ void __launch_bounds__(256) recurrent_bias_gradients(const real* sums, int count, int units,
                                                                           real* input0, real* input1, real* hidden0,
                                                                           real* hidden1) {
    __shared__ real parts[8][32];
    int columns = GRADS * units, column = blockIdx.x * 32 + threadIdx.x, direction = blockIdx.y;
    real total = (real)0;
    if (column < columns) {
        const real* from = sums + (long long)direction * count * columns + column;
#pragma unroll 4
        for (int i = threadIdx.y; i < count; i += 8) total += from[(long long)i * columns];
    }
    parts[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns) return;
    for (int y = 1; y < 8; y++) total += parts[y][threadIdx.x];
    real* input = direction ? input1 : input0;
    real* hidden = direction ? hidden1 : hidden0;
    if (CELL != GRU || column < 3 * units) input[column] = total;
    if (CELL != GRU || column < 2 * units) hidden[column] = total;
    if (CELL == GRU && column >= 3 * units) hidden[column - units] = total;
}

// The gradient of a table (tokens, width): grad[token] = sum of from[r] over the rows r with ids[r] == token.
//
// A block of 32 x 16 threads computes 32 columns of one token. It lists the token's rows among each 512 in order; thread (x, y)
// sums every 16th of them from y on.
extern "C" __global__ void __launch_bounds__(512) recurrent_token_gradient(const real* from, const unsigned* ids, int rows,
                                                                           int width, real* grad) {
    __shared__ real parts[16][32];
    __shared__ int found[512], counts[16];
    unsigned token = blockIdx.x;
    int x = threadIdx.x, y = threadIdx.y, column = blockIdx.y * 32 + x;
    real total = (real)0;
    for (int first = 0; first < rows; first += 512) {
        int row = first + y * 32 + x;
        bool own = row < rows && ids[row] == token;
        unsigned same = __ballot_sync(ALL, own);
        if (x == 0) counts[y] = __popc(same);
        __syncthreads();
        int before = 0, count = 0;
        for (int k = 0; k < 16; k++) {
            before += k < y ? counts[k] : 0;
            count += counts[k];
        }
        if (own) found[before + __popc(same & ((1u << x) - 1))] = row;
        __syncthreads();
        if (column < width)
#pragma unroll 4
            for (int i = y; i < count; i += 16) total += from[(long long)found[i] * width + column];
    }
    parts[y][x] = total;
    __syncthreads();
    if (y > 0 || column >= width) return;
    for (int k = 1; k < 16; k++) total += parts[k][x];
    grad[(long long)token * width + column] = total;
}

// The gradient of ys (rows, directions, units) from the gradient `grad` (directions, batch, units) of the final hidden
// states: zero except where a sequence ends in its direction. The blocks of column blockIdx.x write step blockIdx.x.
extern "C" __global__ void recurrent_final_gradient(const real* grad, const unsigned* starts, const unsigned* lengths,
                                                    const unsigned* order, int steps, int batch, int units, int directions,
                                                    real* ys_grad) {
    Sequences sequences(starts, lengths, order, steps, batch);
    int t = blockIdx.x, width = directions * units;
    long long start = sequences.row(t, 0), count = sequences.row(t + 1, 0) - start;
    for (long long i = blockIdx.y * blockDim.x + threadIdx.x; i < count * width; i += gridDim.y * blockDim.x) {
        int place = i / width, direction = i % width / units, u = i % units;
        int last = direction ? 0 : sequences.length(place) - 1;
        long long from = ((long long)direction * batch + sequences.sequence(place)) * units + u;
        ys_grad[start * width + i] = t == last ? grad[from] : (real)0;
    }
}
