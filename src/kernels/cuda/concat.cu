// Copies columns of a matrix into columns of another one, and clears the columns after them.
//
//     to[i][j] = from[i][j]    for j < columns
//     to[i][j] = 0             for j from columns to columns + zeros
//
// Rows are `from_stride` and `to_stride` elements apart. A thread writes one element; `count` is their number.

extern "C" __global__ void copy_columns(const real* __restrict__ from, real* __restrict__ to, long long count, int columns, int zeros, long long from_stride, long long to_stride) {
    const long long i = grid_index();
    if (i >= count) return;
    const int width = columns + zeros;
    const long long row = i / width;
    const int column = (int)(i - row * width);
    to[row * to_stride + column] = column < columns ? from[row * from_stride + column] : (real)0;
}
