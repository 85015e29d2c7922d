// Convolution of any geometry as matrix products: the kernels around the products.
//
// Shapes: x (batch, channels, in_y, in_x), columns (batch, channels, kernel_y, kernel_x, out_y, out_x), y (batch, outputs,
// out_y, out_x). Each thread writes one element, of `count`.

// columns[n][c][ky][kx][y][x] = x[n][c][y * stride_y - pad_y + ky * dilation_y][x * stride_x - pad_x + kx * dilation_x], or
// 0 outside of x.
extern "C" __global__ void unfold(const real* __restrict__ xs, real* __restrict__ columns, long long count, int kernel_y, int kernel_x, int stride_y, int stride_x, int pad_y, int pad_x, int dilation_y, int dilation_x, int in_y, int in_x, int out_y, int out_x) {
    const long long i = grid_index();
    if (i >= count) return;
    const long long row = i / (out_y * out_x), plane = row / (kernel_y * kernel_x);
    const int at = (int)(i - row * (out_y * out_x)), tap = (int)(row - plane * (kernel_y * kernel_x));
    const int y = at / out_x * stride_y - pad_y + tap / kernel_x * dilation_y;
    const int x = at % out_x * stride_x - pad_x + tap % kernel_x * dilation_x;
    const bool inside = y >= 0 && y < in_y && x >= 0 && x < in_x;
    columns[i] = inside ? xs[(plane * in_y + y) * in_x + x] : (real)0;
}

// The gradient of `unfold`: each element of x gets the sum of the gradients of its copies, by ky, then kx.
extern "C" __global__ void fold(const real* __restrict__ columns, real* __restrict__ xs, long long count, int kernel_y, int kernel_x, int stride_y, int stride_x, int pad_y, int pad_x, int dilation_y, int dilation_x, int in_y, int in_x, int out_y, int out_x) {
    const long long i = grid_index();
    if (i >= count) return;
    const long long plane = i / (in_y * in_x);
    const int at = (int)(i - plane * (in_y * in_x));
    const real* from = columns + plane * (kernel_y * kernel_x) * (out_y * out_x);
    real sum = 0;
    for (int ky = 0; ky < kernel_y; ky++) {
        const int y = at / in_x + pad_y - ky * dilation_y;
        if (y < 0 || y % stride_y != 0 || y / stride_y >= out_y) continue;
        for (int kx = 0; kx < kernel_x; kx++) {
            const int x = at % in_x + pad_x - kx * dilation_x;
            if (x < 0 || x % stride_x != 0 || x / stride_x >= out_x) continue;
            sum += from[((long long)(ky * kernel_x + kx) * out_y + y / stride_y) * out_x + x / stride_x];
        }
    }
    xs[i] = sum;
}

// y[n][o][p] = bias[o], to which the products are added.
extern "C" __global__ void spread_bias(const real* __restrict__ bias, real* __restrict__ ys, long long count, int outputs, int positions) {
    const long long i = grid_index();
    if (i < count) ys[i] = bias[i / positions % outputs];
}

// db[o] = sum over n, p of dy[n][o][p]. A block of a multiple of 32 threads adds one channel.
extern "C" __global__ void bias_gradient(const real* __restrict__ dy, real* __restrict__ db, int batch, int outputs, int positions) {
    real sum = 0;
    for (long long i = threadIdx.x; i < (long long)batch * positions; i += blockDim.x)
        sum += dy[(i / positions * outputs + blockIdx.x) * positions + i % positions];
    sum = block_sum(sum);
    if (threadIdx.x == 0) db[blockIdx.x] = sum;
}
