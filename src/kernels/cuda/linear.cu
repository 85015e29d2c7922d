// The fully connected layer without its products: the bias and its gradient. Matrices are stored row by row.

// ys[r][c] += bias[c]
//
// A thread adds to four neighbouring elements of a row, or to one where rows are not multiples of four. Blocks of 256
// threads, grid ceil(rows * columns / 1024).
extern "C" __global__ void add_bias(real* ys, const real* bias, long long n, int columns) {
    long long i = 4 * grid_index();
    if (i >= n) return;
    bool aligned = ((unsigned long long)ys | (unsigned long long)bias) % sizeof(real4) == 0;
    if (columns % 4 == 0 && aligned) {
        real4 y = *(const real4*)(ys + i), b = *(const real4*)(bias + i % columns);
        *(real4*)(ys + i) = {y.x + b.x, y.y + b.y, y.z + b.z, y.w + b.w};
    } else {
        for (long long k = i; k < i + 4 && k < n; k++) ys[k] += bias[k % columns];
    }
}

// ys[r][c] = tanh(ys[r][c] + bias[c]), a thread for each element; `bias` may be null.
extern "C" __global__ void add_bias_tanh(real* ys, const real* bias, long long n, int columns) {
    long long i = grid_index();
    if (i < n) ys[i] = tanh_real(bias ? ys[i] + bias[i % columns] : ys[i]);
}

// The gradient of ys = tanh(xs), from the gradient `grad` of ys:
//
//     inner[r][c] = grad[r][c] * (1 - ys[r][c]^2)
//     sums[chunk][c] = sum of inner[r][c] over the rows r of the chunk
//
// Blocks and threads as in `column_sums`.
extern "C" __global__ void tanh_gradient_sums(const real* ys, const real* grad, real* inner, real* sums, long long rows,
                                              int columns, int chunk) {
    __shared__ real parts[8][32];
    int column = blockIdx.x * 32 + threadIdx.x;
    long long first = (long long)blockIdx.y * chunk, end = min(first + chunk, rows);
    real sum = 0;
    if (column < columns)
#pragma unroll 4
        for (long long row = first + threadIdx.y; row < end; row += 8) {
            long long i = row * columns + column;
            real y = ys[i], g = grad[i] * (1 - y * y);
            inner[i] = g;
            sum += g;
        }
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns) return;
    for (int y = 1; y < 8; y++) sum += parts[y][threadIdx.x];
    sums[(long long)blockIdx.y * columns + column] = sum;
}

// sums[chunk][c] = sum of xs[r][c] over the rows r of the chunk
//
// A block (32, 8) sums a chunk of rows for 32 columns, grid (ceil(columns / 32), chunks). Thread (x, y) sums every eighth
// row of a column in four running sums; thread (x, 0) adds the eight results in order.
extern "C" __global__ void column_sums(const real* xs, real* sums, long long rows, int columns, int chunk) {
    __shared__ real parts[8][32];
    int column = blockIdx.x * 32 + threadIdx.x;
    long long first = (long long)blockIdx.y * chunk, end = min(first + chunk, rows);
    real sum[4] = {0, 0, 0, 0};
    if (column < columns) {
        long long row = first + threadIdx.y;
        for (; row + 24 < end; row += 32)
#pragma unroll
            for (int k = 0; k < 4; k++) sum[k] += xs[(row + 8 * k) * columns + column];
        for (; row < end; row += 8) sum[0] += xs[row * columns + column];
    }
    parts[threadIdx.y][threadIdx.x] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns) return;
    real total = parts[0][threadIdx.x];
    for (int y = 1; y < 8; y++) total += parts[y][threadIdx.x];
    sums[(long long)blockIdx.y * columns + column] = total;
}

// weight_grad[o][i] = sum over r of grad[r][o] * xs[r][i]
// bias_grad[o] = sum over r of grad[r][o]
//
// For few rows, up to ROWS, where a launch costs more than the sums. A block (32, 8) computes the weights of 32 inputs and
// OUTPUTS outputs, grid (ceil(inputs / 32), ceil(outputs / OUTPUTS)). Thread (x, y) sums every eighth row of input x, and then
// adds the eight sums of output y in order.
#define OUTPUTS 8
#define ROWS 64
extern "C" __global__ void __launch_bounds__(256) few_rows_gradient(const real* xs, const real* grad, real* weight_grad,
                                                                    real* bias_grad, int rows, int inputs, int outputs) {
    __shared__ real grads[ROWS][OUTPUTS], parts[8][OUTPUTS][32];
    int x = threadIdx.x, y = threadIdx.y, input = blockIdx.x * 32 + x, first = blockIdx.y * OUTPUTS;
    for (int i = y * 32 + x; i < rows * OUTPUTS; i += 256) {
        int r = i / OUTPUTS, output = first + i % OUTPUTS;
        grads[r][i % OUTPUTS] = output < outputs ? grad[(long long)r * outputs + output] : (real)0;
    }
    __syncthreads();
    real sum[OUTPUTS] = {};
    if (input < inputs)
#pragma unroll 8
        for (int r = y; r < rows; r += 8) {
            real value = xs[(long long)r * inputs + input];
#pragma unroll
            for (int k = 0; k < OUTPUTS; k++) sum[k] += grads[r][k] * value;
        }
#pragma unroll
    for (int k = 0; k < OUTPUTS; k++) parts[y][k][x] = sum[k];
    __syncthreads();
    if (input < inputs && first + y < outputs) {
        real total = parts[0][y][x];
#pragma unroll
        for (int k = 1; k < 8; k++) total += parts[k][y][x];
        weight_grad[(long long)(first + y) * inputs + input] = total;
    }
    if (blockIdx.x > 0 || y > 0 || x >= OUTPUTS || first + x >= outputs) return;
    real total = 0;
    for (int r = 0; r < rows; r++) total += grads[r][x];
    bias_grad[first + x] = total;
}
