// Pooling over windows of each channel, for one shape. REDUCTION is MAXIMUM, AVERAGE or ROOT.
//
//     y[p][oy][ox] = the maximum, the sum divided by KH * KW, or the root of the sum of squares, over ky, kx, of
//                    x[p][oy * STRIDE_Y - PAD_Y + ky][ox * STRIDE_X - PAD_X + kx]
//
// What is outside does not count. Shapes: x (planes, IN_H, IN_W), y (planes, OUT_H, OUT_W). The gradient of a maximum goes
// to the first of equal ones in the order of rows, or to the last NaN.

#define MAXIMUM 0
#define AVERAGE 1
#define ROOT 2

static __device__ __forceinline__ int at_least(int a, int least) { return a < least ? least : a; }
static __device__ __forceinline__ int at_most(int a, int most) { return a > most ? most : a; }

// LANES neighbouring threads, 1 or 32, compute an output; `count` is the number of outputs.
extern "C" __global__ void pool(const real* __restrict__ xs, real* __restrict__ ys, long long count) {
    const long long i = grid_index() / LANES;
    if (i >= count) return;
    const int lane = (int)(grid_index() % LANES), oy = (int)(i / OUT_W % OUT_H), ox = (int)(i % OUT_W);
    const real* plane = xs + i / (OUT_H * OUT_W) * IN_H * IN_W;
    const int top = oy * STRIDE_Y - PAD_Y, left = ox * STRIDE_X - PAD_X;
    real result = REDUCTION == MAXIMUM ? -infinity() : (real)0;
#pragma unroll
    for (int k = lane; k < KH * KW; k += LANES) {
        const int y = top + k / KW, x = left + k % KW;
        if (y < 0 || y >= IN_H || x < 0 || x >= IN_W) continue;
        const real value = plane[y * IN_W + x];
        if (REDUCTION == MAXIMUM) result = max_real(result, value);
        else result += REDUCTION == AVERAGE ? value : value * value;
    }
    if (LANES > 1) result = REDUCTION == MAXIMUM ? warp_max(result) : warp_sum(result);
    if (REDUCTION == AVERAGE) result *= (real)1 / (real)(KH * KW);
    if (REDUCTION == ROOT) result = sqrt_real(result);
    if (lane == 0) ys[i] = result;
}

// Whether the maximum y of the window that starts at `top`, `left` is the one at `row`, `column`, of the value x.
static __device__ __forceinline__ bool is_maximum(const real* plane, real y, real x, int top, int left, int row, int column) {
    if (y == y ? x != y : x == x) return false;
    for (int k = 0; k < KH * KW; k++) {
        const int r = top + k / KW, c = left + k % KW;
        if (r < 0 || r >= IN_H || c < 0 || c >= IN_W) continue;
        const int order = (r - row) * IN_W + c - column;
        const real other = plane[r * IN_W + c];
        if (y == y ? order < 0 && other == y : order > 0 && other != other) return false;
    }
    return true;
}

// The gradient: a thread computes that of one element of x, over the windows that cover it in order; `count` is the number
// of elements.
extern "C" __global__ void pool_back(const real* __restrict__ xs, const real* __restrict__ ys, const real* __restrict__ dy, real* __restrict__ dx, long long count) {
    const long long i = grid_index();
    if (i >= count) return;
    const int row = (int)(i / IN_W % IN_H), column = (int)(i % IN_W);
    const long long p = i / (IN_H * IN_W);
    const real* plane = xs + p * IN_H * IN_W;
    const real x = REDUCTION == AVERAGE ? (real)0 : xs[i];
    const int first_y = at_least(row + PAD_Y - KH + STRIDE_Y, 0) / STRIDE_Y, last_y = at_most((row + PAD_Y) / STRIDE_Y, OUT_H - 1);
    const int first_x = at_least(column + PAD_X - KW + STRIDE_X, 0) / STRIDE_X, last_x = at_most((column + PAD_X) / STRIDE_X, OUT_W - 1);
    real sum = 0;
    for (int oy = first_y; oy <= last_y; oy++)
        for (int ox = first_x; ox <= last_x; ox++) {
            const long long o = (p * OUT_H + oy) * OUT_W + ox;
            const real d = dy[o];
            if (REDUCTION == AVERAGE) {
                sum += d * ((real)1 / (real)(KH * KW));
            } else if (REDUCTION == ROOT) {
                // True for NaN, which must reach the gradient.
                if (ys[o] != (real)0) sum += d * x / ys[o];
            } else if (is_maximum(plane, ys[o], x, oy * STRIDE_Y - PAD_Y, ox * STRIDE_X - PAD_X, row, column)) {
                sum += d;
            }
        }
    dx[i] = sum;
}
