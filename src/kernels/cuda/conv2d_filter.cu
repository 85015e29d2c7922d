// The gradient of a convolution with respect to its weights and its bias, for one shape.
//
//     dw[o][c][ky][kx] = sum over n, y, x of dy[n][o][y][x] * in[n][c][y * STRIDE + ky - PAD_Y][x * STRIDE + kx - PAD_X]
//     db[o]            = sum over n, y, x of dy[n][o][y][x]
//
// Shapes: in (batch, CIN, IN_H, IN_W), dy (batch, COUT, OUT_H, OUT_W). The sums run over pieces of BAND rows and LINE
// columns of dy. Part p of gridDim.y adds the pieces from p * pieces to (p + 1) * pieces, in order, into its own row of
// `parts` (gridDim.y, COUT * CIN * KH * KW + COUT); the last COUT are there only with `has_bias`. `sum_rows` adds the rows.
//
// A block has CHANNELS input channels and 4 * FOURS output channels, a thread one of the former and four of the latter, KR rows of
// the kernel, and every RG-th row of a piece. LINE is a multiple of 4.

// check: CIN=16 COUT=16 KH=3 KW=3 PAD_Y=1 PAD_X=1 STRIDE=1 IN_H=32 IN_W=32 OUT_H=32 OUT_W=32 CHANNELS=16 FOURS=4 RG=2 KR=3 BAND=4 LINE=32

#define TAPS (KH * KW)
#define KERNEL_GROUPS ((KH + KR - 1) / KR)
#define THREADS (FOURS * CHANNELS * KERNEL_GROUPS * RG)
#define BLOCKS_C ((CIN + CHANNELS - 1) / CHANNELS)
#define PIECES_X ((OUT_W + LINE - 1) / LINE)
#define PIECES_Y ((OUT_H + BAND - 1) / BAND)
#define SPAN (3 * STRIDE + KW)
#define SPAN4 ((SPAN + 3) / 4 * 4)
#define HIGH ((BAND - 1) * STRIDE + KERNEL_GROUPS * KR)
#define WIDE ((LINE - 4) * STRIDE + SPAN4)
// A channel of the input in shared memory: an odd number of quadruples, for the sake of the banks.
#define PLANE ((HIGH * WIDE + 3) / 8 * 8 + 4)
// Whether whole rows are loaded, in quadruples.
#define QUADRUPLES (PIECES_X == 1 && IN_W % 4 == 0 && OUT_W % 4 == 0)
// A position of dy in shared memory.
#define PIXEL (FOURS * 4 + 4)
#define COLUMNS ((long long)COUT * CIN * TAPS)

extern "C" __global__ void __launch_bounds__(THREADS, 1) conv2d_filter(const real* __restrict__ in, const real* __restrict__ dy, real* __restrict__ parts, int batch, int pieces, int has_bias) {
    DYNAMIC_SHARED(real, shared);
    real* xs = shared;
    real* ds = shared + CHANNELS * PLANE;
    const int tid = threadIdx.x;
    const int four = tid % FOURS, channel = tid / FOURS % CHANNELS;
    const int ky = tid / (FOURS * CHANNELS) % KERNEL_GROUPS * KR, rows = tid / (FOURS * CHANNELS * KERNEL_GROUPS);
    const int first_in = blockIdx.x % BLOCKS_C * CHANNELS, first_out = blockIdx.x / BLOCKS_C * FOURS * 4;
    real sums[KR][KW][4];
#pragma unroll
    for (int k = 0; k < KR; k++)
#pragma unroll
        for (int kx = 0; kx < KW; kx++) sums[k][kx][0] = sums[k][kx][1] = sums[k][kx][2] = sums[k][kx][3] = 0;
    real bias[4] = {0, 0, 0, 0};
#if QUADRUPLES
    // The columns outside of the input stay 0.
    const bool aligned = ((unsigned long long)in | (unsigned long long)dy) % sizeof(real4) == 0;
    for (int i = tid; i < CHANNELS * PLANE; i += THREADS) xs[i] = 0;
    __syncthreads();
#endif
    const long long start = (long long)blockIdx.y * pieces, all = (long long)batch * PIECES_Y * PIECES_X;
    for (long long piece = start; piece < start + pieces && piece < all; piece++) {
        const int left = (int)(piece % PIECES_X) * LINE, top = (int)(piece / PIECES_X % PIECES_Y) * BAND;
        const long long image = piece / (PIECES_X * PIECES_Y);
        const real* x_image = in + image * CIN * IN_H * IN_W;
        const real* dy_image = dy + image * COUT * OUT_H * OUT_W;
#if QUADRUPLES
        if (aligned) {
#pragma unroll 4
            for (int i = tid; i < CHANNELS * HIGH * (IN_W / 4); i += THREADS) {
                const int x = i % (IN_W / 4) * 4, line = i / (IN_W / 4), c = line / HIGH, y = top * STRIDE - PAD_Y + line % HIGH;
                real4 four = {0, 0, 0, 0};
                if (first_in + c < CIN && y >= 0 && y < IN_H)
                    four = *(const real4*)(x_image + ((first_in + c) * IN_H + y) * IN_W + x);
                real* to = xs + c * PLANE + line % HIGH * WIDE + x + PAD_X;
                if (x + PAD_X < WIDE) to[0] = four.x;
                if (x + PAD_X + 1 < WIDE) to[1] = four.y;
                if (x + PAD_X + 2 < WIDE) to[2] = four.z;
                if (x + PAD_X + 3 < WIDE) to[3] = four.w;
            }
#pragma unroll 4
            for (int i = tid; i < FOURS * BAND * LINE; i += THREADS) {
                const int x = i % (LINE / 4) * 4, y = i / (LINE / 4) % BAND, o = i / (LINE / 4 * BAND);
                real4 four = {0, 0, 0, 0};
                if (first_out + o < COUT && top + y < OUT_H)
                    four = *(const real4*)(dy_image + ((first_out + o) * OUT_H + top + y) * OUT_W + x);
                real* to = ds + (y * LINE + x) * PIXEL + o;
                to[0] = four.x, to[PIXEL] = four.y, to[2 * PIXEL] = four.z, to[3 * PIXEL] = four.w;
            }
        } else
#endif
        {
            for (int i = tid; i < CHANNELS * HIGH * WIDE; i += THREADS) {
                const int c = i / (HIGH * WIDE), at = i % (HIGH * WIDE);
                const int y = top * STRIDE - PAD_Y + at / WIDE, x = left * STRIDE - PAD_X + at % WIDE;
                const bool inside = first_in + c < CIN && y >= 0 && y < IN_H && x >= 0 && x < IN_W;
                xs[c * PLANE + at] = inside ? x_image[((first_in + c) * IN_H + y) * IN_W + x] : (real)0;
            }
            for (int i = tid; i < FOURS * 4 * BAND * LINE; i += THREADS) {
                const int x = i % LINE, y = i / LINE % BAND, o = i / (LINE * BAND);
                const bool inside = first_out + o < COUT && top + y < OUT_H && left + x < OUT_W;
                ds[(y * LINE + x) * PIXEL + o] = inside ? dy_image[((first_out + o) * OUT_H + top + y) * OUT_W + left + x] : (real)0;
            }
        }
        __syncthreads();
#pragma unroll 1
        for (int y = rows; y < BAND; y += RG) {
            const real* x_line = xs + channel * PLANE + (y * STRIDE + ky) * WIDE;
            const real* d_line = ds + y * LINE * PIXEL + four * 4;
#pragma unroll 1
            for (int x = 0; x < LINE; x += 4) {
                real4 d[4];
#pragma unroll
                for (int i = 0; i < 4; i++) d[i] = *(const real4*)(d_line + (x + i) * PIXEL);
                if (has_bias)
#pragma unroll
                    for (int i = 0; i < 4; i++) bias[0] += d[i].x, bias[1] += d[i].y, bias[2] += d[i].z, bias[3] += d[i].w;
#pragma unroll
                for (int k = 0; k < KR; k++) {
                    real v[SPAN4];
#pragma unroll
                    for (int i = 0; i < SPAN4; i += 4) {
                        const real4 f = *(const real4*)(x_line + k * WIDE + x * STRIDE + i);
                        v[i] = f.x, v[i + 1] = f.y, v[i + 2] = f.z, v[i + 3] = f.w;
                    }
#pragma unroll
                    for (int i = 0; i < 4; i++)
#pragma unroll
                        for (int kx = 0; kx < KW; kx++) {
                            const real s = v[i * STRIDE + kx];
                            sums[k][kx][0] += s * d[i].x;
                            sums[k][kx][1] += s * d[i].y;
                            sums[k][kx][2] += s * d[i].z;
                            sums[k][kx][3] += s * d[i].w;
                        }
                }
            }
        }
        __syncthreads();
    }
    // Adds the sums of the groups of rows in order, in shared memory.
    for (int g = 0; g < RG; g++) {
        if (rows == g) {
#pragma unroll
            for (int k = 0; k < KR; k++)
#pragma unroll
                for (int kx = 0; kx < KW; kx++)
#pragma unroll
                    for (int o = 0; o < 4; o++) {
                        real* s = shared + (((ky + k) * KW + kx) * 4 + o) * (CHANNELS * FOURS) + channel * FOURS + four;
                        *s = g == 0 ? sums[k][kx][o] : *s + sums[k][kx][o];
                    }
            if (has_bias && channel == 0 && ky == 0)
                for (int o = 0; o < 4; o++) {
                    real* s = shared + KERNEL_GROUPS * KR * KW * 4 * CHANNELS * FOURS + four * 4 + o;
                    *s = g == 0 ? bias[o] : *s + bias[o];
                }
        }
        __syncthreads();
    }
    parts += blockIdx.y * (COLUMNS + (has_bias ? COUT : 0));
    for (int i = tid; i < FOURS * 4 * CHANNELS * TAPS; i += THREADS) {
        const int tap = i % TAPS, c = i / TAPS % CHANNELS, o = i / (TAPS * CHANNELS);
        if (first_out + o < COUT && first_in + c < CIN)
            parts[((first_out + o) * CIN + first_in + c) * TAPS + tap] = shared[(tap * 4 + o % 4) * (CHANNELS * FOURS) + c * FOURS + o / 4];
    }
    if (has_bias && first_in == 0)
        for (int o = tid; o < FOURS * 4; o += THREADS)
            if (first_out + o < COUT) parts[COLUMNS + first_out + o] = shared[KERNEL_GROUPS * KR * KW * 4 * CHANNELS * FOURS + o];
}
