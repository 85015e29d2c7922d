// Convolution of any geometry as matrix products, for one shape: what surrounds the products.
//
// Shapes: x (batch, CIN, IN_H, IN_W), columns (batch, CIN, KH, KW, OUT_H, OUT_W), y (batch, COUT, OUT_H, OUT_W).

#define TAPS (KH * KW)
#define POSITIONS (OUT_H * OUT_W)

// columns[n][c][ky][kx][y][x] = x[n][c][y * STRIDE_Y - PAD_Y + ky * DILATION_Y][x * STRIDE_X - PAD_X + kx * DILATION_X], or
// 0 where that is outside. A thread writes one element.
extern "C" __global__ void unfold(const real* __restrict__ xs, real* __restrict__ columns, long long count) {
    const long long i = grid_index();
    if (i >= count) return;
    const int at = (int)(i % POSITIONS), tap = (int)(i / POSITIONS % TAPS);
    const int y = at / OUT_W * STRIDE_Y - PAD_Y + tap / KW * DILATION_Y, x = at % OUT_W * STRIDE_X - PAD_X + tap % KW * DILATION_X;
    const bool inside = y >= 0 && y < IN_H && x >= 0 && x < IN_W;
    columns[i] = inside ? xs[(i / (POSITIONS * TAPS) * IN_H + y) * IN_W + x] : (real)0;
}

// The gradient of `unfold`: each element of x gets the sum of the gradients of its copies, by ky, then kx. A thread writes
// one element.
extern "C" __global__ void fold(const real* __restrict__ columns, real* __restrict__ xs, long long count) {
    const long long i = grid_index();
    if (i >= count) return;
    const int at = (int)(i % (IN_H * IN_W));
    const real* from = columns + i / (IN_H * IN_W) * TAPS * POSITIONS;
    real sum = 0;
    for (int ky = 0; ky < KH; ky++) {
        const int y = at / IN_W + PAD_Y - ky * DILATION_Y;
        if (y < 0 || y % STRIDE_Y != 0 || y / STRIDE_Y >= OUT_H) continue;
        for (int kx = 0; kx < KW; kx++) {
            const int x = at % IN_W + PAD_X - kx * DILATION_X;
            if (x < 0 || x % STRIDE_X != 0 || x / STRIDE_X >= OUT_W) continue;
            sum += from[((ky * KW + kx) * OUT_H + y / STRIDE_Y) * OUT_W + x / STRIDE_X];
        }
    }
    xs[i] = sum;
}

// y[n][o][p] = bias[o]: what the products are added to. A thread writes one element.
extern "C" __global__ void spread_bias(const real* __restrict__ bias, real* __restrict__ ys, long long count) {
    const long long i = grid_index();
    if (i < count) ys[i] = bias[i / POSITIONS % COUT];
}

// db[o] = sum over n, p of dy[n][o][p]. A block of a multiple of 32 threads adds one channel.
extern "C" __global__ void bias_gradient(const real* __restrict__ dy, real* __restrict__ db, int batch) {
    real sum = 0;
    for (long long i = threadIdx.x; i < (long long)batch * POSITIONS; i += blockDim.x)
        sum += dy[(i / POSITIONS * COUT + blockIdx.x) * POSITIONS + i % POSITIONS];
    sum = block_sum(sum);
    if (threadIdx.x == 0) db[blockIdx.x] = sum;
}
