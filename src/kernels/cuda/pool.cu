// Pooling over windows of each channel. `reduction` is MAXIMUM, AVERAGE or ROOT.
//
//     y[p][oy][ox] = the maximum, the sum divided by kernel_y * kernel_x, or the root of the sum of squares, over ky, kx, of
//                    x[p][oy * stride_y - pad_y + ky][ox * stride_x - pad_x + kx]
//
// With `relu`, y is the maximum of that and 0. Elements outside do not count. Shapes: x (planes, in_y, in_x), y (planes,
// out_y, out_x). The gradient of a maximum goes to the first of equal ones in row-major order, or to the last NaN.

#define MAXIMUM 0
#define AVERAGE 1
#define ROOT 2

static __device__ __forceinline__ int at_least(int a, int least) { return a < least ? least : a; }
static __device__ __forceinline__ int at_most(int a, int most) { return a > most ? most : a; }

// `lanes` neighbouring threads, 1 or 32, compute an output; `count` is the number of outputs.
extern "C" __global__ void pool(const real* __restrict__ xs, real* __restrict__ ys, long long count, int reduction, int relu, int lanes, int kernel_y, int kernel_x, int stride_y, int stride_x, int pad_y, int pad_x, int in_y, int in_x, int out_y, int out_x) {
    const long long i = grid_index() / lanes;
    if (i >= count) return;
    const long long plane = i / (out_y * out_x);
    const int at = (int)(i - plane * (out_y * out_x)), lane = threadIdx.x % lanes;
    const int top = at / out_x * stride_y - pad_y, left = at % out_x * stride_x - pad_x;
    const int first_y = at_least(top, 0), first_x = at_least(left, 0);
    const int rows = at_most(top + kernel_y, in_y) - first_y, columns = at_most(left + kernel_x, in_x) - first_x;
    const real* from = xs + (plane * in_y + first_y) * in_x + first_x;
    real result = reduction == MAXIMUM ? -infinity() : (real)0;
    for (int k = lane; k < rows * columns; k += lanes) {
        const real value = from[k / columns * in_x + k % columns];
        if (reduction == MAXIMUM) result = max_real(result, value);
        else result += reduction == AVERAGE ? value : value * value;
    }
    if (lanes > 1) result = reduction == MAXIMUM ? warp_max(result) : warp_sum(result);
    if (reduction == AVERAGE) result *= (real)1 / ((real)kernel_y * (real)kernel_x);
    if (reduction == ROOT) result = sqrt_real(result);
    // NaN stays NaN.
    if (relu && result <= (real)0) result = 0;
    if (lane == 0) ys[i] = result;
}

// The gradient: a thread computes the gradient of one element of x, over the windows that cover it in order; `count` is the number
// of elements.
extern "C" __global__ void pool_back(const real* __restrict__ xs, const real* __restrict__ ys, const real* __restrict__ dy, real* __restrict__ dx, long long count, int reduction, int relu, int kernel_y, int kernel_x, int stride_y, int stride_x, int pad_y, int pad_x, int in_y, int in_x, int out_y, int out_x) {
    const long long i = grid_index();
    if (i >= count) return;
    const long long p = i / (in_y * in_x);
    const int at = (int)(i - p * (in_y * in_x)), row = at / in_x, column = at % in_x;
    const real* plane = xs + p * in_y * in_x;
    const real x = reduction == AVERAGE ? (real)0 : xs[i];
    const int first_y = at_least(row + pad_y - kernel_y + stride_y, 0) / stride_y, last_y = at_most((row + pad_y) / stride_y, out_y - 1);
    const int first_x = at_least(column + pad_x - kernel_x + stride_x, 0) / stride_x, last_x = at_most((column + pad_x) / stride_x, out_x - 1);
    real sum = 0;
    for (int oy = first_y; oy <= last_y; oy++)
        for (int ox = first_x; ox <= last_x; ox++) {
            const long long o = (p * out_y + oy) * out_x + ox;
            if (relu && ys[o] <= (real)0) continue;
            if (reduction == AVERAGE) {
                sum += dy[o] * ((real)1 / ((real)kernel_y * (real)kernel_x));
                continue;
            }
            const real y = ys[o];
            if (reduction == ROOT) {
                // True for NaN, which must reach the gradient.
                if (y != (real)0) sum += dy[o] * x / y;
                continue;
            }
            // x is the maximum unless an equal one comes before it, or a NaN after it.
            bool is_maximum = y == y ? x == y : x != x;
            const int top = at_least(oy * stride_y - pad_y, 0), bottom = at_most(oy * stride_y - pad_y + kernel_y, in_y);
            const int left = at_least(ox * stride_x - pad_x, 0), right = at_most(ox * stride_x - pad_x + kernel_x, in_x);
            for (int r = top; is_maximum && r < bottom; r++)
                for (int c = left; c < right; c++) {
                    const int k = r * in_x + c;
                    if (y == y ? k < at && plane[k] == y : k > at && plane[k] != plane[k]) is_maximum = false;
                }
            if (is_maximum) sum += dy[o];
        }
    dx[i] = sum;
}
