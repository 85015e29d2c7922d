// The sums of the rows of a matrix (rows, first + second): column j of the sums goes to to_first[j], or behind column
// `first` to to_second[j - first].
//
//     sum[j] = sum over i of matrix[i][j]
//
// A block of (32, 16) threads adds 32 columns; thread (x, y) adds rows y, y + 16, ... of column x, and the 16 sums of a
// column follow in order.

extern "C" __global__ void __launch_bounds__(512) sum_rows(const real* __restrict__ matrix, real* __restrict__ to_first, real* __restrict__ to_second, int rows, int first, int second) {
    __shared__ real sums[16][32];
    const int column = blockIdx.x * 32 + threadIdx.x, columns = first + second;
    real sum = 0;
    if (column < columns)
#pragma unroll 8
        for (int i = threadIdx.y; i < rows; i += 16) sum += matrix[(long long)i * columns + column];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns) return;
    for (int i = 1; i < 16; i++) sum += sums[i][threadIdx.x];
    if (column < first) to_first[column] = sum;
    else to_second[column - first] = sum;
}
